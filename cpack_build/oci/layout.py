"""Writing an image into an OCI image layout: a folder with ``oci-layout``, ``index.json`` and ``blobs/sha256/<hex>``.

A blob is hashed while it is written aside and renamed into its place only when it is what its descriptor says; one
that is already there is not written again. A new layout grows in ``.NAME.partial`` beside its place and appears
whole; a write that was killed leaves that folder, and the next one goes on from its blobs. Into an existing layout
blobs come first and ``index.json`` last, so at every moment it is a valid layout with all that it had before.

A model's layer is the model file between two short pieces, so where the file system can share data between files
(FICLONERANGE: btrfs, XFS, bcachefs, …) no byte of it is written. Then the bytes are not hashed again either: only a
layer that carries a proof, and a file that has not changed since, is shared. A base's layer that lies in a file as it
is, in the store or a layout, is shared as well, and what has come of that is hashed.

Specification: OCI image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cpack_build import filesystem
from cpack_build.errors import BadImage, HashMismatch, StorageError, UsageError, writing
from cpack_build.oci import modellayer
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.reference import Reference
from cpack_build.oci.storage import PARTIAL, sync_directory, whole_file
from cpack_build.oci.types import (
    CHUNK,
    Blob,
    Descriptor,
    Filed,
    Image,
    ImageIndex,
    canonical_json,
    platform_document,
)
from cpack_build.progress import SILENT, Progress, Task

__all__ = ["LAYOUT_FILE", "Written", "image_index", "index_entry", "write_layout"]

LAYOUT_FILE = canonical_json({"imageLayoutVersion": "1.0.0"})
"""``oci-layout``."""
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
_INDEX_LIMIT = 4 << 20


@dataclass(frozen=True)
class Written:
    """What a write did, in bytes: *written* to the disk, *shared* with files from elsewhere, *kept* as they were."""

    written: int
    shared: int
    kept: int


def write_layout(
    image: Image | ImageIndex,
    directory: Path,
    *,
    tag: str | None = None,
    name: Reference | None = None,
    progress: Progress = SILENT,
) -> Written:
    """Put *image* into the layout at *directory*, under *tag* (by default that of *name*, or ``latest``).

    The folder is made if it is not there; a layout that is there keeps its other images. Raises :class:`UsageError`
    when *directory* is something else, :class:`HashMismatch` when a blob is not what it says, :class:`StorageError`.
    """
    tag = tag or (name.tag if name else None) or "latest"
    directory = directory.absolute()
    with _place(directory, progress) as (root, added):
        blobs = root / "blobs" / "sha256"
        with writing(directory):
            blobs.mkdir(parents=True, exist_ok=True)
        entries = _entries(root)
        written = shared = kept = 0
        content = {blob.descriptor.digest: blob for blob in image.blobs()}
        with progress.task(f"Writing {directory.name}", total=image.size) as task:
            for blob in content.values():
                size = blob.descriptor.size
                path = blobs / blob.descriptor.digest.removeprefix("sha256:")
                if _is_whole(path, size):
                    kept += size
                    task.advance(size)
                    continue
                added.append(path)
                if _write_blob(blob, path, task, aside=root, place=directory):
                    shared += size
                else:
                    written += size
        with writing(directory):
            sync_directory(blobs)
        if not (root / "oci-layout").exists():
            added.append(root / "oci-layout")
            with whole_file(root / "oci-layout", place=directory) as file:
                file.write(LAYOUT_FILE)
        index = image_index([*_others(entries, tag), index_entry(image, tag=tag, name=name)])
        try:
            with whole_file(root / "index.json", place=directory) as file, writing(directory):
                file.write(index)
        except BaseException:
            if (root / "index.json").is_file() and (root / "index.json").read_bytes() == index:
                added.clear()  # Stopped just after it got its place: what it names must stay.
            raise
    return Written(written, shared, kept)


def index_entry(image: Image | ImageIndex, *, tag: str, name: Reference | None = None) -> dict[str, Any]:
    """The descriptor of *image* in ``index.json``, with its platform (an index has none) and names (annotations.md).

    ``ref.name`` is the tag: umoci and skopeo find it by that. containerd, Docker with its store and podman take the
    full name from ``io.containerd.image.name``.
    """
    annotations = {REF_NAME: tag}
    if name is not None:
        annotations[CONTAINERD_NAME] = name.tagged
    manifest = image.manifest.descriptor
    entry = Descriptor(manifest.media_type, manifest.digest, manifest.size, annotations).to_json()
    if isinstance(image, Image):
        entry["platform"] = platform_document(image)
    return entry


def image_index(entries: list[dict[str, Any]]) -> bytes:
    """``index.json`` with *entries*, whatever the order they came in (image-index.md)."""
    ordered = sorted(
        entries, key=lambda entry: (_ref_name(entry) or "", str(entry.get("digest")), canonical_json(entry))
    )
    return canonical_json(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": ordered}
    )


# -- the place ---------------------------------------------------------------------------------------------------------


@contextmanager
def _place(directory: Path, progress: Progress) -> Iterator[tuple[Path, list[Path]]]:
    """Where to write, held alone, and a list for the files that must go again if the write fails."""
    partial = directory.parent / f".{directory.name}.partial"
    if not (directory.is_symlink() or directory.exists()):
        with writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
        with _held(partial, directory, progress, create=True):
            if not directory.exists():
                with _new(directory, partial):
                    yield partial, []
                return
            # Another program, waited for, has just made it.
            shutil.rmtree(partial)
    _require_layout(directory)
    with _held(directory, directory, progress), _existing(directory) as added:
        yield directory, added


@contextmanager
def _new(directory: Path, partial: Path) -> Iterator[None]:
    try:
        _sweep(partial)
        yield
        with writing(directory):
            partial.rename(directory)
            sync_directory(directory.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _existing(directory: Path) -> Iterator[list[Path]]:
    added: list[Path] = []
    folders = [path for path in (directory / "blobs" / "sha256", directory / "blobs") if not path.exists()]
    try:
        _sweep(directory)
        yield added
    except BaseException:
        for path in added:
            with suppress(FileNotFoundError):
                path.unlink()
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _held(folder: Path, place: Path, progress: Progress, *, create: bool = False) -> Iterator[None]:
    """Hold *folder* against other writers for as long as the context lasts; the system lets go of it at a kill."""
    while True:
        with writing(place):
            if create:
                folder.mkdir(exist_ok=True)
            handle = filesystem.open_folder(folder)
        try:
            if not filesystem.lock(handle, wait=False):
                progress.note(f"Waiting for another program that writes {place}.")
                filesystem.lock(handle)
            with suppress(FileNotFoundError):
                if filesystem.is_folder(handle, folder):
                    yield
                    return
            # Whoever held it has moved it into place or removed it: begin again with what is there now.
            if not create:
                raise StorageError(f"{place} was removed while it was waited for.", hint="Run it again.")
        finally:
            os.close(handle)


def _require_layout(directory: Path) -> None:
    with writing(directory):
        if not directory.is_dir():
            raise UsageError(f"{directory} is not a folder.", hint="Name a new folder, or an existing OCI layout.")
        if any(directory.iterdir()) and not (directory / "oci-layout").is_file():
            raise UsageError(
                f"{directory} has files in it and is not an OCI layout.", hint="Name a new folder, or an empty one."
            )


def _sweep(root: Path) -> None:
    """Remove what a killed write was writing; nobody else writes here now."""
    with writing(root):
        for path in root.glob(f"{PARTIAL}*"):
            path.unlink()


# -- blobs -------------------------------------------------------------------------------------------------------------


def _is_whole(path: Path, size: int) -> bool:
    """Names in ``blobs/`` appear only when the file is whole, so the size tells; a link is never trusted."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _write_blob(blob: Blob, path: Path, task: Task, *, aside: Path, place: Path) -> bool:
    """Write *blob* as *path*; ``True`` when its data is shared with the file that it comes from instead."""
    with whole_file(path, directory=aside, place=place) as file:
        if isinstance(blob, ModelLayer) and _clone(blob, file):
            task.advance(blob.descriptor.size)
            return True
        shared = isinstance(blob, Filed) and _shares(blob, file)
        hasher = hashlib.sha256()
        count = 0
        for chunk in _chunks(file) if shared else blob.chunks():
            hasher.update(chunk)
            count += len(chunk)
            if count > blob.descriptor.size:
                break
            if not shared:
                with writing(place):
                    file.write(chunk)
            task.advance(len(chunk))
        actual = "sha256:" + hasher.hexdigest()
        if actual != blob.descriptor.digest or count != blob.descriptor.size:
            raise HashMismatch(
                f"{blob.descriptor.shown} ({count} bytes)", expected=blob.descriptor.digest, actual=actual
            )
    return shared


def _shares(blob: Filed, file: BinaryIO) -> bool:
    """Make *file* a copy of the file that *blob* lies in, without its bytes being written, if both can be."""
    source = blob.opened()
    if source is None:
        return False
    with source:
        return filesystem.share_blocks(source.fileno(), file.fileno())


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _clone(layer: ModelLayer, file: BinaryIO) -> bool:
    """Make *file* the layer by sharing the model's data, or leave it empty and say ``False``."""
    with layer.path.open("rb") as model:
        if layer.proof is None or modellayer.stamp(os.fstat(model.fileno())) != layer.proof:
            return False
        file.write(modellayer.prefix(layer.sha256, layer.size))
        file.flush()
        # Where no blocks can be shared it is written like any other blob.
        if not filesystem.share_blocks(model.fileno(), file.fileno(), at=modellayer.DATA_OFFSET):
            return _emptied(file)
        if modellayer.stamp(os.fstat(model.fileno())) != layer.proof:
            return _emptied(file)
    file.seek(modellayer.DATA_OFFSET + layer.size)
    file.write(modellayer.layer_tail(layer.size))
    return True


def _emptied(file: BinaryIO) -> bool:
    file.seek(0)
    file.truncate()
    return False


# -- index.json --------------------------------------------------------------------------------------------------------


def _entries(root: Path) -> list[dict[str, Any]]:
    """The images that the layout already has."""
    path = root / "index.json"
    try:
        with path.open("rb") as file:
            data = file.read(_INDEX_LIMIT + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadImage(path, f"cannot be read: {error.strerror}") from error
    try:
        if len(data) > _INDEX_LIMIT:
            raise ValueError("too large")
        entries = json.loads(data)["manifests"]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadImage(path, "is not an OCI image index") from error
    return entries


def _others(entries: list[dict[str, Any]], tag: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if _ref_name(entry) != tag]


def _ref_name(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    value = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else None
