"""The models that a workflow names are found by their whole names, wherever ComfyUI would find them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpack_build.errors import Unresolvable
from cpack_build.workflow.references import ModelReference
from cpack_build.workspace.models import Choice, choose_models, list_models
from cpack_build.workspace.place import find_comfyui
from tests.workspace.installs import make_install


def reference(value: str, folder: str | None = "checkpoints", *, guessed: bool = False) -> ModelReference:
    return ModelReference("7", "Loader", "name", value, folder, guessed)


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def choose(root: Path, *references: ModelReference, globs: tuple[str, ...] = (), everything: bool = False) -> Choice:
    comfyui = find_comfyui(root)
    return choose_models(
        list_models(comfyui), comfyui=comfyui, references=references, globs=globs, everything=everything
    )


def names(choice: Choice) -> list[str]:
    return [file.name for file in choice.files]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_install(tmp_path / "ComfyUI", with_git=False)


def test_names_are_whole_and_the_loaders_folder_counts(root: Path) -> None:
    put(root, "models/checkpoints/e.safetensors", "models/checkpoints/some/e.safetensors", "models/loras/e.safetensors")
    assert names(choose(root, reference("e.safetensors"))) == ["models/checkpoints/e.safetensors"]
    assert names(choose(root, reference("some\\e.safetensors"))) == ["models/checkpoints/some/e.safetensors"]
    assert names(choose(root, reference("xe.safetensors"))) == []


def test_names_that_are_not_ascii_are_found(root: Path) -> None:
    put(root, "models/loras/日本語/Ünïcode 🎨.safetensors")
    found = choose(root, reference("日本語/Ünïcode 🎨.safetensors", "loras"))
    assert names(found) == ["models/loras/日本語/Ünïcode 🎨.safetensors"]


def test_linked_folders_and_extra_paths_are_searched(root: Path, tmp_path: Path) -> None:
    put(tmp_path, "disk/far.safetensors", "webui/Lora/near.safetensors", "webui/Lora/twice.safetensors")
    put(root, "models/loras/twice.safetensors")
    (root / "models/checkpoints/big").symlink_to(tmp_path / "disk")
    (root / "extra_model_paths.yaml").write_text("a:\n  base_path: ../webui\n  loras: Lora\n")
    found = choose(
        root, reference("big/far.safetensors"), reference("near.safetensors", "loras"),
        reference("twice.safetensors", "loras"),
    )  # fmt: skip
    assert {file.name: file.path for file in found.files} == {
        "models/checkpoints/big/far.safetensors": root / "models/checkpoints/big/far.safetensors",
        "models/loras/near.safetensors": tmp_path / "webui/Lora/near.safetensors",
        "models/loras/twice.safetensors": root / "models/loras/twice.safetensors",
    }


def test_a_shard_brings_its_set(root: Path) -> None:
    shards = [f"models/text_encoders/t5-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = "models/text_encoders/t5.safetensors.index.json"
    put(
        root,
        *shards,
        index,
        "models/text_encoders/t5-00001-of-00003.safetensors",
        "models/text_encoders/t5x.safetensors",
    )
    by_shard = choose(root, reference("t5-00001-of-00002.safetensors", "clip"))
    assert names(by_shard) == [*shards, index]
    assert set(shards) < set(names(choose(root, reference("t5.safetensors.index.json", "clip"))))


def test_a_diffusers_folder_brings_all_its_files(root: Path) -> None:
    inside = ["model_index.json", "unet/config.json", "unet/x.safetensors"]
    put(root, *(f"models/diffusers/sd/{name}" for name in inside), "models/diffusers/sd2/model_index.json")
    assert names(choose(root, reference("sd", "diffusers"))) == [f"models/diffusers/sd/{name}" for name in inside]


def test_a_folder_of_a_custom_node_is_found_by_whole_name(root: Path) -> None:
    put(root, "models/ipadapter/plus.bin")
    assert names(choose(root, reference("plus.bin", None))) == ["models/ipadapter/plus.bin"]
    assert names(choose(root, reference("plus.bin", "ipadapter"))) == ["models/ipadapter/plus.bin"]


def test_what_is_missing_is_named_with_its_node_unless_it_was_guessed(root: Path) -> None:
    found = choose(root, reference("gone.safetensors"), reference("maybe.pt", "embeddings", guessed=True))
    assert tuple(map(str, found.missing)) == ("gone.safetensors is not in models/checkpoints (node 7, Loader, name)",)


def test_globs_and_all(root: Path) -> None:
    put(root, "models/loras/a.safetensors", "models/loras/b.pt")
    assert names(choose(root, globs=("loras/*.safetensors",))) == ["models/loras/a.safetensors"]
    assert names(choose(root, globs=("b.*",))) == ["models/loras/b.pt"]
    assert len(names(choose(root, everything=True))) == 3
    with pytest.raises(Unresolvable, match=r"--model 'nothing\*' matches no model"):
        choose(root, globs=("nothing*",))


def test_what_is_no_model_is_not_listed(root: Path) -> None:
    put(root, "models/loras/.hidden.safetensors", "models/loras/a.civitai.info", "models/loras/a.safetensors.part")
    assert names(choose(root, everything=True)) == ["models/upscale_models/tiny.safetensors"]


def test_a_hostile_models_folder_is_listed_and_told(root: Path) -> None:
    loras = root / "models/loras"
    loras.mkdir(exist_ok=True)
    (loras / "loop").symlink_to(loras)
    (loras / "gone.safetensors").symlink_to("nowhere")
    os.mkfifo(loras / "pipe.safetensors")
    (loras / "back\\slash.safetensors").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(loras) + b"/\xff.safetensors")).write_bytes(b"")
    with (loras / "huge.safetensors").open("wb") as file:
        file.truncate(1 << 42)
    listing = list_models(find_comfyui(root))
    assert [file.size for file in listing.files if file.folder == "loras"] == [1 << 42]
    said = "\n".join(listing.notes)
    for part in ("loop", "gone.safetensors", "pipe.safetensors", "backslash", "udcff"):
        assert part in said
    said.encode()
