"""The routes below ``/cpack`` (and, as ComfyUI doubles each, ``/api/cpack``), which the plugin's pages call.

Each one is guarded (:mod:`.origin`), answers JSON or an attachment, and leaves ComfyUI's event loop free: what takes
longer than a moment is done in threads and in the tool's own process. No text of a caller is ever used as a path.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .asked import Asked, read_body
from .checking import checked, inventory
from .comfyui import Comfyui
from .errors import Refused
from .kinds import KINDS
from .origin import check_origin
from .piecewise import written
from .plugin import Plugin
from .status import status
from .tool import redact

if TYPE_CHECKING:
    from aiohttp import web

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["install", "register"]

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


def install(server: Any) -> Plugin:
    """Give *server*, ComfyUI's ``PromptServer.instance``, the plugin's routes. Called once, as ComfyUI loads it."""
    plugin = Plugin(Comfyui(server))
    register(server.routes, plugin)
    plugin.tool.look()
    return plugin


def register(routes: Any, plugin: Plugin) -> None:
    """Add the plugin's routes to *routes*, ComfyUI's ``PromptServer.instance.routes``."""
    from aiohttp import web

    def answer(document: Any, *, status: int = 200) -> web.Response:
        return web.json_response(document, status=status, headers=_HEADERS)

    def route(method: str, path: str) -> Callable[[Handler], Handler]:
        def add(handler: Handler) -> Handler:
            async def guarded(request: web.Request) -> web.StreamResponse:
                try:
                    check_origin(request.method, request.headers)
                    return await handler(request)
                except Refused as refused:
                    told = {key: redact(text) for key, text in refused.document.items()}
                    return answer({"error": told}, status=refused.status)
                except (web.HTTPException, asyncio.CancelledError):
                    raise
                except Exception as bug:
                    logging.exception("cpack: %s %s", request.method, path)
                    told = {"code": "bug", "message": f"This is a bug in cpack-build: {type(bug).__name__}.",
                            "next": "ComfyUI's log has it whole; please report it."}  # fmt: skip
                    return answer({"error": told}, status=500)

            routes.route(method, f"/cpack{path}")(guarded)
            return handler

        return add

    @route("GET", "/status")
    async def _status(request: web.Request) -> web.StreamResponse:
        plugin.tool.look()
        return answer(await asyncio.to_thread(status, plugin))

    async def ask(request: web.Request, work: Callable[[Plugin, Asked], dict[str, Any]]) -> web.StreamResponse:
        folder = await asyncio.to_thread(plugin.request_folder)
        try:
            asked = await read_body(request, folder)
            text = await plugin.wait_for(lambda: written(work(plugin, asked)))
            return web.Response(body=text, content_type="application/json", headers=_HEADERS)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @route("POST", "/check")
    async def _check(request: web.Request) -> web.StreamResponse:
        return await ask(request, checked)

    @route("POST", "/inventory")
    async def _inventory(request: web.Request) -> web.StreamResponse:
        return await ask(request, inventory)

    @route("POST", "/jobs")
    async def _start(request: web.Request) -> web.StreamResponse:
        folder = await asyncio.to_thread(plugin.request_folder)
        try:
            asked = await read_body(request, folder)
            kind, params = asked.values.get("kind"), asked.values.get("params", {})
            if not isinstance(kind, str) or kind not in KINDS:
                raise Refused("no_kind", f"There is no job of the kind {kind!r:.80}.", next=f"Use {', '.join(KINDS)}.")
            job = await asyncio.to_thread(KINDS[kind], plugin, asked, params)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        return answer({"job": job.snapshot()}, status=202)

    @route("GET", "/jobs")
    async def _jobs(request: web.Request) -> web.StreamResponse:
        return answer({"jobs": [job.snapshot() for job in plugin.jobs.all()]})

    @route("GET", "/jobs/{id}")
    async def _job(request: web.Request) -> web.StreamResponse:
        return answer({"job": plugin.jobs.get(request.match_info["id"]).snapshot()})

    @route("GET", "/jobs/{id}/log")
    async def _log(request: web.Request) -> web.StreamResponse:
        return web.Response(text=plugin.jobs.get(request.match_info["id"]).log, headers=_HEADERS)

    @route("POST", "/uploads")
    async def _upload(request: web.Request) -> web.StreamResponse:
        upload = await plugin.uploads.take(request)
        return answer({"upload": upload.id, "name": upload.name, "size": upload.size})

    @route("GET", "/serve/log")
    async def _serve_log(request: web.Request) -> web.StreamResponse:
        job = plugin.jobs.running("serve")
        if job is None:
            raise Refused("not_serving", "No service runs.", next="Start one.", status=404)
        return web.Response(text=job.log, headers=_HEADERS)

    @route("POST", "/jobs/{id}/cancel")
    async def _cancel(request: web.Request) -> web.StreamResponse:
        job = plugin.jobs.get(request.match_info["id"])
        await asyncio.to_thread(job.cancel)
        return answer({"job": job.snapshot()})

    @route("GET", "/jobs/{id}/download")
    async def _download(request: web.Request) -> web.StreamResponse:
        job = plugin.jobs.get(request.match_info["id"])
        if job.state != "done" or job.file is None:
            raise Refused("no_file", f"{job.title} has no file to download.", next="Wait for its end.", status=404)
        named = f"attachment; filename*=UTF-8''{quote(job.file.name, safe='')}"
        return web.FileResponse(job.file, headers={**_HEADERS, "Content-Disposition": named})
