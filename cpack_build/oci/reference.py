"""The names of images, as they are written everywhere: ``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``,
``docker:NAME``, ``podman:NAME``, or a plain reference to a registry.

Names and tags follow the distribution spec's grammar ("Pulling manifests"); a reference without a registry is Docker
Hub's, as for every engine. To name Docker Hub's own image called ``docker`` write ``docker.io/library/docker``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cpack_build.errors import UsageError

__all__ = [
    "ArchiveName",
    "EngineName",
    "ImageName",
    "LayoutName",
    "Reference",
    "is_digest",
    "is_tag",
    "parse_image_name",
    "parse_reference",
]

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_NAME_LIMIT = 255
"""Characters of a name, with its host and tag ("Pulling manifests" warns of clients that take no more)."""
_FORMS = (
    "Write oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, docker[:NAME], podman[:NAME], "
    "or a registry reference such as registry.example/team/name:tag."
)


def is_digest(text: str) -> bool:
    """Whether *text* is ``sha256:`` and 64 lowercase hex digits, the only digests that are used here."""
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether *text* is a tag by the distribution spec."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True)
class Reference:
    """An image in a registry: ``registry/repository[:tag][@digest]``."""

    registry: str
    """Host and perhaps port, as a person writes it: ``docker.io``, ``localhost:5000``."""
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Without tag and digest: ``docker.io/library/debian``."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """What a registry is asked for: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"

    @property
    def tagged(self) -> str:
        """``registry/repository:tag``, with ``latest`` if there is no tag: what an engine stores it under."""
        return f"{self.name}:{self.tag or 'latest'}"

    @property
    def familiar(self) -> str:
        """:attr:`tagged` as short as every engine understands: without Docker Hub's host and ``library/``."""
        if self.registry != "docker.io":
            return self.tagged
        return self.tagged.removeprefix("docker.io/").removeprefix("library/")


@dataclass(frozen=True)
class LayoutName:
    """An OCI image layout in a folder, and which of its images."""

    path: Path
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"oci:{self.path}{tag}{digest}"


@dataclass(frozen=True)
class ArchiveName:
    """A tar of an image. Both flavours are written as the hybrid that every engine loads."""

    path: Path
    flavour: Literal["oci", "docker"] = "oci"

    def __str__(self) -> str:
        return f"{self.flavour}-archive:{self.path}"


@dataclass(frozen=True)
class EngineName:
    """An image in a local engine; without *reference*, whoever makes the image chooses its name."""

    engine: Literal["docker", "podman"]
    reference: Reference | None = None

    def __str__(self) -> str:
        return self.engine if self.reference is None else f"{self.engine}:{self.reference.familiar}"


ImageName = LayoutName | ArchiveName | EngineName | Reference


def parse_image_name(text: str) -> ImageName:
    """Read the name of an image. Raises :class:`UsageError`."""
    if not text or not text.isprintable() or text != text.strip():
        raise UsageError(f"{text!r} is no image name.", hint=_FORMS)
    scheme, colon, rest = text.partition(":")
    if scheme == "oci" and colon:
        return _parse_layout(text, rest)
    if scheme == "oci-archive" and colon:
        return ArchiveName(_path(text, rest), "oci")
    if scheme == "docker-archive" and colon:
        return ArchiveName(_path(text, rest), "docker")
    if scheme in ("docker", "podman") and not rest.startswith("//"):
        reference = _parse_engine_reference(text, rest) if colon else None
        return EngineName("docker" if scheme == "docker" else "podman", reference)
    return parse_reference(text)


def parse_reference(text: str) -> Reference:
    """Read ``[host[:port]/]path[:tag][@digest]``; without a host it is Docker Hub's. Raises :class:`UsageError`."""
    if "://" in text:
        short = text.partition("://")[2]
        raise UsageError(f"{text!r} is a URL, not an image name.", hint=f"Write it without its scheme: {short}")
    name, at, digest = text.partition("@")
    if len(name) > _NAME_LIMIT:
        raise UsageError(f"{text[:60]!r}… is longer than {_NAME_LIMIT} characters.", hint="Choose a shorter name.")
    if at and not is_digest(digest):
        raise UsageError(f"{text!r}: {digest!r} is no digest.", hint="A digest is sha256: and 64 lowercase hex digits.")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not is_tag(tag):
        raise UsageError(f"{text!r}: {tag!r} is no tag.", hint="A tag is up to 128 letters, digits, '_', '.' and '-'.")
    registry, repository = _split_registry(head + slash + last)
    if not _REPOSITORY.fullmatch(repository):
        hint = "It is lowercase letters and digits, with '.', '_', '__' or '-' between them, and parts divided by '/'."
        raise UsageError(f"{text!r}: {repository!r} is no repository name.", hint=hint)
    if not _HOST.fullmatch(registry):
        raise UsageError(f"{text!r}: {registry!r} is no registry host.", hint=_FORMS)
    return Reference(registry, repository, tag or None, digest or None)


def _split_registry(name: str) -> tuple[str, str]:
    """The first part is a host if it can be nothing else: the rule that every engine shares."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or any(mark in first for mark in ".:[") or first != first.lower()):
        registry, repository = first, rest
    else:
        registry, repository = "docker.io", name
    if registry == "index.docker.io":
        registry = "docker.io"
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _parse_layout(text: str, rest: str) -> LayoutName:
    """The last colon divides folder and tag, unless a slash follows it: such a folder cannot be named otherwise."""
    name, at, digest = rest.rpartition("@")
    if not (at and is_digest(digest)):
        name, digest = rest, ""
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, ""
    elif not is_tag(tag):
        raise UsageError(f"{text!r}: {tag!r} is no tag.", hint="A tag is up to 128 letters, digits, '_', '.' and '-'.")
    return LayoutName(_path(text, path), tag or None, digest or None)


def _parse_engine_reference(text: str, rest: str) -> Reference:
    if not rest:
        raise UsageError(f"{text!r} names no image.", hint=f"Write {text}NAME, or {text[:-1]} alone.")
    reference = parse_reference(rest)
    if reference.digest:
        raise UsageError(f"{text!r}: an engine's image is named by a tag, not by a digest.", hint="Leave the @… out.")
    return replace(reference, tag=reference.tag or "latest")


def _path(text: str, rest: str) -> Path:
    if not rest:
        raise UsageError(f"{text!r} names no file or folder.", hint=_FORMS)
    return Path(rest)
