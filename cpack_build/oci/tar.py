"""A tar writer whose bytes depend on its entries alone.

POSIX ustar headers (IEEE 1003.1-2017, "pax Interchange Format" and "ustar Interchange Format"), uid and gid 0, no
user or group names, and pax extended headers only for what ustar cannot hold: a path or link target that is too long
or not ASCII, or a size of 8 GiB and more. ``tarfile`` makes such choices differently from version to version; these
bytes are a promise, so they are written here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["BLOCK", "BytesContent", "Content", "Entry", "header", "padding", "size_of", "stream", "trailer"]

BLOCK = 512
_SIZE_LIMIT = 8**11
"""Sizes below this fit the 11 octal digits of a ustar header: 8 GiB."""
_TYPE = {"file": b"0", "hardlink": b"1", "symlink": b"2", "directory": b"5"}


class Content(Protocol):
    """The bytes of a regular file: a known size, and chunks that may be asked for again and again."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class BytesContent:
    """Content held in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@dataclass(frozen=True)
class Entry:
    """One member. *path* is relative, with ``/`` and without ``.`` or ``..`` parts; directories have no final ``/``.

    *target* is a symlink's text as it stands, or a hard link's path within the same tar. *mode* holds permission bits.
    """

    path: str
    kind: Literal["file", "directory", "symlink", "hardlink"]
    mode: int = 0o644
    mtime: int = 0
    content: Content | None = None
    target: str = ""
    comment: str | None = None
    """A pax comment before the header, which moves the content to where it is wanted."""

    @property
    def size(self) -> int:
        return self.content.size if self.content is not None else 0


def header(entry: Entry) -> bytes:
    """The header blocks of *entry*: pax extended header if one is needed, then ustar."""
    path = entry.path + "/" if entry.kind == "directory" else entry.path
    records: list[tuple[str, str]] = [] if entry.comment is None else [("comment", entry.comment)]
    name, prefix = _split(path)
    if name is None:
        records.append(("path", path))
        name, prefix = _fallback(path), b""
    link = _ascii(entry.target, 100)
    if link is None:
        records.append(("linkpath", entry.target))
        link = _fallback(entry.target)
    size = entry.size
    if size >= _SIZE_LIMIT:
        records.append(("size", str(size)))
        size = 0
    blocks = b""
    if records:
        body = b"".join(_record(key, value) for key, value in sorted(records))
        blocks = _ustar(b"PaxHeader", b"", 0o644, len(body), 0, b"x", b"") + body + bytes(padding(len(body)))
    return blocks + _ustar(name, prefix, entry.mode, size, entry.mtime, _TYPE[entry.kind], link)


def padding(size: int) -> int:
    """Bytes of zeros that follow *size* bytes of content."""
    return -size % BLOCK


def trailer() -> bytes:
    """The end of the archive: two blocks of zeros, and nothing more."""
    return bytes(2 * BLOCK)


def size_of(entries: Iterable[Entry]) -> int:
    """Bytes of the tar that :func:`stream` would give, without reading any content."""
    return sum(len(header(entry)) + entry.size + padding(entry.size) for entry in entries) + 2 * BLOCK


def stream(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The tar, piece by piece. Raises ``ValueError`` when content is not as long as its entry says."""
    for entry in entries:
        yield header(entry)
        if entry.content is None:
            continue
        count = 0
        for chunk in entry.content.chunks():
            count += len(chunk)
            yield chunk
        if count != entry.size:
            raise ValueError(f"{entry.path}: {count} bytes where {entry.size} were announced")
        if rest := padding(count):
            yield bytes(rest)
    yield trailer()


def _ustar(name: bytes, prefix: bytes, mode: int, size: int, mtime: int, kind: bytes, link: bytes) -> bytes:
    fields = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % 0,
            b"%07o\0" % 0,
            b"%011o\0" % size,
            b"%011o\0" % mtime,
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            b"ustar\00000",
            bytes(64),
            b"%07o\0" % 0,
            b"%07o\0" % 0,
            prefix.ljust(155, b"\0"),
        )
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _split(path: str) -> tuple[bytes | None, bytes]:
    """ustar's name and prefix, or ``None`` when *path* needs a pax record."""
    if not path.isascii():
        return None, b""
    raw = path.encode("ascii")
    if len(raw) <= 100:
        return raw, b""
    cut = raw.find(b"/", max(len(raw) - 101, 1), 156)
    if cut < 0 or cut == len(raw) - 1:
        return None, b""
    return raw[cut + 1 :], raw[:cut]


def _ascii(text: str, limit: int) -> bytes | None:
    return text.encode("ascii") if text.isascii() and len(text) <= limit else None


def _fallback(text: str) -> bytes:
    """What a reader without pax sees; never used by one with it."""
    return text.encode("ascii", "replace")[-100:]


def _record(key: str, value: str) -> bytes:
    """``"%d %s=%s\\n"``, whose length counts itself."""
    rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest
