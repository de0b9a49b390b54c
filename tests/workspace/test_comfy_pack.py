"""What comfy-pack gets wrong when it packs (each a case), and that its own code opens what is packed here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cpack_build.cpack.reader import read_pack
from cpack_build.fetch.store import Store
from cpack_build.workflow import fill, read_workflow
from cpack_build.workspace import draft_pack, write_draft
from tests import need
from tests.workspace.installs import HUB, WORKFLOW, make_git_node, make_install

PYTHON = os.environ.get("CPACK_TEST_COMFY_PACK_PYTHON", sys.executable)
"""A Python that has comfy-pack 0.4."""

OPEN = """
import json, sys
from pathlib import Path
import comfy_pack.package as package
from comfy_pack.const import MODEL_DIR

pack, workspace, store = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
ran = []
package.subprocess.check_call = lambda command, **more: ran.append([str(part) for part in command])
package.install_comfyui = lambda snapshot, workspace, verbose=0: ran.append(["comfyui", snapshot["comfyui"]])
MODEL_DIR.mkdir(parents=True, exist_ok=True)
for model in json.loads(sys.argv[4]):
    (MODEL_DIR / model).symlink_to(store)
(workspace / "input").mkdir(parents=True)
package.install(pack, workspace, no_venv=True)
print(json.dumps(ran))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_install(tmp_path / "ComfyUI")


def opened_by_comfy_pack(pack: Path, tmp_path: Path, *, model: Path, sha256: str) -> list[list[str]]:
    """What comfy-pack 0.4.4's ``install`` runs, as ``unpack`` calls it, with git and pip replaced by lists of what was
    asked; the workspace is at *tmp_path* / ``new``."""
    probe = subprocess.run([PYTHON, "-c", "import comfy_pack.package"], capture_output=True, check=False)
    if probe.returncode:
        need.missing("comfy-pack 0.4 (CPACK_TEST_COMFY_PACK_PYTHON names a Python that has it)")
    done = subprocess.run(
        [PYTHON, "-c", OPEN, str(pack), str(tmp_path / "new"), str(model), json.dumps([sha256])],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "CPACK_HOME": str(tmp_path / "comfy-pack"), "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ran: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return ran


def test_comfy_packs_own_code_opens_a_pack(root: Path, tmp_path: Path) -> None:
    make_git_node(root / "custom_nodes/some", url=f"{HUB}/some.git")
    (root / "models/loras").mkdir(exist_ok=True)
    (root / "models/loras/not-chosen.safetensors").write_bytes(b"x")
    draft = draft_pack(root, WORKFLOW)
    written = write_draft(draft, tmp_path / "x.cpack.zip", store=Store(tmp_path / "store"), offline=True)
    (sha256,) = written.hashes.values()
    model = root / "models/upscale_models/tiny.safetensors"
    ran = opened_by_comfy_pack(written.path, tmp_path, model=model, sha256=sha256)
    assert ran[0] == ["comfyui", draft.source.commit]
    assert any(command[-1].endswith("snapshot.json") and "restore-snapshot" in command for command in ran)
    assert (tmp_path / "new/models/upscale_models/tiny.safetensors").read_bytes() == model.read_bytes()
    assert (tmp_path / "new/input/example.png").read_bytes() == (root / "input/example.png").read_bytes()


def test_comfy_packs_own_code_opens_an_imported_pack(root: Path, tmp_path: Path) -> None:
    """A ``comfy-build.yaml`` with a node of each kind, a model and packages, and a workflow."""
    model = root / "models/upscale_models/tiny.safetensors"
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))
    (tmp_path / "comfy-build.yaml").write_text(f"""
schema: comfy-build/1
definition:
  name: mine
  baseComfyVersion: {"a" * 40}
  environment: {{pythonVersion: "3.11"}}
  customNodes:
    - {{name: some, repository: "{HUB}/some.git", commit: "{"b" * 40}"}}
    - {{name: listed, id: listed, registryVersion: "1.2.3"}}
  models:
    - {{type: upscale_models, filename: tiny.safetensors, sha256: {sha256}, sourceUri: "https://hub.example/tiny"}}
  pipDependencies: "numpy==2.0.0\\nthing @ git+https://hub.example/thing@{"c" * 40}"
""")
    pack = tmp_path / "x.cpack.zip"
    command = [sys.executable, "-m", "cpack_build", "import", tmp_path / "comfy-build.yaml", "-o", pack]
    subprocess.run([*map(str, command), "-w", str(tmp_path / "w.json")], check=True, capture_output=True)
    ran = opened_by_comfy_pack(pack, tmp_path, model=model, sha256=sha256)
    assert ran[0] == ["comfyui", "a" * 40]
    assert any("restore-snapshot" in command for command in ran)
    assert (tmp_path / "new/models/upscale_models/tiny.safetensors").read_bytes() == model.read_bytes()


# -- the faults under "Pack" -------------------------------------------------------------------------------------------


def test_1_no_manager_and_no_server_is_needed(root: Path, tmp_path: Path) -> None:
    assert not [path for path in (root / "custom_nodes").iterdir() if "manager" in path.name.lower()]
    write_draft(draft_pack(root, WORKFLOW), tmp_path / "x.zip", store=Store(tmp_path / "s"), offline=True)
    assert read_pack(tmp_path / "x.zip").snapshot.requirements


def test_2_models_are_listed_though_comfyui_is_no_git_checkout(tmp_path: Path) -> None:
    draft = draft_pack(make_install(tmp_path / "c", with_git=False), WORKFLOW)
    assert [file.name for file in draft.models] == ["models/upscale_models/tiny.safetensors"]
    assert any("no git checkout" in note for note in draft.notes)


def test_3_names_that_are_not_ascii_linked_folders_and_extra_paths_are_packed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/ünï").mkdir(parents=True)
    (tmp_path / "disk/ünï/模型.safetensors").write_bytes(b"1")
    (tmp_path / "webui/VAE").mkdir(parents=True)
    (tmp_path / "webui/VAE/v.pt").write_bytes(b"2")
    (root / "models/loras").mkdir(exist_ok=True)
    (root / "models/loras/far").symlink_to(tmp_path / "disk")
    (root / "extra_model_paths.yaml").write_text("a:\n  base_path: ../webui\n  vae: VAE\n")
    workflow = {
        **WORKFLOW,
        "8": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "far/ünï/模型.safetensors"}},
        "9": {"class_type": "VAELoader", "inputs": {"vae_name": "v.pt"}},
    }
    write_draft(draft_pack(root, workflow), tmp_path / "x.zip", store=Store(tmp_path / "s"), offline=True)
    assert [model.filename for model in read_pack(tmp_path / "x.zip").snapshot.models if not model.disabled] == [
        "models/loras/far/ünï/模型.safetensors", "models/upscale_models/tiny.safetensors", "models/vae/v.pt",
    ]  # fmt: skip


def test_4_inputs_are_not_chosen_by_substring(root: Path) -> None:
    (root / "input/e.png").write_bytes(b"x")
    assert [file.name for file in draft_pack(root, WORKFLOW).inputs] == ["input/example.png"]


def test_5_only_what_is_used_is_hashed_and_several_at_a_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (root / f"models/upscale_models/{name}.safetensors").write_bytes(name.encode())
    both = threading.Barrier(2, timeout=20)
    hashed: list[str] = []
    original = Store.adopt

    def adopt(store: Store, path: Path, *, on_read: object = None) -> object:
        hashed.append(path.name)
        both.wait()  # passes only when two are under way at once
        return original(store, path, on_read=on_read)

    monkeypatch.setattr(Store, "adopt", adopt)
    draft = draft_pack(root, WORKFLOW, models=("a.*",))
    write_draft(draft, tmp_path / "x.zip", store=Store(tmp_path / "s"), offline=True, workers=2)
    assert sorted(hashed) == ["a.safetensors", "tiny.safetensors"]


def test_6_progress_is_the_bytes_that_were_read(root: Path, tmp_path: Path) -> None:
    from tests.workspace.test_hashing import Counting

    class Shown(Counting):
        def note(self, message: str) -> None:
            pass

        def task(self, title: str, *, total: int | None = None, unit: str = "B"):  # type: ignore[no-untyped-def]
            return (self if unit == "B" else Shown()).opened(title, total=total)

        def opened(self, title: str, *, total: int | None):  # type: ignore[no-untyped-def]
            return super().task(title, total=total)

    progress = Shown()
    draft = draft_pack(root, WORKFLOW)
    write_draft(draft, tmp_path / "x.zip", store=Store(tmp_path / "s"), offline=True, progress=progress)
    assert progress.done == progress.total == draft.models[0].size


def test_7_no_network_and_an_unknown_hash_is_no_failure(root: Path, tmp_path: Path) -> None:
    written = write_draft(draft_pack(root, WORKFLOW), tmp_path / "x.zip", store=Store(tmp_path / "s"), offline=True)
    assert list(written.sources.values()) == [{}]
    assert any("source unknown" in note for note in written.notes)


# -- the faults under "Workflow" ---------------------------------------------------------------------------------------


def packed(root: Path, tmp_path: Path, **nodes: object) -> object:
    workflow = {**WORKFLOW, **nodes}
    write_draft(draft_pack(root, workflow), tmp_path / "x.zip", store=Store(tmp_path / "s"), offline=True)
    return read_pack(tmp_path / "x.zip").served()


def test_8_two_outputs_with_one_title_both_stay(root: Path, tmp_path: Path) -> None:
    output = {"class_type": "CPackOutputImage", "inputs": {"images": ["3", 0]}, "_meta": {"title": "picture"}}
    workflow = packed(root, tmp_path, **{"4": output, "5": output})
    assert [item.node_id for item in workflow.interface.outputs] == ["4", "5"]  # type: ignore[attr-defined]


def test_9_an_int_without_bounds_and_titles_that_are_no_names(root: Path, tmp_path: Path) -> None:
    nodes = {
        str(20 + number): {"class_type": "CPackInputInt", "inputs": {"value": number}, "_meta": {"title": title}}
        for number, title in enumerate(["_x", "model_config", "class", "größe"])
    }
    packed(root, tmp_path, **nodes)
    workflow = read_workflow(read_pack(tmp_path / "x.zip").workflow_api, name="w")
    assert [item.name for item in workflow.interface.inputs[1:]] == ["_x", "model_config", "class", "größe"]
    assert fill(workflow, {"_x": 5})["20"]["inputs"]["value"] == 5
