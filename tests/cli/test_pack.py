"""``cpack-build pack`` says what it would do, asks before it captures, and ends in the documented ways."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cpack_build.cpack.reader import read_pack
from cpack_build.fetch.store import Store
from tests.cli.calling import Caller
from tests.fetch.servers import serving_files
from tests.workspace.installs import WORKFLOW, make_install


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_install(tmp_path / "ComfyUI")
    shutil.rmtree(root / "custom_nodes")
    return root


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "upscale_api.json"
    path.write_text(json.dumps(WORKFLOW))
    return path


def test_a_pack_is_written_and_inspected(call: Caller, root: Path, workflow: Path, tmp_path: Path) -> None:
    done = call("pack", root, "-w", workflow, "--offline")
    assert done.code == 0, done.err
    assert "upscale.cpack.zip is written: ComfyUI" in done.out
    assert "source unknown" in done.err
    seen = call("inspect", tmp_path / "upscale.cpack.zip", "--json")
    assert seen.code == 0, seen.err
    assert read_pack(tmp_path / "upscale.cpack.zip").served().interface.input("photo") is not None


def test_a_dry_run_writes_nothing(call: Caller, root: Path, workflow: Path, tmp_path: Path) -> None:
    done = call("pack", root, "-w", workflow, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.document["written"] is False
    assert [model["filename"] for model in done.document["models"]] == ["models/upscale_models/tiny.safetensors"]
    assert not (tmp_path / "upscale.cpack.zip").exists()
    assert not (tmp_path / "store").exists()


def test_without_a_network_it_is_no_error(call: Caller, root: Path, workflow: Path) -> None:
    nowhere = (
        "--mirror",
        "https://civitai.com=http://127.0.0.1:9",
        "--mirror",
        "https://huggingface.co=http://127.0.0.1:9",
    )
    done = call("pack", root, "-w", workflow, *nowhere, "--json")
    assert done.code == 0, done.err
    assert done.document["models"][0]["source"] == {}
    assert "source unknown" in done.err


def test_local_nodes_are_shown_and_need_consent(call: Caller, root: Path, workflow: Path, tmp_path: Path) -> None:
    (root / "custom_nodes/mine").mkdir(parents=True)
    (root / "custom_nodes/mine/__init__.py").write_text("x = 1\n")
    refused = call("pack", root, "-w", workflow, "--offline")
    assert refused.code == 8
    assert "nodes/mine/__init__.py  6 B" in refused.err
    assert "--include-local" in refused.err
    assert not (tmp_path / "upscale.cpack.zip").exists()
    assert call("pack", root, "-w", workflow, "--offline", "--include-local").code == 0
    assert read_pack(tmp_path / "upscale.cpack.zip").other == ("nodes/mine/__init__.py",)
    assert call("pack", root, "-w", workflow, "--offline", "--exclude-node", "mine").code == 0
    assert read_pack(tmp_path / "upscale.cpack.zip").other == ()


def test_a_comfyui_without_git_is_shown_before_it_is_captured(
    call: Caller, root: Path, workflow: Path, tmp_path: Path
) -> None:
    shutil.rmtree(root / ".git")
    refused = call("pack", root, "-w", workflow, "--offline")
    assert refused.code == 8
    assert "ComfyUI would be captured whole (neither a git checkout nor a known release):" in refused.err
    assert "--comfyui-commit" in refused.err
    done = call("pack", root, "-w", workflow, "--offline", "--include-local", "--json")
    assert done.code == 0, done.err
    assert "comfyui/main.py" in [file["filename"] for file in done.document["comfyui"]["captured"]]
    assert "comfyui/main.py" in read_pack(tmp_path / "upscale.cpack.zip").other


def test_a_drawing_is_converted_where_the_nodes_are_known(
    call: Caller, root: Path, workflow: Path, tmp_path: Path
) -> None:
    drawing = {
        "nodes": [
            {"id": 1, "type": "LoadImage", "widgets_values": ["example.png", "image"],
             "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]},
            {"id": 2, "type": "CPackOutputImage", "widgets_values": ["x"],
             "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }  # fmt: skip
    known = {
        "LoadImage": {"input": {"required": {"image": [["example.png"], {"image_upload": True}]}},
                      "output": ["IMAGE"], "output_name": ["IMAGE"]},
        "CPackOutputImage": {"input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}},
                             "output": [], "output_name": []},
    }  # fmt: skip
    workflow.write_text(json.dumps(drawing))
    (tmp_path / "info.json").write_text(json.dumps(known))
    refused = call("pack", root, "-w", workflow, "--offline")
    assert refused.code == 3
    assert "Export (API)" in refused.err
    done = call("pack", root, "-w", workflow, "--object-info", tmp_path / "info.json", "--offline")
    assert done.code == 0, done.err
    pack = read_pack(tmp_path / "upscale.cpack.zip")
    assert pack.workflow == drawing
    assert [item.name for item in pack.inputs] == ["input/example.png"]
    with serving_files({"/object_info": json.dumps(known).encode()}) as comfyui:
        seen = call("inspect", workflow, "--object-info", comfyui.url, "--json")
        assert seen.code == 0, seen.err
        assert seen.document["references"]["node_classes"] == ["CPackOutputImage", "LoadImage"]
        wrong = call("inspect", workflow, "--object-info", f"{comfyui.url}/nowhere")
        assert (wrong.code, "answered HTTP 404" in wrong.err) == (6, True)
    gone = call("inspect", workflow, "--object-info", comfyui.url)
    assert (gone.code, "does not answer" in gone.err) == (6, True)


def test_a_picture_that_comfyui_made_is_packed_and_inspected(call: Caller, root: Path, tmp_path: Path) -> None:
    drawing = {"nodes": [{"id": 1, "type": "LoadImage"}], "links": []}
    info = PngInfo()
    info.add_text("prompt", json.dumps(WORKFLOW))
    info.add_text("workflow", json.dumps(drawing))
    Image.new("RGB", (2, 2)).save(tmp_path / "made.png", pnginfo=info)
    seen = call("inspect", tmp_path / "made.png", "--json")
    assert seen.code == 0, seen.err
    assert [item["name"] for item in seen.document["interface"]["inputs"]] == ["photo"]
    assert [item["value"] for item in seen.document["references"]["models"]] == ["tiny.safetensors"]
    assert "takes" in call("inspect", tmp_path / "made.png").out
    done = call("pack", root, "-w", tmp_path / "made.png", "-o", tmp_path / "made.cpack.zip", "--offline")
    assert done.code == 0, done.err
    pack = read_pack(tmp_path / "made.cpack.zip")
    assert (pack.workflow_api, pack.workflow) == (WORKFLOW, drawing)
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    refused = call("pack", root, "-w", tmp_path / "plain.png", "--offline")
    assert (refused.code, "holds no workflow" in refused.err) == (3, True)


def test_ctrl_c_leaves_nothing_half_made_and_what_was_hashed_is_remembered(
    root: Path, workflow: Path, tmp_path: Path
) -> None:
    with (root / "models/upscale_models/large.safetensors").open("wb") as file:
        file.truncate(1 << 40)  # nobody reads that to its end
    command = [sys.executable, "-m", "cpack_build", "pack", root, "-w", workflow, "--offline", "--all-models"]
    process = subprocess.Popen(
        [*map(str, command), "--progress", "json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "CPACK_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "Hashing models" in line:
            break
    sha256, store = sha256_of(root / "models/upscale_models/tiny.safetensors"), Store(tmp_path / "home")
    several = (os.cpu_count() or 1) > 1  # the largest comes first, and the other beside it
    deadline = time.monotonic() + 60
    while several and store.find(sha256) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list(tmp_path.glob("*.cpack.zip*")) + list(tmp_path.glob(".*cpack*"))
    assert not several or store.find(sha256) is not None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{root}"], 2, "Missing option '-w'"),
        (["{root}", "-w", "{root}/nowhere.json"], 3, "nowhere.json cannot be read: no such file"),
        (["{root}", "-w", "{root}/main.py"], 3, "is not JSON"),
        (["{root}/input", "-w", "{workflow}"], 3, "holds no ComfyUI"),
        (["{root}", "-w", "{workflow}", "--editor-workflow", "{workflow}"], 3, "is not as the editor saves it"),
        (["{root}", "-w", "{workflow}", "--capture-node", "x"], 3, "--capture-node 'x' is no custom node"),
        (["{root}", "-w", "{workflow}", "--model", "x*"], 4, "--model 'x*' matches no model"),
        (["{root}", "-w", "{workflow}", "--input", "x*"], 4, "--input 'x*' matches no file"),
        (["{root}", "-w", "{workflow}", "--python", "{root}/input"], 3, "is no Python environment"),
        (["{root}", "-w", "{workflow}", "--comfyui-commit", "v1"], 3, "is no commit"),
        (["{root}", "-w", "{workflow}", "-o", "{root}/main.py"], 8, "is there and is no pack"),
        (["{root}", "-w", "{workflow}", "--offline", "-o", "{root}/nowhere/x.zip"], 9, "cannot be written"),
    ],
)
def test_each_mistake_is_named(
    call: Caller, root: Path, workflow: Path, arguments: list[str], code: int, said: str
) -> None:
    done = call("pack", *(argument.format(root=root, workflow=workflow) for argument in arguments))
    assert (done.code, said in done.err) == (code, True), done.err
    assert "Traceback" not in done.err


def test_a_choice_is_exact_and_settings_travel(call: Caller, root: Path, workflow: Path, tmp_path: Path) -> None:
    (root / "models/loras/[a].safetensors").write_bytes(b"x" * 20)
    choice, config = tmp_path / "choice.json", tmp_path / "mine.yaml"
    choice.write_text(json.dumps({"models": ["models/loras/[a].safetensors"], "inputs": []}))
    config.write_text("system: {packages: [libsndfile1]}\n")
    done = call("pack", root, "-w", workflow, "--offline", "--choice", choice, "--config", config, "--json")
    assert done.code == 0, done.err
    assert [model["filename"] for model in done.document["models"]] == ["models/loras/[a].safetensors"]
    assert done.document["inputs"] == []
    told = "\n".join(done.document["notes"])
    assert "models/upscale_models/tiny.safetensors is used by the workflow, and was not chosen." in told
    assert "input/example.png is used by the workflow, and was not chosen." in told
    assert read_pack(tmp_path / "upscale.cpack.zip").settings_text == config.read_text()


@pytest.mark.parametrize(
    ("choice", "code", "says"),
    [
        ({"models": ["models/loras/*"]}, 4, "is no model of the workspace"),
        ({"models": ["../../../etc/passwd"]}, 4, "is no model"),
        ({"inputs": ["example.png"]}, 4, "is no input file"),
        ({"models": "x"}, 3, "must be a list"),
        ({"model": []}, 3, "neither models nor inputs"),
    ],
)
def test_a_choice_that_is_wrong_is_named(
    call: Caller, root: Path, workflow: Path, tmp_path: Path, choice: object, code: int, says: str
) -> None:
    file = tmp_path / "choice.json"
    file.write_text(json.dumps(choice))
    done = call("pack", root, "-w", workflow, "--offline", "--choice", file)
    assert done.code == code
    assert says in done.err
    assert call("pack", root, "-w", workflow, "--choice", file, "--all-models").code == 2


def test_a_running_comfyui_s_folders_are_all_there_is(call: Caller, root: Path, workflow: Path, tmp_path: Path) -> None:
    """As with --base-directory and --input-directory: what its files would say is not looked at."""
    models, inputs, folders = tmp_path / "elsewhere/upscale", tmp_path / "in", tmp_path / "folders.json"
    models.mkdir(parents=True)
    inputs.mkdir()
    (root / "extra_model_paths.yaml").write_text("x: [not what ComfyUI reads\n")
    shutil.move(root / "models/upscale_models/tiny.safetensors", models)
    shutil.move(root / "input/example.png", inputs)
    folders.write_text(
        json.dumps({"models": {"upscale_models": [str(models)]}, "custom_nodes": [], "input": str(inputs)})
    )
    done = call("pack", root, "-w", workflow, "--offline", "--folders", folders, "--json")
    assert done.code == 0, done.out
    assert done.document["missing"] == []
    assert [model["filename"] for model in done.document["models"]] == ["models/upscale_models/tiny.safetensors"]
    assert [item["filename"] for item in done.document["inputs"]] == ["input/example.png"]


@pytest.mark.parametrize(
    "folders",
    [{}, {"models": []}, {"models": {"loras": ["relative"]}, "custom_nodes": [], "input": "/x"},
     {"models": {}, "custom_nodes": "/x", "input": "/x"}, {"models": {}, "custom_nodes": [], "input": None}],
)  # fmt: skip
def test_folders_that_are_none_are_refused(
    call: Caller, root: Path, workflow: Path, tmp_path: Path, folders: object
) -> None:
    file = tmp_path / "folders.json"
    file.write_text(json.dumps(folders))
    done = call("pack", root, "-w", workflow, "--folders", file)
    assert done.code == 3
    assert "folders.json" in done.err


def test_settings_that_a_pack_must_not_bring_are_refused(
    call: Caller, root: Path, workflow: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("models: [/srv/models]\n")
    assert call("pack", root, "-w", workflow, "--config", tmp_path / "mine.yaml").code == 8
