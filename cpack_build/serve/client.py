"""Speaks to ComfyUI by HTTP and WebSocket: runs prompts, uploads inputs, fetches outputs.

One WebSocket serves all requests; its events are told apart by prompt id. Events can be lost (a connection breaks,
ComfyUI starts again), so what has not ended is looked up in ComfyUI's history now and then: the WebSocket makes it
fast, the history makes it sure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpack_build.errors import EngineDied, EngineUnavailable, RunError
from cpack_build.serve.comfyui import Engine
from cpack_build.serve.reports import failure, refusal, unreadable

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Client", "Outputs", "Watch"]

Watch = Callable[[str, Mapping[str, Any]], None]
"""Is told what happens to a prompt: ``queued`` {position}, ``started`` {}, ``cached`` {nodes}, ``node`` {node},
``step`` {node, step, steps}, ``preview`` {media_type, data}."""

Outputs = Mapping[str, Mapping[str, Any]]
"""Node id → what the node reported for display, such as ``{"images": [{"filename", "subfolder", "type"}]}``."""

_LOOK_UP_SECONDS = 4.0
_CONNECT_SECONDS = 2.0
_PATIENCE_SECONDS = 2.0
_LEAVING_SECONDS = 0.25
"""Between two looks whether ComfyUI has ended what was taken back."""
_SUBMIT_SECONDS = 30.0


@dataclass
class _Job:
    prompt_id: str
    address: str
    done: asyncio.Future[None]
    outputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unseen: int = 0  # times in a row that ComfyUI knew nothing of it
    watch: Watch | None = None
    began: Callable[[], None] | None = None
    left: Callable[[], None] | None = None
    asking: asyncio.Task[None] | None = None  # while it is being submitted
    submitted: bool = False
    started: bool = False
    position: int | None = None

    def tell(self, event: str, **data: Any) -> None:
        if self.watch is not None:
            self.watch(event, data)


class Client:
    """A client of the ComfyUI behind *engine*, for as long as the service runs."""

    def __init__(self, engine: Engine, *, look_up_seconds: float = _LOOK_UP_SECONDS) -> None:
        self._engine = engine
        self._look_up_seconds = look_up_seconds
        self._client_id = uuid.uuid4().hex
        self._jobs: dict[str, _Job] = {}
        self._connected = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._current: str | None = None  # the prompt of ours that runs, as far as events have told

    async def start(self) -> None:
        """Open the connections; returns at once, whether or not ComfyUI is there yet."""
        import aiohttp

        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._tasks = [
            asyncio.create_task(task()) for task in (self._listen, self._look_up_regularly, self._notice_death)
        ]

    async def close(self) -> None:
        """End all requests that wait, and the connections."""
        for task in [*self._tasks, *self._background]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._background, return_exceptions=True)
        self._fail_all("the service is stopping")
        if self._session is not None:
            await self._session.close()

    # -- running a prompt

    async def run(
        self,
        prompt: Mapping[str, Any],
        *,
        watch: Watch | None = None,
        began: Callable[[], None] | None = None,
        left: Callable[[], None] | None = None,
    ) -> Outputs:
        """Have ComfyUI run *prompt* and return what its nodes reported; *watch* is told how it goes on.

        *began* is called when ComfyUI begins with it, if its events say so.

        Raises :class:`EngineUnavailable`, :class:`PromptRefused`, :class:`NodeFailed` or :class:`EngineDied`. When the
        caller is cancelled, so is the prompt: taken from the queue, or interrupted, which ends a node at its next step
        and not at once. *left* is called when ComfyUI writes nothing of it any more.
        """
        address = self._engine.address
        if address is None:
            raise EngineUnavailable(self._engine.trouble)
        if not self._connected.is_set():
            # No wait_for: up to Python 3.11 it loses a cancellation that comes as what it waits for is done.
            connecting = asyncio.ensure_future(self._connected.wait())
            await asyncio.wait((connecting,), timeout=_CONNECT_SECONDS)
            connecting.cancel()
        job = _Job(
            str(uuid.uuid4()), address, asyncio.get_running_loop().create_future(), watch=watch, began=began, left=left
        )
        self._jobs[job.prompt_id] = job
        try:
            await self._while_it_lives(job, self._submit(job, prompt))
            job.submitted = True
            if watch is not None and not job.started:
                await self._tell_positions()
            await job.done
        except asyncio.CancelledError:
            self._spawn(self._cancel(job))
            raise
        finally:
            self._jobs.pop(job.prompt_id, None)
            if job.done.done() and not job.done.cancelled():
                job.done.exception()  # seen, even where another error came first
        return job.outputs

    async def _while_it_lives(self, job: _Job, work: Coroutine[Any, Any, None]) -> None:
        """Await *work*, or the error that ends *job*: a ComfyUI that is lost may never answer."""
        job.asking = asking = asyncio.ensure_future(work)
        await asyncio.wait((asking, job.done), return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            asking.result()
        else:
            asking.cancel()

    async def _submit(self, job: _Job, prompt: Mapping[str, Any]) -> None:
        import aiohttp

        request = {"prompt": prompt, "client_id": self._client_id, "prompt_id": job.prompt_id}
        try:
            async with self._http.post(f"{job.address}/prompt", json=request) as response:
                body = await response.json(content_type=None)
                status = response.status
        except aiohttp.ClientConnectorError:
            raise EngineUnavailable(self._engine.trouble or "it does not answer") from None
        except aiohttp.ClientConnectionError:
            # It took the prompt and ended at once; how is known in a moment, and told by job.done then.
            await asyncio.sleep(_CONNECT_SECONDS)
            raise EngineDied("the connection to it broke") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise unreadable("the prompt", error) from None
        if not isinstance(body, dict):
            raise RunError(f"ComfyUI answered the prompt with status {status} and no object.", status=502)
        if status != 200:
            raise refusal(body, prompt)
        given = body.get("prompt_id")
        if isinstance(given, str) and given != job.prompt_id:  # versions before 0.3.50 choose the id themselves
            known = self._jobs.pop(job.prompt_id, None)
            job.prompt_id = given
            if known is not None:
                self._jobs[given] = job
        if body.get("node_errors"):
            # Some outputs are valid and would be run; the caller asked for all of them.
            self._spawn(self._cancel(job))
            raise refusal(body, prompt)

    async def _cancel(self, job: _Job) -> None:
        """Take *job* from the queue or interrupt it; one that is just being submitted, after that."""
        import aiohttp

        if job.asking is not None and not job.asking.done():
            await asyncio.wait((job.asking,), timeout=_SUBMIT_SECONDS)
            job.asking.cancel()
        if job.asking is not None and not job.asking.cancelled():
            job.asking.exception()  # seen: nobody waits for it any more
        with contextlib.suppress(aiohttp.ClientError, ValueError):
            await self._post(job, "queue", {"delete": [job.prompt_id]})
            # Old versions interrupt whatever runs, so make sure that it is ours.
            if await self._is_running(job):
                await self._post(job, "interrupt", {"prompt_id": job.prompt_id})
            while await self._is_running(job):
                await asyncio.sleep(_LEAVING_SECONDS)
        if job.left is not None:
            job.left()

    async def _is_running(self, job: _Job) -> bool:
        async with self._http.get(f"{job.address}/queue") as response:
            queue = await response.json()
        return any(len(item) > 1 and item[1] == job.prompt_id for item in queue.get("queue_running", []))

    async def _forget(self, address: str, prompt_id: str) -> None:
        """Remove an ended prompt from ComfyUI's history, which keeps thousands, with their callers' values."""
        import aiohttp

        with contextlib.suppress(aiohttp.ClientError):
            async with self._http.post(f"{address}/history", json={"delete": [prompt_id]}):
                pass

    async def _post(self, job: _Job, route: str, body: Mapping[str, Any]) -> None:
        async with self._http.post(f"{job.address}/{route}", json=body):
            pass

    # -- events

    async def _listen(self) -> None:
        import aiohttp

        while True:
            address = self._engine.address
            if address is None:
                await self._engine.changed()
                continue
            try:
                async with self._http.ws_connect(f"{address}/ws?clientId={self._client_id}", max_msg_size=0) as socket:
                    self._connected.set()
                    await self._look_up()
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            event = json.loads(message.data)
                            if isinstance(event, dict):
                                self._on_event(event, address)
                        elif message.type is aiohttp.WSMsgType.BINARY:
                            self._on_frame(message.data)
            except (aiohttp.ClientError, OSError, ValueError):
                pass  # what matters is noticed by _notice_death, or found by _look_up after the next connection
            self._connected.clear()
            await asyncio.sleep(0.1)

    def _on_event(self, event: Mapping[str, Any], address: str) -> None:
        kind, data = event.get("type"), event.get("data")
        if not isinstance(data, dict):
            return
        prompt_id = data.get("prompt_id")
        if kind == "status" and any(job.watch is not None and not job.started for job in self._jobs.values()):
            self._spawn(self._tell_positions())
        if kind == "executing" and data.get("node") is None and isinstance(prompt_id, str):
            self._spawn(self._forget(address, prompt_id))
        job = self._jobs.get(prompt_id) if isinstance(prompt_id, str) else None
        if job is None:
            return
        if kind in ("execution_start", "executing", "progress"):
            self._current = job.prompt_id
        if not job.started:
            job.started = True
            if job.began is not None:
                job.began()
            job.tell("started")
        if kind == "execution_cached" and isinstance(data.get("nodes"), list):
            job.tell("cached", nodes=[str(node) for node in data["nodes"]])
        elif kind == "executing" and data.get("node") is not None:
            job.tell("node", node=str(data["node"]))
        elif kind == "progress":
            job.tell("step", node=str(data.get("node") or ""), step=data.get("value"), steps=data.get("max"))
        if kind == "executed" and isinstance(data.get("output"), dict):
            job.outputs[str(data.get("node"))] = data["output"]
        elif kind == "execution_success" or (kind == "executing" and data.get("node") is None):
            _finish(job)
        elif kind in ("execution_error", "execution_interrupted"):
            _finish(job, failure(kind, data))

    def _on_frame(self, frame: bytes) -> None:
        """A preview: event 1 (4 bytes, big-endian), format (4 bytes: 1 JPEG, 2 PNG), the picture."""
        job = self._jobs.get(self._current or "")
        if job is not None and len(frame) > 8 and frame[:4] == b"\0\0\0\1":
            kind = "image/png" if frame[4:8] == b"\0\0\0\2" else "image/jpeg"
            job.tell("preview", media_type=kind, data=bytes(frame[8:]))

    async def _tell_positions(self) -> None:
        """Tell each watcher whose prompt waits how many are before it (1: it is the next)."""
        import aiohttp

        waiting = [job for job in self._jobs.values() if job.watch is not None and not job.started]
        if not waiting:
            return
        with contextlib.suppress(aiohttp.ClientError, ValueError, TypeError, LookupError, AttributeError):
            async with self._http.get(f"{waiting[0].address}/queue") as response:
                queue = await response.json()
            order = [item[1] for item in sorted(queue["queue_pending"], key=lambda item: item[0])]
            for job in waiting:
                position = order.index(job.prompt_id) + 1 if job.prompt_id in order else None
                if position is not None and position != job.position and not job.started:
                    job.position = position
                    job.tell("queued", position=position)

    async def _look_up_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._look_up_seconds)
            await self._look_up()

    async def _look_up(self) -> None:
        """Ask ComfyUI about each prompt that has not ended, in case its events were lost."""
        import aiohttp

        jobs = [job for job in self._jobs.values() if job.submitted and job.address == self._engine.address]
        if not jobs:
            return
        try:
            async with self._http.get(f"{jobs[0].address}/queue") as response:
                queue = await response.json()
            waiting = {item[1] for items in queue.values() for item in items}
            for job in jobs:
                if job.prompt_id in waiting:
                    job.unseen = 0
                else:
                    await self._look_up_ended(job)
        except (aiohttp.ClientError, ValueError, TypeError, AttributeError, LookupError):
            return  # asked again soon

    async def _look_up_ended(self, job: _Job) -> None:
        import aiohttp

        try:
            async with self._http.get(f"{job.address}/history/{job.prompt_id}") as response:
                response.raise_for_status()
                entry = (await response.json()).get(job.prompt_id)
            if entry is not None:
                return _finish_from_history(job, entry)
        except aiohttp.ClientError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            return _finish(job, unreadable("a question for the result", error))
        job.unseen += 1  # once may be the moment between the queue and the history
        if job.unseen > 2:
            _finish(job, EngineDied("it no longer knows this request"))

    async def _notice_death(self) -> None:
        while True:
            await self._engine.changed()
            for job in list(self._jobs.values()):
                if job.address != self._engine.address:
                    _finish(job, EngineDied(self._engine.trouble or "it was started again"))

    def _fail_all(self, why: str) -> None:
        for job in list(self._jobs.values()):
            _finish(job, EngineDied(why))

    # -- files

    async def upload(self, path: Path, *, name: str, subfolder: str) -> str:
        """Give ComfyUI the file at *path* as *name* in *subfolder* of its input folder; returns its name there."""
        import aiohttp

        address = self._engine.address
        if address is None:
            raise EngineUnavailable(self._engine.trouble)
        try:
            with path.open("rb") as file:
                form = aiohttp.FormData()
                form.add_field("image", file, filename=name, content_type="application/octet-stream")
                form.add_field("subfolder", subfolder)
                form.add_field("type", "input")
                form.add_field("overwrite", "true")
                async with self._http.post(f"{address}/upload/image", data=form) as response:
                    if response.status == 413:
                        raise RunError(f"The file {name} is larger than ComfyUI takes.", status=413)
                    if response.status != 200:
                        raise RunError(f"ComfyUI did not take the file {name} (status {response.status}).", status=502)
                    answer = await response.json()
                    where = str(answer.get("subfolder") or "")
                    return f"{where}/{answer['name']}" if where else str(answer["name"])
        except aiohttp.ClientConnectionError:
            raise EngineUnavailable(self._engine.trouble or "it does not answer") from None
        except (aiohttp.ClientError, ValueError, AttributeError, LookupError, TypeError) as error:
            raise unreadable(f"the file {name}", error) from None

    async def fetch(self, reference: Mapping[str, str], target: Path) -> bool:
        """Write the file that *reference* (``filename, subfolder, type``) names to *target*; False if there is none."""
        import aiohttp

        address = self._engine.address
        if address is None:
            raise EngineUnavailable(self._engine.trouble)
        try:
            async with self._http.get(f"{address}/view", params=dict(reference)) as response:
                if response.status == 404:
                    return False
                if response.status != 200:
                    text = f"ComfyUI did not give the output {target.name} (status {response.status})."
                    raise RunError(text, status=502)
                with target.open("wb") as file:
                    async for chunk in response.content.iter_chunked(1 << 18):
                        file.write(chunk)
        except aiohttp.ClientConnectionError:
            raise EngineDied(self._engine.trouble or "it does not answer") from None
        except aiohttp.ClientError as error:
            raise unreadable(f"a question for the output {target.name}", error) from None
        return True

    async def free_memory(self) -> None:
        """Have ComfyUI unload its models; it does so before the next prompt."""
        import aiohttp

        with contextlib.suppress(aiohttp.ClientError):
            body = {"unload_models": True, "free_memory": True}
            async with self._http.post(f"{self._engine.address}/free", json=body):
                pass

    async def devices(self) -> list[Mapping[str, Any]]:
        """What ComfyUI says of its devices (``name, vram_total, vram_free`` in bytes); none when it does not answer."""
        import aiohttp

        if self._engine.address is None:
            return []
        timeout = aiohttp.ClientTimeout(total=2)
        with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, ValueError, AttributeError):
            async with self._http.get(f"{self._engine.address}/system_stats", timeout=timeout) as response:
                devices = (await response.json()).get("devices")
                return [device for device in devices or () if isinstance(device, dict)]
        return []

    async def knows(self, node_class: str) -> bool:
        """Whether ComfyUI has the node class *node_class*."""
        from urllib.parse import quote

        async with self._http.get(f"{self._engine.address}/object_info/{quote(node_class, safe='')}") as response:
            return response.status == 200 and bool(await response.json())

    async def answers(self) -> bool:
        """Whether ComfyUI answers now: a process that hangs is there, and still is of no use."""
        import aiohttp

        if self._engine.address is None:
            return False
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        try:
            async with self._http.get(f"{self._engine.address}/system_stats", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False

    @property
    def _http(self) -> aiohttp.ClientSession:
        assert self._session is not None, "start() comes first"
        return self._session

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _finish(job: _Job, error: RunError | None = None) -> None:
    if not job.done.done():
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)


def _finish_from_history(job: _Job, entry: Mapping[str, Any]) -> None:
    for node_id, output in (entry.get("outputs") or {}).items():
        job.outputs[node_id] = output
    messages = (entry.get("status") or {}).get("messages") or []
    for kind, data in messages:
        if kind in ("execution_error", "execution_interrupted"):
            return _finish(job, failure(kind, data))
    _finish(job)
