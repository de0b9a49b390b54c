"""A standalone Python, laid at ``/opt/python`` from an archive whose top folder is ``python/``.

That is the shape of python-build-standalone's ``install_only`` archives (its documentation, "Distribution archives").
The archive may be a tar with gzip, xz, zstd or no compression; regular files, directories and links inside it are
taken, and anything else is refused."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from tarfile import TarError, TarInfo
from tarfile import open as open_tar

from cpack_build.errors import BadInput, UnsafeInput
from cpack_build.fetch.store import Store
from cpack_build.image.layer import MTIME, Recipe, arrange, directory, key_of, symlink
from cpack_build.image.unpacked import Slice, decompressed, unpacked
from cpack_build.lock.schema import ArchiveInterpreter
from cpack_build.oci import tar

__all__ = ["archive_layer"]

_TOP = "python"
_PLACE = "opt/python"


def archive_layer(interpreter: ArchiveInterpreter, path: Path, *, store: Store) -> Recipe:
    """The layer of the archive at *path*, whose hash was checked."""
    what = f"The interpreter {interpreter.url}"

    def plain() -> Iterator[bytes]:
        with path.open("rb") as file:
            yield from decompressed(file)

    def entries() -> Iterator[tar.Entry]:
        tar_path = unpacked(interpreter.sha256, plain, store=store, what=what)
        try:
            with open_tar(tar_path, "r:") as archive:
                members = [_entry(member, tar_path, what) for member in archive]
        except TarError as error:
            raise BadInput(f"{what} cannot be unpacked: {error}.") from error
        yield from arrange(entry for entry in members if entry is not None)

    return Recipe("interpreter", f"python {interpreter.version}", key_of("archive", interpreter.sha256), entries)


def _entry(member: TarInfo, tar_path: Path, what: str) -> tar.Entry | None:
    top, _, rest = member.name.removeprefix("./").partition("/")
    if top != _TOP:
        raise BadInput(f"{what} holds {member.name!r}; everything in it must lie below {_TOP}/.")
    if not rest:
        return None
    path = f"{_PLACE}/{rest}"
    mode = member.mode & 0o777
    if member.isdir():
        return directory(path, mode)
    if member.issym():
        resolved = posixpath.normpath(posixpath.join(posixpath.dirname(rest), member.linkname))
        if member.linkname.startswith("/") or resolved.startswith(".."):
            raise UnsafeInput(f"{what}: the link {member.name} points outside it, to {member.linkname}.")
        return symlink(path, member.linkname)
    if member.islnk():
        target = member.linkname.removeprefix("./").partition("/")[2]
        return tar.Entry(path, "hardlink", mode, MTIME, target=f"{_PLACE}/{target}")
    if member.isreg():
        return tar.Entry(path, "file", mode, MTIME, Slice(tar_path, member.offset_data, member.size))
    raise UnsafeInput(f"{what} holds {member.name}, which is a device or pipe.")
