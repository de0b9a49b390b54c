"""``inspect``, ``diff``, ``import`` and ``schema`` as a person and a program meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cpack_build.cpack.reader import read_pack
from tests import need
from tests.cli.calling import Caller
from tests.cpack.packs import COMMIT, SHA256, WORKFLOW, make_pack, model, snapshot
from tests.fetch.repositories import git, make_repository

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "upscale.cpack.zip"
WINDOWS = model(filename="models\\loras\\größe 名前.safetensors", source={"download_url": "https://hub.example/x"})


def old_era(path: Path) -> Path:
    """As comfy-pack 0.1 to 0.3 wrote it, by FACTS.md."""
    document = {
        "python": "3.11",
        "comfyui": COMMIT,
        "models": [model(sha256=None), model(filename="models/vae/x.pt", disabled=True)],
        "custom_nodes": [{"url": "https://hub.example/a/one.git", "commit_hash": COMMIT, "disabled": False}],
    }
    files = {
        "requirements.txt": f"numpy==1.0\nkornia @ git+https://hub.example/k@{COMMIT}\n".encode(),
        "service.py": b"raise SystemExit('never run')",
        "comfy_pack/__pycache__/x.pyc": b"\0",
    }
    return make_pack(path, snapshot_document=document, files=files)


def first_weeks(path: Path) -> Path:
    """As comfy-pack 0.0 wrote it, in November 2024."""
    files = {
        "models.json": json.dumps([{"filename": "models/vae/x.pt", "sha256": SHA256}]).encode(),
        "custom_nodes.json": json.dumps([{"repo": "a/one", "commit_hash": COMMIT}]).encode(),
        "requirements.txt": b"numpy==1.0\n",
        "inputs/a.png": b"picture",
    }
    return make_pack(path, without=["snapshot.json", "input/example.png"], files=files)


@pytest.mark.parametrize("era", ["0.0", "0.1", "0.4"])
def test_inspect_shows_a_pack_of_every_era(call: Caller, tmp_path: Path, era: str) -> None:
    path = tmp_path / "x.cpack.zip"
    if era == "0.0":
        first_weeks(path)
    elif era == "0.1":
        old_era(path)
    else:
        make_pack(path, snapshot_document=snapshot(models=[WINDOWS]), files={"cpack.yaml": b"base: scratch\n"})
    shown = call("inspect", path, "--all")
    assert (shown.code, era in shown.out) == (0, True)
    for word in {
        "0.0": ("not recorded", "one", "models/vae/x.pt", "numpy==1.0", "inputs/a.png"),
        "0.1": ("one", COMMIT[:12], "models/vae/x.pt", "(disabled)", "kornia @ git+https", "service.py"),
        "0.4": ("some-node", "models/loras/größe 名前.safetensors", "https://hub.example/x", "base: scratch", "1.2.3"),
    }[era]:
        assert word in shown.out, word
    assert "photo" in shown.out
    told = call("inspect", path, "--json").document
    assert told["era"] == era
    assert told["references"]["inputs"][0]["value"] == "example.png"
    assert told["references"]["node_classes"] == ["CPackInputImage", "CPackOutputImage", "ImageInvert"]
    assert told["interface"]["inputs"][0]["name"] == "photo"


def test_inspect_shows_the_real_pack(call: Caller) -> None:
    if not FIXTURE.is_file():
        need.missing("shared/fixtures/upscale.cpack.zip")
    shown = call("inspect", FIXTURE)
    assert shown.code == 0
    assert "tiny_esrgan_4x.safetensors  upscale_models  by node 2" in shown.out
    told = call("inspect", FIXTURE, "--json").document
    assert told["snapshot"]["python"] == "3.11"


def test_diff_has_exit_code_1_when_packs_differ(call: Caller, tmp_path: Path) -> None:
    one = make_pack(tmp_path / "a.cpack.zip")
    other = make_pack(tmp_path / "b.cpack.zip", snapshot_document=snapshot(comfyui="b" * 40, file_custom_nodes=[]))
    same = call("diff", one, one)
    assert (same.code, same.out) == (0, "The packs mean the same.\n")
    differing = call("diff", one, other)
    assert differing.code == 1
    assert f"~ ComfyUI: commit  {COMMIT} → {'b' * 40}" in differing.out
    assert "- single.py" in differing.out
    told = call("diff", one, other, "--json")
    assert told.code == 1
    assert [change["section"] for change in told.document["changes"]] == ["comfyui", "single-file node"]
    assert call("diff", one, tmp_path / "absent").code == 3


@pytest.mark.parametrize("name", ["pack", "lock", "config"])
def test_schema_prints_a_json_schema(call: Caller, name: str) -> None:
    document = json.loads(call("schema", name).out)
    jsonschema.Draft202012Validator.check_schema(document)
    assert call("schema", name, "--json").document == document
    assert call("schema", "nothing").code == 2


def manager(folder: Path, **changes: Any) -> Path:
    path = folder / "2026-11-23_snapshot.json"
    document = snapshot(**{"python": ..., "models": ..., **changes})
    path.write_text(json.dumps(document))
    return path


def test_a_managers_snapshot_becomes_a_pack_that_is_served(call: Caller, tmp_path: Path) -> None:
    workflow = tmp_path / "workflow_api.json"
    workflow.write_text(json.dumps(WORKFLOW))
    target = tmp_path / "new.cpack.zip"
    done = call("import", manager(tmp_path), "-o", target, "-w", workflow, "--python", "3.11.4", "--json")
    assert done.code == 0, done.err
    assert (done.document["format"], done.document["workflow"]) == ("ComfyUI-Manager snapshot", True)
    pack = read_pack(target)
    assert (pack.era, pack.snapshot.python) == ("0.4", "3.11")
    assert [item.name for item in pack.served().interface.inputs] == ["photo"]
    again = call("import", manager(tmp_path), "-o", target, "-w", workflow, "--python", "3.11")
    assert (again.code, "--force" in again.err) == (2, True)
    before = target.read_bytes()
    assert call("import", manager(tmp_path), "-o", target, "-w", workflow, "--python", "3.11", "--force").code == 0
    assert target.read_bytes() == before


def test_what_a_snapshot_does_not_say_is_asked_for(call: Caller, tmp_path: Path) -> None:
    done = call("import", manager(tmp_path))
    assert (done.code, "--python 3.11" in done.err) == (2, True)
    assert call("import", manager(tmp_path, comfyui=None), "--python", "3.11").code == 0
    made = tmp_path / "2026-11-23_snapshot.cpack.zip"
    pack = read_pack(made)
    assert pack.workflow_api == {}
    assert pack.snapshot.comfyui is None
    assert call("import", manager(tmp_path), "--python", "eleven", "--force").code == 3
    assert read_pack(made).sha256 == pack.sha256


def test_a_tag_or_branch_becomes_the_commit_that_it_names(call: Caller, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    comfyui = make_repository(hub / "comfyanonymous" / "ComfyUI.git", {"main.py": ""})
    git(hub / "comfyanonymous" / "ComfyUI.git", "tag", "--annotate", "--message", "x", "v0.3.64")
    node = make_repository(hub / "someone" / "node", {"__init__.py": ""})
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy==1.0\n")
    nodes = tmp_path / "nodes.txt"
    nodes.write_text("https://github.com/someone/node@main\n")
    flags = ["--mirror", f"https://github.com/={hub}/", "--python", "3.11", "--nodes", nodes, "--comfyui", "v0.3.64"]
    done = call("import", requirements, *flags, "--node", "a-node@1.2.3", "-o", tmp_path / "x.cpack.zip")
    assert done.code == 0, done.err
    found = read_pack(tmp_path / "x.cpack.zip").snapshot
    assert found.comfyui is not None
    assert found.comfyui.commit == comfyui
    assert [(pin.name, pin.commit) for pin in found.nodes] == [("node", node)]
    assert found.registry_nodes == {"a-node": "1.2.3"}
    assert f"node was named by main, which is {node} now." in done.err
    lost = call("import", requirements, *flags[:-1], "v9", "-o", tmp_path / "y.cpack.zip")
    assert (lost.code, "no tag or branch v9" in lost.err) == (4, True)
    assert not (tmp_path / "y.cpack.zip").exists()


def test_an_old_pack_becomes_a_new_one_with_all_that_it_has(call: Caller, tmp_path: Path) -> None:
    for number, make in enumerate((first_weeks, old_era)):
        old = make(tmp_path / f"{number}.cpack.zip")
        new = tmp_path / f"{number}-new.cpack.zip"
        done = call("import", old, "-o", new, "--python", "3.11", "--comfyui", COMMIT)
        assert done.code == 0, done.err
        pack = read_pack(new)
        assert pack.era == "0.4"
        assert pack.workflow_api == WORKFLOW
        assert pack.other == ()
        assert len(pack.inputs) == 1
        differing = call("diff", old, new, "--json").document["changes"]
        assert {change["section"] for change in differing} <= {"python", "comfyui"}


def test_the_code_of_nodes_that_a_pack_carries_is_kept_and_comfy_packs_own_is_not(call: Caller, tmp_path: Path) -> None:
    files = {"nodes/mine/a.py": b"a", "patches/x.patch": b"p", "service.py": b"s", "cpack.lock": b"{}"}
    document = snapshot(cpack={"nodes": {"mine": {"sha256": SHA256}}})
    files |= {"cpack.yaml": b"base: scratch\n", "comfyui/main.py": b"m"}
    old = make_pack(tmp_path / "old.cpack.zip", snapshot_document=document, files=files)
    assert call("import", old, "-o", tmp_path / "new.cpack.zip").code == 0
    new = read_pack(tmp_path / "new.cpack.zip")
    assert new.other == ("comfyui/main.py", "nodes/mine/a.py", "patches/x.patch")
    assert new.settings_text == "base: scratch\n"
    assert new.extra == {"cpack": document["cpack"]} == call("inspect", old, "--json").document["extra"]
    changed = make_pack(tmp_path / "changed.cpack.zip", snapshot_document=snapshot(cpack={}), files=files)
    (told,) = call("diff", old, changed, "--json").document["changes"]
    assert (told["section"], told["name"], told["field"]) == ("record", "cpack", "nodes")
    assert (new.snapshot.nodes, new.snapshot.models) == (read_pack(old).snapshot.nodes, read_pack(old).snapshot.models)


def test_a_drawing_is_converted_where_object_info_is_given(call: Caller, tmp_path: Path) -> None:
    info = Path(__file__).parents[1] / "workflow" / "object_info_0_3_64.json"
    output = {"CPackOutputImage": {"input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING"]}}}}
    known = tmp_path / "object_info.json"
    known.write_text(json.dumps({**json.loads(info.read_text()), **output}))
    drawing = tmp_path / "workflow.json"
    image = {"id": 1, "type": "LoadImage", "outputs": [{"type": "IMAGE"}], "widgets_values": ["a.png", "image"]}
    result = {"id": 2, "type": "CPackOutputImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]}
    nodes = [image, result | {"widgets_values": ["x"]}]
    drawing.write_text(json.dumps({"nodes": nodes, "links": [[1, 1, 0, 2, 0, "IMAGE"]]}))
    flags = ["-w", drawing, "--python", "3.11", "-o", tmp_path / "x.cpack.zip"]
    refused = call("import", manager(tmp_path), *flags)
    assert refused.code == 3
    assert "Export (API)" in refused.err
    assert call("import", manager(tmp_path), *flags, "--object-info", known).code == 0
    pack = read_pack(tmp_path / "x.cpack.zip")
    assert pack.workflow is not None
    assert pack.workflow_api["2"]["inputs"] == {"images": ["1", 0], "filename_prefix": "x"}
