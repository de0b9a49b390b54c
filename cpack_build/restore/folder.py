"""A workspace's folder, into which names from strangers are written: no name leads out of it, whatever lies there.

Each parent is opened below the one before it and no link is followed (``openat(2)``, ``O_NOFOLLOW``), so neither a
link of the artifact nor one that was there before, nor one that appears meanwhile, can lead elsewhere. Files are
written aside, within the same file system, and renamed when they are whole; only regular files, folders and links
that stay within the tree are made, with plain modes and no other attribute.

Where the system cannot open below a folder (Windows), each parent is looked at before it is used instead, by the form
of its path that may be longer than 260 characters. A system may also refuse to make links; that is an answer, and what
stands in for one is the caller's business."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import UnsafeInput, writing

__all__ = ["OWN", "Folder", "escapes", "extended"]

OWN = ".cpack"
"""Our own folder in the workspace: the state, the lock, and what is not yet in its place."""
_CHUNK = 1 << 20
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
"""symlink(2) where the file system has none."""
_NO_PRIVILEGE = 1314
"""ERROR_PRIVILEGE_NOT_HELD: Windows without Developer Mode."""
_HAS_DIR_FD = {os.open, os.mkdir, os.stat, os.symlink, os.readlink} <= os.supports_dir_fd
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def escapes(path: str, target: str) -> bool:
    """Whether the link at *path* (relative, with ``/``) would lead out of the tree by its text *target*."""
    if not target or target.startswith("/") or "\\" in target or "\0" in target or target[1:2] == ":":
        return True
    depth = path.count("/")
    for part in target.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            return True
    return False


def extended(path: str, *, windows: bool) -> str:
    """The absolute *path* as Windows takes it at any length (``\\\\?\\C:\\x``); elsewhere as it is.

    Rule: learn.microsoft.com, "Maximum Path Length Limitation".
    """
    if not windows or path.startswith("\\\\?\\"):
        return path
    return f"\\\\?\\UNC\\{path[2:]}" if path.startswith("\\\\") else f"\\\\?\\{path}"


class Folder:
    """The folder *root*, made if it is not there. Paths are relative to it, with ``/``."""

    def __init__(self, root: Path, *, below_handles: bool = _HAS_DIR_FD) -> None:
        self.root = Path(os.path.abspath(root))
        self._below_handles = below_handles
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._top = os.open(self.root, os.O_RDONLY | _DIRECTORY | _CLOEXEC) if below_handles else -1

    def close(self) -> None:
        if self._top >= 0:
            os.close(self._top)
            self._top = -1

    # -- looking -------------------------------------------------------------------------------------------------------

    def status(self, path: str) -> os.stat_result | None:
        """What lies at *path*, no link followed; ``None`` for nothing. Raises :class:`UnsafeInput` below a link."""
        try:
            with self._parent(path) as (handle, name):
                return os.stat(name, dir_fd=handle, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def chunks(self, path: str) -> Iterator[bytes]:
        """The bytes of the regular file at *path*."""
        with self._parent(path) as (handle, name):
            file = os.open(name, os.O_RDONLY | _NOFOLLOW | _NONBLOCK | _CLOEXEC | _BINARY, dir_fd=handle)
        with os.fdopen(file, "rb") as opened:
            while chunk := opened.read(_CHUNK):
                yield chunk

    def opened(self, path: str) -> int:
        """The regular file at *path*, open for reading and writing; a link is not followed."""
        with self._parent(path) as (handle, name):
            return os.open(name, os.O_RDWR | _NOFOLLOW | _NONBLOCK | _CLOEXEC | _BINARY, dir_fd=handle)

    def read(self, path: str) -> bytes | None:
        """All of the small regular file at *path*; ``None`` where there is none."""
        status = self.status(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return b"".join(self.chunks(path))

    def target(self, path: str) -> str:
        """The text of the link at *path*."""
        with self._parent(path) as (handle, name):
            return os.readlink(name, dir_fd=handle)

    def names(self, path: str) -> list[str]:
        """What the folder at *path* holds; nothing where there is none."""
        try:
            with self._parent(f"{path}/x" if path else "x") as (handle, name):
                return sorted(os.listdir(handle if handle is not None else os.path.dirname(name)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, path: str, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        """Put a regular file at *path*, whole or not at all; one that is there is replaced."""
        aside = f"{OWN}/partial/{token_hex(8)}"
        with writing(self.root / path):
            with self._parent(aside, make=True) as (handle, name):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC | _BINARY
                file = os.open(name, flags, mode & 0o777, dir_fd=handle)
            with os.fdopen(file, "wb") as opened:
                for chunk in chunks:
                    opened.write(chunk)
                if hasattr(os, "fchmod"):
                    os.fchmod(opened.fileno(), mode & 0o777)
            self.move(aside, path)

    def link(self, path: str, target: str) -> bool:
        """Put a symlink at *path*; ``False`` where the system makes none. Raises :class:`UnsafeInput` for a *target*
        that leads out of the tree."""
        if escapes(path, target):
            raise UnsafeInput(f"The link {path!r} leads out of its tree, to {target!r}.", hint="Nothing was made.")
        return self.link_outside(path, target)

    def link_outside(self, path: str, target: str) -> bool:
        """Put a symlink at *path* to a *target* of our own choice, such as a model in the store; ``False`` where the
        system makes none."""
        aside = f"{OWN}/partial/{token_hex(8)}"
        with writing(self.root / path):
            with self._parent(aside, make=True) as (handle, name):
                try:
                    os.symlink(target, name, dir_fd=handle)
                except OSError as error:
                    if error.errno in _NO_LINKS or getattr(error, "winerror", None) == _NO_PRIVILEGE:
                        return False
                    raise
            self.move(aside, path)
        return True

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """A path within the file system of the workspace, for what is made in other ways; removed at the end if it is
        still there."""
        with writing(self.root), self._parent(f"{OWN}/partial/x", make=True):
            pass
        path = self.root / OWN / "partial" / token_hex(8)
        try:
            yield path
        finally:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def move(self, source: str, path: str) -> None:
        """Give what lies at *source* the name *path*; a file or link that is there is replaced."""
        with (
            writing(self.root / path),
            self._parent(source) as (from_handle, from_name),
            self._parent(path, make=True) as (to_handle, to_name),
        ):
            os.replace(from_name, to_name, src_dir_fd=from_handle, dst_dir_fd=to_handle)

    def take(self, source: Path, path: str, *, mode: int = 0o644) -> None:
        """Give the regular file *source*, which is ours and lies aside in the workspace, the name *path*."""
        os.chmod(source, mode & 0o777)
        self.move(source.relative_to(self.root).as_posix(), path)

    def make(self, path: str) -> None:
        """Make the folder *path* and its parents."""
        with writing(self.root / path), self._parent(f"{path}/x", make=True):
            pass

    def set_aside(self, path: str) -> str:
        """Move what lies at *path* to a place of its own below ``.cpack/replaced``; where it is then."""
        for number in range(10_000):
            kept = f"{OWN}/replaced/{number}/{path}"
            if self.status(f"{OWN}/replaced/{number}") is None:
                self.move(path, kept)
                return kept
        raise UnsafeInput(f"{self.root / OWN / 'replaced'} is full.", hint="Clear it.")

    def sweep(self) -> None:
        """Remove what runs that were killed have left aside. Only under the workspace's lock."""
        with suppress(FileNotFoundError, NotADirectoryError), self._parent(f"{OWN}/partial/x"):
            for entry in os.scandir(self.root / OWN / "partial"):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)

    # -- resolving -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int | None, str]]:
        """The folder that holds *path*, as an open handle, and the last part of *path*.

        Raises :class:`UnsafeInput` where a part of it is a link, or a name that must not be used.
        """
        if problem := unsafe_name(path):
            raise UnsafeInput(f"The path {path!r} {problem}.", hint="Nothing was written there.")
        *parents, name = path.split("/")
        if not self._below_handles:
            yield None, str(self._looked_at(parents, make=make) / name)
            return
        handle = os.dup(self._top)
        try:
            for depth, part in enumerate(parents):
                below = _below(handle, part, make=make)
                if below is None:
                    raise self._in_the_way("/".join(parents[: depth + 1]))
                os.close(handle)
                handle = below
            yield handle, name
        finally:
            os.close(handle)

    def _looked_at(self, parents: list[str], *, make: bool) -> Path:
        folder = Path(extended(str(self.root), windows=sys.platform == "win32"))
        for depth, part in enumerate(parents):
            folder = folder / part
            if make and not os.path.lexists(folder):
                folder.mkdir()
            mode = os.lstat(folder).st_mode
            if stat.S_ISLNK(mode) or (hasattr(folder, "is_junction") and folder.is_junction()):
                raise self._in_the_way("/".join(parents[: depth + 1]))
            if not stat.S_ISDIR(mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        return folder

    def _in_the_way(self, path: str) -> UnsafeInput:
        return UnsafeInput(
            f"{self.root / path} is a link, and nothing is written through a link.",
            hint="Put a folder there, or restore to another folder with -d and name your models with --models-dir.",
        )


def _below(handle: int, part: str, *, make: bool) -> int | None:
    """The folder *part* of the open folder *handle*, opened; ``None`` for a link."""
    flags = os.O_RDONLY | _DIRECTORY | _NOFOLLOW | _CLOEXEC
    for attempt in range(2):
        try:
            return os.open(part, flags, dir_fd=handle)
        except FileNotFoundError:
            if not make or attempt:
                raise
            with suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=handle)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            if stat.S_ISLNK(os.stat(part, dir_fd=handle, follow_symlinks=False).st_mode):
                return None
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), part) from error
    raise AssertionError("opened or raised")
