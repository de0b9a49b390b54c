"""Serve from a page: this ComfyUI as engine, the port and address that were asked for, lines that really call it."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from cpack_build.nodes.examples import examples
from tests import need
from tests.nodes.routing import Comfyui, gone, listening, make_comfyui, own_address, running, settled
from tests.serve.running import free_port, wait_for


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=20).status_code == 200
    except requests.ConnectionError:
        return False


def inverting() -> dict[str, Any]:
    """A picture, a number of characters and a caption in; a picture out."""
    return {
        "1": {"class_type": "CPackInputImage", "inputs": {"image": "a picture's.png"}, "_meta": {"title": "photo"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "CPackOutputImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }


@pytest.fixture(scope="module")
def serving_comfyui(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("serving")
    root = make_comfyui(folder / "ComfyUI")
    Image.new("RGB", (4, 3), (255, 0, 10)).save(root / "input" / "a picture's.png")
    with running(folder, install=root) as comfyui:
        yield comfyui


@pytest.mark.parametrize("listen", ["loopback", "network"])
def test_it_listens_where_it_was_told_and_nowhere_else(serving_comfyui: Comfyui, listen: str) -> None:
    port, comfyui = free_port(), serving_comfyui
    key = comfyui.start("serve", prompt=inverting(), port=port, listen=listen)
    job = comfyui.until(key, lambda job: (job["result"] or {}).get("health") in ("ready", "busy") or job["error"])
    assert job["error"] is None, job
    assert job["result"]["port"] == port
    assert listening(port) == {"127.0.0.1" if listen == "loopback" else "0.0.0.0"}
    assert answers(f"http://127.0.0.1:{port}")
    assert answers(f"http://127.0.0.2:{port}") is (listen == "network")
    assert answers(f"http://{own_address()}:{port}") is (listen == "network")
    assert (job["result"]["network_url"] is not None) is (listen == "network")
    status = comfyui.get("/cpack/status").json()
    assert status["serve"]["id"] == key
    assert "Serving" in comfyui.get("/cpack/serve/log").text
    taken = comfyui.post("/cpack/jobs", {"kind": "serve", "params": {"prompt": inverting(), "port": port}})
    assert taken.status_code == 409
    comfyui.post(f"/cpack/jobs/{key}/cancel")
    assert comfyui.over(key)["state"] == "cancelled"
    gone(job["result"]["pid"])
    assert not answers(f"http://127.0.0.1:{port}")
    assert comfyui.get("/cpack/serve/log").status_code == 404
    assert not list(comfyui.temporary.glob("*/requests/*"))


def test_its_lines_call_it_as_they_are_printed(serving_comfyui: Comfyui, tmp_path: Path) -> None:
    port, comfyui = free_port(), serving_comfyui
    key = comfyui.start("serve", prompt=inverting(), port=port, token="t0ken-of-mine")
    job = comfyui.until(key, lambda job: (job["result"] or {}).get("health") in ("ready", "busy") or job["error"])
    assert job["error"] is None, job
    assert requests.get(f"http://127.0.0.1:{port}/interface.json", timeout=20).status_code == 401
    lines = job["result"]["examples"]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "CPACK_TOKEN": "t0ken-of-mine"}
    for name, command in (
        ("curl", [need.tool("bash"), "-c", lines["curl"]]),
        ("python", [sys.executable, "-c", lines["python"]]),
        ("javascript", ["node", "--input-type=module", "-e", lines["javascript"]]),
    ):
        if shutil.which(command[0]) is None:
            continue
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=180)
        assert done.returncode == 0, (lines[name], done.stderr)
        (made,) = folder.iterdir()
        with Image.open(made) as picture:
            assert picture.size == (4, 3)
            assert picture.convert("RGB").getpixel((0, 0)) == (0, 255, 245)
    text = comfyui.get(f"/cpack/jobs/{key}/log").text + str(comfyui.get("/cpack/jobs").json())
    assert "t0ken-of-mine" not in text
    comfyui.post(f"/cpack/jobs/{key}/cancel")
    comfyui.over(key)


def test_a_service_that_ends_by_itself_says_so(serving_comfyui: Comfyui) -> None:
    broken = inverting()
    del broken["3"]
    job = serving_comfyui.over(serving_comfyui.start("serve", prompt=broken, port=free_port()))
    assert job["state"] == "failed"
    assert "no CPack output node" in job["error"]["message"]


def test_a_port_that_another_program_has_is_refused_before_anything_starts(serving_comfyui: Comfyui) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        answer = serving_comfyui.post("/cpack/jobs", {"kind": "serve", "params": {"prompt": inverting(), "port": port}})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "port_taken"
    settled()
    assert serving_comfyui.get("/cpack/status").json()["serve"] is None


@pytest.mark.parametrize(
    "params",
    [{"port": 0}, {"port": 70000}, {"port": "3000"}, {"port": True}, {"listen": "0.0.0.0"}, {"listen": "everywhere"},
     {"token": "a b"}, {"token": "x\ny"}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(comfyui: Comfyui, params: dict[str, Any]) -> None:
    answer = comfyui.post("/cpack/jobs", {"kind": "serve", "params": {"prompt": inverting(), **params}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_value")


def test_names_and_values_are_quoted_for_each_language(tmp_path: Path) -> None:
    hostile = '\'; rm -rf ~; echo "$(id)" `id` \\ \n @/etc/passwd'
    made = examples("http://127.0.0.1:1", [{"name": "a b", "type": "string", "default": hostile}], inputs=tmp_path)
    assert f"a b={hostile}" in shlex.split(made["curl"])
    assert "--form-string" in made["curl"]
    compile(made["python"], "python", "exec")
    if shutil.which("node"):
        subprocess.run(["node", "--input-type=module", "--check", "-"], input=made["javascript"], text=True, check=True)


def test_a_file_is_the_one_that_the_node_shows_and_never_one_from_elsewhere(tmp_path: Path) -> None:
    inputs = tmp_path / "input"
    (inputs / "sub").mkdir(parents=True)
    (inputs / "sub/a.png").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"")

    def curl(default: object) -> str:
        parameter = {"name": "photo", "type": "image", "default": default, "required": default is None}
        return examples("http://127.0.0.1:1", [parameter], inputs=inputs)["curl"]

    for default in ("sub/a.png", "input/sub/a.png", "sub/a.png [input]"):
        assert str(inputs / "sub/a.png") in curl(default)
    for default in ("../secret", str(tmp_path / "secret"), "gone.png"):
        assert "-F" not in curl(default)
    assert "photo.png" in curl(None)


def test_a_health_that_changes_is_told(tmp_path: Path) -> None:
    """ComfyUI goes, and the service (which lives on its leash) with it: nothing is left to listen."""
    root = make_comfyui(tmp_path / "ComfyUI")
    port = free_port()
    Image.new("RGB", (4, 3)).save(root / "input" / "a picture's.png")
    with running(tmp_path, install=root) as comfyui:
        key = comfyui.start("serve", prompt=inverting(), port=port)
        job = comfyui.until(key, lambda job: (job["result"] or {}).get("health") == "ready" or job["error"])
        assert job["error"] is None, job
        pid = job["result"]["pid"]
    gone(pid)
    wait_for(lambda: not answers(f"http://127.0.0.1:{port}"), "the service to end")
