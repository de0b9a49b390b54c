"""A zip file from a stranger, opened so that it can do no harm.

Nothing is ever extracted by name: entries are listed, their names checked, and their bytes handed out under limits that
are counted while reading, never believed from a header. Whatever is wrong with the file becomes :class:`NotAPack` or
:class:`UnsafeInput`; no exception of :mod:`zipfile` or :mod:`zlib` leaves this module.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cpack_build.errors import BadInput, NotAPack, UnsafeInput

__all__ = ["ENTRY_LIMIT", "MEMBER_LIMIT", "RATIO_LIMIT", "TOTAL_LIMIT", "Archive", "open_archive", "unsafe_name"]

ENTRY_LIMIT = 10_000
MEMBER_LIMIT = 2 << 30
"""Bytes of one entry, unpacked."""
TOTAL_LIMIT = 8 << 30
"""Bytes of all entries, unpacked."""
RATIO_LIMIT = 200
"""Unpacked bytes for each packed one, beyond the first MiB. Deflate reaches 1032; text in packs stays below 20."""
_RATIO_FREE = 1 << 20
_DIRECTORY_LIMIT = 8 << 20
"""Bytes of the zip's central directory: 10,000 entries need a tenth of it. :mod:`zipfile` reads it in one piece."""
_CHUNK = 1 << 18
_ENCRYPTED = 0x1
_BROKEN = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError)
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Archive:
    """The regular entries of a zip, by name, with their sizes in bytes as announced."""

    path: Path
    sizes: dict[str, int]

    def stream(self, name: str, *, limit: int = MEMBER_LIMIT) -> Iterator[bytes]:
        """The bytes of an entry in chunks, its CRC checked at the end.

        Raises :class:`UnsafeInput` beyond *limit* bytes or when it unpacks to far more than it is packed,
        :class:`NotAPack` when it is damaged, :class:`BadInput` when there is no such entry.
        """
        with self.reading(limit=limit) as stream:
            yield from stream(name)

    @contextmanager
    def reading(self, *, limit: int = MEMBER_LIMIT) -> Iterator[Callable[[str], Iterator[bytes]]]:
        """A function that does what :meth:`stream` does, and reads the list of entries only once for many of them."""
        with _listed(self.path) as archive:

            def stream(name: str) -> Iterator[bytes]:
                if name not in self.sizes:
                    raise BadInput(
                        f"{self.path} holds no {name!r}.", hint="See what it holds with `cpack-build inspect`."
                    )
                with _explaining(self.path, name):
                    yield from self._chunks(archive, name, limit)

            yield stream

    def _chunks(self, archive: zipfile.ZipFile, name: str, limit: int) -> Iterator[bytes]:
        info = archive.getinfo(name)
        count = 0
        with archive.open(info) as member:
            while chunk := member.read(_CHUNK):
                count += len(chunk)
                if count > limit:
                    raise _too_big(self.path, name, limit)
                if count > _RATIO_FREE and count > RATIO_LIMIT * max(info.compress_size, 1):
                    raise UnsafeInput(
                        f"{self.path}: {name} unpacks to more than {RATIO_LIMIT} times its size.",
                        hint="That is how zip bombs are made. Do not use this file.",
                    )
                yield chunk
        if count != info.file_size:
            raise NotAPack(self.path, f"{name} ends early")

    def read(self, name: str, *, limit: int) -> bytes:
        """The bytes of an entry, at most *limit*. Raises as :meth:`stream`."""
        return b"".join(self.stream(name, limit=limit))


def open_archive(path: Path) -> Archive:
    """List the zip at *path*, with every name checked.

    Raises :class:`NotAPack` if it is no zip, is truncated, damaged or encrypted, :class:`UnsafeInput` if a name leaves
    its place, an entry is no regular file, a name occurs twice, or there is too much of it.
    """
    with _listed(path) as archive:
        entries = archive.infolist()
    if len(entries) > ENTRY_LIMIT:
        raise UnsafeInput(f"{path} has more than {ENTRY_LIMIT} entries.", hint="A pack has a few dozen; do not use it.")
    sizes: dict[str, int] = {}
    for info in entries:
        # zipfile cuts a name at NUL; the original tells.
        if problem := unsafe_name(info.orig_filename.removesuffix("/")):
            raise UnsafeInput(f"{path}: entry {info.orig_filename!r} {problem}.", hint="Do not use this file.")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeInput(
                f"{path}: entry {info.filename!r} is a link or a special file.", hint="Do not use this file."
            )
        if info.is_dir():
            continue
        if info.filename in sizes:
            raise UnsafeInput(f"{path}: entry {info.filename!r} occurs twice.", hint="Make the pack again.")
        if info.flag_bits & _ENCRYPTED:
            raise NotAPack(path, f"{info.filename} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotAPack(path, f"{info.filename} is compressed in a way that packs do not use")
        if info.file_size > MEMBER_LIMIT:
            raise _too_big(path, info.filename, MEMBER_LIMIT)
        sizes[info.filename] = info.file_size
    if sum(sizes.values()) > TOTAL_LIMIT:
        raise UnsafeInput(f"{path} unpacks to more than {TOTAL_LIMIT >> 30} GiB.", hint="Do not use this file.")
    for name in sizes:
        parts = name.split("/")
        for end in range(1, len(parts)):
            if (parent := "/".join(parts[:end])) in sizes:
                raise UnsafeInput(f"{path}: {parent!r} is both a file and a folder.", hint="Make the pack again.")
    return Archive(path, sizes)


def unsafe_name(name: str) -> str:
    """Why *name* must not be used as a relative path with ``/``; empty when it may.

    The rule is the same on every system: what Windows would take for a separator, a drive or a share is refused on
    Linux too, so a pack means the same everywhere.
    """
    if not name:
        return "has no name"
    if name.startswith("/"):
        return "is an absolute path"
    if "\\" in name:
        return "contains a backslash"
    if _DRIVE.match(name):
        return "begins with a drive letter"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "contains a control character"
    parts = name.split("/")
    if ".." in parts:
        return "leaves its folder with '..'"
    if "." in parts or "" in parts:
        return "has an empty or '.' part"
    if len(name.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts):
        return "is too long"
    return ""


class _Capped(io.RawIOBase):
    """A file whose single reads stay small, so that a forged central directory cannot fill the memory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw

    def read(self, size: int = -1, /) -> bytes:
        if size > _DIRECTORY_LIMIT:
            raise zipfile.BadZipFile("the list of entries is too long")
        return self._raw.read(_DIRECTORY_LIMIT if size < 0 else size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _capped(raw: IO[bytes]) -> IO[bytes]:
    return _Capped(raw)  # type: ignore[return-value]


@contextmanager
def _listed(path: Path) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as opened:
        with _explaining(path, "its list of entries"):
            raw = opened.enter_context(path.open("rb"))
            archive = opened.enter_context(zipfile.ZipFile(_capped(raw)))
        yield archive


@contextmanager
def _explaining(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"There is no file {path}.", hint="Name a .cpack.zip.") from error
    except IsADirectoryError as error:
        raise NotAPack(path, "it is a folder") from error
    except zipfile.BadZipFile as error:
        raise NotAPack(path, _reason(path, error)) from error
    except (*_BROKEN, UnicodeDecodeError, ValueError, RuntimeError, OverflowError) as error:
        raise NotAPack(path, f"{what} is damaged ({error})") from error
    except PermissionError as error:
        raise BadInput(f"{path} may not be read.", hint="Change its permissions, or copy it.") from error
    except OSError as error:
        # A damaged directory makes zipfile seek to before the start of the file.
        raise NotAPack(path, f"{what} cannot be read ({error.strerror or error})") from error


def _reason(path: Path, error: Exception) -> str:
    if str(error) != "File is not a zip file":
        return f"the zip is damaged ({error})"
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\3\4":
        return "it begins like a zip but has no end; it is truncated"
    return "it is empty" if not start else "it is not a zip file"


def _too_big(path: Path, name: str, limit: int) -> UnsafeInput:
    size = f"{limit >> 30} GiB" if limit >= 1 << 30 else f"{limit >> 20} MiB"
    return UnsafeInput(f"{path}: {name} is bigger than {size}.", hint="A pack needs no such file; make it again.")
