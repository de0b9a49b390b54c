"""The client gets its results though events are lost, ids are changed, or ComfyUI forgets; against a ComfyUI that does
just that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cpack_build.errors import EngineDied, EngineUnavailable, NodeFailed, PromptRefused
from cpack_build.serve.client import Client
from cpack_build.serve.comfyui import Engine

OUTPUT = {"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
PROMPT = {"9": {"class_type": "X", "inputs": {}}}


class Forgetful:
    """A ComfyUI without a WebSocket, whose answers a test sets."""

    def __init__(self) -> None:
        self.history: dict[str, Any] = {}
        self.queue: list[list[Any]] = []
        self.given_id: str | None = None
        self.refusal: dict[str, Any] | None = None
        self.posted: list[tuple[str, Any]] = []
        self.slow = 0.0  # seconds until a prompt is answered; it is in the queue only then

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_post("/prompt", self.prompt)
        application.router.add_get("/queue", self.get_queue)
        application.router.add_get("/history/{prompt_id}", self.get_history)
        for path in ("/queue", "/history", "/interrupt"):
            application.router.add_post(path, self.note)
        return application

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refusal is not None:
            return web.json_response(self.refusal, status=400 if "error" in self.refusal else 200)
        await asyncio.sleep(self.slow)
        prompt_id = self.given_id or body["prompt_id"]
        self.queue.append([0, prompt_id])
        return web.json_response({"prompt_id": prompt_id, "number": 0, "node_errors": {}})

    async def get_queue(self, request: web.Request) -> web.Response:
        return web.json_response({"queue_running": self.queue, "queue_pending": []})

    async def get_history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        return web.json_response({prompt_id: self.history["any"]} if "any" in self.history else {})

    async def note(self, request: web.Request) -> web.Response:
        self.posted.append((request.path, await request.json()))
        return web.Response()


def with_client(comfyui: Forgetful, test: Callable[[Client, Engine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with TestServer(comfyui.application()) as server:
            engine = Engine(log=print)
            engine._tell(str(server.make_url("")).rstrip("/"), "")
            client = Client(engine, look_up_seconds=0.05)
            await client.start()
            client._connected.set()  # there is no WebSocket to wait for
            try:
                await asyncio.wait_for(test(client, engine), 60)
            finally:
                await client.close()

    asyncio.run(run())


@pytest.mark.parametrize("given_id", [None, "chosen-by-an-old-comfyui"])
def test_without_events_the_history_tells_the_result(given_id: str | None) -> None:
    comfyui = Forgetful()
    comfyui.given_id = given_id

    async def test(client: Client, engine: Engine) -> None:
        running = asyncio.create_task(client.run(PROMPT))
        while not comfyui.queue:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert not running.done()  # it is in the queue: patience
        comfyui.history["any"] = {"outputs": OUTPUT, "status": {"messages": [["execution_success", {}]]}}
        comfyui.queue.clear()
        assert await running == OUTPUT

    with_client(comfyui, test)


def test_without_events_the_history_tells_the_failure() -> None:
    comfyui = Forgetful()
    error = {"node_id": "9", "node_type": "X", "exception_message": "no", "exception_type": "builtins.ValueError"}
    comfyui.history["any"] = {"outputs": {}, "status": {"messages": [["execution_error", error]]}}

    async def test(client: Client, engine: Engine) -> None:
        running = asyncio.create_task(client.run(PROMPT))
        while not comfyui.queue:
            await asyncio.sleep(0.01)
        comfyui.queue.clear()
        with pytest.raises(NodeFailed, match="no") as caught:
            await running
        assert (caught.value.node_id, caught.value.node_class) == ("9", "X")

    with_client(comfyui, test)


def test_a_prompt_that_comfyui_no_longer_knows_has_failed() -> None:
    comfyui = Forgetful()

    async def test(client: Client, engine: Engine) -> None:
        running = asyncio.create_task(client.run(PROMPT))
        while not comfyui.queue:
            await asyncio.sleep(0.01)
        comfyui.queue.clear()
        with pytest.raises(EngineDied, match="no longer knows"):
            await running

    with_client(comfyui, test)


def test_who_goes_away_is_told_when_comfyui_has_left_the_prompt_and_not_before() -> None:
    """A node that is interrupted ends at its next step, and may write a file until then."""
    comfyui = Forgetful()

    async def test(client: Client, engine: Engine) -> None:
        left = asyncio.Event()
        running = asyncio.create_task(client.run(PROMPT, left=left.set))
        while not comfyui.queue:
            await asyncio.sleep(0.01)
        running.cancel()
        while ("/interrupt", {"prompt_id": comfyui.queue[0][1]}) not in comfyui.posted:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert not left.is_set()
        comfyui.queue.clear()
        await left.wait()

    with_client(comfyui, test)


def test_when_comfyui_is_lost_all_that_runs_fails_with_the_cause() -> None:
    comfyui = Forgetful()

    async def test(client: Client, engine: Engine) -> None:
        running = [asyncio.create_task(client.run(PROMPT)) for _ in range(3)]
        while len(comfyui.queue) < 3:
            await asyncio.sleep(0.01)
        engine._tell(None, "it was ended by SIGKILL")
        for result in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(result, EngineDied)
            assert "SIGKILL" in str(result)
        with pytest.raises(EngineUnavailable, match="SIGKILL"):
            await client.run(PROMPT)

    with_client(comfyui, test)


def test_a_prompt_of_which_only_a_part_is_valid_is_refused_and_taken_back() -> None:
    comfyui = Forgetful()
    wrong = {"errors": [{"message": "Value not in list", "details": "name: 'x'"}], "class_type": "Loader"}
    comfyui.refusal = {"prompt_id": "p", "number": 1, "node_errors": {"4": {"errors": []}, "5": wrong}}
    comfyui.queue.append([0, "p"])

    async def test(client: Client, engine: Engine) -> None:
        with pytest.raises(PromptRefused, match="Value not in list: name: 'x'") as caught:
            await client.run(PROMPT)
        assert caught.value.node_id == "5"
        while len(comfyui.posted) < 2:
            await asyncio.sleep(0.01)
        assert comfyui.posted == [("/queue", {"delete": ["p"]}), ("/interrupt", {"prompt_id": "p"})]

    with_client(comfyui, test)


def test_a_prompt_that_is_cancelled_while_it_is_submitted_is_taken_back_when_it_is_there() -> None:
    comfyui = Forgetful()
    comfyui.slow, comfyui.given_id = 0.3, "chosen-by-an-old-comfyui"

    async def test(client: Client, engine: Engine) -> None:
        running = asyncio.create_task(client.run(PROMPT))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not comfyui.queue, "it was cancelled before it was there"
        while len(comfyui.posted) < 2:
            await asyncio.sleep(0.01)
        own = comfyui.given_id
        assert comfyui.posted == [("/queue", {"delete": [own]}), ("/interrupt", {"prompt_id": own})]
        assert not client._jobs

    with_client(comfyui, test)


@pytest.mark.parametrize(
    "body", [{"error": "text"}, {"error": {"message": "m", "details": ""}}, {"error": {}, "node_errors": {"1": {}}}]
)
def test_any_form_of_refusal_is_told(body: dict[str, Any]) -> None:
    comfyui = Forgetful()
    comfyui.refusal = body

    async def test(client: Client, engine: Engine) -> None:
        with pytest.raises(PromptRefused) as caught:
            await client.run(json.loads(json.dumps(PROMPT)))
        assert caught.value.message

    with_client(comfyui, test)
