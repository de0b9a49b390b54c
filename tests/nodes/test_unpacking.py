"""A pack that is dropped on the page: what it needs, what is missing here, and its workspace in a folder of its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.cpack.packs import make_pack
from tests.nodes.routing import Comfyui, fake_tool, running
from tests.serve.running import DEADLINE


def send(comfyui: Comfyui, data: bytes, name: str = "x.cpack.zip", **headers: str) -> requests.Response:
    return requests.post(
        f"{comfyui.url}/cpack/uploads", files={"file": (name, io.BytesIO(data))},
        headers={"X-CPack": "1", **headers}, timeout=DEADLINE,
    )  # fmt: skip


@pytest.fixture
def pack(tmp_path: Path) -> bytes:
    return make_pack(tmp_path / "made.cpack.zip").read_bytes()


def test_what_it_needs_and_what_is_missing_here(comfyui: Comfyui, pack: bytes) -> None:
    sent = send(comfyui, pack, "My Workflow.cpack.zip").json()
    assert (sent["name"], sent["size"]) == ("My Workflow", len(pack))
    found = comfyui.done("inspect", upload=sent["upload"])
    (model,) = found["models"]
    assert (model["path"], model["here"]) == ("models/upscale_models/tiny.safetensors", False)  # another file's hash
    kinds = {node["name"]: (node["kind"], node["here"]) for node in found["nodes"]}
    assert kinds["some-node"] == ("git", False)
    assert kinds["some-registry-node"] == ("registry", False)
    assert kinds["single.py"] == ("file", False)
    assert found["python"] == "3.11"
    assert [item["name"] for item in found["interface"]["inputs"]] == ["photo"]
    assert found["problem"] is None


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/cron.d/x.zip", "x"),
        ("..\\..\\x.cpack.zip", "x"),
        ("$(id).zip", "id)"),
        ("..zip", "pack"),
        ("-rf.zip", "rf"),
        ("é 漢.cpack.ZIP", "é 漢"),
        ("x" * 300 + ".zip", "x" * 80),
    ],
)
def test_its_name_is_never_a_path(comfyui: Comfyui, pack: bytes, name: str, kept: str) -> None:
    sent = send(comfyui, pack, name).json()
    assert sent["name"] == kept
    (file,) = comfyui.temporary.glob(f"*/uploads/{sent['upload']}/*")
    assert file.name == f"{kept}.cpack.zip"


def test_what_is_no_pack_is_told(comfyui: Comfyui) -> None:
    assert send(comfyui, b"").json()["error"]["code"] == "no_file"
    assert comfyui.post("/cpack/uploads", {}).json()["error"]["code"] == "no_file"
    assert comfyui.post("/cpack/uploads", {}, **{"Content-Type": "multipart/form-data"}).status_code == 400
    garbage = send(comfyui, b"no zip").json()
    job = comfyui.over(comfyui.start("inspect", upload=garbage["upload"]))
    assert job["error"]["code"] == "NotAPack"


@pytest.mark.parametrize("upload", ["../../../etc/passwd", "/etc/passwd", "x", "", 7, None, {}])
@pytest.mark.parametrize("kind", ["inspect", "unpack"])
def test_only_what_was_sent_here_is_read(comfyui: Comfyui, kind: str, upload: Any) -> None:
    answer = comfyui.post("/cpack/jobs", {"kind": kind, "params": {"upload": upload, "path": "/etc/passwd"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_upload")


def test_a_page_from_elsewhere_sends_nothing(comfyui: Comfyui, pack: bytes) -> None:
    assert send(comfyui, pack, Origin="https://evil.example").status_code == 403
    assert send(comfyui, pack, **{"X-CPack": ""}).status_code == 403


def test_only_the_last_few_are_kept(comfyui: Comfyui, pack: bytes) -> None:
    sent = [send(comfyui, pack).json()["upload"] for _ in range(6)]
    kept = {folder.name for folder in comfyui.temporary.glob("*/uploads/*")}
    assert kept == set(sent[-4:])


def test_it_is_restored_beside_this_comfyui_and_replaces_nothing(tmp_path: Path, pack: bytes) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "restore.json").write_text('{"workspace": "x", "notes": ["n"], "scripts_not_run": []}')
    with running(tmp_path, CPACK_BUILD=str(fake_tool(tmp_path)), FAKE_TOOL=str(fake)) as comfyui:
        upload = send(comfyui, pack).json()["upload"]
        result = comfyui.done("unpack", upload=upload, name="made anew", models=True)
        assert result["folder"] == str(comfyui.folder.parent / "made anew")
        assert result["command"].startswith(f"cd '{result['folder']}' && .venv/bin/python")
        assert (comfyui.folder.parent / "made anew/made.txt").exists()
        calls = (fake / "calls").read_text()
        assert "--trust" not in calls
        assert f'"--models-dir", "{comfyui.folder / "models"}"' in calls
        for name in ("made anew", "ComfyUI"):
            again = comfyui.post("/cpack/jobs", {"kind": "unpack", "params": {"upload": upload, "name": name}})
            assert (again.status_code, again.json()["error"]["code"]) == (409, "exists")
        for name in ("../x", "/tmp/x", "..", "a/b"):
            wrong = comfyui.post("/cpack/jobs", {"kind": "unpack", "params": {"upload": upload, "name": name}})
            assert wrong.json()["error"]["code"] == "bad_name"
