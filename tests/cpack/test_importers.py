"""What other programs wrote is read in their own formats, and whatever is wrong with a file is an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpack_build.cpack.importers import Unpinned, node_lines, read_foreign
from cpack_build.cpack.schema import COMFYUI_URL, FileNode, GitPin
from cpack_build.errors import BadField, BadInput, CpackError, UnsafeInput
from tests.cpack.packs import COMMIT, SHA256

NODE = "https://hub.example/someone/some-node"

MANAGER: dict[str, Any] = {
    "comfyui": COMMIT,
    "git_custom_nodes": {NODE: {"hash": COMMIT, "disabled": False}},
    "cnr_custom_nodes": {"a-node": "1.2.3"},
    "file_custom_nodes": [{"filename": "one.py", "disabled": True}],
    "pips": {"numpy==1.0": "", "kornia": "git+https://hub.example/k.git@main"},
}
DESKTOP: dict[str, Any] = {
    "version": 1,
    "createdAt": "2026-09-08T00:00:00Z",
    "trigger": "manual",
    "label": None,
    "comfyui": {"ref": "v0.3.64", "commit": COMMIT, "releaseTag": "bundle", "variant": "linux-cpu"},
    "customNodes": [
        {"id": "a-node", "type": "cnr", "dirName": "A Node", "enabled": True, "version": "1.2.3"},
        {"id": "off", "type": "cnr", "dirName": "off", "enabled": False, "version": "1.0.0"},
        {"id": "some-node", "type": "git", "dirName": "renamed", "enabled": True, "commit": COMMIT, "url": NODE},
        {"id": "mine", "type": "git", "dirName": "mine", "enabled": True},
        {"id": "one.py", "type": "file", "dirName": "one.py", "enabled": True},
    ],
    "pipPackages": {"numpy": "1.0", "torch": "2.5.1+cpu"},
    "pythonVersion": "3.12.7",
}
BUILD: dict[str, Any] = {
    "schema": "comfy-build/1",
    "id": None,
    "name": "mine",
    "description": "",
    "syncedRevision": None,
    "definition": {
        "schema": "distribution-definition/0",
        "baseComfyVersion": "0.3.40",
        "models": [
            {"type": "loras", "filename": "x.safetensors", "sha256": SHA256, "sourceUri": "https://hub.example/x?a=1"},
            {"type": "checkpoints", "sourceUri": "https://hub.example/dir/y.ckpt"},
            {"type": "vae", "filename": "z.pt", "blobId": "b", "sha256": SHA256, "sizeBytes": 12},
        ],
        "customNodes": [
            {"name": "a", "id": "a-node", "registryVersion": "1.2.3"},
            {"name": "b", "repository": NODE, "gitRef": COMMIT},
            {"name": "c", "repository": f"{NODE}-c", "gitRef": "main"},
            {"name": "d", "source": "local"},
        ],
        "pipDependencies": "# captured\nnumpy==1.0\nkornia @ git+https://hub.example/k.git@main\n",
        "environment": {"os": "Linux", "arch": "x86_64", "pythonVersion": "3.11.9", "torch": None},
    },
}
LOCK: dict[str, Any] = {
    "basics": {"name": "mine", "updated_at": "2024-05-01T10:00:00"},
    "models": [
        {
            "model": "x.safetensors",
            "url": "https://hub.example/x",
            "paths": [{"path": "models/loras/x.safetensors"}, {"path": "models\\loras\\y.safetensors"}],
            "hashes": [{"hash": "abc", "type": "CRC32"}, {"hash": SHA256, "type": "SHA256"}],
            "type": "lora",
        }
    ],
    "custom_nodes": {key: MANAGER[key] for key in ("comfyui", "git_custom_nodes", "file_custom_nodes")},
}


def write(folder: Path, name: str, document: Any) -> Path:
    path = folder / name
    if isinstance(document, bytes):
        path.write_bytes(document)
    elif isinstance(document, str):
        path.write_text(document)
    elif path.suffix == ".json":
        path.write_text(json.dumps(document))
    else:
        path.write_text(yaml.safe_dump(document, allow_unicode=True))
    return path


@pytest.mark.parametrize(
    ("name", "document"),
    [("new.json", MANAGER), ("new.yaml", {"custom_nodes": MANAGER}), ("null.json", MANAGER | {"python": None})],
)
def test_a_snapshot_of_comfyui_manager(tmp_path: Path, name: str, document: dict[str, Any]) -> None:
    found = read_foreign(write(tmp_path, name, document))
    assert found.format == "ComfyUI-Manager snapshot"
    assert found.snapshot.comfyui == GitPin(url=COMFYUI_URL, commit=COMMIT)
    assert [(node.name, node.commit) for node in found.snapshot.nodes] == [("some-node", COMMIT)]
    assert found.snapshot.registry_nodes == {"a-node": "1.2.3"}
    assert found.snapshot.file_nodes == (FileNode(filename="one.py", disabled=True),)
    assert found.snapshot.requirements == ("kornia @ git+https://hub.example/k.git@main", "numpy==1.0")
    assert found.snapshot.python is None


def test_an_old_snapshot_of_comfyui_manager_has_neither_registry_nodes_nor_packages(tmp_path: Path) -> None:
    old = {key: MANAGER[key] for key in ("comfyui", "git_custom_nodes", "file_custom_nodes")}
    for document in (old, old | {"pips": None}):
        found = read_foreign(write(tmp_path, "old.json", document)).snapshot
        assert (found.registry_nodes, found.requirements) == ({}, ())
        assert len(found.nodes) == 1


@pytest.mark.parametrize("exported", [False, True])
def test_a_snapshot_of_comfyui_desktop(tmp_path: Path, exported: bool) -> None:
    export = {"type": "comfyui-desktop-2-snapshot", "version": 1, "snapshots": [DESKTOP, DESKTOP | {"pipPackages": {}}]}
    found = read_foreign(write(tmp_path, "desktop.json", export if exported else DESKTOP))
    assert found.format == "ComfyUI Desktop snapshot"
    assert (found.snapshot.python, found.unpinned) == ("3.12", ())
    assert [(node.name, node.url) for node in found.snapshot.nodes] == [("renamed", NODE)]
    assert found.snapshot.registry_nodes == {"a-node": "1.2.3"}
    assert found.snapshot.file_nodes == (FileNode(filename="one.py"),)
    assert found.snapshot.requirements == ("numpy==1.0", "torch==2.5.1+cpu")
    notes = " ".join(found.snapshot.notes)
    assert "off is disabled" in notes
    assert "mine has no commit" in notes or "mine has no git remote" in notes
    assert ("2 snapshots" in notes) == exported


def test_a_desktop_snapshot_without_a_commit_names_the_release(tmp_path: Path) -> None:
    stack = {"kind": "managed", "ref": {"packages": {"torch": "2.9.0+cu128", "torchvision": "0.24.0"}}}
    comfyui = {"ref": "Portable", "commit": None, "baseTag": "v0.3.64"}
    found = read_foreign(write(tmp_path, "x.json", DESKTOP | {"version": 2, "comfyui": comfyui, "torchStack": stack}))
    assert found.unpinned == (Unpinned("ComfyUI", COMFYUI_URL, "v0.3.64"),)
    assert "torchvision==0.24.0" in found.snapshot.requirements


@pytest.mark.parametrize(
    ("name", "document"), [("comfy-build.yaml", BUILD), ("spec.json", BUILD), ("scan.json", BUILD["definition"])]
)
def test_a_build_of_comfy_cli(tmp_path: Path, name: str, document: dict[str, Any]) -> None:
    found = read_foreign(write(tmp_path, name, document))
    assert found.format == "comfy-cli build"
    assert found.snapshot.python == "3.11"
    assert found.unpinned == (Unpinned("c", f"{NODE}-c", "main"), Unpinned("ComfyUI", COMFYUI_URL, "v0.3.40"))
    assert [(node.name, node.commit) for node in found.snapshot.nodes] == [("b", COMMIT)]
    assert found.snapshot.registry_nodes == {"a-node": "1.2.3"}
    assert [(m.filename, m.sha256, m.size, m.urls) for m in found.snapshot.models] == [
        ("models/loras/x.safetensors", SHA256, None, ("https://hub.example/x?a=1",)),
        ("models/checkpoints/y.ckpt", None, None, ("https://hub.example/dir/y.ckpt",)),
        ("models/vae/z.pt", SHA256, 12, ()),
    ]
    assert found.snapshot.requirements == ("kornia @ git+https://hub.example/k.git@main", "numpy==1.0")
    assert any("d was to be uploaded" in note for note in found.snapshot.notes)


def test_a_lock_of_comfy_cli(tmp_path: Path) -> None:
    found = read_foreign(write(tmp_path, "comfy-lock.yaml", LOCK))
    assert found.format == "comfy-lock.yaml"
    assert [(m.filename, m.sha256, m.urls) for m in found.snapshot.models] == [
        ("models/loras/x.safetensors", SHA256, ("https://hub.example/x",)),
        ("models/loras/y.safetensors", SHA256, ("https://hub.example/x",)),
    ]
    assert len(found.snapshot.nodes) == 1
    empty = read_foreign(write(tmp_path, "comfy-lock.yaml", {"basics": {}, "models": [], "custom_nodes": []}))
    assert empty.snapshot.nodes == ()


def test_requirements_and_a_list_of_nodes(tmp_path: Path) -> None:
    found = read_foreign(
        write(tmp_path, "requirements.txt", "numpy==1.0  # why\n--no-index\nsix==1.17.0 \\\n    --hash=sha256:aa\n")
    )
    assert found.snapshot.requirements == ("numpy==1.0", "six==1.17.0")
    assert "--no-index" in found.snapshot.notes[0]
    listed = node_lines(
        f"# mine\n{NODE}@{COMMIT}\n\n{NODE}-b.git main\ngit@hub.example:a/b@v1.0  # tag\na-node@1.2.3\nb-node==2.0\n",
        name="nodes.txt",
    )
    assert [(pin.name, pin.commit) for pin in listed.nodes] == [("some-node", COMMIT)]
    assert listed.unpinned == (
        Unpinned("some-node-b", f"{NODE}-b.git", "main"),
        Unpinned("b", "git@hub.example:a/b", "v1.0"),
    )
    assert listed.registry_nodes == (("a-node", "1.2.3"), ("b-node", "2.0"))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (NODE, BadField),
        ("just words here", BadField),
        ("../escape@1.0", BadField),
        (f"file:///etc@{COMMIT}", UnsafeInput),
        (f"ext::sh -c id@{COMMIT}", BadField),
    ],
)
def test_a_node_that_cannot_be_pinned_or_reached_is_refused(line: str, error: type[CpackError]) -> None:
    with pytest.raises(error):
        node_lines(line, name="nodes.txt")


@pytest.mark.parametrize(
    ("name", "document", "words"),
    [
        ("x.json", "[]", "must be an object"),
        ("x.json", "{}", "none of the formats"),
        ("x.json", b"\xff\xfe", "not UTF-8"),
        ("x.json", "[" * 100_000, "nested deeper"),
        ("x.yaml", "[" * 5000, "nested deeper|not YAML"),
        ("x.yaml", "a: &a [1]\nb: *a\n", "anchor"),
        ("x.yaml", "1: 2\n", "no text"),
        ("x.yaml", "a: [", "not YAML"),
        ("x.yaml", "!!python/object/apply:os.system [id]", "not YAML"),
        ("x.yaml", "custom_nodes: {git_custom_nodes: 3}", "git_custom_nodes: must be an object"),
        ("x.json", json.dumps(DESKTOP | {"customNodes": [{"type": "git"}]}), "customNodes"),
        ("x.json", json.dumps(DESKTOP | {"pipPackages": {"numpy": 1}}), "numpy"),
        ("x.json", json.dumps(BUILD | {"schema": "comfy-build/2"}), "newer format"),
        ("x.json", json.dumps(BUILD | {"definition": []}), "definition: must be an object"),
        ("requirements.txt", "not a requirement!\n", "line 1"),
        ("requirements.txt", b"\xff", "not UTF-8"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, name: str, document: Any, words: str) -> None:
    path = write(tmp_path, name, document)
    with pytest.raises(BadInput, match=words) as caught:
        read_foreign(path)
    assert str(path) in caught.value.message


def test_names_that_leave_their_place_are_refused(tmp_path: Path) -> None:
    node = {"id": "x", "type": "file", "dirName": "../x.py", "enabled": True}
    model = {"type": "../../etc", "filename": "x", "sourceUri": "https://hub.example/x"}
    for document in (DESKTOP | {"customNodes": [node]}, BUILD["definition"] | {"models": [model]}):
        with pytest.raises(UnsafeInput):
            read_foreign(write(tmp_path, "x.json", document))


def test_a_file_that_is_not_there_or_too_big_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_foreign(tmp_path / "absent.json")
    with pytest.raises(BadInput, match="bigger than 16 MiB"):
        read_foreign(write(tmp_path, "x.json", b" " * (17 << 20)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.sampled_from([MANAGER, DESKTOP, BUILD, LOCK]), path=st.lists(st.integers(0, 9), min_size=1), value=_JSON
)
def test_any_change_of_a_file_is_read_or_refused(
    tmp_path: Path, document: dict[str, Any], path: list[int], value: Any
) -> None:
    changed: Any = json.loads(json.dumps(document))
    place = changed
    for number, step in enumerate(path):
        members = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not members:
            break
        key = members[step % len(members)]
        if number == len(path) - 1 or not isinstance(place[key], dict | list):
            place[key] = value
            break
        place = place[key]
    with suppress(CpackError):
        read_foreign(write(tmp_path, "x.json", changed))
