"""Our own routes, before BentoML's: the stream, the tasks, the kept outputs, the API's document, the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpack_build.serve.media import media_type
from cpack_build.serve.openapi import describe
from cpack_build.serve.service import Server
from cpack_build.serve.streaming import stream

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

__all__ = ["make_routes"]

_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; media-src blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def make_routes(server: Server) -> list[BaseRoute]:
    """The routes for *server*."""
    from starlette.responses import FileResponse, JSONResponse
    from starlette.routing import Route

    async def generate_stream(request: Request) -> Response:
        return await stream(server, request)

    async def output(request: Request) -> Response:
        result = server.kept.get(request.path_params["key"])
        name = request.path_params["name"]
        if result is None or name not in result.names:
            return JSONResponse({"error": "There is no such output (any more)."}, status_code=404)
        path = result.files[result.names.index(name)].path
        headers = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
        return FileResponse(path, media_type=media_type(path), filename=name, headers=headers)

    document = describe(server.workflow.interface, defaults=server.parameters.defaults, token=server.has_token)

    async def docs(request: Request) -> Response:
        return JSONResponse(document)

    async def page(request: Request) -> Response:
        return FileResponse(_PAGE / "index.html", headers=_PAGE_HEADERS)

    def static(name: str, kind: str) -> Any:
        async def file(request: Request) -> Response:
            return FileResponse(_PAGE / name, media_type=kind, headers=_PAGE_HEADERS)

        return file

    return [
        Route("/", page),
        *(Route(f"/page/{name}", static(name, kind)) for name, kind in _PAGE_FILES.items()),
        Route("/docs.json", docs),
        Route("/generate/stream", generate_stream, methods=["POST"]),
        Route("/generate_task/submit", server.tasks.submit, methods=["POST"]),
        Route("/generate_task/status", server.tasks.status),
        Route("/generate_task/get", server.tasks.get),
        Route("/generate_task/cancel", server.tasks.cancel, methods=["PUT", "POST"]),
        Route("/generate_task/retry", server.tasks.retry, methods=["POST"]),
        Route("/outputs/{key}/{name}", output),
    ]
