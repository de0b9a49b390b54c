"""``POST /generate/stream``: the parameters of ``/generate``, answered by what happens, as server-sent events.

Events, each with one JSON object: ``queued`` {position}, ``started`` {}, ``node`` {node, done, nodes}, ``step`` {node,
step, steps}, ``preview`` {media_type, data: base64}, and at the end one of ``result`` {id, outputs} and ``error``
{status, error, …}. A caller who goes away takes the request back.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from cpack_build.serve.client import Watch
from cpack_build.workflow import Workflow

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from cpack_build.serve.service import Server

__all__ = ["stream", "told"]

_KEEP_ALIVE_SECONDS = 15
_MOST_WAITING = 64  # previews and steps are left out for a caller who reads slower than they come


async def stream(server: Server, request: Request) -> Response:
    """The stream for *request*; what is wrong with its parameters is answered by status, as ``/generate`` does."""
    from starlette.responses import StreamingResponse

    given = await server.read(request)
    if not isinstance(given, dict):
        return given
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(server, request, given), media_type="text/event-stream", headers=headers)


async def _events(server: Server, request: Request, given: dict[str, Any]) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[tuple[str, Mapping[str, Any]] | None] = asyncio.Queue()

    def put(event: str, data: Mapping[str, Any]) -> None:
        if queue.qsize() < _MOST_WAITING or event not in ("preview", "step"):
            queue.put_nowait((event, data))

    async def work() -> None:
        try:
            _, event, data = await server.keep(request, given, watch=told(server.workflow, put))
            queue.put_nowait((event, data))
        finally:
            queue.put_nowait(None)

    running = asyncio.create_task(work())
    try:
        yield b": hello\n\n"
        while True:
            try:
                happened = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_SECONDS)
            except asyncio.TimeoutError:
                yield b": still here\n\n"
                continue
            if happened is None:
                return
            yield f"event: {happened[0]}\ndata: {json.dumps(happened[1])}\n\n".encode()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def told(workflow: Workflow, tell: Callable[[str, Mapping[str, Any]], None]) -> Watch:
    """A watch that tells what happens in a caller's words: nodes by title, how many are done, pictures as text."""
    done: set[str] = set()
    current = ""

    def described(node_id: str) -> dict[str, str]:
        node = workflow.nodes.get(node_id, {})
        return {"id": node_id, "title": workflow.title(node_id), "class": str(node.get("class_type", ""))}

    def watch(event: str, data: Mapping[str, Any]) -> None:
        nonlocal current
        if event == "cached":
            done.update(data["nodes"])
        elif event == "node":
            if current:
                done.add(current)
            current = data["node"]
            tell("node", {"node": described(current), "done": len(done), "nodes": len(workflow.nodes)})
        elif event == "step":
            tell("step", {**data, "node": described(data["node"])})
        elif event == "preview":
            tell("preview", {"media_type": data["media_type"], "data": base64.b64encode(data["data"]).decode()})
        else:
            tell(event, data)

    return watch
