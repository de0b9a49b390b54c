"""The stand-in keeps to ComfyUI's protocol, and its repositories to their commits."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests

from tests.serve.running import free_port, standin, wait_for
from tests.standin.repository import make_model, make_nodes_repository, make_repository


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("standin")
    engine = standin(folder / "comfyui")
    make_nodes_repository(engine.folder / "custom_nodes" / "tint")
    (engine.folder / "custom_nodes" / "broken.py").write_text("import no_such_module_of_cpack\n")
    port = free_port()
    command = [sys.executable, "main.py", "--port", str(port), "--preview-method", "auto", "--disable-auto-launch"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=engine.folder, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return requests.get(f"{url}/system_stats", timeout=60).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(answers, "the stand-in", log=lambda: (folder / "log").read_text())
        assert "(IMPORT FAILED)" in (folder / "log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(60)


def prompt(**changes: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 4, "batch_size": 1, "color": 255}},
        "2": {"class_type": "StandinTint", "inputs": {"image": ["1", 0], "red": 1, "green": 1, "blue": 0.5}},
        "3": {"class_type": "StandinSleep", "inputs": {"value": ["2", 0], "seconds": changes.get("seconds", 0)}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": changes.get("prefix", "x")}},
    }


def test_the_same_files_give_the_same_commit(tmp_path: Path) -> None:
    commits = {make_repository(tmp_path / name) for name in ("a", "b")}
    assert len(commits) == 1
    assert make_nodes_repository(tmp_path / "c") == make_nodes_repository(tmp_path / "d")
    tracked = subprocess.run(["git", "ls-files", "-s"], cwd=tmp_path / "a", check=True, capture_output=True, text=True)
    assert "models/upscale_models/put_upscale_models_here" in tracked.stdout
    assert {line[:6] for line in tracked.stdout.splitlines()} == {"100644"}


def test_a_model_depends_on_its_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_model(tmp_path / name, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_events_come_in_comfyuis_order_with_previews_and_unchanged_nodes_are_not_run_again(address: str) -> None:
    async def run(session: aiohttp.ClientSession, socket: Any, body: dict[str, Any]) -> tuple[list[str], list[bytes]]:
        async with session.post(f"{address}/api/prompt", json={"prompt": body, "client_id": "c"}) as response:
            prompt_id = (await response.json())["prompt_id"]
        events, frames = [], []
        while True:
            message = await socket.receive(60)
            if message.type is aiohttp.WSMsgType.BINARY:
                frames.append(message.data)
                continue
            event = json.loads(message.data)
            if event["type"] == "status":
                continue
            events.append(f"{event['type']} {event['data'].get('node', '')}".strip())
            assert event["data"]["prompt_id"] == prompt_id
            if event["type"] == "executing" and event["data"]["node"] is None:
                return events, frames

    async def both() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}/api/ws?clientId=c") as socket:
            events, frames = await run(session, socket, prompt())
            assert events == [
                "execution_start",
                "execution_cached",
                "executing 1",
                "executing 2",
                "executing 3",
                "progress 3",
                "executing 4",
                "executed 4",
                "execution_success",
                "executing None",
            ]
            assert struct.unpack(">II", frames[0][:8]) == (1, 1)
            assert frames[0][8:11] == b"\xff\xd8\xff"
            events, _ = await run(session, socket, prompt(prefix="other"))
            assert [event for event in events if event.startswith("executing")] == ["executing 4", "executing None"]

    asyncio.run(both())


def test_a_missing_model_is_refused_in_comfyuis_words(address: str) -> None:
    body = {
        "1": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "no.safetensors"}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "3": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["1", 0], "image": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
    }
    answer = requests.post(f"{address}/prompt", json={"prompt": body}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "prompt_outputs_failed_validation"
    (problem,) = answer.json()["node_errors"]["1"]["errors"]
    assert problem["type"] == "value_not_in_list"
    assert problem["details"].startswith("model_name: 'no.safetensors' not in [")


def test_files_outside_its_folders_are_neither_written_nor_shown(address: str) -> None:
    upload = requests.post(
        f"{address}/upload/image", files={"image": ("x", b"x")}, data={"subfolder": "../../up"}, timeout=60
    )
    assert upload.status_code == 400
    for query in ("filename=../main.py", "filename=/etc/passwd", "filename=x&subfolder=../..", "filename=x&type=zip"):
        assert requests.get(f"{address}/view?{query}", timeout=60).status_code in (400, 403)
