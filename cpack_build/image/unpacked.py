"""Archives whose files are wanted in another order than they come in: unpacked once into the store, then read by
slices.

A .deb's data and a standalone Python are compressed tars. Their files go into a layer in sorted order, which a
compressed stream cannot give without starting again for each; so the plain tar is kept in the store under its own
hash, remembered by the archive's."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.errors import BadInput
from cpack_build.fetch.store import Store

__all__ = ["DECOMPRESSION_ERRORS", "Slice", "decompressed", "unpacked"]

_CHUNK = 1 << 20
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
DECOMPRESSION_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)


@dataclass(frozen=True)
class Slice:
    """*size* bytes from *offset* of the file at *path*: a tar entry's content."""

    path: Path
    offset: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        left = self.size
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk


def unpacked(archive_sha256: str, chunks: Callable[[], Iterator[bytes]], *, store: Store, what: str) -> Path:
    """The plain tar of an archive, from the store or made by *chunks*; *what* names the archive in errors."""
    known = store.recall("unpacked", archive_sha256)
    if known is not None and (found := store.find(known)) is not None:
        return found.path
    try:
        blob = store.put(chunks(), what=what)
    except DECOMPRESSION_ERRORS as error:
        raise BadInput(f"{what} cannot be unpacked: {error}.") from error
    store.remember("unpacked", archive_sha256, blob.sha256)
    return blob.path


def decompressed(file: Any) -> Iterator[bytes]:
    """The content of the seekable *file* without its gzip, xz or zstd compression, told by its first bytes."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(_ZSTD_MAGIC):
        import zstandard

        try:
            yield from zstandard.ZstdDecompressor().read_to_iter(file, read_size=_CHUNK, write_size=_CHUNK)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        return
    reader: Any = file
    if magic.startswith(b"\x1f\x8b"):
        reader = gzip.GzipFile(fileobj=file)
    elif magic == b"\xfd7zXZ\0":
        reader = lzma.LZMAFile(file)  # noqa: SIM115 - closing it would close nothing
    while chunk := reader.read(_CHUNK):
        yield chunk
