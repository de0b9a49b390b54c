"""The universal model layer: a tar whose bytes are a function of one model's bytes alone (image format, revision 1).

Entries ``models/``, ``models/sha256/`` and ``models/sha256/<hex>``; modes 0755 and 0444; uid, gid and mtime 0. A pax
``comment`` on the file pads so that its data begins at byte 4096, where a file system can share it by reflink; a pax
``size`` is added from 8 GiB on. Header, data, padding and trailer are all there is, so the layer is never stored: it is
streamed from the model file whenever someone needs it, and one hash of it proves the model as well.

Where there are more models than layers, several share one: :func:`entries` lays them out by the same rules, one after
the other by hash, each file's data at a multiple of 4096.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from cpack_build.errors import HashMismatch, Unresolvable
from cpack_build.oci import tar
from cpack_build.oci.types import CHUNK, LAYER, Descriptor

__all__ = [
    "DATA_OFFSET",
    "FIRST",
    "LAYER_MEMO",
    "ModelFile",
    "ModelLayer",
    "data_place",
    "entries",
    "frame",
    "hash_layer",
    "hash_model",
    "layer_size",
    "layer_tail",
    "mapped",
    "model_path",
    "prefix",
    "read_ahead",
    "size_at",
    "size_in",
    "stamp",
]

DATA_OFFSET = 4096
LAYER_MEMO = "model-layer-1"
"""Under which the store remembers ``sha256:size`` of a model → the digest of its layer."""
_DIRECTORIES = (tar.Entry("models", "directory", 0o755), tar.Entry("models/sha256", "directory", 0o755))
_PIECE = 16 * CHUNK
"""Bytes that are hashed at once."""
FIRST = 2 * tar.BLOCK
"""Where the first model's header begins, after those of the folders."""


def model_path(sha256: str) -> str:
    """Where the model lies in an image, relative to its root."""
    return f"models/sha256/{sha256}"


@dataclass(frozen=True)
class _Announced:
    """A size, for a header; the data is streamed apart."""

    size: int

    def chunks(self) -> Iterator[bytes]:
        raise AssertionError("only announced")


@dataclass(frozen=True)
class ModelFile:
    """The file of a model of *size* bytes, as a tar entry's content."""

    path: Path
    size: int

    def chunks(self) -> Iterator[bytes]:
        return self.chunks_from(0)

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on. Raises :class:`Unresolvable` if the file ends early."""
        left = self.size - offset
        with self.path.open("rb") as file:
            file.seek(offset)
            while left and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
        if left:
            raise Unresolvable(f"Model {self.path} became shorter while it was read.", hint="Lock again.")


def entries(models: Iterable[tuple[str, tar.Content]]) -> Iterator[tar.Entry]:
    """The entries of a layer that holds *models* (sha256 in hex, content), whatever their order."""
    yield from _DIRECTORIES
    place = FIRST
    for sha256, content in sorted(models, key=lambda model: model[0]):
        entry = _entry(sha256, content, place)
        yield entry
        place += len(tar.header(entry)) + entry.size + tar.padding(entry.size)


def _entry(sha256: str, content: tar.Content, place: int) -> tar.Entry:
    return _aligned(tar.Entry(model_path(sha256), "file", 0o444, content=content), place)


def _aligned(entry: tar.Entry, place: int) -> tar.Entry:
    """*entry*, whose header begins at byte *place* of the tar, with as short a comment as puts its data at a multiple
    of 4096."""

    def end(width: int) -> int:
        return place + len(tar.header(replace(entry, comment="." * width)))

    wanted = -(-end(0) // DATA_OFFSET) * DATA_OFFSET
    return replace(entry, comment="." * bisect_left(range(DATA_OFFSET), wanted, key=end))


def prefix(sha256: str, size: int) -> bytes:
    """The 4096 bytes before the model's data."""
    return b"".join(map(tar.header, entries([(sha256, _Announced(size))])))


def frame(sha256: str, size: int) -> tuple[bytes, bytes]:
    """What stands in the layer before the model's data, and what after it."""
    return prefix(sha256, size), bytes(tar.padding(size)) + tar.trailer()


def layer_size(size: int) -> int:
    """Bytes of the layer of a model of *size* bytes."""
    return DATA_OFFSET + size + tar.padding(size) + len(tar.trailer())


def layer_tail(size: int) -> bytes:
    """The bytes after the data of a model of *size* bytes."""
    return bytes(tar.padding(size)) + tar.trailer()


def size_in(head: bytes, sha256: str, length: int) -> int | None:
    """The size of the model *sha256* whose layer of *length* bytes begins with *head* (:data:`DATA_OFFSET` bytes), or
    ``None`` if those are not the first bytes of its universal layer."""
    size = size_at(head[FIRST:], sha256, FIRST)
    return size if size is not None and layer_size(size) == length and head == prefix(sha256, size) else None


def data_place(place: int) -> int:
    """Where the data of a model begins whose header begins at byte *place* of a layer."""
    return place + len(tar.header(_entry("0" * 64, _Announced(0), place)))


def size_at(head: bytes, sha256: str, place: int) -> int | None:
    """The size of the model *sha256* whose header at byte *place* of a layer is *head*, or ``None`` if that is none."""
    # The last block is the file's ustar header (field "size": 11 octal digits at 124); from 8 GiB on a record has it.
    record = re.search(rb"\n?[0-9]+ size=([0-9]{1,19})\n", head)
    field = head[-tar.BLOCK :][124:][:11]
    if record is not None:
        size = int(record.group(1))
    elif re.fullmatch(rb"[0-7]{11}", field):
        size = int(field, 8)
    else:
        return None
    return size if head == tar.header(_entry(sha256, _Announced(size), place)) else None


def hash_layer(
    path: Path,
    sha256: str,
    size: int,
    *,
    on_read: Callable[[int], object],
    reader: Callable[[FileIO], Iterator[memoryview]] | None = None,
) -> str | None:
    """The digest of the layer of the model at *path*: one read, one hash. ``None`` if the file has not *size* bytes.

    It covers the model's name, which is its *sha256* as the caller knows it, so a file whose layer has the digest of a
    lock is proved as far as that lock is trusted. *reader* is :func:`read_ahead`, or :func:`mapped` where no core is
    free.
    """
    hasher = hashlib.sha256(prefix(sha256, size))
    count = 0
    with path.open("rb", buffering=0) as file:
        for chunk in (reader or read_ahead)(file):
            length = len(chunk)
            hasher.update(chunk)
            count += length
            on_read(length)
    if count != size:
        return None
    hasher.update(layer_tail(size))
    return f"sha256:{hasher.hexdigest()}"


def read_ahead(file: FileIO) -> Iterator[memoryview]:
    """The bytes of *file*; while a piece is used, and before it is lost, a second thread reads the next. Reading is a
    copy at the least."""
    from concurrent.futures import ThreadPoolExecutor

    buffers = [memoryview(bytearray(_PIECE)) for _ in range(2)]
    with ThreadPoolExecutor(1) as second:
        pending = second.submit(file.readinto, buffers[0])
        while length := pending.result():
            pending = second.submit(file.readinto, buffers[1])
            yield buffers[0][:length]
            buffers.reverse()


def mapped(file: FileIO) -> Iterator[memoryview]:
    """The same without a thread and a copy. A file that becomes shorter meanwhile ends the whole process (SIGBUS)."""
    size = os.fstat(file.fileno()).st_size
    for place in range(0, size, _PIECE):
        length = min(_PIECE, size - place)
        with (
            mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=place) as window,
            memoryview(window) as chunk,
        ):
            yield chunk


def hash_model(path: Path, sha256: str, size: int, *, on_read: Callable[[int], object] | None = None) -> str:
    """The layer's digest, from one read of the model that also proves *sha256* and *size*.

    Both hashes run at once, the layer's in a second thread (``hashlib`` lets go of the interpreter). Raises
    :class:`HashMismatch` and, if the file is gone or shorter, :class:`Unresolvable`.
    """
    from concurrent.futures import ThreadPoolExecutor

    file_hash, layer_hash = hashlib.sha256(), hashlib.sha256(prefix(sha256, size))
    count = 0
    buffers = [memoryview(bytearray(4 * CHUNK)) for _ in range(2)]
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as second:
        pending = None
        while length := file.readinto(buffers[0]):
            chunk = buffers[0][:length]
            if pending is not None:
                pending.result()
            pending = second.submit(layer_hash.update, chunk)
            file_hash.update(chunk)
            buffers.reverse()
            count += length
            if on_read is not None:
                on_read(length)
    if file_hash.hexdigest() != sha256:
        raise HashMismatch(f"Model {path}", expected=sha256, actual=file_hash.hexdigest())
    _require_size(path, count, size)
    layer_hash.update(layer_tail(size))
    return "sha256:" + layer_hash.hexdigest()


def _require_size(path: Path, count: int, size: int) -> None:
    if count != size:
        raise Unresolvable(f"Model {path} has {count} bytes, but {size} were announced.", hint="Lock again.")


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced: device, inode, size, mtime and ctime."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True)
class ModelLayer:
    """The layer as a blob: a recipe over the model file, which is read each time the bytes are asked for."""

    path: Path
    sha256: str
    size: int
    digest: str
    title: str = ""
    """The model's own path, for people; it is an annotation and no part of the bytes."""
    proof: tuple[int, ...] | None = None
    """The file's :func:`stamp` when it was known to have *sha256*, and *digest* to be its layer's. While it is the same
    the bytes need not be hashed again."""

    def is_proved(self) -> bool:
        """Whether the file is still the one that was hashed here, so that its bytes are known."""
        try:
            return self.proof is not None and stamp(self.path.stat()) == self.proof
        except OSError:
            return False

    @property
    def descriptor(self) -> Descriptor:
        annotations = {"io.cpack.layer.kind": "model", "io.cpack.model.sha256": self.sha256}
        if self.title:
            annotations["io.cpack.model.path"] = self.title
        return Descriptor(LAYER, self.digest, layer_size(self.size), annotations)

    def chunks(self) -> Iterator[bytes]:
        return self.chunks_from(0)

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on, without reading those before it."""
        if offset < DATA_OFFSET:
            yield prefix(self.sha256, self.size)[offset:]
        yield from ModelFile(self.path, self.size).chunks_from(min(max(offset - DATA_OFFSET, 0), self.size))
        yield layer_tail(self.size)[max(0, offset - DATA_OFFSET - self.size) :]
