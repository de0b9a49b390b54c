"""Two packs are compared by what they mean; what is only written otherwise is no difference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cpack_build.cpack.comparison import Change, compare
from cpack_build.cpack.reader import read_pack
from tests.cpack.packs import COMMIT, SHA256, WORKFLOW, make_pack, model, snapshot

OTHER = "b" * 40
NODE = "https://hub.example/someone/some-node.git"


def changes(
    folder: Path, *, workflow: Any = None, files: dict[str, bytes] | None = None, **changed: Any
) -> list[Change]:
    before = make_pack(folder / "a.cpack.zip")
    after = make_pack(folder / "b.cpack.zip", snapshot_document=snapshot(**changed), workflow_api=workflow, files=files)
    assert compare(read_pack(before), read_pack(before)) == ()
    return list(compare(read_pack(before), read_pack(after)))


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"comfyui": OTHER}, [("comfyui", "ComfyUI", "commit", COMMIT, OTHER)]),
        ({"comfyui": None}, [("comfyui", "ComfyUI", "commit", COMMIT, None)]),
        ({"python": "3.12"}, [("python", "Python", "", "3.11", "3.12")]),
        (
            {"git_custom_nodes": {NODE: {"hash": OTHER, "disabled": True}}},
            [("node", "some-node", "commit", COMMIT, OTHER), ("node", "some-node", "disabled", False, True)],
        ),
        (
            {"git_custom_nodes": {}},
            [("node", "some-node", "", {"url": NODE, "commit": COMMIT, "disabled": False}, None)],
        ),
        (
            {"cnr_custom_nodes": {"some-registry-node": "2.0.0", "more": "1"}},
            [
                ("registry node", "more", "", None, "1"),
                ("registry node", "some-registry-node", "", "1.2.3", "2.0.0"),
            ],
        ),
        ({"file_custom_nodes": []}, [("single-file node", "single.py", "", {"disabled": False}, None)]),
        (
            {"pips": {"Pillow==11.0.0": "", "kornia": "git+https://hub.example/kornia.git@main"}},
            [("package", "pillow", "", "10.0.0", "11.0.0")],
        ),
        (
            {"models": [model(sha256="f" * 64, size=1)]},
            [
                ("model", "models/upscale_models/tiny.safetensors", "size", 908276, 1),
                ("model", "models/upscale_models/tiny.safetensors", "sha256", SHA256, "f" * 64),
            ],
        ),
        (
            {"models": [model(filename="models\\vae\\moved.safetensors")]},
            [("model", "models/upscale_models/tiny.safetensors", "path",
              "models/upscale_models/tiny.safetensors", "models/vae/moved.safetensors")],
        ),
        ({"models": [model(atime=99.0)], "git_custom_nodes": {NODE: {"hash": COMMIT}}}, []),
    ],
)  # fmt: skip
def test_each_difference_is_told_from_what_to_what(tmp_path: Path, changed: dict[str, Any], wanted: list[Any]) -> None:
    assert changes(tmp_path, **changed) == [Change(*item) for item in wanted]


def test_the_workflow_is_compared_by_parameters_results_and_nodes(tmp_path: Path) -> None:
    workflow = copy.deepcopy(WORKFLOW)
    workflow["1"]["inputs"]["image"] = "other.png"
    workflow["2"]["inputs"]["strength"] = 0.5
    workflow["3"]["_meta"] = {"title": "picture"}
    found = changes(tmp_path, workflow=workflow)
    assert [(change.section, change.name, change.field) for change in found] == [
        ("parameter", "photo", "default"),
        ("result", "image", ""),
        ("result", "picture", ""),
        ("workflow", "node 2", "strength"),
    ]


def test_files_and_settings_are_compared_by_content(tmp_path: Path) -> None:
    files = {"input/example.png": b"other", "input/new.txt": b"", "cpack.yaml": b"system: {packages: [git]}\n"}
    found = changes(tmp_path, files=files | {"service.py": b"", "nodes/x/a.py": b""})
    assert [(change.section, change.name) for change in found] == [
        ("input file", "example.png"),
        ("input file", "new.txt"),
        ("setting", "system.packages"),
        ("file", "nodes/x/a.py"),
    ]


def test_an_old_pack_and_a_new_one_of_the_same_content_mean_the_same(tmp_path: Path) -> None:
    old = {
        "python": "3.11",
        "comfyui": COMMIT,
        "models": [model()],
        "custom_nodes": [{"url": NODE, "commit_hash": COMMIT}],
    }
    requirements = {"requirements.txt": b"Pillow==10.0.0\n"}
    before = make_pack(tmp_path / "old.cpack.zip", snapshot_document=old, files=requirements)
    new = snapshot(pips={"pillow==10.0.0": ""}, cnr_custom_nodes={}, file_custom_nodes=[])
    after = make_pack(tmp_path / "new.cpack.zip", snapshot_document=new)
    assert compare(read_pack(before), read_pack(after)) == ()


def test_a_pack_that_cannot_be_served_is_compared_all_the_same(tmp_path: Path) -> None:
    found = changes(tmp_path, workflow={})
    assert ("result", "the workflow") in [(change.section, change.name) for change in found]
