"""The image's Python: a standalone one as a layer, and any kind started on this machine to compile bytecode.

A standalone Python is laid at ``/opt/python`` from an archive whose top folder is ``python/``.
That is the shape of python-build-standalone's ``install_only`` archives (its documentation, "Distribution archives").
The archive may be a tar with gzip, xz, zstd or no compression; regular files, directories and links inside it are
taken, and anything else is refused."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tarfile import TarInfo
from tempfile import TemporaryDirectory

from cpack_build.errors import BadInput, UnsafeInput
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.image.bytecode import Interpreter, Launch
from cpack_build.image.layer import MTIME, Recipe, arrange, directory, key_of, safe_path, symlink
from cpack_build.image.unpacked import Slice, file_chunks, members, unpacked
from cpack_build.lock.schema import ArchiveInterpreter
from cpack_build.oci import tar

__all__ = ["archive_layer", "is_wanted", "laid_out", "runnable", "started_in"]

_TOP = "python"
_PLACE = "opt/python"
_LARGEST_LIBRARY = 8 << 20
"""Bytes; what an interpreter is linked with is smaller (libc, libz, libexpat), what a workflow needs is often not."""


def archive_layer(interpreter: ArchiveInterpreter, file: StoredFile, *, store: Store) -> Recipe:
    """The layer of the archive in *file*, whose hash was checked."""
    what = f"The interpreter {interpreter.url}"

    def plain() -> Iterator[bytes]:
        with file.path.open("rb") as archive:
            yield from file_chunks(archive)

    def entries() -> Iterator[tar.Entry]:
        file.require_sound()
        tar_path = unpacked(interpreter.sha256, plain, size=file.size, store=store, what=what)
        found = [_entry(member, tar_path, what) for member in members(tar_path, what=what)]
        yield from arrange(entry for entry in found if entry is not None)

    key = key_of("archive", interpreter.sha256)
    return Recipe("interpreter", f"python {interpreter.version}", key, entries, inputs=(file,))


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


def runnable(python: str, path: str, identity: str, entries: Callable[[], Iterable[tar.Entry]]) -> Interpreter:
    """The interpreter at *path* of the image, whose files are among *entries* (later ones over earlier), for starting
    it on this machine. Only what an interpreter needs to start is laid out: itself, its library, shared libraries."""

    @contextmanager
    def unpack() -> Iterator[Launch]:
        with TemporaryDirectory(prefix="cpack-python-") as folder:
            root = Path(folder)
            laid_out(python, entries(), root)
            yield started_in(root, path)

    return Interpreter(python, identity, unpack)


def is_wanted(path: str, kind: str, size: int, python: str) -> bool:
    """Whether what lies at *path* is needed to start Python *python*; *size* in bytes."""
    name = posixpath.basename(path)
    if f"/python{python}/" in path:
        return "/site-packages/" not in path and "/dist-packages/" not in path and "/test/" not in path
    if path.startswith(("bin/", "usr/bin/", "usr/local/bin/", f"{_PLACE}/bin/")):
        return name.startswith("python3")
    if path in ("lib", "lib64", "bin"):  # links, where /usr is merged
        return kind == "symlink"
    return kind != "directory" and ".so" in name and (size < _LARGEST_LIBRARY or "libpython" in name)


def laid_out(python: str, files: Iterable[tar.Entry], root: Path) -> None:
    """Put what of *files* is needed to start Python *python* below *root*; later ones win over earlier."""
    entries = {entry.path: entry for entry in files if is_wanted(entry.path, entry.kind, entry.size, python)}
    for path in sorted(entries):
        entry = entries[path]
        target = root / safe_path(path)
        if not Path(os.path.realpath(target.parent)).is_relative_to(os.path.realpath(root)):
            raise UnsafeInput(f"The image's Python holds {path}, which leads outside it through a link.")
        if entry.kind == "directory":
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "symlink":
            inside = entry.target.lstrip("/") if entry.target.startswith("/") else None
            target.symlink_to(root / inside if inside is not None else entry.target)
        elif entry.kind == "hardlink":
            if entry.target in entries:  # else its file was too large to be wanted
                target.hardlink_to(root / safe_path(entry.target))
        elif entry.content is not None:
            with target.open("xb") as file:
                file.writelines(entry.content.chunks())
            target.chmod(entry.mode)


def started_in(root: Path, path: str) -> Launch:
    """The command for the interpreter laid out below *root*: through its own dynamic loader where it has one."""
    executable = root / path.lstrip("/")
    home = {"PYTHONHOME": str(executable.parent.parent)}
    loaders = sorted(file for file in root.rglob("ld-linux*.so.*") if file.is_file())
    libraries = sorted({str(file.parent) for file in root.rglob("*.so*") if file.is_file()})
    if not loaders:  # a standalone Python counts on this machine's loader and C library
        return Launch((str(executable),), {**home, "LD_LIBRARY_PATH": ":".join(libraries)})
    return Launch((str(loaders[0]), "--library-path", ":".join(libraries), str(executable)), home)
