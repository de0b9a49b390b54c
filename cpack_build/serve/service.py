"""The BentoML service of one workflow: ``POST /generate``, and the documents that describe it.

BentoML gives the server its health, metrics and API pages; what runs a request is here: parameters in, prompt to
ComfyUI, files out. Several requests may be under way at once, each with its own
:class:`~cpack_build.serve.exchange.Exchange`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpack_build.errors import RunError, WorkflowError
from cpack_build.serve.answer import answer_with_error, answer_with_files
from cpack_build.serve.client import Client
from cpack_build.serve.comfyui import Engine
from cpack_build.serve.exchange import Exchange, Inbox, shipped_file
from cpack_build.serve.folders import Folders
from cpack_build.serve.parameters import Parameters, refusal, request_folder
from cpack_build.serve.settings import Settings
from cpack_build.workflow import FILE_TYPES, Workflow, fill, json_schema

if TYPE_CHECKING:
    import bentoml
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["Server", "make_service"]

# BentoML's own page has a tracker of Google's in it. The files are those that BentoML brings along.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>cpack</title>
<link rel="icon" href="static_content/favicon-light-32x32.png">
<link rel="stylesheet" href="static_content/swagger-ui.css">
<link rel="stylesheet" href="static_content/index.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="static_content/swagger-ui-bundle.js"></script>
<script src="static_content/swagger-ui-standalone-preset.js"></script>
<script src="static_content/swagger-initializer.js"></script>
</body>
</html>
"""
_PAGE_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"


class Server:
    """What runs the requests for *workflow* on *engine*."""

    def __init__(
        self, workflow: Workflow, engine: Engine, settings: Settings, folders: Folders, *, log: Callable[[str], None]
    ) -> None:
        self.workflow = workflow
        self.engine = engine
        self.client = Client(engine)
        self._inbox = Inbox(engine, self.client)
        self._folders = folders
        self._log = log
        self.workflow_file = settings.workflow_file
        self._inputs = settings.app / "input"
        self._shipped = {
            item.name: path
            for item in workflow.interface.inputs
            if item.type in FILE_TYPES and (path := shipped_file(self._inputs, item.default)) is not None
        }
        self.parameters = Parameters(
            workflow.interface, defaults=self._shipped, scratch=folders.scratch, max_upload_mib=settings.max_upload_mib
        )
        self._checking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start ComfyUI and the client; returns at once."""
        await self.engine.start()
        await self.client.start()
        self._checking = asyncio.create_task(self._check_nodes())

    async def stop(self) -> None:
        """End the client and ComfyUI."""
        if self._checking is not None:
            self._checking.cancel()
        await self.client.close()
        await self.engine.stop()

    async def generate(self, request: Request, fields: dict[str, Any]) -> Response:
        """Run the workflow with the model's *fields* and answer *request*; errors become responses here."""
        from starlette.responses import JSONResponse

        if (refused := refusal(request)) is not None:
            return JSONResponse(refused.body, status_code=refused.status)
        exchange = Exchange(
            self.engine, self.client, self._inbox, workflow=self.workflow, scratch=self._folders.scratch
        )
        try:
            work = asyncio.ensure_future(self._run(exchange, self.parameters.values(fields)))
            gone = asyncio.ensure_future(_disconnected(request))
            try:
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                if not work.done():
                    work.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await work
            if work.cancelled():
                raise RunError("The caller went away; the request was taken back.", status=499)
            files = work.result()
            accept = request.headers.get("accept", "*/*")
            return await answer_with_files(files, accept=accept, title="outputs", scratch=self._folders.scratch)
        except RunError as error:
            if error.status >= 500:
                node = f" (node {error.node_id}, {error.node_class})" if error.node_id else ""
                self._log(f"A request failed with {error.status}: {error}{node}")
            return answer_with_error(error, self.workflow)
        except WorkflowError as error:
            return answer_with_error(RunError(error.message, hint=error.hint, status=400), self.workflow)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._log(f"A request failed: no space left in {self._folders.root}.")
            return answer_with_error(
                RunError("There is no space left here for the request's files.", status=507), self.workflow
            )
        finally:
            exchange.close()
            folder = request_folder(request)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    async def _run(self, exchange: Exchange, given: dict[str, Any]) -> Any:
        values: dict[str, Any] = {}
        for item in self.workflow.interface.inputs:
            if item.type not in FILE_TYPES:
                if item.name in given:
                    values[item.name] = given[item.name]
            elif isinstance(path := given.get(item.name), Path):
                values[item.name] = await exchange.put(item, path)
            elif item.name in self._shipped:
                shipped = self._shipped[item.name]
                values[item.name] = exchange.default(item, shipped, self._inputs) or await exchange.put(item, shipped)
        prompt = fill(self.workflow, values, prefixes=exchange.prefixes())
        return await exchange.collect(await self.client.run(prompt))

    async def _check_nodes(self) -> None:
        """Each time ComfyUI has started, say which of the workflow's nodes it lacks: requests will fail on them."""
        import aiohttp

        wanted = sorted({node["class_type"] for node in self.workflow.nodes.values()})
        while True:
            if self.engine.address is not None:
                with contextlib.suppress(aiohttp.ClientError):
                    missing = [name for name in wanted if not await self.client.knows(name)]
                    if missing:
                        self._log(
                            f"ComfyUI does not know these nodes of the workflow: {', '.join(missing)}. The log above "
                            "says which custom node could not be loaded."
                        )
            await self.engine.changed()


async def _disconnected(request: Request) -> None:
    """Return when the caller of *request*, whose body has been read, is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_service(server: Server, *, name: str, timeout: float) -> bentoml.Service[Any]:
    """The BentoML service *name* around *server*; a request may take *timeout* seconds."""
    import bentoml
    from starlette.applications import Starlette
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse
    from starlette.routing import Route

    schema = json_schema(server.workflow.interface)

    async def workflow_json(request: Request) -> Response:
        return FileResponse(server.workflow_file, media_type="application/json")

    async def interface_json(request: Request) -> Response:
        return JSONResponse(schema)

    async def page(request: Request) -> Response:
        return HTMLResponse(_PAGE, headers={"content-security-policy": _PAGE_POLICY})

    class Cpack:
        """Runs the workflow with the given parameters and returns its files."""

        @bentoml.on_startup  # type: ignore[untyped-decorator]
        async def begin(self) -> None:
            await server.start()

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        async def end(self) -> None:
            await server.stop()

        async def __is_ready__(self) -> bool:
            return await server.client.answers()

        # BentoML knows its context by an annotation that it evaluates here, or by having none.
        @bentoml.api(input_spec=server.parameters.model)  # type: ignore[untyped-decorator]
        async def generate(self, *, ctx, **fields: Any) -> Path:  # type: ignore[no-untyped-def]
            """Run the workflow. One file comes back as it is; several come in a zip, or the first of an Accept type."""
            response = await server.generate(ctx.request, fields)
            ctx.response.status_code = response.status_code  # BentoML puts this over the response's own
            return response  # type: ignore[return-value]

    routes = [
        Route("/", page),
        Route("/workflow.json", workflow_json),
        Route("/comfy/workflow.json", workflow_json),  # where comfy-pack has it
        Route("/interface.json", interface_json),
    ]
    service = bentoml.service(name=name, traffic={"timeout": timeout})(Cpack)
    service.mount_asgi_app(Starlette(routes=routes), path="/", name="documents")
    return service
