"""``check`` tells by its exit code whether an image can be made, and names the rest in text or as JSON."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from cpack_build.lock.service import service_code
from tests.cli.calling import Caller
from tests.fetch.servers import serving_files
from tests.lock.test_preflight import lock
from tests.workspace.installs import WORKFLOW, make_install


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.cpack.lock"
    with serving_files({}) as server:
        made = lock(tmp_path, server.url, service_code=service_code())
    path.write_bytes(made.to_bytes())
    return path


def test_what_cannot_be_had_is_exit_code_4_and_named(call: Caller, lock_file: Path, tmp_path: Path) -> None:
    outcome = call("check", lock_file, "--mirror", "http://127.0.0.1=/nowhere", "--json")
    assert outcome.code == 4
    named = [one["message"] for one in outcome.document["missing"]]
    assert any("libx" in message for message in named)
    assert any("code.example" in message for message in named)
    assert all(one["hint"] for one in outcome.document["missing"])


def test_a_risk_counts_only_when_strict(call: Caller, tmp_path: Path) -> None:
    with serving_files({"/x.deb": b"", "/a-1-py3-none-any.whl": b""}) as server:
        path = tmp_path / "x.cpack.lock"
        path.write_bytes(lock(tmp_path, server.url).to_bytes())
        clone = ("--mirror", f"https://code.example/={tmp_path}/")
        lenient = call("check", path, *clone)
        strict = call("check", path, *clone, "--strict", "--json")
    assert lenient.code == 0
    assert "risk     node: __init__.py:3: process: os.system" in lenient.out
    assert strict.code == 8
    assert [risk["line"] for risk in strict.document["risks"]] == [3]
    assert strict.document["download_bytes"] == 18


def test_a_lock_of_a_newer_revision_or_tampered_with_is_refused_by_name(call: Caller, lock_file: Path) -> None:
    text = lock_file.read_text()
    lock_file.write_text(text.replace('"lock_revision": 1', '"lock_revision": 2'))
    newer = call("check", lock_file)
    assert (newer.code, "lock revision 2" in newer.err) == (3, True)
    lock_file.write_text(text.replace("a-1-py3", "b-1-py3"))
    tampered = call("check", lock_file)
    assert (tampered.code, "pylock" in tampered.err) == (5, True)


def test_what_is_there_of_a_pack_is_looked_at_though_it_cannot_be_locked(call: Caller, tmp_path: Path) -> None:
    from cpack_build.cpack.writer import write_pack
    from tests.fetch.repositories import make_repository

    commit = make_repository(tmp_path / "node", {"__init__.py": "import os\nos.system('x')\n"})
    make_repository(tmp_path / "comfyui", {"main.py": ""})
    models = [{"filename": "models/a/x.ckpt", "size": 1, "sha256": "0" * 64, "source": {}}]
    snapshot = {
        "comfyui": "1" * 40,
        "git_custom_nodes": {"https://code.example/node": {"hash": commit, "disabled": False}},
        "cnr_custom_nodes": {}, "file_custom_nodes": [], "pips": {}, "python": "3.99", "models": models,
    }  # fmt: skip
    workflow = {"1": {"class_type": "CPackOutputImage", "inputs": {"images": ["1", 0]}}}
    pack = tmp_path / "x.cpack.zip"
    other: dict[str, bytes | Path] = {"nodes/mine/__init__.py": b"\n\neval('1')\n"}
    write_pack(pack, snapshot_document=snapshot, workflow_api=workflow, workflow={}, other=other)
    mirrors = {"https://code.example/": f"{tmp_path}/", "https://github.com/Comfy-Org/ComfyUI": f"{tmp_path}/comfyui"}
    mapped = [word for prefix, place in mirrors.items() for word in ("--mirror", f"{prefix}={place}")]

    outcome = call("check", pack, *mapped, "--json")

    assert outcome.code == 4, outcome.err + outcome.out
    told = "\n".join(one["message"] for one in outcome.document["missing"])
    assert f"no commit {'1' * 40}" in told
    assert "models/a/x.ckpt" in told
    places = {(risk["owner"], risk["path"], risk["line"]) for risk in outcome.document["risks"]}
    assert {("node", "__init__.py", 2), ("mine", "__init__.py", 3), ("models", "models/a/x.ckpt", 0)} <= places


def test_a_script_that_has_yet_to_run_is_a_finding_beside_all_others(call: Caller, tmp_path: Path) -> None:
    from cpack_build.cpack.writer import write_pack
    from tests.fetch.repositories import make_repository

    commit = make_repository(tmp_path / "comfyui", {"main.py": ""})
    models = [{"filename": "models/a/x.ckpt", "size": 1, "sha256": "0" * 64, "source": {}}]
    snapshot = {
        "comfyui": commit, "git_custom_nodes": {}, "cnr_custom_nodes": {}, "file_custom_nodes": [], "pips": {},
        "python": "3.99", "models": models,
    }  # fmt: skip
    workflow = {"1": {"class_type": "CPackOutputImage", "inputs": {"images": ["1", 0]}}}
    pack = tmp_path / "x.cpack.zip"
    other: dict[str, bytes | Path] = {"nodes/mine/__init__.py": b"", "nodes/mine/install.py": b"import os\n"}
    write_pack(pack, snapshot_document=snapshot, workflow_api=workflow, workflow={}, other=other)
    (tmp_path / "x.cpack.yaml").write_text("nodes: {install: [mine]}\n")
    where = ("--mirror", f"https://github.com/Comfy-Org/ComfyUI={tmp_path}/comfyui")
    outcome = call("check", pack, *where, "--json")
    found = {one["type"]: one for one in outcome.document["missing"]}
    assert outcome.code == 4, "not 7: no tool of this machine is missing"
    assert "install.py of mine, 2 lines" in found["NeedsTrust"]["message"]
    assert f"`cpack-build lock {pack} --backend buildkit --trust`" in found["NeedsTrust"]["hint"]
    assert any("x.ckpt" in one["message"] for one in outcome.document["missing"]), "the rest is looked at"
    assert "ToolMissing" not in found
    assert "NeedsBuilder" not in found


def test_inspect_tells_what_each_platform_of_a_lock_pins(call: Caller, tmp_path: Path) -> None:
    from cpack_build.cpack.writer import write_pack
    from cpack_build.lock.schema import locks_to_bytes

    path = tmp_path / "x.cpack.lock"
    first = lock(tmp_path, "https://files.example", service_code=service_code())
    path.write_bytes(locks_to_bytes([first, first.model_copy(update={"platform": "linux/arm64"})]))
    outcome = call("inspect", path)
    assert outcome.code == 0, outcome.err
    assert [line.split(",")[0].strip() for line in outcome.out.splitlines()[1:]] == ["linux/amd64", "linux/arm64"]
    document = call("inspect", path, "--json").document
    assert [one["platform"] for one in document["platforms"]] == ["linux/amd64", "linux/arm64"]
    assert document["platforms"][0]["target"] == "cpu"
    pack = tmp_path / "x.cpack.zip"
    for data, said in (
        (path.read_bytes(), "  holds its own lock\n    linux/amd64, cpu"),
        (b"{}", "  holds a lock that"),
    ):
        write_pack(pack, snapshot_document={"python": "3.11", "pips": {}}, workflow_api={}, workflow={}, inputs={})
        with zipfile.ZipFile(pack, "a") as archive:
            archive.writestr("cpack.lock", data)
        shown = call("inspect", pack)
        assert (shown.code, said in shown.out) == (0, True), shown.out + shown.err
    path.write_text("{}")
    assert call("inspect", path).code == 3


def test_a_workspace_is_checked_before_it_is_packed(call: Caller, tmp_path: Path) -> None:
    root = make_install(tmp_path / "ComfyUI")
    workflow = tmp_path / "upscale_api.json"
    workflow.write_text(json.dumps(WORKFLOW))
    sound = call("check", root, "-w", workflow, "--json")
    assert sound.code == 0, sound.out
    assert [one["name"] for one in sound.document["parameters"]] == ["photo"]
    assert sound.document["models"][-1]["node_ids"] == ["2"]
    assert not (tmp_path / "store").exists()
    (root / "models/upscale_models/tiny.safetensors").unlink()
    told = call("check", root, "-w", workflow)
    assert told.code == 4
    assert "error    tiny.safetensors is not in models/upscale_models. (node 2)" in told.out
    workflow.write_text(json.dumps({"4": {"class_type": "CPackInputInt", "inputs": {"value": 1, "min": 5, "max": 2}}}))
    wrong = call("check", root, "-w", workflow, "--json")
    assert wrong.code == 3
    assert [one["node_id"] for one in wrong.document["findings"] if one["code"] == "workflow"] == ["4"]


def test_a_folder_needs_a_workflow_and_a_pack_has_its_own(call: Caller, tmp_path: Path) -> None:
    assert call("check", tmp_path).code == 2
    assert call("check", tmp_path / "x.cpack.zip", "-w", "y.json").code == 2
