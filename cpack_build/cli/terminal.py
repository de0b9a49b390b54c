"""What a command writes: its result on stdout, its progress on stderr.

The result is lines for people, or with ``--json`` one object. Progress is bars when stderr is a terminal and nothing
otherwise; ``--progress`` chooses ``plain`` lines or ``json`` events, one a line, instead. Text that came from a
document is made printable first, so that no pack can move the cursor of whoever inspects it. Nothing heavy is imported
until the first bar is drawn.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TextIO

from cpack_build.progress import Progress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["ProgressMode", "Terminal", "amount", "printable", "speed"]

ProgressMode = Literal["auto", "plain", "json", "none"]
_SHOWN_FROM = 0.5
"""Seconds that a task must have taken for its end to be kept on the screen."""
_TOLD_AFTER = 1.0
"""Seconds after which a task that still runs is told in plain lines."""
_EVENT_EVERY = 0.2
"""Seconds between two ``advance`` events of one task."""
_RATE_OVER = 5.0
"""Seconds over which a rate is taken: long enough to be calm, short enough to tell that a network got slower."""


def printable(text: str) -> str:
    """*text* with everything that a terminal would obey (other than line ends) written as an escape."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def amount(count: int, total: int | None, unit: str) -> str:
    """``3/7 wheels`` or ``1.2/3.4 MB``: decimal megabytes, as disks and networks are counted."""
    if unit == "B":
        largest = count if total is None else max(count, total)
        for name, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
            if largest >= size:
                return f"{count / size:.1f}{'' if total is None else f'/{total / size:.1f}'} {name}"
    return f"{count}{'' if total is None else f'/{total}'} {unit}"


@dataclass(frozen=True)
class Terminal:
    """How one run of a command speaks, as its options say."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    mode: ProgressMode = "auto"
    progress: Progress = field(init=False)
    printed: list[str] = field(init=False, default_factory=list)
    """What went to stdout so far."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "progress", self._chosen())

    def say(self, text: str = "") -> None:
        """A line of the result, for people; with ``--json`` nothing."""
        if not self.json:
            self._print(printable(text))

    def result(self, document: dict[str, Any]) -> None:
        """The result as one object; only with ``--json``."""
        if self.json:
            self._print(json.dumps(document, ensure_ascii=False))

    def show(self, escape: str) -> None:
        """Send *escape*, which shows a picture, to the terminal above the bars; nothing where there are no bars."""
        if isinstance(self.progress, _Bars):
            self.progress.show(escape)

    @property
    def has_bars(self) -> bool:
        """Whether somebody watches on a terminal."""
        return isinstance(self.progress, _Bars)

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self.printed.append(f"{line}\n")

    def _chosen(self) -> Progress:
        if self.mode == "json":
            return _Events(sys.stderr)
        if self.quiet or self.mode == "none":
            return _Lines(sys.stderr, tasks=False, notes=not self.quiet)
        if self.mode == "plain":
            return _Lines(sys.stderr, tasks=True, notes=True)
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            return _Bars()
        return _Lines(sys.stderr, tasks=False, notes=True)


def speed(rate: float | None, left: float | None) -> str:
    """``12.3 MB/s, 1:05 left`` for bytes a second and seconds; empty for what is not known."""
    if not rate:
        return ""
    shown = f"{amount(round(rate), None, 'B')}/s"
    if left is None:
        return shown
    minutes, seconds = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{shown}, {f'{hours}:{minutes:02}' if hours else minutes}:{seconds:02} left"


class _Count:
    """A task that counts, and calls back whenever it has moved."""

    def __init__(self, total: int | None, moved: Callable[[_Count], None]) -> None:
        self.count = 0
        self.total = total
        self._moved = moved
        self._marks = deque([(time.monotonic(), 0)])

    def advance(self, amount: int) -> None:
        self.count += amount
        now = time.monotonic()
        if now - self._marks[-1][0] >= _EVENT_EVERY:
            self._marks.append((now, self.count))
            while now - self._marks[0][0] > _RATE_OVER and len(self._marks) > 2:
                self._marks.popleft()
        self._moved(self)

    @property
    def rate(self) -> float | None:
        """Units a second of late, or ``None`` at the beginning."""
        began, before = self._marks[0]
        seconds = time.monotonic() - began
        return (self.count - before) / seconds if seconds >= _EVENT_EVERY else None

    @property
    def left(self) -> float | None:
        """Seconds until the end at that rate."""
        rate = self.rate
        return max(0, self.total - self.count) / rate if rate and self.total is not None else None

    def expect(self, total: int) -> None:
        self.total = total
        self._moved(self)


class _Lines:
    """Progress as plain lines: that a task is at work once it has taken a second, and at its end how long and how much.

    The hundred small downloads of a build pass without a word.
    """

    def __init__(self, stream: TextIO, *, tasks: bool, notes: bool) -> None:
        self._stream = stream
        self._tasks = tasks
        self._notes = notes

    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        count = _Count(total, lambda _: None)
        if not self._tasks:
            yield count
            return
        began = time.monotonic()
        slow = threading.Timer(_TOLD_AFTER, self._line, [f"{title} ..."])
        slow.daemon = True
        slow.start()
        ended = "stopped"
        try:
            yield count
            ended = "done"
        finally:
            slow.cancel()
            seconds = time.monotonic() - began
            if seconds >= _SHOWN_FROM:
                done = f", {amount(count.count, None, unit)}" if count.count else ""
                rate = f" ({speed(count.count / seconds, None)})" if unit == "B" and count.count else ""
                self._line(f"{title}: {ended}{done}, {seconds:.1f} s{rate}")

    def note(self, message: str) -> None:
        if self._notes:
            self._line(f"Note: {message}")

    def _line(self, text: str) -> None:
        # One write, so that the lines of two threads do not run into each other.
        self._stream.write(f"{printable(text)}\n")
        self._stream.flush()


class _Events:
    """Progress as JSON objects, one a line: ``start``, ``advance``, ``end`` and ``note``.

    ``rate`` is in units a second, ``left`` and ``seconds`` are seconds; what is not known is null.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._number = 0

    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        with self._lock:
            self._number += 1
            number = self._number
        began = last = time.monotonic()

        def moved(count: _Count) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVENT_EVERY:
                last = time.monotonic()
                rate, left = count.rate, count.left
                self._event(
                    "advance",
                    task=number,
                    done=count.count,
                    total=count.total,
                    rate=None if rate is None else round(rate),
                    left=None if left is None else round(left, 1),
                )

        count = _Count(total, moved)
        self._event("start", task=number, title=title, total=total, unit=unit)
        complete = False
        try:
            yield count
            complete = True
        finally:
            seconds = round(time.monotonic() - began, 3)
            self._event("end", task=number, done=count.count, total=count.total, complete=complete, seconds=seconds)

    def note(self, message: str) -> None:
        self._event("note", message=message)

    def _event(self, event: str, **details: object) -> None:
        line = json.dumps({"event": event, **details}, ensure_ascii=False)
        with self._lock:
            print(line, file=self._stream, flush=True)


class _Bars:
    """Progress as bars, drawn only while some task is open; a task that took a while leaves one line behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: RichProgress | None = None
        self._open = 0

    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> AbstractContextManager[Task]:
        return self._task(printable(title), total, unit)

    @contextmanager
    def _task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        bars = self._enter()
        began = time.monotonic()
        number: TaskID = bars.add_task(title, total=total, amount=amount(0, total, unit), speed="")

        def moved(count: _Count) -> None:
            shown = amount(count.count, count.total, unit)
            rate = speed(count.rate, count.left) if unit == "B" else ""
            bars.update(number, completed=count.count, total=count.total, amount=shown, speed=rate)

        count = _Count(total, moved)
        try:
            yield count
            if (seconds := time.monotonic() - began) >= _SHOWN_FROM:
                done = f", {amount(count.count, None, unit)}" if count.count else ""
                self._print(f"{title}{done}, {seconds:.1f} s")
        finally:
            bars.remove_task(number)
            self._leave()

    def note(self, message: str) -> None:
        self._print(f"Note: {printable(message)}")

    def show(self, escape: str) -> None:
        """Print *escape* as it is above the bars, and go on below what it shows."""
        from rich.control import Control
        from rich.segment import ControlType, Segment

        control = Control()
        # rich counts no width for a control and sends it untouched.
        control.segment = Segment(f"{escape}\n", None, [(ControlType.CARRIAGE_RETURN,)])
        if (bars := self._bars) is not None:
            bars.console.print(control, end="")

    def _print(self, line: str) -> None:
        bars = self._bars
        if bars is not None:
            bars.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _enter(self) -> RichProgress:
        with self._lock:
            if self._bars is None:
                self._bars = _rich_bars()
                self._bars.start()
            self._open += 1
            return self._bars

    def _leave(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None


def _rich_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
