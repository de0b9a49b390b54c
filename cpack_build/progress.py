"""How a stage tells that it is at work, without knowing who listens.

A stage is given a :class:`Progress` and opens one task for each thing that takes time; the command line draws bars or
writes events from it, a test collects them, and :data:`SILENT` drops them. Work in several threads (:func:`working`)
is also ended by it: who reports is told there that nobody waits for the result any more, and so is who waits. Each of
its threads works under a :class:`Stop`; what takes time without a report, as the network does, waits by :func:`pause`,
by :func:`waiting_for` or under :func:`on_stop`, and ends with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from cpack_build.errors import Cancelled

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["SILENT", "Progress", "Stop", "Task", "check", "on_stop", "pause", "waiting_for", "working"]

T = TypeVar("T")
_LOOK_EVERY = 0.1
"""Seconds after which a thread that waits looks whether it still should."""


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int) -> None:
        """Tell that *amount* more units are done."""

    def expect(self, total: int) -> None:
        """Tell how many units there are in all, once that is known."""


class Progress(Protocol):
    """Receives the tasks of a stage."""

    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> AbstractContextManager[Task]:
        """Open a task; leaving the context ends it. *unit* is ``B`` for bytes or a plural noun (``wheels``)."""

    def note(self, message: str) -> None:
        """Tell one line that a person would want to know and that is not an error."""


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass

    def expect(self, total: int) -> None:
        pass


class _SilentProgress:
    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        yield _SilentTask()

    def note(self, message: str) -> None:
        pass


SILENT: Progress = _SilentProgress()


class Stop:
    """Whether a piece of work, in however many threads, is to end. What it is a part of ends it, too.

    >>> stop = Stop()
    >>> with stop.applied():    # in each of its threads
    ...     pause(60.0)         # raises Cancelled soon after stop.set()
    """

    def __init__(self) -> None:
        self._outer = _of_thread.stop
        self._event = threading.Event()
        self._calls: dict[object, Callable[[], object]] = {}

    def is_set(self) -> bool:
        return self._event.is_set() or (self._outer is not None and self._outer.is_set())

    def set(self) -> None:
        """End it: whoever waits is woken."""
        self._event.set()
        for call in list(self._calls.values()):
            with suppress(OSError, ValueError, RuntimeError):  # what it should end may just have ended by itself
                call()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """This thread works under it."""
        before, _of_thread.stop = _of_thread.stop, self
        try:
            yield
        finally:
            _of_thread.stop = before

    @contextmanager
    def calling(self, end: Callable[[], object]) -> Iterator[None]:
        """Call *end* when it is set meanwhile, from the thread that sets it. Raises :class:`Cancelled` if it is."""
        key, chain = object(), [self]
        while (outer := chain[-1]._outer) is not None:
            chain.append(outer)
        try:
            for stop in chain:
                stop._calls[key] = end
            if self.is_set():
                raise Cancelled
            yield
        finally:
            for stop in chain:
                stop._calls.pop(key, None)


class _OfThread(threading.local):
    stop: Stop | None = None


_of_thread = _OfThread()


def check() -> None:
    """Raise :class:`Cancelled` where this thread's work is to end."""
    if _of_thread.stop is not None and _of_thread.stop.is_set():
        raise Cancelled


@contextmanager
def on_stop(end: Callable[[], object]) -> Iterator[None]:
    """Call *end*, from another thread, when this thread's work is to end meanwhile."""
    if _of_thread.stop is None:
        yield
        return
    with _of_thread.stop.calling(end):
        yield


def pause(seconds: float) -> None:
    """Sleep. Raises :class:`Cancelled` soon after this thread's work is to end."""
    until = time.monotonic() + seconds
    check()
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_EVERY))
        check()


def waiting_for(
    work: Callable[[], T], *, drop: Callable[[T], object] = lambda result: None, seconds: float | None = None
) -> T:
    """What *work* returns or raises, where nothing can wake it: it looks up a name, or is a native library's.

    Raises :class:`Cancelled` soon after this thread's work is to end, and :class:`TimeoutError` after *seconds*. Then,
    and after Ctrl-C, *work* is left to itself, in a thread for which no exit waits, and what it returns is given to
    *drop*.
    """
    from concurrent.futures import Future, wait

    check()
    result: Future[T] = Future()

    def do() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    def dropped(result: Future[T]) -> None:
        if result.exception() is None:
            drop(result.result())

    until = None if seconds is None else time.monotonic() + seconds
    threading.Thread(target=do, name="waited for", daemon=True).start()
    try:
        while not wait((result,), _LOOK_EVERY).done:
            check()
            if until is not None and time.monotonic() > until:
                raise TimeoutError
    except BaseException:
        result.add_done_callback(dropped)
        raise
    return result.result()


@contextmanager
def working(threads: int, progress: Progress) -> Iterator[tuple[ThreadPoolExecutor, Progress]]:
    """A pool of that many *threads*, and the progress that they report to.

    When the context ends by an exception (Ctrl-C is one) what waits is not begun, and what runs gets :class:`Cancelled`
    from its next report or wait: nobody waits for a download of hours to be told that a small one failed.
    """
    from concurrent.futures import ThreadPoolExecutor

    stop = Stop()

    def begin() -> None:
        _of_thread.stop = stop

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        try:
            yield pool, _Stoppable(progress, stop)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Stoppable:
    """A progress that raises instead of taking reports once *stop* is set."""

    def __init__(self, progress: Progress, stop: Stop) -> None:
        self._stop = stop
        self._progress = progress

    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        self._check()
        with self._progress.task(title, total=total, unit=unit) as task:
            yield _StoppableTask(task, self._check)

    def note(self, message: str) -> None:
        self._progress.note(message)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled


class _StoppableTask:
    def __init__(self, task: Task, check: Callable[[], None]) -> None:
        self._task = task
        self._check = check

    def advance(self, amount: int) -> None:
        self._check()
        self._task.advance(amount)

    def expect(self, total: int) -> None:
        self._task.expect(total)
