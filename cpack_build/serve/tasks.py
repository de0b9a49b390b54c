"""``/generate_task``: a request that is answered at once and fetched later, by BentoML's own routes for tasks.

BentoML's implementation writes each request's body into a database and cannot cancel; here a task is a request that
runs without its caller. Tasks live in this process, and end with it; a result is kept as long as links are.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cpack_build.serve.answer import answer_with_files
from cpack_build.serve.kept import Result
from cpack_build.serve.streaming import told
from cpack_build.serve.webhook import Webhook

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from cpack_build.serve.service import Server

__all__ = ["Tasks"]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass
class _Task:
    id: str
    created: str = field(default_factory=_now)
    status: str = "pending"
    started: str | None = None
    ended: str | None = None
    ended_at: float | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    result: Result | None = None
    outcome: Mapping[str, Any] = field(default_factory=dict)
    running: asyncio.Task[None] | None = None

    def described(self) -> dict[str, Any]:
        """The status as BentoML tells it, with the progress, and the outcome when there is one."""
        found: dict[str, Any] = {
            "task_id": self.id,
            "status": self.status,
            "created_at": self.created,
            "executed_at": self.started,
            "completed_at": self.ended,
        }
        if self.progress:
            found["progress"] = self.progress
        if self.outcome:
            found["result" if self.status == "completed" else "error"] = self.outcome
        return found


class Tasks:
    """The tasks of *server*; those that ended are forgotten after *seconds*."""

    def __init__(self, server: Server, *, seconds: float, webhook: Webhook) -> None:
        self._server = server
        self._seconds = seconds
        self._webhook = webhook
        self._tasks: dict[str, _Task] = {}

    async def submit(self, request: Request) -> Response:
        """``POST /generate_task/submit``; the header ``X-CPack-Webhook`` names who is told of the end."""
        from starlette.responses import JSONResponse

        hook = request.headers.get("x-cpack-webhook", "")
        if hook and (problem := self._webhook.problem(hook)):
            return JSONResponse({"error": problem}, status_code=400)
        given = await self._server.read(request)
        if not isinstance(given, dict):
            return given
        self._forget()
        task = _Task(uuid.uuid4().hex)
        self._tasks[task.id] = task
        task.running = asyncio.create_task(self._run(task, request, given, hook))
        return JSONResponse({"task_id": task.id, "status": "in_progress"})

    async def _run(self, task: _Task, request: Request, given: dict[str, Any], hook: str) -> None:
        def tell(event: str, data: Mapping[str, Any]) -> None:
            if event == "started":
                task.status, task.started = "in_progress", _now()
            if event != "preview":
                task.progress = {"event": event, **data}

        try:
            with self._server.gate.count():
                task.result, event, task.outcome = await self._server.keep(
                    request, given, watch=told(self._server.workflow, tell)
                )
            task.status = "completed" if event == "result" else "failed"
        except asyncio.CancelledError:
            task.status = "canceled"
            raise
        finally:
            task.ended, task.ended_at, task.progress = _now(), time.monotonic(), {}
            if hook and task.status != "canceled":
                self._webhook.tell(hook, task.described())

    def _find(self, request: Request) -> _Task | Response:
        from starlette.responses import JSONResponse

        key = request.query_params.get("task_id")
        if key is None:
            return JSONResponse({"error": "task_id is required"}, status_code=400)
        self._forget()
        return self._tasks.get(key) or JSONResponse({"error": "task_id not found"}, status_code=404)

    async def status(self, request: Request) -> Response:
        """``GET /generate_task/status?task_id=``."""
        from starlette.responses import JSONResponse

        task = self._find(request)
        return JSONResponse(task.described()) if isinstance(task, _Task) else task

    async def get(self, request: Request) -> Response:
        """``GET /generate_task/get?task_id=``: what ``/generate`` would have answered, by ``Accept``."""
        from starlette.responses import JSONResponse

        task = self._find(request)
        if not isinstance(task, _Task):
            return task
        if task.ended is None:
            return JSONResponse({"error": f"task {task.id} is not completed yet"}, status_code=400)
        if task.status == "failed":
            status = int(task.outcome.get("status", 500))
            return JSONResponse(dict(task.outcome), status_code=status)
        if task.result is not None and task.result.links:
            return JSONResponse(dict(task.outcome))
        if task.result is None or self._server.kept.get(task.result.id) is None:
            return JSONResponse({"error": f"task {task.id} was {task.status}; it has no result"}, status_code=410)
        return await answer_with_files(
            task.result.files,
            accept=request.headers.get("accept", "*/*"),
            title="outputs",
            scratch=self._server.folders.scratch,
            keeper=self._server.kept,
        )

    async def cancel(self, request: Request) -> Response:
        """``PUT /generate_task/cancel?task_id=``: it is taken from the queue or interrupted, unless it ended."""
        from starlette.responses import JSONResponse

        task = self._find(request)
        if not isinstance(task, _Task):
            return task
        if task.running is not None and not task.running.done():
            task.running.cancel()
            await asyncio.wait((task.running,))
        return JSONResponse(task.described())

    async def retry(self, request: Request) -> Response:
        """``POST /generate_task/retry``, which BentoML's client has: refused, as a task's input is not kept."""
        from starlette.responses import JSONResponse

        return JSONResponse({"error": "The input of a task is not kept: submit it again."}, status_code=400)

    async def close(self) -> None:
        """Cancel what still runs."""
        running = [task.running for task in self._tasks.values() if task.running is not None]
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._webhook.close()

    def _forget(self) -> None:
        before = time.monotonic() - self._seconds
        for task in [task for task in self._tasks.values() if task.ended_at is not None and task.ended_at < before]:
            del self._tasks[task.id]
