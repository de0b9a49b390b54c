"""ComfyUI's folders are found as ComfyUI itself finds them, and nothing of it is imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpack_build.errors import BadInput
from cpack_build.workspace.place import find_comfyui, walk
from tests.workspace.installs import make_install


def test_an_install_is_found_in_the_folder_or_in_what_holds_it(tmp_path: Path) -> None:
    root = make_install(tmp_path / "portable/ComfyUI", with_git=False)
    assert find_comfyui(tmp_path / "portable").root == root
    assert find_comfyui(root).root == root
    assert find_comfyui(root).version


def test_a_folder_without_comfyui_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no ComfyUI: there is no main\.py"):
        find_comfyui(tmp_path)
    with pytest.raises(BadInput, match="is no folder"):
        find_comfyui(tmp_path / "nowhere")


def test_legacy_folders_are_searched_in_comfyuis_order(tmp_path: Path) -> None:
    comfyui = find_comfyui(make_install(tmp_path / "c", with_git=False))
    assert [place.prefix for place in comfyui.searched("clip")] == ["models/text_encoders", "models/clip"]
    assert [place.prefix for place in comfyui.searched("unet")] == ["models/unet", "models/diffusion_models"]


def test_extra_model_paths_are_read_as_comfyui_reads_them(tmp_path: Path) -> None:
    root = make_install(tmp_path / "c", with_git=False)
    (root / "extra_model_paths.yaml").write_text(
        "a111:\n  base_path: ../webui/\n  loras: |\n    models/Lora\n    models/LyCORIS\n  clip: enc\n"
        "first:\n  is_default: true\n  vae: ../vaes\n  custom_nodes: ../nodes\nempty:\n"
    )
    comfyui = find_comfyui(root)
    assert [place.path for place in comfyui.searched("loras")] == [
        root / "models/loras",
        tmp_path / "webui/models/Lora",
        tmp_path / "webui/models/LyCORIS",
    ]
    assert comfyui.searched("text_encoders")[-1].path == tmp_path / "webui/enc"
    assert [place.path for place in comfyui.searched("vae")] == [tmp_path / "vaes", root / "models/vae"]
    assert comfyui.searched("vae")[0].prefix == "models/vae"
    assert comfyui.node_folders == (tmp_path / "nodes", root / "custom_nodes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not YAML"),
        ("- a", "must be a mapping of sections"),
        ("a: 3", "a: must be a mapping"),
        ("a: {loras: [x]}", r"a\.loras: must be a path"),
        ("a: {base_path: 3}", r"a\.base_path"),
    ],
)
def test_a_broken_extra_model_paths_is_named(tmp_path: Path, text: str, said: str) -> None:
    root = make_install(tmp_path / "c", with_git=False)
    (root / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        find_comfyui(root)


def test_a_walk_follows_links_but_no_loop(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/a.bin").write_bytes(b"a")
    (tmp_path / "top").mkdir()
    (tmp_path / "top/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "top/self").symlink_to("self")
    os.mkfifo(tmp_path / "top/pipe")
    told: list[str] = []
    found = walk(
        tmp_path / "top", skip=lambda _: False, unreadable=lambda path, why: told.append(f"{path.name}: {why}")
    )
    assert [name for name, _, _ in found] == ["linked/deep/a.bin"]
    assert told == [
        "up: a link to a folder that holds it",
        "pipe: no regular file",
        "self: a link that leads nowhere",
    ]
