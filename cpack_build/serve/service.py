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
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpack_build.errors import EngineUnavailable, OutOfMemory, RunError, UsageError, WorkflowError
from cpack_build.serve.answer import answer_with_error, answer_with_files, describe_error, describe_result, names_of
from cpack_build.serve.client import Client, Outputs, Watch
from cpack_build.serve.comfyui import Engine
from cpack_build.serve.exchange import Exchange, Inbox, Produced, shipped_file
from cpack_build.serve.folders import Folders
from cpack_build.serve.front import request_id
from cpack_build.serve.gate import Gate
from cpack_build.serve.kept import Keeper, Kept, Result, sweep
from cpack_build.serve.metrics import Metrics
from cpack_build.serve.parameters import Parameters, refusal, request_folder
from cpack_build.serve.remote import Remote
from cpack_build.serve.settings import Settings
from cpack_build.serve.tasks import Tasks
from cpack_build.serve.webhook import Webhook
from cpack_build.workflow import FILE_TYPES, Workflow, fill, json_schema

if TYPE_CHECKING:
    import bentoml
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["Server", "make_service", "without_timers"]

_SWEEP_SECONDS = 60
_WARM_UP_AGAIN_SECONDS = 10


@dataclass
class _Backend:
    """One ComfyUI. *busy*: requests that were given to it; *running*: 1 while it works on one of them.

    *warm*: the address at which it has run the workflow once, where that is asked for.
    """

    engine: Engine
    client: Client
    inbox: Inbox
    busy: int = 0
    running: int = 0
    warm: str | None = None


class Server:
    """What runs the requests for *workflow* on *engines*, each request on the least busy one."""

    def __init__(
        self,
        workflow: Workflow,
        engines: Sequence[Engine],
        settings: Settings,
        folders: Folders,
        *,
        log: Callable[[str], None],
    ) -> None:
        self.workflow = workflow
        self._backends = []
        for engine in engines:
            client = Client(engine)
            self._backends.append(_Backend(engine, client, Inbox(engine, client)))
        self.folders = folders
        self._log = log
        self._timeout = settings.timeout
        self._warm_up = settings.warm_up
        self._retry_out_of_memory = settings.retry_out_of_memory
        self._output_most = settings.output_mib << 20 if settings.server is None else None
        self.workflow_file = settings.workflow_file
        self.has_token = bool(settings.token)
        self._inputs = settings.app / "input"
        self._shipped = {
            item.name: path
            for item in workflow.interface.inputs
            if item.type in FILE_TYPES and (path := shipped_file(self._inputs, item.default)) is not None
        }
        remote = Remote(settings.url_hosts, private=settings.url_private)
        self.parameters = Parameters(
            workflow.interface,
            defaults=self._shipped,
            scratch=folders.scratch,
            max_upload_mib=settings.max_upload_mib,
            remote=remote,
        )
        if settings.warm_up and (lacking := self.parameters.required):
            raise UsageError(
                f"The workflow cannot be warmed up: it has no value of its own for {', '.join(lacking)}.",
                hint="Give the interface node a value and pack it again, or leave CPACK_WARM_UP out.",
            )
        self.gate = Gate(settings.max_requests)
        self.metrics = Metrics()
        self.kept = Kept(folders.kept, seconds=settings.keep_seconds, most=settings.keep_mib << 20)
        self.keeper: Keeper = self.kept
        if settings.output_url:
            from cpack_build.serve.bucket import Bucket

            self.keeper = Bucket(settings.output_url, seconds=settings.keep_seconds, log=log)
        webhook = Webhook(remote, secret=settings.webhook_secret, log=log)
        self.tasks = Tasks(self, seconds=settings.keep_seconds, webhook=webhook)
        self._chores: list[asyncio.Task[None]] = []
        self._began = time.monotonic()
        self._start: float | None = None

    async def ready(self) -> bool:
        """Whether a ComfyUI answers, and has warmed up if it should.

        All are asked at once, and none is waited for longer than its client does.
        """
        there = [backend for backend in self._backends if not self._warm_up or self._is_warm(backend)]
        is_ready = any(await asyncio.gather(*(backend.client.answers() for backend in there)))
        if is_ready and self._start is None:
            self._start = round(time.monotonic() - self._began, 3)
        return is_ready

    def _is_warm(self, backend: _Backend) -> bool:
        return backend.engine.address is not None and backend.warm == backend.engine.address

    async def start(self) -> None:
        """Start ComfyUI and the client; returns at once."""
        for backend in self._backends:
            await backend.engine.start()
            await backend.client.start()
            self._chores.append(asyncio.create_task(self._greet(backend)))
        self._chores.append(asyncio.create_task(self._tidy()))

    async def stop(self) -> None:
        """End the tasks, the clients and ComfyUI."""
        for chore in self._chores:
            chore.cancel()
        await self.tasks.close()
        for backend in self._backends:
            await backend.client.close()
            await backend.engine.stop()

    async def metrics_text(self) -> str:
        """Our part of ``/metrics``."""
        devices = [device for backend in self._backends for device in await backend.client.devices()]
        running = sum(backend.running for backend in self._backends)
        return self.metrics.text(
            waiting=sum(backend.busy for backend in self._backends) - running,
            running=running,
            losses=sum(backend.engine.losses for backend in self._backends),
            ready=sum(backend.engine.address is not None for backend in self._backends),
            devices=devices,
            start=self._start,
        )

    # -- one request

    async def read(self, request: Request) -> dict[str, Any] | Response:
        """The values of *request*, or the answer that says what is wrong with them."""
        from starlette.responses import JSONResponse

        model = self.parameters.model
        item = await model.from_http_request(request, None)
        if (refused := refusal(request)) is not None:
            return JSONResponse(refused.body, status_code=refused.status)
        return self.parameters.values({field: getattr(item, field) for field in model.model_fields})

    async def generate(self, request: Request, fields: dict[str, Any]) -> Response:
        """Run the workflow with the model's *fields* and answer *request*; errors become responses here."""
        from starlette.responses import JSONResponse

        if (refused := refusal(request)) is not None:
            return JSONResponse(refused.body, status_code=refused.status)
        work = asyncio.ensure_future(self._answer(request, self.parameters.values(fields)))
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
            error = RunError("The caller went away; the request was taken back.", status=499)
            return answer_with_error(error, self.workflow)
        return work.result()

    async def _answer(self, request: Request, given: dict[str, Any]) -> Response:
        accept = request.headers.get("accept", "*/*")
        try:
            async with self._produced(request, given) as files:
                return await answer_with_files(
                    files,
                    accept=accept,
                    title="outputs",
                    scratch=self.folders.scratch,
                    keeper=self.keeper,
                    links_first=self.keeper is not self.kept,
                )
        except RunError as error:
            self._note(error)
            return answer_with_error(error, self.workflow)

    async def keep(
        self, request: Request, given: dict[str, Any], *, watch: Watch
    ) -> tuple[Result | None, str, Mapping[str, Any]]:
        """Run the workflow, keep its files: the result, and the last event, ``result`` or ``error``, with its data."""
        try:
            async with self._produced(request, given, watch=watch) as files:
                result = await self.keeper.put(files, names_of(files))
                return result, "result", describe_result(result)
        except RunError as error:
            self._note(error)
            status, body = describe_error(error, self.workflow)
            return None, "error", {"status": status, **body}
        except Exception as error:
            self._log(f"A request failed ({request_id.get()}): {error!r}")
            return None, "error", {"status": 500, "error": "An unexpected error; the service's log has it."}

    def _note(self, error: RunError) -> None:
        if error.status >= 500:
            node = f" (node {error.node_id}, {error.node_class})" if error.node_id else ""
            self._log(f"A request ({request_id.get()}) failed with {error.status}: {error}{node}")

    @contextlib.asynccontextmanager
    async def _produced(
        self, request: Request, given: dict[str, Any], *, watch: Watch | None = None
    ) -> AsyncIterator[list[Produced]]:
        """The files that the workflow gives, for as long as the block runs. Raises :class:`RunError`."""
        try:
            backend = self._least_busy()
            exchange = self._exchange(backend)
            backend.busy += 1
            try:
                yield await self._in_time(self._run(backend, exchange, given, watch))
            finally:
                backend.busy -= 1
                exchange.close()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._log(f"There is no space left in {self.folders.root}.")
            raise RunError("There is no space left here for the request's files.", status=507) from None
        finally:
            folder = request_folder(request)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _exchange(self, backend: _Backend) -> Exchange:
        return Exchange(
            backend.engine, backend.client, backend.inbox, workflow=self.workflow, scratch=self.folders.scratch
        )

    async def _in_time(self, work: Coroutine[Any, Any, list[Produced]]) -> list[Produced]:
        try:
            return await asyncio.wait_for(work, self._timeout)
        except asyncio.TimeoutError:
            text = f"The request took longer than {self._timeout:g} s and was taken back."
            raise RunError(text, status=504) from None
        except WorkflowError as error:
            raise RunError(error.message, hint=error.hint, status=400) from None

    def _least_busy(self) -> _Backend:
        there = [backend for backend in self._backends if backend.engine.address is not None]
        if not there:
            raise EngineUnavailable(self._backends[0].engine.trouble)
        return min(there, key=lambda backend: backend.busy)

    async def _run(
        self, backend: _Backend, exchange: Exchange, given: dict[str, Any], watch: Watch | None
    ) -> list[Produced]:
        values: dict[str, Any] = {}
        with self.metrics.timing("upload"):
            for item in self.workflow.interface.inputs:
                if item.type not in FILE_TYPES:
                    if item.name in given:
                        values[item.name] = given[item.name]
                elif isinstance(path := given.get(item.name), Path):
                    values[item.name] = await exchange.put(item, path)
                elif item.name in self._shipped:
                    shipped = self._shipped[item.name]
                    own = exchange.default(item, shipped, self._inputs)
                    values[item.name] = own or await exchange.put(item, shipped)
        prompt = fill(self.workflow, values, prefixes=exchange.prefixes())
        try:
            reported = await self._run_prompt(backend, exchange, prompt, watch)
        except OutOfMemory as error:
            if not self._retry_out_of_memory:
                raise
            self._log(f"Out of memory ({error.message}); ComfyUI frees its memory and the request is run once more.")
            await backend.client.free_memory()
            reported = await self._run_prompt(backend, exchange, prompt, watch)
        with self.metrics.timing("collect"):
            return await exchange.collect(reported)

    async def _run_prompt(
        self, backend: _Backend, exchange: Exchange, prompt: Mapping[str, Any], watch: Watch | None
    ) -> Outputs:
        asked = time.perf_counter()
        begun = 0.0

        def began() -> None:
            nonlocal begun
            begun = time.perf_counter()
            backend.running += 1
            self.metrics.observe("queue", begun - asked)

        try:
            reported = await backend.client.run(prompt, watch=watch, began=began, left=exchange.close)
            self.metrics.observe("run", time.perf_counter() - (begun or asked))
            return reported
        finally:
            backend.running -= bool(begun)

    # -- chores

    async def _tidy(self) -> None:
        """Now and then remove results that were kept long enough, and old files that nodes left in ComfyUI's output."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.kept.expire()
            if self._output_most is not None:
                for folder in (self.folders.output, self.folders.temp):
                    await asyncio.to_thread(sweep, folder, most=self._output_most)

    async def _greet(self, backend: _Backend) -> None:
        """Each time ComfyUI has started, say which of the workflow's nodes it lacks, and warm it up if asked to."""
        import aiohttp

        while True:
            if (address := backend.engine.address) is not None:
                with contextlib.suppress(aiohttp.ClientError):
                    await self._check_nodes(backend)
                if self._warm_up and not await self._warmed(backend):
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(backend.engine.changed(), _WARM_UP_AGAIN_SECONDS)
                    continue
                if address != backend.engine.address:
                    continue
            await backend.engine.changed()

    async def _check_nodes(self, backend: _Backend) -> None:
        wanted = sorted({node["class_type"] for node in self.workflow.nodes.values()})
        missing = [name for name in wanted if not await backend.client.knows(name)]
        if missing:
            self._log(
                f"ComfyUI does not know these nodes of the workflow: {', '.join(missing)}. The log above says which "
                "custom node could not be loaded."
            )

    async def _warmed(self, backend: _Backend) -> bool:
        """Run the workflow once with its own values; whether it ran."""
        address, began = backend.engine.address, time.perf_counter()
        exchange = self._exchange(backend)
        try:
            await self._in_time(self._run(backend, exchange, {}, None))
        except RunError as error:
            self._log(f"The warm-up failed, so the service is not ready: {error}")
            return False
        finally:
            exchange.close()
        backend.warm = address
        self._log(f"The workflow was warmed up in {time.perf_counter() - began:.1f} s.")
        return True


async def _disconnected(request: Request) -> None:
    """Return when the caller of *request*, whose body has been read, is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def without_timers(app: Any) -> Any:
    """BentoML's application without its limit of time: ours is told, and takes the request back.

    BentoML's keeps a timer, with all that a request has left in its context, for as long as a request may take, however
    short it was: memory grew by 10 MB every thousand requests.
    """
    from bentoml._internal.server.http.traffic import TimeoutMiddleware

    app.user_middleware = [one for one in app.user_middleware if one.cls is not TimeoutMiddleware]
    return app


def make_service(server: Server, *, name: str, **config: Any) -> bentoml.Service[Any]:
    """The BentoML service *name* around *server*, which holds requests to their time; *config* is BentoML's."""
    import bentoml
    from starlette.applications import Starlette
    from starlette.responses import FileResponse, JSONResponse
    from starlette.routing import Route

    schema = json_schema(server.workflow.interface)

    async def workflow_json(request: Request) -> Response:
        return FileResponse(server.workflow_file, media_type="application/json")

    async def interface_json(request: Request) -> Response:
        return JSONResponse(schema)

    class Cpack:
        """Runs the workflow with the given parameters and returns its files."""

        @bentoml.on_startup  # type: ignore[untyped-decorator]
        async def begin(self) -> None:
            await server.start()

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        async def end(self) -> None:
            await server.stop()

        async def __is_ready__(self) -> bool:
            return await server.ready()

        async def __metrics__(self, text: str) -> str:
            return text.rstrip("\n") + "\n" + await server.metrics_text()

        # BentoML knows its context by an annotation that it evaluates here, or by having none.
        @bentoml.api(input_spec=server.parameters.model)  # type: ignore[untyped-decorator]
        async def generate(self, *, ctx, **fields: Any) -> Path:  # type: ignore[no-untyped-def]
            """Run the workflow. One file comes back as it is; several come in a zip, or the first of an Accept type."""
            response = await server.generate(ctx.request, fields)
            ctx.response.status_code = response.status_code  # BentoML puts this over the response's own
            return response  # type: ignore[return-value]

        @bentoml.task(input_spec=server.parameters.model)  # type: ignore[untyped-decorator]
        async def generate_task(self, *, ctx, **fields: Any) -> Path:  # type: ignore[no-untyped-def]
            """The same for later: submit it, ask for its status, get its result, or cancel it."""
            response = await server.generate(ctx.request, fields)
            ctx.response.status_code = response.status_code
            return response  # type: ignore[return-value]

    routes = [
        Route("/workflow.json", workflow_json),
        Route("/comfy/workflow.json", workflow_json),  # where comfy-pack has it
        Route("/interface.json", interface_json),
    ]
    service = bentoml.service(name=name, **config)(Cpack)
    service.mount_asgi_app(Starlette(routes=routes), path="/", name="documents")
    return service
