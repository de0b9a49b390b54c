"""A download that may be broken off at any moment and go on in another run, from another source of the same hash.

``partial/<hex>`` has the file's whole size from the beginning, so that a disk that is too small is known before the
first byte; ``<hex>.journal`` says how far each part has come. A byte that is written is never written again: what was
hashed is what will be in the store. ``<hex>.lock`` is held by whoever downloads; the system lets go of it at a kill.
Only the hash of the whole makes a file of it, so a journal that lies costs time and nothing else.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cpack_build import filesystem
from cpack_build.errors import NetworkError, StorageError, UnsafeInput, writing
from cpack_build.progress import Stop

__all__ = ["PART", "Partial", "alone"]

PART = 32 << 20
"""Bytes that one connection takes at a time."""
_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"cpackpt1"
_DONE = struct.Struct("<Q")
_ASK_EVERY = 0.1
"""Seconds between two looks at a lock that another process holds."""


@contextmanager
def alone(root: Path, sha256: str, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Be the only one, across threads and processes, who downloads *sha256* into the store at *root*.

    *waiting* is called again and again while another does; it may raise to give up.
    """
    path = root / "partial" / f"{sha256}.lock"
    with writing(root):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with writing(path):
            descriptor = filesystem.open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            while not filesystem.lock(descriptor, wait=False):
                waiting()
                time.sleep(_ASK_EVERY)
            if os.fstat(descriptor).st_nlink == 0:
                continue  # whoever had it was done, and took the file away
            try:
                yield
            finally:
                with suppress(FileNotFoundError):
                    path.unlink()
            return
        finally:
            os.close(descriptor)


class Partial:
    """The part of a file that has come so far. Parts may be written from several threads, each part from one."""

    def __init__(self, root: Path, sha256: str, *, part: int = PART) -> None:
        self.path = root / "partial" / sha256
        self._journal_path = self.path.with_name(f"{sha256}.journal")
        self._part = part
        self._moved = threading.Condition()
        self.size: int | None = None
        self.done: list[int] = []
        """Bytes of each part that have been written, from its beginning."""
        self.is_unsized = False
        """Whether the file is as long as what comes: nobody said its size before."""
        self._whole = 0
        self.descriptor = _opened(self.path)
        self._journal = _opened(self._journal_path)
        self._take_up()

    def close(self) -> None:
        """Keep what has come, if anything has."""
        os.close(self.descriptor)
        os.close(self._journal)
        if not self.count:
            for path in (self.path, self._journal_path):
                with suppress(FileNotFoundError):
                    path.unlink()

    def moved_away(self) -> None:
        """The file has another name now: what comes from here on is a new one."""
        os.close(self.descriptor)
        self.descriptor = _opened(self.path)
        self.start_over()

    @property
    def count(self) -> int:
        """Bytes that have come."""
        return sum(self.done)

    def _take_up(self) -> None:
        """What an earlier run left, if its journal fits."""
        journal = b""
        while chunk := os.read(self._journal, 1 << 20):
            journal += chunk
        if len(journal) >= _HEAD.size:
            magic, size, part = _HEAD.unpack_from(journal)
            lengths = _lengths(size, part) if part else []
            body = journal[_HEAD.size :]
            if magic == _MAGIC and len(body) == len(lengths) * _DONE.size:
                done = [number for (number,) in _DONE.iter_unpack(body)]
                fits = all(number <= length for number, length in zip(done, lengths, strict=True))
                if fits and os.fstat(self.descriptor).st_size == size:
                    self._part, self.size, self.done = part, size, done
                    return
        self.start_over()

    def start_over(self) -> None:
        """As if nothing had come."""
        with writing(self.path):
            os.ftruncate(self.descriptor, 0)
            os.ftruncate(self._journal, 0)
        with self._moved:
            self.size, self.done, self.is_unsized, self._whole = None, [], False, 0

    def expect(self, size: int, name: str) -> None:
        """The file will have *size* bytes: take the room for it. Raises :class:`StorageError` where there is none."""
        try:
            filesystem.reserve(self.descriptor, size)
            head = _HEAD.pack(_MAGIC, size, self._part)
            filesystem.write_at(self._journal, head + bytes(_DONE.size * len(_lengths(size, self._part))), 0)
        except OSError as error:
            self.start_over()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                with writing(self.path):
                    raise
            free = shutil.disk_usage(self.path.parent).free
            raise StorageError(
                f"No space left for {name}: it has {size / 1e6:.1f} MB, and the disk of {self.path.parent.parent} has "
                f"{free / 1e6:.1f} MB left.",
                hint="Free some space (`cpack-build store gc`), or name another disk with CPACK_HOME.",
            ) from error
        with self._moved:
            self.size, self.done, self._whole = size, [0] * len(_lengths(size, self._part)), 0
            self._moved.notify_all()

    def missing(self) -> list[int]:
        """The parts that are not whole, in order."""
        assert self.size is not None
        lengths = _lengths(self.size, self._part)
        return [number for number, length in enumerate(lengths) if self.done[number] < length]

    def span(self, number: int) -> tuple[int, int]:
        """Where the rest of part *number* begins, and where the part ends."""
        assert self.size is not None
        begin = number * self._part
        return begin + self.done[number], min(begin + self._part, self.size)

    def write(self, number: int, data: bytes) -> None:
        """The next bytes of part *number*; no more than are missing."""
        offset = number * self._part + self.done[number]
        with writing(self.path):
            _write(self.descriptor, data, offset)
        done = self.done[number] + len(data)
        if self.size is not None and not self.is_unsized:
            with writing(self.path):
                filesystem.write_at(self._journal, _DONE.pack(done), _HEAD.size + number * _DONE.size)
        with self._moved:
            self.done[number] = done
            self._moved.notify_all()
        if self.size is not None and not self.is_unsized and self.span(number)[0] == self.span(number)[1]:
            # Let the disk begin with what is whole; the sync at the end then waits for little.
            begin = number * self._part
            filesystem.drop_pages(self.descriptor, begin, done)

    def write_stream(self, offset: int, data: bytes) -> None:
        """*data* at *offset* of the whole, of which only what has not come yet is written."""
        if self.size is None:
            with self._moved:
                self.is_unsized, self.done = True, self.done or [0]
            if (fresh := data[max(0, self.done[0] - offset) :]) and offset + len(data) > self.done[0]:
                self.write(0, fresh)
            return
        if offset + len(data) > self.size:
            raise NetworkError(f"More than {self.size} bytes came, which were promised.")
        while data:
            number = offset // self._part
            end = min((number + 1) * self._part, self.size)
            piece = data[: end - offset]
            begin, _ = self.span(number)
            if offset + len(piece) > begin:
                self.write(number, piece[max(0, begin - offset) :])
            offset, data = offset + len(piece), data[len(piece) :]

    def end(self) -> None:
        """All has come, and what has come is all."""
        with self._moved:
            if self.size is None:
                self.size = self.done[0] if self.done else 0
            self._moved.notify_all()

    def front(self, after: int, stop: Stop) -> int:
        """How far the file is whole from its beginning, once that is more than *after* or all; -1 at a *stop*."""
        with self._moved:
            while not stop.is_set():
                front = self._front()
                if front > after or front == self.size:
                    return front
                self._moved.wait(0.5)
        return -1

    def is_whole(self, front: int) -> bool:
        """Whether there is nothing beyond *front*."""
        with self._moved:
            return self.size is not None and front >= self.size

    def wake(self) -> None:
        """Let who waits for the front look again."""
        with self._moved:
            self._moved.notify_all()

    def _front(self) -> int:
        if self.size is None or self.is_unsized:
            return self.done[0] if self.done else 0
        while self._whole < len(self.done):
            begin, end = self.span(self._whole)
            if begin < end:
                return begin
            self._whole += 1
        return self.size


def _lengths(size: int, part: int) -> list[int]:
    return [min(part, size - begin) for begin in range(0, size, part)]


def _opened(path: Path) -> int:
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return filesystem.open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeInput(f"{path} is a link, which the store never makes.", hint="Remove it.") from error
        with writing(path):
            raise


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = filesystem.write_at(descriptor, view, offset)
        offset += count
        view = view[count:]
