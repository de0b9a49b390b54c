"""``/generate`` beside the same ComfyUI asked directly, in the same run: what the service adds, and what it costs.

The ComfyUI is the stand-in of the tests, or the one that ``CPACK_TEST_COMFYUI`` and ``CPACK_TEST_COMFYUI_PYTHON`` name
(with comfy-pack's nodes). ``CPACK_BENCH_REQUESTS`` is how many requests the load run makes (2,000; 10,000 for the
figure in the documentation). Each prompt differs from the one before, so nothing comes from ComfyUI's cache.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from bench.measure import BenchError, Row

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.serve.running import Service, real_comfyui, serving, standin, write_app  # noqa: E402
from tests.serve.workflows import EVERYTHING_INPUTS, node  # noqa: E402

_TIMES = 200
_CLIENTS = 8
_REQUESTS = int(os.environ.get("CPACK_BENCH_REQUESTS", "2000"))
_Ask = Callable[[aiohttp.ClientSession, int], Awaitable[None]]


def rows(place: Path) -> Iterator[Row]:
    """Serve a trivial workflow, and ask."""
    is_real = "CPACK_TEST_COMFYUI" in os.environ
    engine = real_comfyui(place / "engine") if is_real else standin(place / "engine")
    app = write_app(place / "app", _workflow(), inputs=EVERYTHING_INPUTS)
    with serving(app, place / "whole", engine=engine, CPACK_MAX_REQUESTS="256") as service:
        peer = "real ComfyUI directly" if is_real else "stand-in directly"
        yield from _latency(service, peer)
        yield from _start(app, place, service)
        yield _load(service)
        yield _crowd(service)


def _workflow() -> dict[str, Any]:
    return {
        "1": node("CPackInputImage", "photo", image="example.png"),
        "2": node("CPackInputInt", "size", value=64, min=16, max=512),
        "3": node(
            "ImageScale", "Scale", image=["1", 0], upscale_method="nearest-exact", width=["2", 0], height=16,
            crop="disabled",
        ),
        "4": node("CPackOutputImage", "picture", images=["3", 0], filename_prefix="bench"),
    }  # fmt: skip


def _latency(service: Service, peer: str) -> Iterator[Row]:
    ours, direct = asyncio.run(_alternating(service))
    added = statistics.median(ours) - statistics.median(direct)
    yield Row("serving", "one request, median", statistics.median(ours), peer, statistics.median(direct))
    yield Row("serving", "added to it, median", added, "", goal=0.008, note=f"{added * 1000:.1f} ms")
    late = _p99(ours) - _p99(direct)
    yield Row("serving", "added to it, 99th percentile", late, "", goal=0.025, note=f"{late * 1000:.1f} ms")
    ours_together, direct_together = asyncio.run(_together(service))
    what = f"{_CLIENTS} clients at once, {_CLIENTS * 10} requests"
    yield Row("serving", what, ours_together, peer, direct_together, goal=1.2)


async def _alternating(service: Service) -> tuple[list[float], list[float]]:
    """The times of single requests, one by the service and one direct in turn."""
    ours, direct = [], []
    async with aiohttp.ClientSession() as session, _Direct(service.comfyui) as comfyui:
        for number in range(_TIMES + 10):
            ours.append(await _timed(_generate(session, service, number * 2)))
            direct.append(await _timed(comfyui.run(session, number * 2 + 1)))
    return ours[10:], direct[10:]


async def _together(service: Service) -> tuple[float, float]:
    async with aiohttp.ClientSession() as session, _Direct(service.comfyui) as comfyui:
        counter = itertools.count()

        async def client(ask: Callable[[int], Awaitable[None]]) -> None:
            for _ in range(10):
                await ask(next(counter))

        async def all_of(ask: Callable[[int], Awaitable[None]]) -> float:
            return await _timed(asyncio.gather(*(client(ask) for _ in range(_CLIENTS))))

        ours, direct = [], []
        for _ in range(5):
            ours.append(await all_of(lambda number: _generate(session, service, number)))
            direct.append(await all_of(lambda number: comfyui.run(session, number)))
    return statistics.median(ours), statistics.median(direct)


async def _generate(session: aiohttp.ClientSession, service: Service, number: int) -> None:
    async with session.post(f"{service.url}/generate", json={"size": _size(number)}) as answer:
        body = await answer.read()
        if answer.status != 200 or not body.startswith(b"\x89PNG"):
            raise BenchError(f"/generate answered {answer.status}: {body[:300]!r}")


class _Direct:
    """ComfyUI's own protocol: prompt, WebSocket until it is done, history, view."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = uuid.uuid4().hex
        self._done: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> _Direct:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(f"{self._url}/ws?clientId={self._client}", max_msg_size=0)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await self._socket.close()
        await self._session.close()

    async def _listen(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                data = event.get("data") or {}
                if event["type"] == "executing" and data.get("node") is None:  # its history is written by then
                    self._done.setdefault(data.get("prompt_id"), asyncio.Event()).set()

    async def run(self, session: aiohttp.ClientSession, number: int) -> None:
        prompt = _workflow()
        prompt["2"]["inputs"]["value"] = _size(number)
        body = {"prompt": prompt, "client_id": self._client}
        async with session.post(f"{self._url}/prompt", json=body) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        await self._done.setdefault(prompt_id, asyncio.Event()).wait()
        async with session.get(f"{self._url}/history/{prompt_id}") as answer:
            outputs = (await answer.json())[prompt_id]["outputs"]
        async with session.get(f"{self._url}/view", params=outputs["4"]["images"][0]) as answer:
            if not (await answer.read()).startswith(b"\x89PNG"):
                raise BenchError("ComfyUI gave no picture.")


def _start(app: Path, place: Path, service: Service) -> Iterator[Row]:
    began = time.monotonic()
    with serving(app, place / "start", COMFYUI_SERVER=service.comfyui) as second:
        seconds = time.monotonic() - began
        time.sleep(2)
        yield Row(
            "serving", "the service starts, without ComfyUI's own", seconds, "", goal=3, peak_mb=_memory(second),
            note="its memory at rest; the goal is 220 MB",
        )  # fmt: skip


def _load(service: Service) -> Row:
    """Many requests, each with a file of its own, by eight clients: what grows, what is lost, what is left."""
    asyncio.run(_ask_many(service, 500))
    before = _memory(service)
    seconds, lost = asyncio.run(_ask_many(service, _REQUESTS))
    growth = _memory(service) / before - 1
    left = len(service.leftovers())
    note = f"memory {growth:+.1%} (goal 5 %), {lost} lost, {left} files left"
    return Row(
        "serving", f"{_REQUESTS} uploads by {_CLIENTS} clients", seconds, "", peak_mb=_memory(service), note=note
    )


async def _ask_many(service: Service, count: int) -> tuple[float, int]:
    numbers = iter(range(count))
    lost = 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal lost
        for number in numbers:
            form = aiohttp.FormData({"size": str(_size(number))})
            form.add_field("photo", io.BytesIO(EVERYTHING_INPUTS["example.png"]), filename=f"{number % 50}.png")
            async with session.post(f"{service.url}/generate", data=form) as answer:
                lost += answer.status != 200 or not (await answer.read()).startswith(b"\x89PNG")

    async with aiohttp.ClientSession() as session:
        seconds = await _timed(asyncio.gather(*(client(session) for _ in range(_CLIENTS))))
    return seconds, lost


def _crowd(service: Service) -> Row:
    """A thousand at once, against a limit of 256: each is answered, or told to come back."""

    async def all_of_them() -> tuple[float, Counter[int]]:
        statuses: Counter[int] = Counter()

        async def one(session: aiohttp.ClientSession, number: int) -> None:
            async with session.post(f"{service.url}/generate", json={"size": _size(number)}) as answer:
                await answer.read()
                statuses[answer.status] += 1

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            seconds = await _timed(asyncio.gather(*(one(session, number) for number in range(1000))))
        return seconds, statuses

    seconds, statuses = asyncio.run(all_of_them())
    if set(statuses) - {200, 429}:
        raise BenchError(f"A thousand at once were answered {dict(statuses)}.")
    note = f"{statuses[200]} done, {statuses[429]} told to come back"
    return Row("serving", "1000 clients at once, limit 256", seconds, "", note=note)


def _size(number: int) -> int:
    return 16 + number % 497


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def _timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def _memory(service: Service) -> float:
    """Resident memory of the service's own process, without ComfyUI's, in MB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6
