"""gzip, xz and zstd undone while bytes go by, told apart by their first bytes because names and media types are often
wrong.

Nothing is stored, output comes in pieces that stay small whatever the ratio, and there is a limit to all of it.

Formats: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.2.
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from cpack_build.errors import BadImage

__all__ = ["LIMIT", "ChunkReader", "decompressed_chunks"]

LIMIT = 256 << 30
"""Bytes to which anything may decompress; a few kilobytes could otherwise claim the time of days."""
_AGAIN = "Get or make it again."
_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\0"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 20


def decompressed_chunks(chunks: Iterator[bytes], *, what: str, limit: int = LIMIT) -> Iterator[bytes]:
    """What *chunks* hold, decompressed; as they are if they are not compressed. *what* names them in errors.

    Raises :class:`BadImage` when the compressed data is broken or decompresses to more than *limit* bytes.
    """
    count = 0
    for chunk in _pieces(chunks, what):
        count += len(chunk)
        if count > limit:
            raise BadImage(what, f"decompresses to more than {limit >> 20} MiB", hint=_AGAIN)
        yield chunk


def _pieces(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= len(_XZ):
            break
    if first.startswith(_GZIP):
        return _gunzip(first, chunks, what)
    if first.startswith(_ZSTD):
        return _unzstd(first, chunks, what)
    if first.startswith(_XZ):
        return _unxz(first, chunks, what)
    return _as_is(first, chunks)


def _as_is(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from chunks


def _gunzip(first: bytes, chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """All members of a gzip stream (RFC 1952, 2.2), in pieces that stay small whatever the ratio."""
    engine = zlib.decompressobj(wbits=31)
    whole = False
    try:
        for chunk in _as_is(first, chunks):
            data = chunk
            while data:
                if whole:
                    if not data.strip(b"\0"):
                        break  # Padding after the last member, which gzip allows.
                    engine, whole = zlib.decompressobj(wbits=31), False
                piece = engine.decompress(data, _PIECE)
                if piece:
                    yield piece
                whole = engine.eof
                data = engine.unused_data if whole else engine.unconsumed_tail
                if not data and not whole and len(piece) == _PIECE:
                    # The input is used up but its output is not.
                    yield from _rest(engine)
                    whole = engine.eof
                    data = engine.unused_data
    except zlib.error as error:
        raise BadImage(what, "is broken gzip data", hint=_AGAIN) from error
    if not whole:
        raise BadImage(what, "ends in the middle of its gzip data", hint=_AGAIN)


def _rest(engine: zlib._Decompress) -> Iterator[bytes]:
    while piece := engine.decompress(b"", _PIECE):
        yield piece
        if len(piece) < _PIECE:
            return


def _unzstd(first: bytes, chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """All frames of a zstd stream (RFC 8878, 3)."""
    import zstandard

    source = cast(IO[bytes], ChunkReader(_as_is(first, chunks)))
    reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise BadImage(what, "is broken zstd data", hint=_AGAIN) from error


def _unxz(first: bytes, chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """All streams of an .xz file."""
    reader = lzma.LZMAFile(cast(IO[bytes], ChunkReader(_as_is(first, chunks))))  # noqa: SIM115 - there is no file to close
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except (lzma.LZMAError, EOFError) as error:
        raise BadImage(what, "is broken xz data", hint=_AGAIN) from error


class ChunkReader(io.RawIOBase):
    """Chunks as a file to read from, front to back."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = chunk
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
