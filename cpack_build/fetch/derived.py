"""Folders of a store that were made from what it holds, and can be made again: workspaces that packs run in, packs that
were pulled, what bundles brought along, wheels as installers want to find them.

Who uses one holds it locked, shared with others, for as long as its store is open; the system lets go of it at a kill.
It is removed only by who has it alone, and under another name by then, so that nobody meets half of it.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cpack_build import filesystem
from cpack_build.errors import writing

__all__ = ["Derived", "DerivedFolders", "Kind"]

Kind = Literal["bundles", "packs", "wheelhouse", "workspaces"]
_GONE = "removed."


@dataclass(frozen=True)
class Derived:
    """A folder at *path*; *size* are bytes that would be free without it, *used* is seconds since 1970."""

    kind: Kind
    path: Path
    size: int
    used: int
    in_use: bool


class DerivedFolders:
    """The folders of the store at *root*. Safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held: dict[Path, int] = {}
        weakref.finalize(self, _close, self._held)

    def take(self, kind: Kind, name: str) -> Path:
        """The folder *name*, made if need be, which stays at least until the store is closed.

        Raises :class:`StorageError`.
        """
        path = self._root / kind / name
        with self._lock, writing(path):
            while path not in self._held:
                path.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    handle = filesystem.open_folder(path)
                    filesystem.lock(handle, shared=True)
                    if _is_still(handle, path):
                        self._held[path] = handle
                        os.utime(path)
                    else:  # it was removed between those lines
                        os.close(handle)
        return path

    def all(self) -> Iterator[Derived]:
        """What is there, with what it costs. Names of folders are read, and no file."""
        for kind in get_args(Kind):
            for path in _folders(self._root / kind):
                with suppress(FileNotFoundError):
                    used = int(path.stat().st_mtime)
                    yield Derived(kind, path, _size(path), used, self._is_used(path))

    def remove(self, folder: Derived) -> bool:
        """Remove *folder* unless somebody uses it."""
        with suppress(FileNotFoundError), writing(folder.path):
            handle = filesystem.open_folder(folder.path)
            try:
                if not filesystem.lock(handle, wait=False):
                    return False
                aside = folder.path.with_name(f"{_GONE}{os.urandom(4).hex()}")
                folder.path.rename(aside)
            finally:
                os.close(handle)
            shutil.rmtree(aside)
        return True

    @staticmethod
    def _is_used(path: Path) -> bool:
        handle = filesystem.open_folder(path)
        try:
            return not filesystem.lock(handle, wait=False)
        finally:
            os.close(handle)


def _is_still(handle: int, path: Path) -> bool:
    try:
        return filesystem.is_folder(handle, path)
    except FileNotFoundError:
        return False


def _folders(folder: Path) -> list[Path]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def _size(folder: Path) -> int:
    """Bytes on the disk of what only *folder* has: a file with a second name elsewhere would stay."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(place, name))
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    total += filesystem.allocated(status)
    return total


def _close(held: dict[Path, int]) -> None:
    for handle in held.values():
        os.close(handle)
