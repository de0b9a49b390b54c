"""Archives whose files are wanted in another order than they come in: unpacked once into the store, then read by
slices.

A .deb's data and a standalone Python are compressed tars. Their files go into a layer in sorted order, which a
compressed stream cannot give without starting again for each; so the plain tar is kept in the store under its own
hash, remembered by the archive's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarError, TarInfo
from tarfile import open as open_tar
from typing import IO

from cpack_build.errors import BadInput
from cpack_build.fetch.store import Store
from cpack_build.oci.compression import decompressed_chunks
from cpack_build.oci.files import BoundedMember

__all__ = ["Slice", "file_chunks", "members", "unpacked"]

RATIO_LIMIT = 200
"""Unpacked bytes for each packed one, beyond what is free; xz reaches some 7,000, programs and texts stay below 20."""
RATIO_FREE = 1 << 30
_CHUNK = 1 << 20


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


def unpacked(archive_sha256: str, chunks: Callable[[], Iterator[bytes]], *, size: int, store: Store, what: str) -> Path:
    """The plain tar of a compressed one of *size* bytes, from the store or made of *chunks*; *what* names the archive
    in errors.

    Raises :class:`BadImage` for broken data, or what unpacks to far more than it is packed.
    """
    known = store.recall("unpacked", archive_sha256)
    if known is not None and (found := store.find_sound(known)) is not None:
        return found.path
    blob = store.put(decompressed_chunks(chunks(), what=what, limit=RATIO_FREE + RATIO_LIMIT * size), what=what)
    store.remember("unpacked", archive_sha256, blob.sha256)
    return blob.path


def file_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of an open file."""
    while chunk := file.read(_CHUNK):
        yield chunk


def members(path: Path, *, what: str) -> Iterator[TarInfo]:
    """The members of the plain tar at *path*, whose names are UTF-8 whatever the locale; *what* names it in errors.

    Raises :class:`BadInput` for a broken tar.
    """
    try:
        with open_tar(path, "r:", tarinfo=BoundedMember, encoding="utf-8") as archive:
            yield from archive
    except (TarError, EOFError, ValueError, OverflowError) as error:
        raise BadInput(f"{what} cannot be unpacked: {error}.") from error
