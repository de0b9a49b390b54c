"""``cpack_build.AsyncClient`` does in an event loop what ``Client`` does, and gives a run back when it is cancelled."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
import requests
from PIL import Image

import cpack_build
from cpack_build.errors import NetworkError, RunError
from cpack_build.serve.async_caller import AsyncClient
from tests.serve.running import Service, free_port, wait_for
from tests.serve.workflows import picture


def test_it_runs_several_at_once_and_tells_the_progress_of_each(service: Service, tmp_path: Path) -> None:
    assert cpack_build.AsyncClient is AsyncClient
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    told: dict[int, list[str]] = {50: [], 51: []}

    async def ask() -> None:
        async with AsyncClient(service.url) as client:
            assert (await client.parameters())["properties"]["size"]["maximum"] == 512
            results = await asyncio.gather(
                *(
                    client.generate(
                        {"photo": photo, "caption": "123"},
                        size=size,
                        seconds=0.2,
                        on_progress=lambda event, data, size=size: told[size].append(event),  # type: ignore[misc]
                    )
                    for size in told
                )
            )
        for size, result in zip(told, results, strict=True):
            assert result.files["note.txt"] == b"123"
            assert Image.open(io.BytesIO(result.files["picture.png"])).size == (size, size)
            assert {"started", "node", "step"} <= set(told[size])

    asyncio.run(ask())


def test_it_raises_what_the_service_says(service: Service) -> None:
    async def ask() -> None:
        async with AsyncClient(service.url) as client:
            with pytest.raises(RunError, match="512") as caught:
                await client.generate(size=9999)
            assert caught.value.status == 400
            with pytest.raises(RunError, match="no luck") as caught:
                await client.generate(fail=True)
            assert (caught.value.status, caught.value.node_class) == (500, "StandinFail")
        async with AsyncClient(f"http://127.0.0.1:{free_port()}") as nobody:
            with pytest.raises(NetworkError, match="does not answer"):
                await nobody.generate()

    asyncio.run(ask())


def test_cancelled_it_takes_the_run_back(service: Service) -> None:
    async def ask() -> None:
        began = asyncio.Event()
        async with AsyncClient(service.url) as client:
            work = asyncio.create_task(
                client.generate(seconds=500, size=52, on_progress=lambda event, data: began.set())
            )
            await began.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(ask())
    queue = f"{service.comfyui}/queue"
    wait_for(lambda: not requests.get(queue, timeout=60).json()["queue_running"], "ComfyUI to be free")
