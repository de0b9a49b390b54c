"""The uncompressed form of a layer: what a diff ID names, and what local engines are given.

gzip and zstd are undone while the layer is streamed and nothing is stored; the bytes are proved by the diff ID each
time. The size, which a descriptor needs before the first byte, is found by one pass and remembered.

Specification: OCI image-spec v1.1, config.md ("Layer DiffID"), layer.md.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol, cast

from cpack_build.errors import BadImage, HashMismatch
from cpack_build.oci.types import LAYER, Blob, Descriptor

__all__ = ["LAYER_LIMIT", "Memo", "decompressed", "uncompressed"]

LAYER_LIMIT = 256 << 30
"""Bytes to which a layer may decompress; a few kilobytes could otherwise claim the time of days."""
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 20
_MEMO = "uncompressed-size"


class Memo(Protocol):
    """What is needed of ``fetch.store.Store``."""

    def recall(self, kind: str, key: str) -> str | None: ...

    def remember(self, kind: str, key: str, value: str) -> None: ...


def uncompressed(layer: Blob, diff_id: str, *, memo: Memo | None = None) -> Blob:
    """*layer* as an uncompressed tar whose digest is *diff_id*.

    The first time a compressed layer is seen it is read through for its size, which *memo* keeps. Raises
    :class:`BadImage` and, here or at the end of reading, :class:`HashMismatch`.
    """
    own = layer.descriptor
    if own.digest == diff_id:
        return _Uncompressed(layer, Descriptor(LAYER, diff_id, own.size, own.annotations))
    known = memo.recall(_MEMO, diff_id) if memo is not None else None
    if known is not None and known.isdigit():
        return _Uncompressed(layer, Descriptor(LAYER, diff_id, int(known), own.annotations))
    size = 0
    hasher = hashlib.sha256()
    for chunk in decompressed(layer):
        hasher.update(chunk)
        size += len(chunk)
    _prove(hasher.hexdigest(), diff_id, own)
    if memo is not None:
        memo.remember(_MEMO, diff_id, str(size))
    return _Uncompressed(layer, Descriptor(LAYER, diff_id, size, own.annotations))


@dataclass(frozen=True)
class _Uncompressed:
    layer: Blob
    descriptor: Descriptor

    def chunks(self) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        for chunk in decompressed(self.layer):
            hasher.update(chunk)
            yield chunk
        _prove(hasher.hexdigest(), self.descriptor.digest, self.layer.descriptor)


def decompressed(layer: Blob) -> Iterator[bytes]:
    """The tar in *layer*, whatever it is compressed with; told by its first bytes, because media types are often wrong.

    Raises :class:`BadImage` when the compressed data is broken or decompresses to more than :data:`LAYER_LIMIT`.
    """
    what = f"Layer {layer.descriptor.digest}"
    count = 0
    for chunk in _pieces(layer.chunks(), what):
        count += len(chunk)
        if count > LAYER_LIMIT:
            raise BadImage(what, f"decompresses to more than {LAYER_LIMIT >> 30} GiB")
        yield chunk


def _pieces(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= len(_ZSTD):
            break
    if first.startswith(_GZIP):
        return _gunzip(first, chunks, what)
    if first.startswith(_ZSTD):
        return _unzstd(first, chunks, what)
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
        raise BadImage(what, "is broken gzip data") from error
    if not whole:
        raise BadImage(what, "ends in the middle of its gzip data")


def _rest(engine: zlib._Decompress) -> Iterator[bytes]:
    while piece := engine.decompress(b"", _PIECE):
        yield piece
        if len(piece) < _PIECE:
            return


def _unzstd(first: bytes, chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """All frames of a zstd stream (RFC 8878, 3)."""
    import zstandard

    source = cast(IO[bytes], _Reader(_as_is(first, chunks)))
    reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise BadImage(what, "is broken zstd data") from error


class _Reader:
    """Chunks as something to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = next(self._chunks, b"")
        if size < 0:
            data, self._left = self._left + b"".join(self._chunks), b""
            return data
        data, self._left = self._left[:size], self._left[size:]
        return data


def _prove(actual: str, diff_id: str, layer: Descriptor) -> None:
    if f"sha256:{actual}" != diff_id:
        raise HashMismatch(f"Layer {layer.digest}, uncompressed,", expected=diff_id, actual=actual)
