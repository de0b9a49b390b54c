"""How a stage tells that it is at work, without knowing who listens.

A stage is given a :class:`Progress` and opens one task for each thing that takes time; the command line draws bars or
writes events from it, a test collects them, and :data:`SILENT` drops them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["SILENT", "Progress", "Task"]


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
