"""How a stage tells that it is at work, without knowing who listens.

A stage is given a :class:`Progress` and opens one task for each thing that takes time; the command line draws bars or
writes events from it, a test collects them, and :data:`SILENT` drops them. Work in several threads (:func:`working`)
is also ended by it: who reports is told there that nobody waits for the result any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from cpack_build.errors import Cancelled

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["SILENT", "Progress", "Task", "working"]


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


@contextmanager
def working(threads: int, progress: Progress) -> Iterator[tuple[ThreadPoolExecutor, Progress]]:
    """A pool of that many *threads*, and the progress that they report to.

    When the context ends by an exception (Ctrl-C is one) what waits is not begun, and what runs gets :class:`Cancelled`
    from its next report: nobody waits for a download of hours to be told that a small one failed.
    """
    from concurrent.futures import ThreadPoolExecutor

    stoppable = _Stoppable(progress)
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool, stoppable
        except BaseException:
            stoppable.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Stoppable:
    """A progress that raises instead of taking reports once it is *stopped*."""

    def __init__(self, progress: Progress) -> None:
        self.stopped = threading.Event()
        self._progress = progress

    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        self._check()
        with self._progress.task(title, total=total, unit=unit) as task:
            yield _StoppableTask(task, self._check)

    def note(self, message: str) -> None:
        self._progress.note(message)

    def _check(self) -> None:
        if self.stopped.is_set():
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
