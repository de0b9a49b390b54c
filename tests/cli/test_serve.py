"""``cpack-build serve`` serves a pack as its image would, on loopback, and ends cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.cli.calling import Caller
from tests.cpack.packs import make_pack
from tests.serve.running import ROOT, free_port, standin, wait_for
from tests.serve.workflows import EVERYTHING_INPUTS, everything


@pytest.mark.parametrize("kind", ["pack", "workflow", "workspace"])
def test_a_pack_and_a_workflow_are_served_with_a_comfyui_of_this_machine(kind: str, tmp_path: Path) -> None:
    engine = standin(tmp_path / "comfyui")
    if kind == "pack":
        source = tmp_path / "x.cpack.zip"
        make_pack(source, workflow_api=everything(), files={f"input/{n}": d for n, d in EVERYTHING_INPUTS.items()})
    elif kind == "workspace":
        source = engine.folder
        (source / ".cpack").mkdir()
        (source / ".cpack" / "workflow_api.json").write_text(json.dumps(everything()))
        for name, data in EVERYTHING_INPUTS.items():
            (source / "input" / name).write_bytes(data)
    else:
        workflow = everything()
        for unused in ("1", "12", "13"):
            del workflow[unused]
        workflow["4"] = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        source = tmp_path / "workflow_api.json"
        source.write_text(json.dumps(workflow))
    port = free_port()
    command = [sys.executable, "-m", "cpack_build", "serve", str(source), "--port", str(port)]
    if kind != "workspace":
        command += ["--workspace", str(engine.folder)]
    command += ["--python", engine.python]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    log_text = (tmp_path / "log").read_text

    def ready() -> bool:
        assert process.poll() is None, log_text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=60).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(ready, "the service", log=log_text)
        body = {"caption": "served"}
        answer = requests.post(
            f"http://127.0.0.1:{port}/generate", json=body, headers={"Accept": "text/plain"}, timeout=60
        )
        assert answer.text == "served"
        if kind != "workflow":  # the files that come with it are the parameters' defaults
            pixels = requests.post(
                f"http://127.0.0.1:{port}/generate", json={}, headers={"Accept": "image/png"}, timeout=60
            )
            assert pixels.content.startswith(b"\x89PNG"), pixels.text
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log_text()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "Traceback" not in log_text()


def test_without_a_comfyui_it_says_how_to_name_one(
    call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COMFYUI_SERVER", "COMFYUI_DIR"):
        monkeypatch.delenv(name, raising=False)
    done = call("serve", str(tmp_path / "x.cpack.zip"))
    assert done.code == 2
    assert "--comfyui URL" in done.err


def test_a_workspace_without_a_workflow_says_how_to_name_one(tmp_path: Path, call: Caller) -> None:
    (tmp_path / "ComfyUI").mkdir()
    done = call("serve", str(tmp_path / "ComfyUI"))
    assert done.code == 2
    assert "-w FILE" in done.err
    (tmp_path / "x.cpack.zip").write_bytes(b"")
    assert call("serve", str(tmp_path / "x.cpack.zip"), "-w", "y.json").code == 2
