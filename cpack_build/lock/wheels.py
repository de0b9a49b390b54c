"""The wheels of a locked environment: which files they are, and how they get into the store."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from packaging.pylock import Pylock, PylockValidationError
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from cpack_build.errors import BadInput, HashMismatch, Unresolvable
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.lock.schema import WHEEL_NAME, PinnedWheels
from cpack_build.progress import SILENT, Progress

__all__ = ["Wheel", "fetch_wheel", "filename_of", "pylock_text", "read_toml", "wheels_of", "with_credentials"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Wheel:
    """One wheel: *name* normalised, *sha256* in hex, *size* in bytes; no *url* for one from a local folder."""

    name: str
    version: str
    filename: str
    url: str | None
    sha256: str
    size: int | None


def wheels_of(environment: PinnedWheels) -> tuple[Wheel, ...]:
    """The wheels of *environment*, by name. Raises :class:`BadInput`, :class:`HashMismatch` for a tampered lock."""
    return _wheels_in(environment.pylock, environment.pylock_sha256)


@lru_cache(maxsize=8)  # a lock's are asked for again and again, and TOML is read slowly
def _wheels_in(text: str, sha256: str) -> tuple[Wheel, ...]:
    actual = hashlib.sha256(text.encode()).hexdigest()
    if actual != sha256:
        raise HashMismatch("The lock's pylock", expected=sha256, actual=actual)
    try:
        pylock = Pylock.from_dict(read_toml(text))
        found = []
        for package in pylock.packages:
            (wheel,) = package.wheels or ()
            filename, sha256 = wheel.filename, wheel.hashes["sha256"]
            name, version, _, _ = parse_wheel_filename(filename)
            if name != package.name or not _SHA256.fullmatch(sha256) or not re.fullmatch(WHEEL_NAME, filename):
                raise ValueError(f"{package.name} is not what its wheel {filename!r} says")
            found.append(Wheel(name, str(version), filename, wheel.url, sha256, wheel.size))
    except (PylockValidationError, InvalidWheelFilename, ValueError, KeyError) as error:
        raise BadInput(f"The lock's pylock is damaged: {error}.", hint="Run `cpack-build lock` again.") from error
    return tuple(sorted(found, key=lambda wheel: wheel.name))


def fetch_wheel(
    wheel: Wheel,
    *,
    store: Store,
    sources: Sources,
    find_links: Sequence[str] = (),
    index_urls: Sequence[str] = (),
    progress: Progress = SILENT,
) -> StoredFile:
    """The wheel in the store, its hash proved.

    One without URL is looked for by name in the folders of *find_links*. Credentials of an index in *index_urls* are
    used for downloads from its own scheme, host and port, nowhere else. Raises :class:`Unresolvable`,
    :class:`NetworkError`, :class:`HashMismatch`.
    """
    if (known := store.find(wheel.sha256)) is not None:
        return known
    different = None
    for folder in filter(None, (local_path(place) for place in find_links)):
        path = folder / wheel.filename
        if path.is_file():
            file = store.adopt(path)
            if file.sha256 == wheel.sha256:
                return file
            different = file
    if wheel.url is None:
        if different is not None:
            raise HashMismatch(different.path, expected=wheel.sha256, actual=different.sha256)
        raise Unresolvable(
            f"The wheel {wheel.filename} was taken from a local folder, and is in none of those named now.",
            hint="Name the folder that holds it with --find-links.",
        )
    url = with_credentials(wheel.url, index_urls)
    return download(
        url, store=store, sources=sources, sha256=wheel.sha256, size=wheel.size, what=wheel.filename, progress=progress
    )


def with_credentials(url: str, index_urls: Sequence[str]) -> str:
    """*url* with the credentials of that one of *index_urls* which has its scheme, host and port, if any."""
    parts = urlsplit(url)
    for index in index_urls:
        given = urlsplit(index)
        userinfo, at, host = given.netloc.rpartition("@")
        if at and (given.scheme, host) == (parts.scheme, parts.netloc):
            return urlunsplit(parts._replace(netloc=f"{userinfo}@{host}"))
    return url


def pylock_text(wheels: Sequence[Wheel], *, python_version: str) -> str:
    """PEP 751 with exactly these wheels: one byte form for the same set, with nothing of the machine in it."""
    lines = ['lock-version = "1.0"', f'requires-python = "=={python_version}.*"', 'created-by = "cpack-build"']
    if not wheels:
        lines.append("packages = []")
    for wheel in sorted(wheels, key=lambda wheel: wheel.name):
        place = f"url = {_string(wheel.url)}" if wheel.url is not None else f"path = {_string(wheel.filename)}"
        size = f", size = {wheel.size}" if wheel.size is not None else ""
        lines += [
            "",
            "[[packages]]",
            f"name = {_string(wheel.name)}",
            f"version = {_string(wheel.version)}",
            f"wheels = [{{ name = {_string(wheel.filename)}, {place}{size}, "
            f"hashes = {{ sha256 = {_string(wheel.sha256)} }} }}]",
        ]
    return "\n".join(lines) + "\n"


def _string(text: str) -> str:
    """A TOML basic string (TOML 1.0, "String")."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'


def read_toml(text: str) -> dict[str, object]:
    """TOML by whichever reader this Python has. Raises ``ValueError``."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def filename_of(url: str) -> str:
    """The file name at the end of a URL's path."""
    return Path(unquote(urlsplit(url).path)).name
