"""A folder that nobody else can look into, for everything that is half-made.

It lies among the temporary files of all users, where a cleaner may remove it while ComfyUI runs for weeks, and somebody
else may then make one of its name. So it is looked at before each use, and made anew, under another name, where it is
no longer the one that was made.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from ..filesystem import lock

__all__ = ["PrivateFolder"]

_PREFIX = "cpack-comfyui-"


class PrivateFolder:
    """The folder of this process, locked while it lives; those of processes that are gone are removed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError), (old / "lock").open("r+b") as file:  # other users' folders cannot be opened
                if not old.is_symlink() and lock(file, wait=False):
                    shutil.rmtree(old, ignore_errors=True)
        self._make()

    def below(self, *names: str) -> Path:
        """The folder *names* in it, one below the other; each is made if it is not there."""
        with self._lock:
            if not self._is_ours():
                self._held.close()
                self._make()
            path = self._path
            for name in names:
                path /= name
                path.mkdir(mode=0o700, exist_ok=True)
            return path

    def remove(self) -> None:
        """Leave no file."""
        with self._lock:
            self._held.close()
            if self._is_ours():
                shutil.rmtree(self._path, ignore_errors=True)

    def _make(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held = (self._path / "lock").open("w+b")
        lock(self._held)
        self._made = os.lstat(self._path)

    def _is_ours(self) -> bool:
        try:
            now = os.lstat(self._path)
        except OSError:
            return False
        if sys.platform != "win32" and (now.st_uid != os.getuid() or stat.S_IMODE(now.st_mode) != 0o700):
            return False
        return stat.S_ISDIR(now.st_mode) and (now.st_dev, now.st_ino) == (self._made.st_dev, self._made.st_ino)
