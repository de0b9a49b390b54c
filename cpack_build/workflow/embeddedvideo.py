"""The texts that ComfyUI writes into videos: MP4 (``SaveVideo``) and WebM (``SaveWEBM``), walked box by box.

Video and sound are passed over; only the boxes that hold names and texts are read, within bounds. Whoever calls catches
``struct.error`` and ``EOFError``, which is how a damaged file ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["mp4_texts", "webm_texts"]

_LIMIT = 128 << 20
_PARTS = 100_000
_SEGMENT, _TAGS, _TAG, _SIMPLE, _NAME, _STRING = 0x18538067, 0x1254C367, 0x7373, 0x67C8, 0x45A3, 0x4487
"""Matroska's element ids (RFC 9559, section 5.1)."""


def _exactly(file: BinaryIO, size: int) -> bytes:
    if size > _LIMIT:
        raise EOFError
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


# -- MP4 (ISO/IEC 14496-12, section 4.2; metadata as QuickTime's keys) -------------------------------------------------


def mp4_texts(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Keys and texts of ``moov/udta/meta``."""
    end = file.seek(0, 2)
    for path in ((b"moov", b"udta", b"meta"), (b"moov", b"meta")):
        place = (0, end)
        for kind in path:
            found = next(((start, stop) for name, start, stop in _boxes(file, *place) if name == kind), None)
            if found is None:
                break
            place = found
        else:
            file.seek(place[0])
            yield from _keyed(_exactly(file, place[1] - place[0]))


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and where the content begins and ends, of each box between *start* and *end*."""
    for _ in range(_PARTS):
        if start + 8 > end:
            return
        file.seek(start)
        size, kind = struct.unpack(">I4s", _exactly(file, 8))
        head = 8
        if size == 1:
            (size,) = struct.unpack(">Q", _exactly(file, 8))
            head = 16
        stop = end if size == 0 else start + size
        if stop < start + head or stop > end:
            return
        yield kind, start + head, stop
        start = stop


def _keyed(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """``keys`` names the items of ``ilst`` by number."""
    begin = 0 if data[4:8] == b"hdlr" else 4
    keys: list[bytes] = []
    for kind, body in _parts(data[begin:]):
        if kind == b"keys":
            keys = [name for _, name in _parts(body[8:])]
        elif kind == b"ilst":
            for number, item in _parts(body):
                index = int.from_bytes(number, "big")
                for inner, value in _parts(item):
                    if inner == b"data" and 0 < index <= len(keys):
                        yield keys[index - 1], value[8:]


def _parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if size < 8:
            return
        yield kind, data[place + 8 : place + size]
        place += size


# -- WebM (RFC 8794, sections 4 and 5) ---------------------------------------------------------------------------------


def webm_texts(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Names and texts of the tags."""
    end = file.seek(0, 2)
    for identity, start, stop in _elements(file, 0, end):
        if identity != _SEGMENT:
            continue
        for inner, place, after in _elements(file, start, stop):
            if inner == _TAGS:
                for _, tag, tag_end in (item for item in _elements(file, place, after) if item[0] == _TAG):
                    for _, simple, simple_end in (item for item in _elements(file, tag, tag_end) if item[0] == _SIMPLE):
                        yield _named(file, simple, simple_end)


def _named(file: BinaryIO, start: int, end: int) -> tuple[bytes, bytes]:
    name, text = b"", b""
    for identity, place, after in _elements(file, start, end):
        if identity in (_NAME, _STRING):
            file.seek(place)
            data = _exactly(file, after - place)
            name, text = (data, text) if identity == _NAME else (name, data)
    return name, text


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Id, and where the data begins and ends, of each element between *start* and *end*."""
    for _ in range(_PARTS):
        if start >= end:
            return
        file.seek(start)
        identity, head = _number(file, keep=True)
        size, more = _number(file, keep=False)
        place = start + head + more
        stop = end if size is None else place + size
        if identity is None or stop > end:
            return
        yield identity, place, stop
        start = stop


def _number(file: BinaryIO, *, keep: bool) -> tuple[int | None, int]:
    """A variable-length number and its length; *keep* leaves its marker in, ``None`` is the size that says unknown."""
    first = _exactly(file, 1)[0]
    if first == 0:
        raise EOFError
    length = 9 - first.bit_length()
    value = int.from_bytes(bytes([first]) + _exactly(file, length - 1), "big")
    if keep:
        return value, length
    value &= (1 << 7 * length) - 1
    return (None if value == (1 << 7 * length) - 1 else value), length
