"""Long work: one job at a time of each kind, in a thread of its own, so that ComfyUI's event loop never waits for it.

A job runs the tool once or several times (its stages), turns the tool's events into progress, keeps a log, and can be
cancelled. What it makes lies in a private folder until twenty newer jobs have come. That it changed goes to every page
that is open, at most ten times a second; what it is now, pages ask the routes.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import Failed, Refused, Stopped
from .private import PrivateFolder
from .tool import Process, Tool, command_of, redact

__all__ = ["Job", "Jobs", "Stage", "State"]

State = Literal["queued", "running", "done", "failed", "cancelled"]
_KEPT = 20
_LOG_LINES = 5000
_TAIL = 20
_TAIL_LINE = 400
_EVERY = 0.1
"""Seconds between two messages about one job."""


@dataclass
class Stage:
    """A part of a job: *code* for programs (and translations), *label* in English."""

    code: str
    label: str
    state: State = "queued"

    @property
    def document(self) -> dict[str, str]:
        return {"code": self.code, "label": self.label, "state": self.state}


@dataclass
class _Task:
    """Something that the tool is at work on."""

    label: str
    total: int | None
    noun: str
    done: int = 0
    rate: float | None = None


class Job:
    """One piece of long work. Its thread writes to it; everybody reads :meth:`snapshot`."""

    def __init__(self, kind: str, title: str, stages: Sequence[Stage], jobs: Jobs) -> None:
        self.id = uuid.uuid4().hex
        self.kind = kind
        self.title = title
        self.stages = tuple(stages)
        self.folder = jobs.private.below("jobs", self.id)
        self.request: Path | None = None
        """What was asked, as files; they go when it ends."""
        self.file: Path | None = None
        """What can be downloaded."""
        self.secrets: tuple[str, ...] = ()
        self.state: State = "queued"
        self._jobs = jobs
        self._lock = threading.RLock()
        self._started = time.time()
        self._ended: float | None = None
        self._tasks: dict[int, _Task] = {}
        self._shown: int | None = None
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._result: dict[str, Any] | None = None
        self._error: dict[str, str] | None = None
        self._process: Process | None = None
        self._cancelled = False

    # -- for those who look

    def snapshot(self) -> dict[str, Any]:
        """What the routes tell of it."""
        with self._lock:
            return {
                "id": self.id,
                "kind": self.kind,
                "title": self.title,
                "state": self.state,
                "started": self._started,
                "ended": self._ended,
                "progress": self._progress(),
                "stages": [stage.document for stage in self.stages],
                "log_tail": [line[:_TAIL_LINE] for line in list(self._log)[-_TAIL:]],
                "result": self._result,
                "error": self._error,
            }

    @property
    def news(self) -> dict[str, Any]:
        """What goes to every WebSocket, which ComfyUI opens to pages that the routes refuse, too: no word of a job."""
        with self._lock:
            progress = self._progress()
            if progress is not None:
                del progress["label"]
            return {"id": self.id, "kind": self.kind, "state": self.state, "progress": progress}

    @property
    def log(self) -> str:
        """All that is kept of its log."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._log)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """Have it end; nothing if it has."""
        with self._lock:
            self._cancelled = True
            process = self._process
        if process is not None:
            process.cancel()

    def wait(self, seconds: float) -> None:
        """Wait for the end of the program that it runs."""
        if (process := self._process) is not None:
            process.wait(seconds)

    # -- for the work itself, in the job's thread

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return self._cancelled

    def check(self) -> None:
        """Raise :class:`Stopped` once it was cancelled."""
        if self._cancelled:
            raise Stopped

    def stage(self, code: str) -> None:
        """The stage *code* begins, and the one before is done."""
        with self._lock:
            for stage in self.stages:
                if stage.state == "running":
                    stage.state = "done"
                if stage.code == code:
                    stage.state = "running"
            self._tasks.clear()
        self.changed()

    def write(self, line: str) -> None:
        """Add a line to its log, without what is secret in it."""
        told = redact(line, self.secrets)
        with self._lock:
            self._log.append(told)
        self.changed()

    def tell(self, result: Mapping[str, Any]) -> None:
        """Set its result: while it runs, what is known so far."""
        with self._lock:
            self._result = dict(result)
        self.changed()

    def tool(self, tool: Tool, *arguments: object, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run the tool with *arguments*; its result. Raises :class:`Failed`, :class:`Stopped`."""
        process = self.start(
            command_of(tool.require(), *arguments), environment=tool.environment(**(environment or {}))
        )
        return process.result(self._line)

    def start(self, command: Sequence[str], *, environment: Mapping[str, str], is_service: bool = False) -> Process:
        """Start *command*, which ends when the job is cancelled."""
        with self._lock:
            self.check()
            process = self._process = Process(
                command, environment=environment, folder=self.folder, is_service=is_service
            )
        return process

    def changed(self) -> None:
        """Tell every page."""
        self._jobs.changed(self)

    def _line(self, line: str) -> None:
        event = None
        if line.startswith('{"event"'):
            try:
                event = json.loads(line)
            except ValueError:
                event = None
        if not isinstance(event, dict):
            self.write(line)
            return
        self._event(event)
        self.changed()

    def _event(self, event: Mapping[str, Any]) -> None:
        number, kind = event.get("task"), event.get("event")
        if kind == "note":
            self.write(str(event.get("message", "")))
        elif kind == "start" and isinstance(number, int):
            title = redact(str(event.get("title", "")), self.secrets)
            with self._lock:
                self._tasks[number] = _Task(title, event.get("total"), str(event.get("unit", "")))
            self.write(title)
        elif kind == "advance" and isinstance(number, int):
            with self._lock:
                if (task := self._tasks.get(number)) is not None:
                    task.done, task.total, task.rate = event.get("done", 0), event.get("total"), event.get("rate")
        elif kind == "end" and isinstance(number, int):
            with self._lock:
                self._tasks.pop(number, None)

    def _progress(self) -> dict[str, Any] | None:
        """The task that is shown: the same until it ends, then the newest one."""
        if not self._tasks or self.is_over:
            return None
        if self._shown not in self._tasks:
            self._shown = max(self._tasks)
        task = self._tasks[self._shown]
        unit = "bytes" if task.noun == "B" else "items"
        return {"label": task.label, "done": task.done, "total": task.total, "unit": unit, "rate": task.rate}

    def run(self, work: Callable[[Job], Mapping[str, Any] | None]) -> None:
        """Do it, to the end; in the job's thread."""
        error: Refused | None = None
        result: Mapping[str, Any] | None = None
        state: State = "done"
        with self._lock:
            self.state = "running"
        self.changed()
        try:
            self.check()
            result = work(self)
        except Stopped:
            state = "cancelled"
        except Refused as refused:
            state, error = "failed", refused
        except Exception as bug:  # the job is over, and its page says why
            logging.exception("cpack: the job %s", self.kind)
            state = "failed"
            error = Failed("bug", f"This is a bug in cpack-build: {type(bug).__name__}: {bug}", next="See the log.")
        finally:
            if self.request is not None:
                shutil.rmtree(self.request, ignore_errors=True)
        told = None if error is None else {key: redact(text, self.secrets) for key, text in error.document.items()}
        with self._lock:
            self.state = state
            self._ended = time.time()
            if told is not None:
                self._error = told
                self._log.append(f"Error: {told['message']}")
            if state != "done":
                self._result = None
            elif result is not None:
                self._result = dict(result)
            for stage in self.stages:
                if stage.state == "running" or (state == "done" and stage.state == "queued"):
                    stage.state = state
        if state != "done":
            shutil.rmtree(self.folder, ignore_errors=True)
        self.changed()


@dataclass
class _Told:
    """When the last message about a job went out, and whether another is due."""

    last: float = 0.0
    is_due: bool = False


@dataclass
class Jobs:
    """The jobs of this server, with files in *private*; *publish* sends :attr:`Job.news` to every page."""

    private: PrivateFolder
    publish: Callable[[dict[str, Any]], None]
    _jobs: dict[str, Job] = field(default_factory=dict)
    _told: dict[str, _Told] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(
        self,
        kind: str,
        title: str,
        stages: Sequence[Stage],
        work: Callable[[Job], Mapping[str, Any] | None],
        *,
        request: Path | None = None,
        secrets: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> Job:
        """Start *work*. Raises :class:`Refused` (409) while another of its kind runs, or of one in *without*."""
        with self._lock:
            for other in self._jobs.values():
                if other.kind in (kind, *without) and not other.is_over:
                    raise Refused(
                        "already_running", f"{other.title} is still at work.",
                        next="Wait for its end, or cancel it.", status=409,
                    )  # fmt: skip
            job = Job(kind, title, stages, self)
            job.request = request
            job.secrets = tuple(secrets)
            self._jobs[job.id] = job
            self._told[job.id] = _Told()
            over = [old for old in self._jobs.values() if old.is_over][: max(0, len(self._jobs) - _KEPT)]
            for old in over:
                del self._jobs[old.id], self._told[old.id]
        threading.Thread(target=self._run, args=(job, work, over), name=f"cpack-{kind}", daemon=True).start()
        return job

    def _run(self, job: Job, work: Callable[[Job], Mapping[str, Any] | None], over: Sequence[Job]) -> None:
        for old in over:
            shutil.rmtree(old.folder, ignore_errors=True)
        job.run(work)

    def get(self, key: str) -> Job:
        """The job with the id *key*. Raises :class:`Refused` (404)."""
        with self._lock:
            job = self._jobs.get(key)
        if job is None:
            raise Refused("no_job", "There is no such job (any more).", next="Reload the page.", status=404)
        return job

    def all(self) -> list[Job]:
        """Every job that is kept, the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def running(self, kind: str) -> Job | None:
        """The job of that *kind* that runs."""
        return next((job for job in self.all() if job.kind == kind and not job.is_over), None)

    def changed(self, job: Job) -> None:
        """Tell the pages about *job*, now or within a tenth of a second."""
        with self._lock:
            told = self._told.get(job.id)
            if told is None or told.is_due:
                return
            wait = told.last + _EVERY - time.monotonic()
            if wait > 0:
                told.is_due = True
                timer = threading.Timer(wait, self._send, (job, told))
                timer.daemon = True
            else:
                timer = None
                told.last = time.monotonic()
        if timer is not None:
            timer.start()
        else:
            self.publish(job.news)

    def _send(self, job: Job, told: _Told) -> None:
        with self._lock:
            told.is_due = False
            told.last = time.monotonic()
        self.publish(job.news)

    def close(self) -> None:
        """End everything, as ComfyUI is about to end."""
        running = [job for job in self.all() if not job.is_over]
        for job in running:
            job.cancel()
        for job in running:
            job.wait(10)
