"""The files of an image layout, whether it lies in a folder or in a tar: opened by names that come from documents.

No name leads out of its place: a folder's files are regular files below it, whatever links say, and a tar is never
unpacked, only read at the offsets of its members.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from cpack_build import filesystem
from cpack_build.errors import BadImage, Unresolvable, UnsafeInput
from cpack_build.oci.types import CHUNK

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BoundedMember", "FolderFiles", "LayoutFiles", "TarFiles"]

_RECORDS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_RECORD_LIMIT = 1 << 20
_MEMBERS = 100_000
"""Members of an archive: an image has one for each layer and a few more."""


class BoundedMember(tarfile.TarInfo):
    """A tar member that is one, and whose long name or pax records are small.

    ``tarfile`` takes a broken header for the end of the archive, and reads records into memory whatever their size.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        return cls._bounded(super().frombuf, buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **more: Any) -> Self:
        # What releases with the fix of 2026 (Debian's 3.11.2-6+deb12u9 among them) call in place of frombuf.
        return cls._bounded(super()._frombuf, buf, encoding, errors, **more)  # type: ignore[misc]

    @classmethod
    def _bounded(cls, parse: Callable[..., Self], buf: bytes | bytearray, *arguments: Any, **more: Any) -> Self:
        try:
            member = parse(buf, *arguments, **more)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError("broken header") from error
            raise
        if (
            member.size < 0
        ):  # Python before the fix of CVE-2025-8194 goes backwards, and no sum of sizes means anything.
            raise tarfile.ReadError("negative size")
        if member.type in _RECORDS and member.size > _RECORD_LIMIT:
            raise BadImage("A tar in the image", f"has a header of {member.size} bytes")
        return member


class LayoutFiles(Protocol):
    """Files by relative path."""

    def has(self, path: str) -> bool:
        """Whether there is a regular file *path*."""

    def read(self, path: str, limit: int) -> bytes:
        """All of a small file. Raises :class:`BadImage` when it is not there or has more than *limit* bytes."""

    def chunks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """A file's bytes from *offset* on, piece by piece. Raises :class:`BadImage` when it is not there."""


class FolderFiles:
    """Below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, path: str) -> bool:
        return self._inside(path).is_file()

    def read(self, path: str, limit: int) -> bytes:
        with self.open(path) as file:
            return _limited(file.read(limit + 1), limit, self._root, path)

    def chunks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        with self.open(path) as file:
            file.seek(offset)
            while chunk := file.read(CHUNK):
                yield chunk

    def _inside(self, path: str) -> Path:
        root = Path(os.path.realpath(self._root))
        pure = PurePosixPath(path)
        real = Path(os.path.realpath(root / pure))
        if pure.is_absolute() or ".." in pure.parts or not real.is_relative_to(root):
            raise UnsafeInput(
                f"{self._root}: {path} leads out of that folder.", hint="Copy the layout with its links followed."
            )
        return real

    def open(self, path: str) -> BinaryIO:
        """The file at *path*. Raises :class:`Unresolvable`, :class:`BadImage`, :class:`UnsafeInput`."""
        if not self._root.is_dir():
            raise Unresolvable(f"There is no folder {self._root}.", hint="Name an existing OCI image layout.")
        real = self._inside(path)
        try:
            # Not waiting for a named pipe's other end, and not following a link put there since.
            handle = filesystem.open_file(real, os.O_RDONLY)
        except FileNotFoundError as error:
            problem = f"there is no {path} in it"
            hint = "" if path.startswith("blobs/") else "Is it an OCI image layout?"
            raise BadImage(self._root, problem, hint=hint) from error
        except OSError as error:
            raise BadImage(self._root, f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise BadImage(self._root, f"{path} is not a regular file")
        return os.fdopen(handle, "rb")


class TarFiles:
    """Members of an uncompressed tar, and links between them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spans: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        try:
            end = path.stat().st_size
            with tarfile.open(path, "r:", tarinfo=BoundedMember) as archive:
                for count, member in enumerate(archive):
                    if count >= _MEMBERS:
                        raise BadImage(path, f"has more than {_MEMBERS} members, so it is no image")
                    name = posixpath.normpath(member.name)
                    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
                        if member.offset_data + member.size > end:
                            raise BadImage(path, f"ends within {name}", hint="It is truncated: copy it again.")
                        self._spans[name] = (member.offset_data, member.size)
                    elif member.issym():
                        links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.islnk():
                        links[name] = posixpath.normpath(member.linkname)
        except FileNotFoundError as error:
            raise Unresolvable(f"There is no file {path}.", hint="Name an existing image archive.") from error
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise BadImage(path, "is not a whole, uncompressed tar", hint=_hint(path)) from error
        except OSError as error:
            raise BadImage(path, f"cannot be read: {error.strerror}") from error
        # docker save of old wrote a layer that occurs twice as a link to the other; one step is enough for that.
        for name, target in links.items():
            if target in self._spans:
                self._spans.setdefault(name, self._spans[target])

    def has(self, path: str) -> bool:
        return posixpath.normpath(path) in self._spans

    def read(self, path: str, limit: int) -> bytes:
        data = b""
        for chunk in self.chunks(path):
            data = _limited(data + chunk, limit, self._path, path)
        return data

    def chunks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        span = self._spans.get(posixpath.normpath(path))
        if span is None:
            raise BadImage(self._path, f"there is no {path} in it", hint="It may be truncated: get or make it again.")
        place, size = span
        return self._span(place + offset, max(0, size - offset))

    def _span(self, offset: int, left: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(offset)
            while left and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk


def _limited(data: bytes, limit: int, place: object, path: str) -> bytes:
    if len(data) > limit:
        raise BadImage(place, f"{path} has more than {limit} bytes, which is too large for a document")
    return data


def _hint(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"\x1f\x8b"):
        return f"It is compressed: decompress it first (gzip -d {path.name})."
    if start == b"\x28\xb5\x2f\xfd":
        return f"It is compressed: decompress it first (zstd -d {path.name})."
    return "Copy it or save the image again."
