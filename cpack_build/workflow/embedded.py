"""The workflow that ComfyUI writes into what it makes: PNG (animated too), WebP, JPEG, FLAC, MP4 and WebM.

Two texts are kept: ``prompt``, what was run, and ``workflow``, what the editor drew. The file is walked part by part,
and nothing of the picture or sound itself is read; what is damaged holds no workflow.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cpack_build.workflow.embeddedvideo import mp4_texts, webm_texts

__all__ = ["is_medium", "read_embedded"]

_PNG, _JPEG, _FLAC, _EBML = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"fLaC", b"\x1a\x45\xdf\xa3"
_KEYS = ("prompt", "workflow")
_TEXT_LIMIT = 64 << 20
_PARTS = 100_000
_TAGS = 1000


def is_medium(path: Path) -> bool:
    """Whether the file at *path* begins as one of a kind that may hold a workflow. Raises ``OSError``."""
    with path.open("rb") as file:
        return _kind(file.read(12)) is not None


def read_embedded(path: Path) -> dict[str, bytes]:
    """The texts ``prompt`` and ``workflow`` in the file at *path*, as far as it has them. Raises ``OSError``."""
    found: dict[str, bytes] = {}
    with path.open("rb") as file:
        start = file.read(12)
        parts = _kind(start)
        if parts is None:
            return found
        try:
            for key, text in parts(file):
                name = key.decode("latin-1").lower()
                if name in _KEYS and text.strip(b"\0 \r\n"):
                    found.setdefault(name, text.strip(b"\0 \r\n"))
        except (struct.error, zlib.error, EOFError):
            return found
    return found


def _kind(start: bytes) -> Callable[[BinaryIO], Iterator[tuple[bytes, bytes]]] | None:
    if start.startswith(_PNG):
        return _png
    if start.startswith(_JPEG):
        return _jpeg
    if start.startswith(_FLAC):
        return _flac
    if start[4:8] == b"ftyp":
        return mp4_texts
    if start.startswith(_EBML):
        return webm_texts
    return _webp if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _png(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Text chunks (PNG, section 11.3.3), and ``comf``, in which ComfyUI writes it into animations."""
    file.seek(len(_PNG))
    for _ in range(_PARTS):
        size, kind = struct.unpack(">I4s", _exactly(file, 8))
        if kind == b"IEND":
            return
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"comf") or size > _TEXT_LIMIT:
            file.seek(size + 4, 1)
            continue
        key, _, text = _exactly(file, size).partition(b"\0")
        file.seek(4, 1)
        if kind == b"zTXt":
            text = _inflated(text[1:])
        elif kind == b"iTXt":
            compressed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
            text = _inflated(text) if compressed else text
        elif not text.isascii():
            text = text.decode("latin-1").encode()
        yield key, text


def _inflated(data: bytes) -> bytes:
    engine = zlib.decompressobj()
    text = engine.decompress(data, _TEXT_LIMIT)
    if engine.unconsumed_tail:
        raise EOFError
    return text


def _webp(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    file.seek(12)
    for _ in range(_PARTS):
        kind, size = struct.unpack("<4sI", _exactly(file, 8))
        if kind == b"EXIF" and size <= _TEXT_LIMIT:
            yield from _exif(_exactly(file, size))
            return
        file.seek(size + size % 2, 1)


def _jpeg(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    file.seek(2)
    for _ in range(_PARTS):
        mark, kind, size = struct.unpack(">BBH", _exactly(file, 4))
        if mark != 0xFF or kind == 0xDA or size < 2:  # the picture itself begins
            return
        data = _exactly(file, size - 2)
        if kind == 0xE1 and data.startswith(b"Exif\0\0"):
            yield from _exif(data)


def _exif(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Texts of the first directory that say ``prompt:{…}`` (TIFF 6.0, section 2), whatever their tags are for."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for number in range(min(count, _TAGS)):
        _, kind, length, place = struct.unpack_from(f"{order}HHII", data, start + 2 + 12 * number)
        if kind in (1, 2, 7) and length > 4:
            key, _, text = data[place : place + length].partition(b":")
            if len(key) <= 16:
                yield key, text


def _flac(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Comments (RFC 9639, section 8.6)."""
    file.seek(len(_FLAC))
    for _ in range(_PARTS):
        head = struct.unpack(">I", _exactly(file, 4))[0]
        kind, size = head >> 24 & 0x7F, head & 0xFFFFFF
        if kind == 4:
            data = _exactly(file, size)
            place = 4 + struct.unpack_from("<I", data, 0)[0]
            (count,) = struct.unpack_from("<I", data, place)
            place += 4
            for _ in range(min(count, _TAGS)):
                (length,) = struct.unpack_from("<I", data, place)
                key, _, text = data[place + 4 : place + 4 + length].partition(b"=")
                yield key, text
                place += 4 + length
            return
        if head >> 31:
            return
        file.seek(size, 1)
