"""Where an image's bytes come from, on this machine: an OCI layout in a folder or a tar, or what ``docker save`` wrote.

An :class:`Origin` gives bytes and need not be trusted: :class:`~cpack_build.oci.sources.ImageSource` proves them. The
one for registries is :mod:`cpack_build.oci.registry`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cpack_build.errors import BadImage, Unresolvable, UsageError
from cpack_build.oci.documents import DOCUMENT_LIMIT, parse_json, parse_object, ref_name
from cpack_build.oci.files import FolderFiles, LayoutFiles, TarFiles
from cpack_build.oci.types import (
    CONFIG,
    INDEX,
    LAYER,
    LAYER_GZIP,
    MANIFEST,
    Descriptor,
    canonical_json,
    digest_of,
)

__all__ = ["Document", "LayoutOrigin", "Origin", "open_archive"]


class Origin(Protocol):
    """Where an image's bytes come from. They are not to be trusted: :class:`ImageSource` proves them."""

    def top(self) -> Document:
        """The index or manifest that the image's name stands for, with its digest if the name has one."""

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of an index or manifest."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of a config or layer, from the beginning."""


@dataclass(frozen=True)
class Document:
    """An index or manifest: its bytes, and what its origin says that it is (perhaps nothing)."""

    data: bytes
    media_type: str = ""
    digest: str | None = None


class LayoutOrigin:
    """An OCI layout, in a folder or a tar (image-layout.md)."""

    def __init__(self, name: str, files: LayoutFiles, tag: str | None = None, digest: str | None = None) -> None:
        self._name, self._files, self._tag, self._digest = name, files, tag, digest

    def top(self) -> Document:
        if self._digest is not None:
            data = self._files.read(_blob_path(self._digest), DOCUMENT_LIMIT)
            return Document(data, digest=self._digest)
        index = parse_object(self._files.read("index.json", DOCUMENT_LIMIT), f"{self._name}: index.json")
        entries = index.get("manifests")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadImage(f"{self._name}: index.json", "has no list of manifests")
        names = sorted({name for name in map(ref_name, entries) if name})
        if self._tag is not None:
            entries = [entry for entry in entries if ref_name(entry) == self._tag]
            if not entries:
                have = f"it has {', '.join(names[:20])}" if names else "its images have no names"
                raise Unresolvable(f"{self._name}: there is no image {self._tag!r}; {have}.", hint="Name one of those.")
        elif len(names) > 1:
            raise UsageError(
                f"{self._name} has several images: {', '.join(names[:20])}.",
                hint="Name one of them as oci:DIR:TAG.",
            )
        return Document(canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}), INDEX)

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self.blob_from(descriptor, 0)

    blob = manifest

    def opened(self, descriptor: Descriptor) -> BinaryIO | None:
        """The file of a blob, in a folder; a tar has none."""
        return self._files.open(_blob_path(descriptor.digest)) if isinstance(self._files, FolderFiles) else None

    def blob_from(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from *offset* on."""
        return self._files.chunks(_blob_path(descriptor.digest), offset)


class _DockerSave:
    """What ``docker save`` wrote before Docker 25: ``manifest.json``, a config and a tar for each layer.

    It has no OCI manifest, so one is made of it: the same archive always gives the same manifest. Specification: moby,
    image/spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
    """

    def __init__(self, name: str, files: LayoutFiles) -> None:
        self._name, self._files = name, files
        self._members: dict[str, str] = {}

    def top(self) -> Document:
        listed = parse_json(self._files.read("manifest.json", DOCUMENT_LIMIT), f"{self._name}: manifest.json")
        if not isinstance(listed, list) or len(listed) != 1:
            raise BadImage(f"{self._name}: manifest.json", "does not list exactly one image", hint="Save one image.")
        [entry] = listed
        config_path, paths = (entry.get("Config"), entry.get("Layers")) if isinstance(entry, dict) else (None, None)
        if not isinstance(config_path, str) or not isinstance(paths, list):
            raise BadImage(f"{self._name}: manifest.json", "names no config or no layers")
        config = self._files.read(config_path, DOCUMENT_LIMIT)
        self._members[digest_of(config)] = config_path
        layers = [self._layer(str(path)) for path in paths]
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, digest_of(config), len(config)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        return Document(canonical_json(document), MANIFEST)

    def _layer(self, path: str) -> Descriptor:
        hasher = hashlib.sha256()
        size = 0
        kind = LAYER
        for chunk in self._files.chunks(path):
            if size == 0 and chunk.startswith(b"\x1f\x8b"):
                kind = LAYER_GZIP
            hasher.update(chunk)
            size += len(chunk)
        digest = "sha256:" + hasher.hexdigest()
        self._members[digest] = path
        return Descriptor(kind, digest, size)

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        raise BadImage(self._name, f"has no manifest {descriptor.digest}")

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        if descriptor.digest not in self._members:
            raise BadImage(self._name, f"has no blob {descriptor.digest}")
        return self._files.chunks(self._members[descriptor.digest])


def open_archive(name: str, path: Path) -> Origin:
    """Either kind of archive by what is in it: both flavours are often in one file."""
    files = TarFiles(path)
    if files.has("index.json"):
        return LayoutOrigin(name, files)
    if files.has("manifest.json"):
        return _DockerSave(name, files)
    raise BadImage(name, "has neither index.json nor manifest.json, so it is no image", hint="Is it the right file?")


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"
