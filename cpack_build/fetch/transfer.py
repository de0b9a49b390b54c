"""Downloads of large files whose hash is known: ranged, parallel, resumable, and hashed while they come.

One file comes in parts of 32 MiB over several connections, straight into its place in a :class:`~.partial.Partial`.
Hashers follow the front of what is whole and read it from the page cache, so the file's hash (and that of a frame
around it, for a layer) is there a moment after the last byte, without a second read of the disk. What a source gave
until it failed stays, and the next one goes on; if the whole then has another hash, it is tried once more from one
source alone. What still has another hash is put aside under its real one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from cpack_build import filesystem
from cpack_build.errors import Cancelled, CpackError, HashMismatch, NetworkError, ToolMissing, Unresolvable
from cpack_build.fetch.partial import Partial, alone
from cpack_build.fetch.remote import Piece, Remote, TryLater
from cpack_build.fetch.store import CHUNK, Store, StoredFile, stored_at
from cpack_build.fetch.tuning import Tuning
from cpack_build.progress import SILENT, Progress, Stop, Task, check

__all__ = ["Frame", "Transferred", "transfer"]

Frame = Callable[[int], tuple[bytes, bytes]]
"""What stands before and after a file of a size in something else whose hash is wanted as well."""
_LONGEST_WAIT = 60.0
"""Seconds that a ``Retry-After`` may ask for before giving up is the kinder answer."""
_PROGRESS = 64 << 10
"""Bytes after which a broken connection was worth its while, and does not count as a failure."""


@dataclass(frozen=True)
class Transferred:
    """The file in the store; *framed* is the hash (hex) of the frame with the file in it, if one was asked for."""

    file: StoredFile
    framed: str | None


def transfer(
    remotes: Iterable[Remote],
    *,
    sha256: str,
    size: int | None,
    name: str,
    store: Store,
    tuning: Tuning,
    frame: Frame | None = None,
    problems: list[CpackError] | None = None,
    progress: Progress = SILENT,
) -> Transferred | None:
    """The file with that hash, from the first of *remotes* that gives it; ``None`` when none does.

    Why each did not is added to *problems*. Raises :class:`StorageError`, :class:`UnsafeInput`.
    """
    told = [] if problems is None else problems
    with ExitStack() as notice:
        task: Task | None = None

        def waiting() -> None:
            nonlocal task
            if task is None:
                title = f"{name}: waiting for another cpack-build that downloads it"
                task = notice.enter_context(progress.task(title))
            task.advance(0)

        with alone(store.root, sha256, waiting=waiting):
            notice.close()
            if (known := store.find(sha256)) is not None:
                return Transferred(known, None)
            partial = Partial(store.root, sha256, part=tuning.part)
            try:
                if partial.size is not None and size is not None and partial.size != size:
                    partial.start_over()
                failed: CpackError | None = None
                for remote in remotes:
                    if failed is not None:
                        progress.note(f"{name}: {failed.message} {remote.shown} is asked next.")
                    run = _Run(partial, remote, sha256, size, name, store, tuning, frame, progress)
                    try:
                        return run.result()
                    except (NetworkError, Unresolvable, HashMismatch, ToolMissing) as error:
                        failed = error
                        told.append(error)
                return None
            finally:
                partial.close()


class _Run:
    """One source's turn at one file."""

    def __init__(
        self,
        partial: Partial,
        remote: Remote,
        sha256: str,
        size: int | None,
        name: str,
        store: Store,
        tuning: Tuning,
        frame: Frame | None,
        progress: Progress,
    ) -> None:
        self._partial = partial
        self._remote = remote
        self._sha256 = sha256
        self._size = size
        self._name = name
        self._store = store
        self._tuning = tuning
        self._frame = frame
        self._progress = progress
        self._lock = threading.Lock()
        self._stop = Stop()
        """Set when one connection failed for good: the others end."""
        self._failure: BaseException | None = None
        self._parts: list[int] = []
        self._file_hash: _Follower | None = None
        self._frame_hash: _Follower | None = None

    def result(self) -> Transferred:
        """The whole file. Raises what is wrong with this source."""
        mixed = bool(self._partial.count)
        transferred = self._once()
        if transferred is None and mixed:
            self._progress.note(f"{self._name}: what came earlier does not fit; it is downloaded again.")
            self._partial.start_over()
            transferred = self._once()
        if transferred is not None:
            return transferred
        assert self._file_hash is not None
        actual = self._file_hash.hexdigest()
        aside = self._store.reject(self._partial.path, actual)
        self._partial.moved_away()
        raise HashMismatch(
            f"{self._name} from {self._remote.shown}",
            expected=self._sha256,
            actual=actual,
            hint=f"Nothing was used of it; it is kept as {aside} for you to look at.",
        )

    def _once(self) -> Transferred | None:
        """Download what is missing; ``None`` if the whole then has another hash."""
        partial = self._partial
        with self._progress.task(self._name, total=partial.size or self._size) as task:
            task.advance(partial.count)
            self._file_hash = _Follower(partial, self._stop)
            if partial.size is not None:
                self._follow_frame(partial.size)
            try:
                with self._stop.applied():
                    self._take_all(task)
                partial.end()
                assert partial.size is not None
                self._follow_frame(partial.size)
                digest = self._file_hash.finish()
                framed = self._frame_hash.finish() if self._frame_hash is not None else None
            except BaseException as error:
                self._stop.set()
                partial.wake()
                if isinstance(error, Cancelled):
                    raise self._cause() from None
                raise
            finally:
                for follower in (self._file_hash, self._frame_hash):
                    if follower is not None:
                        follower.join()
                self._frame_hash = None
        if digest != self._sha256:
            return None
        blob = self._store.place(partial.path, digest, descriptor=partial.descriptor, name=self._name)
        partial.moved_away()
        return Transferred(stored_at(blob, digest), framed)

    def _follow_frame(self, size: int) -> None:
        if self._frame is not None and self._frame_hash is None:
            before, after = self._frame(size)
            self._frame_hash = _Follower(self._partial, self._stop, before, after)

    def _take_all(self, task: Task) -> None:
        """Every part that is missing: the first over this thread's connection, which tells whether others help."""
        partial = self._partial
        if partial.size is None and self._size is not None:
            partial.expect(self._size, self._name)
            self._follow_frame(self._size)
        if partial.size is None:
            self._retried(lambda: self._unsized(task))
            if partial.is_unsized:
                return
        self._parts = partial.missing()
        if not self._parts:
            return
        helpers: list[threading.Thread] = []

        def ranged() -> None:
            """The source has ranges: let others take the next parts."""
            for _ in range(min(self._tuning.connections - 1, len(self._parts)) if not helpers else 0):
                if not self._tuning.all.acquire(blocking=False):
                    break
                helpers.append(threading.Thread(target=self._help, args=(task,), daemon=True))
                helpers[-1].start()

        try:
            while (number := self._next()) is not None:
                self._retried(lambda number=number: self._part(number, task, ranged, lambda: not helpers))  # type: ignore[misc]
        except BaseException:
            self._stop.set()
            raise
        finally:
            for helper in helpers:
                helper.join()
        if self._failure is not None:
            raise self._failure
        check()

    def _cause(self) -> BaseException:
        """Why a thread was told to stop."""
        for follower in (self._file_hash, self._frame_hash):
            if follower is not None and follower.error is not None:
                return follower.error
        return self._failure or Cancelled()

    def _next(self) -> int | None:
        with self._lock:
            return self._parts.pop(0) if self._parts and not self._stop.is_set() else None

    def _help(self, task: Task) -> None:
        try:
            with self._stop.applied():
                while (number := self._next()) is not None:
                    self._retried(lambda number=number: self._part(number, task, _nothing))  # type: ignore[misc]
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._stop.set()
            self._partial.wake()
        finally:
            self._tuning.all.release()

    def _part(
        self, number: int, task: Task, ranged: Callable[[], None], is_only: Callable[[], bool] = lambda: False
    ) -> None:
        """The rest of one part; of a source without ranges everything, by the *only* connection."""
        partial = self._partial
        begin, end = partial.span(number)
        if begin == end:
            return
        with self._remote.read(begin, end) as piece:
            self._check_total(piece)
            if not piece.is_range and is_only():
                try:
                    self._streamed(piece, task)
                finally:
                    with self._lock:
                        self._parts = partial.missing()
                if not self._parts:
                    return
            else:
                if piece.is_range:
                    ranged()
                passed = piece.start
                for chunk in piece.chunks:
                    at, passed = passed, passed + len(chunk)
                    fresh = chunk[max(0, begin - at) : max(0, end - at)]
                    self._arrived(len(fresh), task, came=len(chunk))
                    if fresh:
                        partial.write(number, fresh)
                    if passed >= end:
                        return
        raise ConnectionError("the answer ended early")

    def _unsized(self, task: Task) -> None:
        """The first answer, to learn the size; or all of it, where the source does not say."""
        partial = self._partial
        begin = partial.count
        with self._remote.read(begin, None) as piece:
            if piece.total is not None and not partial.is_unsized:
                partial.expect(piece.total, self._name)
                task.expect(piece.total)
                self._follow_frame(piece.total)
                return
            self._streamed(piece, task)

    def _streamed(self, piece: Piece, task: Task) -> None:
        offset = piece.start
        for chunk in piece.chunks:
            before = self._partial.count
            self._partial.write_stream(offset, chunk)
            offset += len(chunk)
            self._arrived(self._partial.count - before, task, came=len(chunk))

    def _check_total(self, piece: Piece) -> None:
        if piece.total is not None and piece.total != self._partial.size:
            raise NetworkError(
                f"{self._remote.shown} has {piece.total} bytes, where {self._partial.size} were promised: it is "
                "another file, or not whole.",
                hint="Name a copy of the right one with --mirror or --models.",
            )

    def _arrived(self, count: int, task: Task, *, came: int | None = None) -> None:
        check()
        if not count and came is None:
            return
        if self._tuning.limit is not None:
            self._tuning.limit.take(count if came is None else came)
        with self._lock:
            task.advance(count)

    def _retried(self, work: Callable[[], None]) -> None:
        """Do *work* until it is done; after failures in a row that brought nothing the source is given up."""
        failures = 0
        while True:
            before = self._partial.count
            try:
                work()
                return
            except TryLater as error:
                problem: CpackError = error.error
                wait = error.wait
            except (ConnectionError, TimeoutError) as error:
                problem = NetworkError(
                    f"{self._remote.shown} cannot be downloaded: {error}.",
                    hint="Check the network and run it again: it goes on where it broke off. Or name a copy with "
                    "--mirror.",
                )
                wait = None
            check()
            failures = 1 if self._partial.count - before >= _PROGRESS else failures + 1
            if failures >= self._tuning.retries or (wait or 0.0) > _LONGEST_WAIT:
                raise problem
            self._tuning.sleep(float(2 ** (failures - 1)) if wait is None else wait)


def _nothing() -> None:
    pass


class _Follower:
    """Hashes a partial file behind its front, in a thread of its own."""

    def __init__(self, partial: Partial, stop: Stop, before: bytes = b"", after: bytes = b"") -> None:
        self._partial = partial
        self._stop = stop
        self._hasher = hashlib.sha256(before)
        self._after = after
        self._is_done = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            offset = 0
            buffer = bytearray(CHUNK)
            view = memoryview(buffer)
            while True:
                front = self._partial.front(offset, self._stop)
                if front < 0:
                    return
                while offset < front and not self._stop.is_set():
                    count = filesystem.read_into(self._partial.descriptor, view[: min(CHUNK, front - offset)], offset)
                    if not count:
                        raise Unresolvable(f"{self._partial.path} became shorter while it was downloaded.")
                    self._hasher.update(view[:count])
                    offset += count
                if self._partial.is_whole(offset):
                    self._is_done = True
                    return
        except BaseException as error:
            self.error = error
            self._stop.set()

    def join(self) -> None:
        self._thread.join()

    def finish(self) -> str:
        """The hash, once all is read. Raises :class:`Cancelled` when that was stopped."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        if not self._is_done:
            raise Cancelled
        self._hasher.update(self._after)
        self._after = b""
        return self._hasher.hexdigest()

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()
