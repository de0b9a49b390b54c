"""The pack's requirements: which are harmless, and which name a source instead of a version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit, urlunsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidName, canonicalize_name

from cpack_build.errors import CpackError, Unresolvable, UnsafeInput, together
from cpack_build.fetch.git import canonical_url
from cpack_build.fetch.urls import redact
from cpack_build.lock.wheels import filename_of

__all__ = ["GitSource", "git_source", "hashed", "is_name", "is_source", "parse_requirements"]


def parse_requirements(
    requirements: Iterable[str], *, exclude: Iterable[str] = (), replaced: Iterable[str] = ()
) -> list[Requirement]:
    """The pack's requirements, less those that are excluded or replaced by name, each known to be harmless.

    Raises :class:`UnsafeInput` for options, local files and anything else that is no requirement, and
    :class:`Unresolvable` for a source that is not pinned or of a kind that is not fetched.
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


def is_name(name: str) -> bool:
    """Whether it is a package's name and nothing else."""
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
    if scheme == "https":
        return
    if scheme in ("git+https", "git+http", "git+ssh"):
        git_source(requirement)
        return
    if scheme in ("http", "hg+https", "svn+https", "bzr+https"):
        raise Unresolvable(f"{name} is installed from {redact(url)}, which is neither https nor git.", hint=way_out)
    raise UnsafeInput(f"{name} is installed from {redact(url)}, a place on the packer's machine.", hint=way_out)


def is_source(requirement: Requirement) -> bool:
    """Whether it names a repository or an archive that must be built."""
    return requirement.url is not None and not filename_of(requirement.url.partition("#")[0]).endswith(".whl")


@dataclass(frozen=True)
class GitSource:
    """A package at one commit of a repository, in *subdirectory* of it."""

    url: str
    commit: str
    subdirectory: str = ""


def git_source(requirement: Requirement) -> GitSource:
    """What ``name @ git+https://host/repository@commit#subdirectory=folder`` names (PEP 440, "Direct references").

    Raises :class:`Unresolvable` where there is no whole commit, :class:`UnsafeInput` for a URL that is not fetched.
    """
    parts = urlsplit((requirement.url or "").partition("+")[2])
    path, _, revision = parts.path.partition("@")
    folder = parse_qs(parts.fragment).get("subdirectory", [""])[0].strip("/")
    if ".." in folder.split("/") or "\\" in folder or "\0" in folder:
        raise UnsafeInput(f"{requirement.name}: the subdirectory {folder!r} leads out of its repository.")
    url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
    canonical_url(url)
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision):
        raise Unresolvable(
            f"{requirement.name} is installed from {redact(requirement.url or '')}, which names no commit.",
            hint=f"Name the whole one: {requirement.name} @ git+https://HOST/REPOSITORY@COMMIT in python.packages.",
        )
    return GitSource(url, revision, folder)


def hashed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Requirements and their sha256 from a requirements file as uv writes it."""
    joined = re.sub(r"\\\s*\n", " ", text)
    for line in joined.splitlines():
        line = line.partition(" #")[0].strip()
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=sha256:", line)
            yield requirement, [value.strip() for value in hashes]
