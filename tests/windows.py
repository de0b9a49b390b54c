"""A Windows that is made up, for a process of its own: :func:`pretend` takes away what Python lacks there, and puts in
its place a kernel that does, by POSIX, what Windows documents of the calls that we make."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import types
from collections.abc import Callable
from typing import Any

_MISSING = (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG", "fchmod", "getuid", "killpg", "posix_fadvise",
    "posix_fallocate", "pread", "preadv", "pwrite",
)  # fmt: skip
_KNOWING = (
    "asyncio", "shutil", "sqlite3", "subprocess", "tempfile", "uuid", "aiohttp", "bentoml._internal.server", "click",
    "docker", "pydantic.main", "pygments", "requests", "rich.console", "rich.progress", "uvicorn", "yaml",
)  # fmt: skip
"""Other people's modules that look at the system when they are imported."""
_SHARE_ALL, _THE_LINK_ITSELF = 0x7, 0x00200000
_NOT_FOUND, _LOCK_VIOLATION, _EXISTS = 2, 33, 80
_error = 0


class _Status:
    """A stat with the attributes that files have on Windows."""

    def __init__(self, status: os.stat_result, *, is_link: bool) -> None:
        self._status = status
        self.st_file_attributes = 0x400 if is_link else 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._status, name)


def pretend() -> None:
    """From now on this process is on Windows, as far as the program can tell; the standard library knows better."""
    import fcntl
    import importlib
    import stat
    from ctypes import wintypes

    for name in _KNOWING:
        importlib.import_module(name)

    open_, lstat = os.open, os.lstat

    def fail(code: int) -> None:
        global _error
        _error = code

    def create(path: str, access: int, share: int, _: None, made: int, flags: int, __: None) -> int | None:
        assert share == _SHARE_ALL, "nobody could rename it meanwhile"
        assert flags == _THE_LINK_ITSELF
        how = {0x80000000: os.O_RDONLY, 0x40000000: os.O_WRONLY, 0xC0000000: os.O_RDWR}[access]
        how |= {1: os.O_CREAT | os.O_EXCL, 3: 0, 4: os.O_CREAT}[made]
        try:
            return open_(path, how, 0o666)
        except FileNotFoundError:
            fail(_NOT_FOUND)
        except FileExistsError:
            fail(_EXISTS)
        return wintypes.HANDLE(-1).value

    def lock(handle: int, flags: int, zero: int, low: int, high: int, place: Any) -> int:
        assert (zero, low, high) == (0, 1, 0)
        assert place._obj.OffsetHigh, "a byte that is locked cannot be read"
        try:
            kind = fcntl.LOCK_EX if flags & 0x2 else fcntl.LOCK_SH
            fcntl.flock(handle, kind | (fcntl.LOCK_NB if flags & 0x1 else 0))
        except BlockingIOError:
            fail(_LOCK_VIOLATION)
            return 0
        return 1

    def unlock(handle: int, zero: int, low: int, high: int, place: Any) -> int:
        assert (zero, low, high) == (0, 1, 0)
        fcntl.flock(handle, fcntl.LOCK_UN)
        return 1

    def failure(code: int | None = None) -> OSError:
        meant = {_NOT_FOUND: errno.ENOENT, _EXISTS: errno.EEXIST, _LOCK_VIOLATION: errno.EACCES}
        number = meant[_error if code is None else code]
        return OSError(number, os.strerror(number))

    def status(path: Any, **named: Any) -> Any:
        found = lstat(path, **named)
        return _Status(found, is_link=stat.S_ISLNK(found.st_mode))

    kernel = types.SimpleNamespace(CreateFileW=_call(create), LockFileEx=_call(lock), UnlockFileEx=_call(unlock))
    msvcrt: Any = types.ModuleType("msvcrt")
    msvcrt.open_osfhandle = lambda handle, flags: handle
    msvcrt.get_osfhandle = lambda descriptor: descriptor
    made_up: Any = ctypes
    made_up.WinDLL = lambda name, use_last_error: kernel
    made_up.get_last_error = lambda: _error
    made_up.WinError = failure
    for name in _MISSING:
        delattr(os, name)
    system: Any = os
    system.O_BINARY = system.O_NOINHERIT = 0
    system.lstat = status
    sys.modules |= {"msvcrt": msvcrt} | dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))  # type: ignore[arg-type]
    sys.platform = "win32"


def _call(function: Callable[..., object]) -> Callable[..., object]:
    """*function* as one of a library: types can be set on it."""
    return function
