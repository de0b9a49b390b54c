"""A custom node that measures how long ComfyUI's event loop is held: a task that wants to run every millisecond."""

import asyncio
import time

import server
from aiohttp import web

_EVERY = 0.001
_found = {"longest": 0.0, "looks": 0}
_tasks = []


async def _look() -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_EVERY)
        _found["longest"] = max(_found["longest"], time.perf_counter() - began - _EVERY)
        _found["looks"] += 1


@server.PromptServer.instance.routes.get("/probe")
async def _probe(request: web.Request) -> web.Response:
    """The longest hold since this was last asked, in seconds."""
    if not _tasks:
        _tasks.append(asyncio.create_task(_look()))
    told = dict(_found)
    _found.update(longest=0.0, looks=0)
    return web.json_response(told)


NODE_CLASS_MAPPINGS: dict = {}
