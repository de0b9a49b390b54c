"""Python packages: requirements → one wheel for each package, resolved by uv, pinned by sha256 as PEP 751.

uv resolves; what it says is reduced to the one wheel per package that fits the image, in a form that holds nothing of
this machine. Only wheels: an sdist would run its code to be built. The pack's pins are requirements and overrides at
once, because they come from an environment that worked: a dependency's wish for another version must not undo them.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.pylock import Pylock, PylockSelectError, PylockValidationError
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidName, canonicalize_name, parse_wheel_filename

from cpack_build.errors import (
    BadInput,
    CpackError,
    HashMismatch,
    NetworkError,
    ToolMissing,
    Unresolvable,
    UnsafeInput,
    together,
)
from cpack_build.fetch.http import Sources, adopt_verified, download
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.store import Store
from cpack_build.fetch.urls import redact, without_credentials
from cpack_build.lock.schema import PythonEnvironment
from cpack_build.lock.wheels import Wheel, filename_of, pylock_text, read_toml
from cpack_build.progress import SILENT, Progress

__all__ = ["Target", "lock_environment", "lock_service", "parse_requirements"]

_UV_GLIBC = (40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 28, 17)
"""Minor versions of glibc 2 for which uv knows a ``manylinux_2_N`` platform."""
_MOST_NAMED = 20
"""Packages that cannot be had and are named in one run."""
_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""PEP 600, "Legacy manylinux tags"."""


@dataclass(frozen=True)
class Target:
    """What wheels must run on: Python *python_version* (``3.11``) and glibc 2.*glibc* on *platform*."""

    python_version: str
    platform: Literal["linux/amd64", "linux/arm64"] = "linux/amd64"
    glibc: int = 36

    @property
    def machine(self) -> str:
        """The processor as wheels and uv call it."""
        return "x86_64" if self.platform == "linux/amd64" else "aarch64"

    @property
    def uv_platform(self) -> str:
        """uv's name of the newest platform that is no newer than the target."""
        return f"{self.machine}-manylinux_2_{next(minor for minor in (*_UV_GLIBC, 17) if minor <= max(self.glibc, 17))}"

    def tags(self) -> list[Tag]:
        """The wheel tags that fit, the best first."""
        platforms = []
        for minor in range(self.glibc, 4 if self.machine == "x86_64" else 16, -1):
            platforms.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _MANYLINUX:
                platforms.append(f"{_MANYLINUX[minor]}_{self.machine}")
        platforms.append(f"linux_{self.machine}")
        version = tuple(int(part) for part in self.python_version.split("."))
        interpreter = "cp" + "".join(map(str, version))
        return [
            *cpython_tags(python_version=version, platforms=platforms),
            *compatible_tags(python_version=version, interpreter=interpreter, platforms=platforms),
        ]

    def markers(self) -> dict[str, str]:
        """PEP 508 marker values of the target."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python_version}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python_version}.0",
            "python_version": self.python_version,
            "sys_platform": "linux",
        }


def parse_requirements(
    requirements: Iterable[str], *, exclude: Iterable[str] = (), replaced: Iterable[str] = ()
) -> list[Requirement]:
    """The pack's requirements, less those that are excluded or replaced by name, each known to be harmless.

    Raises :class:`UnsafeInput` for options, local files and anything else that is no requirement, and
    :class:`Unresolvable` for sources that would have to be built.
    """
    left_out = {canonicalize_name(name) for name in (*exclude, *replaced)}
    found = []
    refused: list[CpackError] = []
    for text in requirements:
        try:
            if re.search(r"[\r\n\x00]", text):
                raise InvalidRequirement("it has more than one line")
            requirement = Requirement(text)
        except InvalidRequirement:
            hint = "Correct it in the pack."
            refused.append(
                UnsafeInput(
                    f"The pack's requirement {redact(text)!r} is no package requirement: not passed on.", hint=hint
                )
            )
            continue
        if canonicalize_name(requirement.name) in left_out:
            continue
        if requirement.url is not None:
            try:
                _check_direct(requirement)
            except (Unresolvable, UnsafeInput) as error:
                refused.append(error)
                continue
        found.append(requirement)
    if refused:
        raise together(refused)
    return found


def _is_name(name: str) -> bool:
    try:
        canonicalize_name(name, validate=True)
    except InvalidName:
        return False
    return True


def _check_direct(requirement: Requirement) -> None:
    url, name = requirement.url or "", requirement.name
    way_out = (
        f"Leave it out with python.exclude: [{name}] in cpack.yaml, or name a version in python.packages "
        "and give its wheel with --find-links."
    )
    if "${" in url:  # uv would put the variable's value there, perhaps a token, and send it to the URL's host
        raise UnsafeInput(
            f"{name} is installed from {redact(url)}, which asks for an environment variable.", hint=way_out
        )
    scheme = url.partition(":")[0].lower()
    if scheme == "https" and filename_of(url).endswith(".whl"):
        return
    if scheme in ("http", "https") or "+" in scheme:
        raise Unresolvable(
            f"{name} is installed from {redact(url)}, which is no wheel and would have to be built.", hint=way_out
        )
    raise UnsafeInput(f"{name} is installed from {redact(url)}, a place on the packer's machine.", hint=way_out)


def lock_environment(
    requirements: Sequence[str],
    *,
    target: Target,
    store: Store,
    sources: Sources,
    packages: Sequence[str] = (),
    exclude: Sequence[str] = (),
    find_links: Sequence[str] = (),
    index_url: str | None = None,
    extra_index_urls: Sequence[str] = (),
    preferred: Sequence[str] = (),
    progress: Progress = SILENT,
) -> PythonEnvironment:
    """Resolve the pack's *requirements*, with *packages* over them and without those named in *exclude*.

    An excluded package is not brought back by another's dependency. Of what no pin decides, the versions *preferred*
    (``name==1.2``, an earlier lock's) stay where they can. Raises :class:`UnsafeInput`,
    :class:`Unresolvable`, :class:`NetworkError`, :class:`ToolMissing`.
    """
    for name in exclude:
        if not _is_name(name):
            raise UnsafeInput(
                f"python.exclude names {name!r}, which is no package name.", hint="Write names without versions."
            )
    added = parse_requirements(packages)
    kept = parse_requirements(requirements, exclude=exclude, replaced=[requirement.name for requirement in added])
    wanted = sorted({str(requirement) for requirement in (*kept, *added)})
    never = [f'{canonicalize_name(name)} ; sys_platform == "never"' for name in exclude]
    options = _options(find_links, index_url, extra_index_urls, sources)
    missing: list[CpackError] = []
    with progress.task("Resolving Python packages", total=len(wanted), unit="packages"):
        while True:
            try:
                document = _compile(
                    wanted, overrides=[*wanted, *never], target=target, options=options, preferred=preferred
                )
                break
            except Unresolvable as error:
                # uv stops at the first package that nobody has: ask again without it, to name the others as well
                missing.append(error)
                lost = _culprit(error.message, wanted)
                if lost is None or len(missing) == _MOST_NAMED:
                    raise together(missing) from None
                wanted.remove(lost)
                never.append(f'{canonicalize_name(Requirement(lost).name)} ; sys_platform == "never"')
    if missing:
        raise together(missing)
    return _environment(document, target=target, store=store, sources=sources, progress=progress)


def lock_service(
    requirements_txt: str,
    *,
    target: Target,
    store: Store,
    sources: Sources,
    find_links: Sequence[str] = (),
    index_url: str | None = None,
    extra_index_urls: Sequence[str] = (),
    progress: Progress = SILENT,
) -> PythonEnvironment:
    """The service's environment from its committed, hash-pinned *requirements_txt*.

    Its pins decide the versions, its hashes are demanded of every wheel: all users get the same bytes. Raises
    :class:`HashMismatch` when an index offers others, else as :func:`lock_environment`.
    """
    promised: dict[str, set[str]] = {}
    wanted = []
    for text, hashes in _hashed(requirements_txt):
        requirement = Requirement(text)
        promised.setdefault(canonicalize_name(requirement.name), set()).update(hashes)
        wanted.append(str(requirement))
    with progress.task("Resolving the service's packages", total=len(wanted), unit="packages"):
        document = _compile(
            wanted,
            overrides=[],
            target=target,
            is_service=True,
            options=["--no-deps", *_options(find_links, index_url, extra_index_urls, sources)],
        )
    return _environment(document, target=target, store=store, sources=sources, progress=progress, promised=promised)


def _hashed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Requirements and their sha256 from a requirements file as uv writes it."""
    joined = re.sub(r"\\\s*\n", " ", text)
    for line in joined.splitlines():
        line = line.partition(" #")[0].strip()
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=sha256:", line)
            yield requirement, [value.strip() for value in hashes]


def _culprit(message: str, wanted: Sequence[str]) -> str | None:
    """Which of the requirements *wanted* is the one that *message* says no index has, or has no wheel of."""
    found = re.search(
        r"Because (?:there (?:is|are) no versions? of )?([A-Za-z0-9][A-Za-z0-9._-]*)"
        r"(?:==\S+ has no (?:usable )?wheels|\S* was not found|[=<>!~]=?\S+ and you require|==\S+)",
        message,
    ) or re.search(r"\b([A-Za-z0-9][A-Za-z0-9._-]*) was not found in", message)
    if found is None:
        return None
    name = canonicalize_name(found[1])
    return next((text for text in wanted if canonicalize_name(Requirement(text).name) == name), None)


def _options(
    find_links: Sequence[str], index_url: str | None, extra_index_urls: Sequence[str], sources: Sources
) -> list[str]:
    options = ["--offline"] if sources.mirrors.is_offline else []
    for place in find_links:
        path = local_path(place)
        if path is not None and not path.is_dir():
            raise Unresolvable(f"--find-links names {place}, where no folder is.", hint="Correct it.")
        options.append("--find-links=" + (str(path.absolute()) if path is not None else place))
    if index_url is not None:
        options.append("--default-index=" + sources.mirrors.apply(index_url))
    options += ["--index=" + sources.mirrors.apply(url) for url in extra_index_urls]
    return options


# -- uv ----------------------------------------------------------------------------------------------------------------


def _compile(
    requirements: Sequence[str],
    *,
    overrides: Sequence[str],
    target: Target,
    options: Sequence[str],
    preferred: Sequence[str] = (),
    is_service: bool = False,
) -> str:
    """``pylock.toml`` as uv writes it. The user's own uv configuration counts; that of the current folder does not."""
    with tempfile.TemporaryDirectory(prefix="cpack-uv-") as folder:
        place = Path(folder)
        (place / "requirements.in").write_text("".join(line + "\n" for line in requirements), "utf-8")
        (place / "overrides.txt").write_text("".join(line + "\n" for line in overrides), "utf-8")
        # uv keeps the versions that it finds in its output where they still fit; only a requirements.txt says no more
        form, output = ("requirements.txt", "kept.txt") if preferred else ("pylock.toml", "pylock.toml")
        if preferred:
            (place / output).write_text("".join(line + "\n" for line in preferred), "utf-8")
        result = subprocess.run(
            [
                _uv(), "pip", "compile", "requirements.in", "--override=overrides.txt", f"--format={form}",
                f"--output-file={output}", f"--python-version={target.python_version}",
                f"--python-platform={target.uv_platform}", "--only-binary=:all:", "--no-python-downloads",
                "--no-header", "--no-annotate", "--no-progress", "--color=never", *options,
            ],
            cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "UV_PROJECT")},
        )  # fmt: skip
        if result.returncode:
            raise _explained(result.stderr.decode("utf-8", "replace"), target, is_service=is_service)
        if preferred:
            pins = (place / output).read_text("utf-8").splitlines()
            return _compile(
                [*requirements, *pins], overrides=overrides, target=target, options=options, is_service=is_service
            )
        return (place / "pylock.toml").read_text("utf-8")


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return os.fspath(find_uv_bin())
    except (ImportError, FileNotFoundError):
        raise ToolMissing(
            "uv, which resolves Python packages, is not installed.", hint="Run `python -m pip install uv`."
        ) from None


def _explained(said: str, target: Target, *, is_service: bool) -> Unresolvable | NetworkError | ToolMissing:
    """One sentence from what uv printed."""
    lines = [line.strip() for line in redact(said).splitlines() if line.strip()]
    causes = " ".join(
        re.sub(r"^(error|cause|×|╰─▶|├─▶|│)[:\s]*", "", line)
        for line in lines
        if not line.startswith(("hint", "warning", "Resolved"))
    )
    causes = re.sub(r"we can conclude that your requirements are unsatisfiable", "nothing fits", causes)
    causes = re.sub(r"^No solution found when resolving dependencies:?\s*", "", causes).rstrip(".")
    whose = "The service's own Python packages" if is_service else "The Python packages"
    if re.search(r"(F|f)ailed to fetch|error sending request|Could not connect|dns error", said):
        return NetworkError(
            f"{whose} cannot be resolved: {causes}.",
            hint="Check the network, or name an index with --index-url or wheels with --find-links.",
        )
    if "No interpreter found" in said or "no interpreter" in said.lower():
        return ToolMissing(f"uv found no Python to work with: {causes}.", hint="Install python3.")
    missing = re.search(r"there is no version of ([A-Za-z0-9_.-]+)==(\S+?\+\w[\w.]*)", said)
    if is_service:
        hint = (
            f"It needs Python 3.10 or newer and glibc 2.28 or newer (here: {target.python_version}, 2.{target.glibc}), "
            "and an index that has its pinned versions."
        )
    elif missing:
        hint = (
            f"Name where {missing[1]} {missing[2]} lies with --find-links or --extra-index-url: wheels with a label "
            "such as +cpu, +cu128 or +rocm6.4 are on their project's own index, one for each label."
        )
    elif "no usable wheels" in said or "no wheels" in said:
        hint = (
            f"Only wheels for Python {target.python_version} on {target.uv_platform} are used: give one with "
            "--find-links, choose another version in python.packages, or leave it out with python.exclude."
        )
    else:
        hint = "Change versions with python.packages or python.exclude in cpack.yaml, or add an index or --find-links."
    return Unresolvable(f"{whose} cannot be resolved: {causes}.", hint=hint)


def _environment(
    document: str,
    *,
    target: Target,
    store: Store,
    sources: Sources,
    progress: Progress,
    promised: dict[str, set[str]] | None = None,
) -> PythonEnvironment:
    """The best wheel of each package, in canonical form."""
    try:
        pylock = Pylock.from_dict(read_toml(document))
        chosen = list(pylock.select(environment=target.markers(), tags=target.tags()))  # type: ignore[arg-type]
    except PylockSelectError as error:
        raise Unresolvable(
            f"No wheel fits Python {target.python_version} on {target.uv_platform}: {error}.",
            hint="Give one with --find-links, or leave the package out with python.exclude in cpack.yaml.",
        ) from error
    except (PylockValidationError, ValueError) as error:
        raise BadInput(f"uv wrote a pylock.toml that cannot be read: {error}.", hint="Update uv.") from error
    wheels = []
    for package, file in chosen:
        url = getattr(file, "url", None)
        path = local_path(url) if url is not None else Path(getattr(file, "path", None) or "")
        filename = path.name if path is not None else filename_of(url or "")
        hashes = getattr(file, "hashes", None) or {}
        sha256, size = hashes.get("sha256"), getattr(file, "size", None)
        allowed = (promised or {}).get(package.name)
        if promised is not None and sha256 is not None and sha256 not in (allowed or ()):
            raise HashMismatch(
                f"{filename}, as the index offers it,",
                expected=" or ".join(sorted(allowed or ())),
                actual=sha256,
                hint="The service's packages are pinned; use an index with the same files.",
            )
        if path is not None:
            stored = adopt_verified(path, store=store, sha256=sha256, progress=progress)
            url, sha256, size = None, stored.sha256, stored.size
        elif sha256 is None:
            stored = download(url or "", store=store, sources=sources, what=filename, progress=progress)
            sha256, size = stored.sha256, stored.size
        _, version, _, _ = parse_wheel_filename(filename)
        wheels.append(
            Wheel(package.name, str(version), filename, without_credentials(url) if url else None, sha256, size)
        )
    text = pylock_text(wheels, python_version=target.python_version)
    return PythonEnvironment(pylock=text, pylock_sha256=hashlib.sha256(text.encode()).hexdigest())
