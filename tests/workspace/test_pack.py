"""A workspace becomes a pack that says all of it, the same bytes each time, and nothing about whose it was."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cpack_build.cpack.reader import read_pack
from cpack_build.errors import BadInput, UnsafeInput, WorkflowError
from cpack_build.fetch.http import Offline, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.nodes import lock_trees
from cpack_build.workspace import Draft, Upstream, draft_pack, write_draft
from tests.fetch.repositories import git
from tests.workspace.installs import HUB, WORKFLOW, make_git_node, make_install, make_registry_node, publish


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_install(tmp_path / "home/alice/ComfyUI")
    custom = root / "custom_nodes"
    shutil.rmtree(custom)
    make_git_node(custom / "clean", url=f"{HUB}/clean.git")
    make_git_node(custom / "renamed", url=f"{HUB}/original.git")
    make_git_node(custom / "edited", url=f"{HUB}/edited.git")
    (custom / "edited/more.py").write_text("x = 1\n")
    make_registry_node(custom / "from-registry")
    (custom / "local").mkdir()
    (custom / "local/__init__.py").write_text("y = 2\n")
    return root


def write(draft: Draft, path: Path, tmp_path: Path) -> dict[str, Any]:
    write_draft(draft, path, store=Store(tmp_path / "store"), offline=True)
    with zipfile.ZipFile(path) as archive:
        document = json.loads(archive.read("snapshot.json"))
    assert isinstance(document, dict)
    return document


def test_a_pack_holds_what_the_workspace_is(root: Path, tmp_path: Path) -> None:
    document = write(draft_pack(root, WORKFLOW), tmp_path / "x.cpack.zip", tmp_path)
    pack = read_pack(tmp_path / "x.cpack.zip")
    assert pack.snapshot.comfyui is not None
    assert pack.snapshot.comfyui.commit == git(root, "rev-parse", "HEAD")
    assert pack.snapshot.python == "3.11"
    assert pack.snapshot.requirements == ("pyyaml==6.0", "torch==2.3.0+cpu")
    assert document["git_custom_nodes"][f"{HUB}/original.git"]["path"] == "renamed"
    assert set(document["git_custom_nodes"]) == {f"{HUB}/{name}.git" for name in ("clean", "original", "edited")}
    assert document["cnr_custom_nodes"] == {"some-node": "1.2.3"}
    assert pack.other == ("nodes/local/__init__.py", "patches/edited.patch")
    assert [item.name for item in pack.inputs] == ["input/example.png"]
    (model,) = pack.snapshot.models
    assert (model.filename, model.disabled) == ("models/upscale_models/tiny.safetensors", False)
    assert model.sha256
    assert pack.workflow_api == WORKFLOW


def test_the_same_workspace_gives_the_same_bytes_elsewhere_too(root: Path, tmp_path: Path) -> None:
    write(draft_pack(root, WORKFLOW), tmp_path / "a.zip", tmp_path)
    other = shutil.copytree(root, tmp_path / "other/place", symlinks=True)
    for path in other.rglob("*.safetensors"):
        os.utime(path, (1, 1))
    before = os.umask(0o077)
    try:
        write(draft_pack(other, WORKFLOW), tmp_path / "b.zip", tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_no_path_or_name_of_the_packer_is_in_it(root: Path, tmp_path: Path) -> None:
    remote = "https://alice:ghp_x@hub.example/someone/clean.git"
    git(root / "custom_nodes/clean", "config", "remote.origin.url", remote)
    write(draft_pack(root, WORKFLOW), tmp_path / "x.zip", tmp_path)
    data = (tmp_path / "x.zip").read_bytes()
    for word in (b"alice", b"ghp_x", str(tmp_path).encode()):
        assert word not in data


def test_only_what_is_chosen_is_read(root: Path, tmp_path: Path) -> None:
    """A model that nobody chose may be a terabyte: it is listed, with its size and no hash."""
    (root / "models/checkpoints").mkdir(exist_ok=True)
    with (root / "models/checkpoints/huge.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    document = write(draft_pack(root, WORKFLOW), tmp_path / "x.zip", tmp_path)
    huge, tiny = document["models"]
    name = "models/checkpoints/huge.safetensors"
    assert huge == {"filename": name, "size": 1 << 40, "disabled": True, "sha256": "", "source": {}}
    assert tiny["disabled"] is False


def test_a_second_pack_reads_no_model(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(draft_pack(root, WORKFLOW), tmp_path / "a.zip", tmp_path)
    opened: list[str] = []
    original = Path.open

    def watched(path: Path, *arguments: Any, **more: Any) -> Any:
        opened.append(path.name)
        return original(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", watched)
    write(draft_pack(root, WORKFLOW), tmp_path / "b.zip", tmp_path)
    assert "example.png" in opened
    assert "tiny.safetensors" not in opened


def test_inputs_are_those_named_whole_and_those_asked_for(root: Path) -> None:
    for name in ("e.png", "sub/ünï.png", "other.txt"):
        (root / "input" / name).parent.mkdir(exist_ok=True)
        (root / "input" / name).write_bytes(b"x")
    assert [file.name for file in draft_pack(root, WORKFLOW).inputs] == ["input/example.png"]
    more = draft_pack(root, WORKFLOW, inputs=("sub/*",))
    assert [file.name for file in more.inputs] == ["input/example.png", "input/sub/ünï.png"]
    workflow = {**WORKFLOW, "1": {"class_type": "LoadImage", "inputs": {"image": "sub/ünï.png [input]"}}}
    assert [file.name for file in draft_pack(root, workflow).inputs] == ["input/sub/ünï.png"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\x.png"])
def test_an_input_that_leaves_its_folder_is_not_packed(root: Path, name: str) -> None:
    workflow = {**WORKFLOW, "1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    draft = draft_pack(root, workflow)
    assert draft.inputs == ()
    assert any("not packed" in note for note in draft.notes)


def test_what_the_workflow_names_in_vain_is_told(root: Path) -> None:
    (root / "input/example.png").unlink()
    (root / "models/upscale_models/tiny.safetensors").unlink()
    draft = draft_pack(root, WORKFLOW)
    assert [str(one).split(" (")[0] for one in draft.missing] == [
        "tiny.safetensors is not in models/upscale_models",
        "example.png is not in input/",
    ]


def test_a_comfyui_that_is_no_known_release_is_captured_and_pinned_by_its_content(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / ".git")
    (root / ".gitignore").unlink()
    own = [
        "custom_nodes/websocket_image_save.py",
        "models/configs/v1-inference.yaml",
    ]  # ComfyUI's own
    for name in own:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("ComfyUI's\n")
    draft = draft_pack(root, WORKFLOW)
    assert draft.captured[0].name == "ComfyUI"
    document = write(draft, tmp_path / "a.zip", tmp_path)
    assert document["comfyui"] is None
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        kept = [name for name in archive.namelist() if name.startswith("comfyui/")]
        assert archive.read("comfyui/main.py") == (root / "main.py").read_bytes()
    assert len(kept) == document["cpack"]["comfyui"]["files"]
    among = ("comfyui/models/", "comfyui/custom_nodes/", "comfyui/input/")
    assert [name for name in kept if name.startswith(among)] == [f"comfyui/{name}" for name in own]
    pack, nobody = read_pack(tmp_path / "a.zip"), Sources(Mirrors(is_offline=True), Offline())
    away = ("clean", "renamed", "edited", "some-node")
    locked = lock_trees(pack.snapshot, pack=pack, exclude=away, store=Store(tmp_path / "l"), sources=nobody)
    assert locked.missing == ()
    assert locked.comfyui is not None
    assert locked.comfyui.name == "ComfyUI"
    (root / "output").mkdir(exist_ok=True)
    (root / "output/x.png").write_bytes(b"x")
    assert write(draft_pack(root, WORKFLOW), tmp_path / "b.zip", tmp_path) == document
    (root / "nodes.py").write_text("changed")
    changed = write(draft_pack(root, WORKFLOW), tmp_path / "c.zip", tmp_path)
    assert changed["cpack"]["comfyui"]["content_sha256"] != document["cpack"]["comfyui"]["content_sha256"]
    named = draft_pack(root, WORKFLOW, comfyui_commit="a" * 40)
    assert write(named, tmp_path / "d.zip", tmp_path)["comfyui"] == "a" * 40
    assert [item.name for item in named.captured] == ["local"]


def test_a_comfyui_without_git_is_its_release_and_a_patch(root: Path, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    shutil.copytree(root / ".git", upstream / ".git")
    git(upstream, "checkout", "--quiet", "--force", "HEAD")
    commit = git(upstream, "rev-parse", "HEAD")
    git(upstream, "tag", "v0.3.64+standin")
    mirrors = Mirrors({"https://github.com/comfyanonymous/ComfyUI": str(upstream)})
    known = Upstream(Store(tmp_path / "s"), Sources(mirrors))
    (root / "main.py").write_text("# a fork's\n")
    git(root, "commit", "--quiet", "--all", "--message", "a fork's")
    publish(root, "https://github.com/somebody/ComfyUI.git")
    fork = draft_pack(root, WORKFLOW, upstream=known)
    assert (fork.source.commit, fork.source.changed) == (commit, ("main.py",))
    assert any("is a clone of https://github.com/somebody/ComfyUI.git; it is taken" in note for note in fork.notes)
    git(root, "reset", "--quiet", "--hard", commit)
    shutil.rmtree(root / ".git")
    plain = draft_pack(root, WORKFLOW, upstream=known)
    assert (plain.source.commit, plain.source.patch, plain.source.files) == (commit, b"", ())
    (root / "nodes.py").write_text("changed\n")
    (root / "comfy/new.py").write_text("new\n")
    (root / "notes.txt").write_text("mine\n")
    (root / "protocol.py").unlink(missing_ok=True)
    # the store knows the release by now, so nobody need be asked
    offline = Upstream(Store(tmp_path / "s"), Sources(), offline=True)
    draft = draft_pack(root, WORKFLOW, upstream=offline)
    assert (draft.source.commit, draft.source.changed) == (commit, ("comfy/new.py", "nodes.py"))
    git(upstream, "apply", "-", stdin=draft.source.patch)
    assert (upstream / "nodes.py").read_text() == "changed\n"
    assert write(draft, tmp_path / "x.zip", tmp_path)["comfyui"] == commit
    assert any("differs from that commit" in note for note in draft.notes)


def test_disabled_nodes_are_named_though_they_are_not_brought(root: Path, tmp_path: Path) -> None:
    make_registry_node(root / "custom_nodes/.disabled/some-node@1_2_3")
    (root / "custom_nodes/mine.disabled").mkdir()
    document = write(draft_pack(root, WORKFLOW), tmp_path / "x.zip", tmp_path)
    assert document["cpack"]["disabled_nodes"] == [
        {"name": "mine", "kind": "local"},
        {"name": "some-node", "kind": "registry", "id": "some-node", "version": "1.2.3"},
    ]


def test_changes_to_comfyui_itself_are_captured(root: Path) -> None:
    (root / "nodes.py").write_text("changed\n")
    draft = draft_pack(root, WORKFLOW)
    assert draft.source.changed == ("nodes.py",)
    assert any("ComfyUI has uncommitted changes" in note for note in draft.notes)


def test_secrets_in_captured_files_are_named_with_their_line(root: Path) -> None:
    secret = "hf_" + "a1B2" * 9
    (root / "custom_nodes/local/key.py").write_text(f"\nTOKEN = '{secret}'\n")
    (root / "custom_nodes/edited/more.py").write_text(f"x = '{secret}'\n")
    findings = [str(finding) for finding in draft_pack(root, WORKFLOW).findings]
    assert findings[0] == "nodes/local/key.py:2 holds a Hugging Face token"
    assert findings[1].startswith("patches/edited.patch:")
    assert secret not in "".join(findings)


def test_a_workflow_of_the_editor_says_how_to_export(root: Path) -> None:
    with pytest.raises(WorkflowError, match=r"Export \(API\)"):
        draft_pack(root, {"nodes": [], "last_node_id": 3})


def test_no_other_file_is_overwritten(root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UnsafeInput, match="is no pack"):
        write_draft(draft_pack(root, WORKFLOW), tmp_path / "precious.txt", store=Store(tmp_path / "s"), offline=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_node_too_large_for_a_pack_is_named(root: Path) -> None:
    with (root / "custom_nodes/local/weights.bin").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(BadInput, match=r"nodes/local/weights\.bin has 3\.2 GB"):
        draft_pack(root, WORKFLOW)
    assert draft_pack(root, WORKFLOW, exclude_nodes=("local",)).captured == ()


def test_ten_thousand_models_are_listed_without_being_read(root: Path) -> None:
    loras = root / "models/loras"
    for number in range(100):
        (loras / str(number)).mkdir(parents=True)
        for inner in range(100):
            (loras / str(number) / f"{inner}.safetensors").touch()
    assert len(draft_pack(root, WORKFLOW).listing.files) == 10_001
