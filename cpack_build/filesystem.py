"""What each operating system does with files in a way of its own: opening one that others may rename or remove
meanwhile, locks between programs, blocks that two files share, reading and writing at a place, room taken beforehand.

Linux and macOS have POSIX. On Windows the same is asked of its kernel: files are opened with every kind of sharing, so
that what is open can be renamed; a lock covers one byte that no file reaches, since a locked byte cannot be read there;
a folder, which cannot be opened, is locked by a file beside it. ``make lint`` checks the types of the whole program for
each of the three systems, which is how a call that one of them lacks is noticed.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from pathlib import Path
from typing import IO

__all__ = [
    "allocated",
    "drop_pages",
    "expanded",
    "is_folder",
    "lock",
    "open_file",
    "open_folder",
    "read_at",
    "read_into",
    "read_only",
    "reserve",
    "share_blocks",
    "unlock",
    "write_at",
]


def expanded(path: Path | str) -> Path:
    """*path* with ``~`` and ``~NAME`` made what they stand for. Raises :class:`UsageError` for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        from cpack_build.errors import UsageError  # not above: the plugin's copy of this file has no such neighbour

        name = Path(path).parts[0]
        raise UsageError(f"{path}: this machine knows no home of {name!r}.", hint="Write the path out.") from error


def lock(file: IO[bytes] | IO[str] | int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock *file* until :func:`unlock`, or until it is closed or its process ends; ``False`` if another holds it and
    *wait* is not set. Other programs are only kept from locking it, not from reading it."""
    return _lock(file if isinstance(file, int) else file.fileno(), shared=shared, wait=wait)


def unlock(file: IO[bytes] | IO[str] | int) -> None:
    """Let go of what :func:`lock` has locked."""
    _unlock(file if isinstance(file, int) else file.fileno())


def share_blocks(source: int, target: int, *, at: int | None = None) -> bool:
    """Make the open file *target* a copy of *source* (or its bytes from *at* on) that takes no room, where the file
    system can (btrfs, XFS, bcachefs, …); ``False``, with *target* as it was, where it cannot: not this file system, not
    across two of them, not this block size. Linux's FICLONE and FICLONERANGE.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        if at is None:
            fcntl.ioctl(target, 0x40049409, source)
        else:
            # A length of 0 means up to the end of the source, whose last block need not be whole there.
            fcntl.ioctl(target, 0x4020940D, struct.pack("=qQQQ", source, 0, 0, at))
    except OSError:
        return False
    return True


def reserve(descriptor: int, size: int) -> None:
    """Give the open file *size* bytes, with room for them on the disk where the system can promise that."""
    if size and sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, size)
    os.ftruncate(descriptor, size)


def drop_pages(descriptor: int, begin: int, count: int) -> None:
    """Tell the system that those bytes of the open file are not read again soon: it may write them to the disk now."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, begin, count, os.POSIX_FADV_DONTNEED)


def allocated(status: os.stat_result) -> int:
    """Bytes that a file takes on its disk."""
    if sys.platform == "win32":
        return status.st_size
    return status.st_blocks * 512


def is_folder(handle: int, folder: Path) -> bool:
    """Whether *handle*, of :func:`open_folder`, is of what is at *folder* now. Raises :class:`FileNotFoundError`."""
    status = folder.stat()
    return sys.platform == "win32" or os.path.samestat(os.fstat(handle), status)


if sys.platform == "win32":  # pragma: no cover - its calls are tested against a kernel that is made up
    import ctypes
    import errno
    import msvcrt
    from ctypes import wintypes

    _SHARE_ALL = 0x1 | 0x2 | 0x4
    _NO_BUFFER_LINK = 0x00200000  # FILE_FLAG_OPEN_REPARSE_POINT: a link itself is opened, never what it names
    _FAIL_AT_ONCE, _EXCLUSIVE = 0x1, 0x2
    _LOCK_VIOLATION, _IO_PENDING = 33, 997
    _LOCKED_BYTE = 0x7FFF_FFFF
    _MADE = {os.O_CREAT | os.O_EXCL: 1, os.O_CREAT: 4, 0: 3}  # CREATE_NEW, OPEN_ALWAYS, OPEN_EXISTING
    _place = threading.Lock()

    class _Overlapped(ctypes.Structure):
        _fields_ = (
            ("Internal", ctypes.c_void_p),
            ("InternalHigh", ctypes.c_void_p),
            ("Offset", wintypes.DWORD),
            ("OffsetHigh", wintypes.DWORD),
            ("hEvent", wintypes.HANDLE),
        )

    def _kernel() -> ctypes.WinDLL:
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.CreateFileW.restype = wintypes.HANDLE
        kernel.CreateFileW.argtypes = [
            wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, ctypes.c_void_p, wintypes.DWORD, wintypes.DWORD,
            wintypes.HANDLE,
        ]  # fmt: skip
        for call, flags in ((kernel.LockFileEx, 2), (kernel.UnlockFileEx, 1)):
            call.restype = wintypes.BOOL
            call.argtypes = [wintypes.HANDLE, *[wintypes.DWORD] * (flags + 2), ctypes.POINTER(_Overlapped)]
        return kernel

    def open_file(path: Path | str, flags: int, mode: int = 0o600) -> int:
        """:func:`os.open` in binary mode, that neither follows a link at *path* nor hands the file down."""
        access = 0x40000000 if flags & os.O_WRONLY else 0xC0000000 if flags & os.O_RDWR else 0x80000000
        made = _MADE[flags & (os.O_CREAT | os.O_EXCL)]
        handle = _kernel().CreateFileW(str(path), access, _SHARE_ALL, None, made, _NO_BUFFER_LINK, None)
        if handle in (None, wintypes.HANDLE(-1).value):
            error = ctypes.WinError(ctypes.get_last_error())
            error.filename = str(path)
            raise error
        keep = os.O_APPEND | os.O_RDONLY | os.O_WRONLY | os.O_RDWR
        descriptor = msvcrt.open_osfhandle(handle, (flags & keep) | os.O_NOINHERIT | os.O_BINARY)
        if os.lstat(path).st_file_attributes & 0x400:  # a link
            os.close(descriptor)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
        return descriptor

    def open_folder(folder: Path) -> int:
        """Something to lock for *folder*: a hidden file beside it, for Windows opens no folder."""
        folder.stat()
        return open_file(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT)

    def _lock(descriptor: int, *, shared: bool, wait: bool) -> bool:
        flags = (0 if shared else _EXCLUSIVE) | (0 if wait else _FAIL_AT_ONCE)
        byte = _Overlapped(OffsetHigh=_LOCKED_BYTE)
        if _kernel().LockFileEx(msvcrt.get_osfhandle(descriptor), flags, 0, 1, 0, ctypes.byref(byte)):
            return True
        failed = ctypes.get_last_error()
        if not wait and failed in (_LOCK_VIOLATION, _IO_PENDING):
            return False
        raise ctypes.WinError(failed)

    def _unlock(descriptor: int) -> None:
        byte = _Overlapped(OffsetHigh=_LOCKED_BYTE)
        if not _kernel().UnlockFileEx(msvcrt.get_osfhandle(descriptor), 0, 1, 0, ctypes.byref(byte)):
            raise ctypes.WinError(ctypes.get_last_error())

    def read_at(descriptor: int, count: int, offset: int) -> bytes:
        """Up to *count* bytes from *offset* on."""
        with _place:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, count)

    def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        """Fill *buffer* from *offset* on; how many bytes were read."""
        chunk = read_at(descriptor, len(buffer), offset)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        """Write *data* at *offset*; how many bytes were written."""
        with _place:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, data)

    def read_only(descriptor: int, path: Path) -> None:
        """Leave the file at *path* as it is: nothing, for a file that cannot be written cannot be renamed there."""

else:
    import fcntl

    def open_file(path: Path | str, flags: int, mode: int = 0o600) -> int:
        """:func:`os.open` in binary mode, that neither follows a link at *path*, nor hands the file down, nor waits for
        the other end of a pipe that somebody put there."""
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)

    def open_folder(folder: Path) -> int:
        """*folder*, to be locked or synced."""
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _lock(descriptor: int, *, shared: bool, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def read_at(descriptor: int, count: int, offset: int) -> bytes:
        """Up to *count* bytes from *offset* on."""
        return os.pread(descriptor, count, offset)

    def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
        """Fill *buffer* from *offset* on; how many bytes were read."""
        return os.preadv(descriptor, [buffer], offset)

    def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        """Write *data* at *offset*; how many bytes were written."""
        return os.pwrite(descriptor, data, offset)

    def read_only(descriptor: int, path: Path) -> None:
        """Let nobody write to the open file at *path*."""
        os.fchmod(descriptor, 0o444)
