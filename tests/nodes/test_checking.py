"""The dialogs know beforehand what a pack lacks and could hold, as this running ComfyUI has it."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from cpack_build.nodes.comfyui import Comfyui as Engine
from cpack_build.nodes.errors import Failed
from cpack_build.nodes.plugin import Plugin
from cpack_build.nodes.tool import Tool
from tests.nodes.routing import Comfyui, fake_tool, gone, make_comfyui, running, workflow
from tests.serve.running import wait_for
from tests.workspace.installs import HUB, make_git_node


def test_a_sound_workflow_has_parameters_outputs_and_no_error(comfyui: Comfyui) -> None:
    found = comfyui.post("/cpack/check", {"prompt": workflow()}).json()
    assert [one for one in found["findings"] if one["level"] == "error"] == []
    assert [(one["name"], one["type"], one["node_id"]) for one in found["parameters"]] == [("photo", "image", "1")]
    assert [(one["kind"], one["node_id"]) for one in found["outputs"]] == [("image", "4")]


def test_each_finding_leads_to_its_node(comfyui: Comfyui) -> None:
    broken = workflow()
    broken["1"]["inputs"]["image"] = "gone.png"
    broken["2"]["inputs"]["model_name"] = "gone.safetensors"
    broken["9"] = {"class_type": "NobodyHasThis", "inputs": {}}
    found = comfyui.post("/cpack/check", {"prompt": broken}).json()["findings"]
    by_code = {one["code"]: one for one in found}
    assert by_code["missing_model"]["node_id"] == "2"
    assert by_code["missing_model"]["item"] == "gone.safetensors"
    assert by_code["missing_input"]["node_id"] == "1"
    assert by_code["unknown_class"]["item"] == "NobodyHasThis"
    assert all(one["next"] for one in found if one["level"] == "error")
    del broken["4"]
    found = comfyui.post("/cpack/check", {"prompt": broken}).json()
    assert "no CPack output node" in next(one for one in found["findings"] if one["code"] == "workflow")["message"]
    assert found["parameters"] == []


@pytest.mark.parametrize("path", ["/cpack/check", "/cpack/inventory"])
@pytest.mark.parametrize(
    "body", [{}, {"prompt": None}, {"prompt": {}}, {"prompt": {"1": 7}}, {"prompt": {"nodes": []}}]
)
def test_what_is_no_workflow_is_told(comfyui: Comfyui, path: str, body: Any) -> None:
    answer = comfyui.post(path, body)
    assert answer.status_code in (400, 502) or answer.json()["findings"][0]["level"] == "error"
    if not answer.ok:
        assert answer.json()["error"]["message"]
        assert answer.json()["error"]["next"]
    assert not list(comfyui.temporary.glob("*/requests/*"))


def test_a_check_that_hangs_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps(_hanging(tmp_path / "pids")))
    tool = Tool(tmp_path, {"CPACK_BUILD": str(fake_tool(tmp_path))})
    plugin = Plugin(Engine(None), tool=tool, seconds=1)
    with pytest.raises(Failed) as caught:
        plugin.ask("check", "--workflow", tmp_path / "w.json")
    assert caught.value.code == "too_slow"
    for pid in (tmp_path / "pids").read_text().split():
        gone(int(pid))
    plugin.close()


def test_checks_that_hang_do_not_keep_comfyui_from_its_end(tmp_path: Path) -> None:
    with running(tmp_path, CPACK_BUILD=str(fake_tool(tmp_path))) as comfyui, ThreadPoolExecutor(5) as pages:
        for number in range(5):
            pages.submit(_ask, comfyui, _hanging(tmp_path / f"pids{number}"))
        wait_for(lambda: len(list(tmp_path.glob("pids*"))) == 4, "as many as are at work at once")
        processes = [int(pid) for file in tmp_path.glob("pids*") for pid in file.read_text().split()]
        os.kill(comfyui.pid, signal.SIGINT)
        for pid in [comfyui.pid, *processes]:
            gone(pid)
        assert not list(comfyui.temporary.iterdir())


def _hanging(pids: Path) -> dict[str, Any]:
    return {"1": {"class_type": "Fake", "inputs": {"sleeps": 600, "pids": str(pids)}}}


def _ask(comfyui: Comfyui, prompt: dict[str, Any]) -> None:
    with suppress(requests.RequestException):  # ComfyUI ends before it answers
        comfyui.post("/cpack/check", {"prompt": prompt})


def test_the_inventory_has_everything_and_what_is_used(tmp_path: Path) -> None:
    """Of the folders that this ComfyUI was started with, not only those that its files say."""
    root = make_comfyui(tmp_path / "ComfyUI")
    make_git_node(root / "custom_nodes/unused", url=f"{HUB}/unused")
    elsewhere, inputs = tmp_path / "elsewhere", tmp_path / "in put"
    (elsewhere / "loras").mkdir(parents=True)
    (elsewhere / "loras" / "ünused lora.safetensors").write_bytes(b"x" * 32)
    inputs.mkdir()
    (root / "input/example.png").rename(inputs / "example.png")
    (inputs / "sub").mkdir()
    (inputs / "sub/other.png").write_bytes(b"other")
    (tmp_path / "extra.yaml").write_text(f"x:\n  loras: {elsewhere / 'loras'}\n")
    arguments = ("--input-directory", str(inputs), "--extra-model-paths-config", str(tmp_path / "extra.yaml"))
    with running(tmp_path, install=root, arguments=arguments) as comfyui:
        recent = {"1": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "tiny.safetensors"}}}
        keep = {"2": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
                "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}}}  # fmt: skip
        found = comfyui.post("/cpack/inventory", {"prompt": workflow()}).json()
        models = {model["path"]: model for model in found["models"]}
        assert set(models) >= {"models/upscale_models/tiny.safetensors", "models/loras/ünused lora.safetensors"}
        tiny, lora = models["models/upscale_models/tiny.safetensors"], models["models/loras/ünused lora.safetensors"]
        assert (tiny["referenced"], tiny["node_ids"], tiny["recent"], tiny["sha256"]) == (True, ["2"], False, None)
        assert (lora["referenced"], lora["node_ids"], lora["folder"], lora["size"]) == (False, [], "loras", 32)
        assert {item["path"]: item["referenced"] for item in found["inputs"]} == {
            "input/example.png": True, "input/sub/other.png": False
        }  # fmt: skip
        nodes = {node["name"]: node for node in found["nodes"]}
        assert nodes["unused"]["used"] is False
        assert nodes["unused"]["kind"] == "git"
        assert nodes["cpack-build"]["commit"]
        assert any(package["name"] for package in found["packages"])
        assert "libgl1" in found["system"]
        # after the model was used and packed, it is recent and its hash is known
        assert comfyui.post("/prompt", {"prompt": {**recent, **keep}}).ok
        wait_for(lambda: comfyui.get("/history").json(), "the prompt")
        comfyui.done("pack", name="x", prompt=workflow())
        again = comfyui.post("/cpack/inventory", {"prompt": workflow()}).json()
        tiny = next(one for one in again["models"] if one["path"] == "models/upscale_models/tiny.safetensors")
        assert tiny["recent"] is True
        assert len(tiny["sha256"]) == 64
