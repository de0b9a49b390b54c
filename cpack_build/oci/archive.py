"""An image as one tar that every engine loads: an OCI layout and Docker's ``manifest.json`` at once.

Docker up to 27 on its graph drivers reads ``manifest.json`` (moby: image/spec, "Combined Image JSON + Filesystem
Changeset Format"), whose paths may just as well point into ``blobs/sha256``; podman, skopeo, containerd and Docker
with containerd's store read ``index.json``, which may lead to images for several platforms. The bytes depend on the
image and its name alone. Nothing is stored
twice, and nothing on the way: each blob is streamed from where it lies and hashed as it goes by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import HashMismatch, writing
from cpack_build.oci import tar
from cpack_build.oci.layout import LAYOUT_FILE, image_index, index_entry
from cpack_build.oci.reference import Reference
from cpack_build.oci.storage import whole_file
from cpack_build.oci.types import Blob, Image, ImageIndex, canonical_json
from cpack_build.progress import SILENT, Progress

__all__ = ["archive_size", "stream_archive", "write_archive"]


def write_archive(
    image: Image | ImageIndex, path: Path, *, name: Reference | None = None, progress: Progress = SILENT
) -> int:
    """Write the archive to the file *path*, which appears only when it is whole; the number of bytes.

    Raises :class:`HashMismatch` when a blob is not what it says, :class:`StorageError`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with progress.task(f"Writing {path.name}", total=archive_size(image, name=name)) as task, whole_file(path) as file:
        for chunk in stream_archive(image, name=name):
            with writing(path):
                file.write(chunk)
            count += len(chunk)
            task.advance(len(chunk))
    return count


def stream_archive(
    image: Image | ImageIndex, *, name: Reference | None = None, omit: frozenset[str] = frozenset()
) -> Iterator[bytes]:
    """The archive, piece by piece. *name* is what an engine will call the image; without it, it has only its ID.

    Blobs whose digests are in *omit* are left out: such an archive is only for an engine that has those layers.
    """
    return tar.stream(_entries(image, name, omit))


def archive_size(
    image: Image | ImageIndex, *, name: Reference | None = None, omit: frozenset[str] = frozenset()
) -> int:
    """Bytes of the archive, without reading a layer."""
    return tar.size_of(_entries(image, name, omit))


@dataclass(frozen=True)
class _Verified:
    """A blob as content of a tar member, proved while it passes."""

    blob: Blob

    @property
    def size(self) -> int:
        return self.blob.descriptor.size

    def chunks(self) -> Iterator[bytes]:
        promised = self.blob.descriptor
        hasher = hashlib.sha256()
        count = 0
        for chunk in self.blob.chunks():
            hasher.update(chunk)
            count += len(chunk)
            if count > promised.size:
                break
            yield chunk
        actual = "sha256:" + hasher.hexdigest()
        if actual != promised.digest or count != promised.size:
            raise HashMismatch(f"{promised.shown} ({count} bytes)", expected=promised.digest, actual=actual)


def _entries(image: Image | ImageIndex, name: Reference | None, omit: frozenset[str]) -> list[tar.Entry]:
    blobs: dict[str, Blob] = {}
    for blob in _in_order(image):
        if blob.descriptor.digest not in omit:
            blobs.setdefault(_member(blob), blob)
    index = image_index([index_entry(image, tag=(name.tag if name else None) or "latest", name=name)])
    return [
        _file("oci-layout", tar.BytesContent(LAYOUT_FILE)),
        _file("index.json", tar.BytesContent(index)),
        _file("manifest.json", tar.BytesContent(_docker_manifest(image, name))),
        tar.Entry("blobs", "directory", 0o755),
        tar.Entry("blobs/sha256", "directory", 0o755),
        *(_file(path, _Verified(blob)) for path, blob in blobs.items()),
    ]


def _in_order(image: Image | ImageIndex) -> Iterator[Blob]:
    """Manifests and configs first, so that whoever streams the archive knows early what it has."""
    if isinstance(image, ImageIndex):
        yield image.manifest
    images = image.images if isinstance(image, ImageIndex) else (image,)
    for one in images:
        yield from (one.manifest, one.config)
    for one in images:
        yield from one.layers


def _file(path: str, content: tar.Content) -> tar.Entry:
    return tar.Entry(path, "file", content=content)


def _member(blob: Blob) -> str:
    return f"blobs/sha256/{blob.descriptor.digest.removeprefix('sha256:')}"


def _docker_manifest(image: Image | ImageIndex, name: Reference | None) -> bytes:
    """One entry: the config, the names, and the layers from bottom to top. It knows no platforms: of several images the
    first is named, which is amd64's where there is one."""
    if isinstance(image, ImageIndex):
        image = min(image.images, key=lambda one: one.platform)
    return canonical_json(
        [
            {
                "Config": _member(image.config),
                "RepoTags": [name.tagged] if name else [],
                "Layers": [_member(layer) for layer in image.layers],
            }
        ]
    )
