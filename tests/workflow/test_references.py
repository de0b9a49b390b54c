"""A workflow's models and files are found as its loaders declare them: whole names, and none that resemble one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cpack_build.workflow import InputReference, ModelReference, references
from cpack_build.workflow.loaders import FILE_INPUTS, MODEL_INPUTS
from tests import need

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "upscale.cpack.zip"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def models(*nodes: dict[str, Any], info: dict[str, Any] | None = None) -> list[tuple[str, str, str | None]]:
    found = references({str(number): item for number, item in enumerate(nodes, 1)}, info).models
    return [(model.input_name, model.value, model.folder) for model in found]


def files(*nodes: dict[str, Any], info: dict[str, Any] | None = None) -> list[tuple[str, str, str]]:
    found = references({str(number): item for number, item in enumerate(nodes, 1)}, info).inputs
    return [(item.input_name, item.value, item.place) for item in found]


def test_the_fixture_uses_one_model_and_the_files_of_its_parameters() -> None:
    if not FIXTURE.is_file():
        need.missing("shared/fixtures/upscale.cpack.zip")
    with zipfile.ZipFile(FIXTURE) as pack:
        found = references(json.loads(pack.read("workflow_api.json")))
    assert [(model.value, model.folder, model.guessed) for model in found.models] == [
        ("tiny_esrgan_4x.safetensors", "upscale_models", False)
    ]
    assert [(item.value, item.place) for item in found.inputs] == [
        ("example.png", "input"),
        ("input/notes.txt", "base"),
    ]
    assert "CPackInputImage" in found.node_classes


def test_a_name_that_is_part_of_another_is_not_found_in_it() -> None:
    """FACTS §2: comfy-pack packs ``e.png`` as well, because ``example.png`` contains it."""
    found = files(node("LoadImage", image="example.png"), node("Note", text="compare with e.png and example.png too"))
    assert found == [("image", "example.png", "input")]


def test_a_known_loader_names_its_folder() -> None:
    assert models(
        node("CheckpointLoaderSimple", ckpt_name="sd/one.safetensors"),
        node("LoraLoader", lora_name="style\\one.safetensors", strength_model=1.0, model=["1", 0]),
        node("DiffusersLoader", model_path="some/folder"),
        node("TrainLoraNode", existing_lora="[None]"),
        node("VAELoader", vae_name="pixel_space"),
        node("DualCLIPLoader", clip_name1="a.safetensors", clip_name2="b.safetensors", type="flux"),
    ) == [
        ("ckpt_name", "sd/one.safetensors", "checkpoints"),
        ("lora_name", "style\\one.safetensors", "loras"),
        ("model_path", "some/folder", "diffusers"),
        ("clip_name1", "a.safetensors", "text_encoders"),
        ("clip_name2", "b.safetensors", "text_encoders"),
    ]
    assert ModelReference("1", "X", "y", "a\\b.pt", None).path == "a/b.pt"


def test_an_approximate_vae_stands_for_two_files() -> None:
    found = references({"1": node("VAELoader", vae_name="taesd")}).models
    assert {model.value for model in found} >= {"taesd_encoder.pth", "taesd_decoder.safetensors"}
    assert {(model.folder, model.guessed) for model in found} == {("vae_approx", True)}


def test_a_link_to_a_parameter_or_a_primitive_is_followed() -> None:
    workflow = {
        "1": node("CPackInputAny", ckpt_name="linked.safetensors"),
        "2": node("CheckpointLoaderSimple", ckpt_name=["1", 0]),
        "3": node("PrimitiveString", value="photo.png"),
        "4": node("LoadImage", image=["3", 0]),
        "5": node("SomethingElse", text="other.png"),
        "6": node("LoadImage", image=["5", 0]),
        "7": node("CPackInputImage", image="upload.png", upload="image"),
    }
    found = references(workflow)
    assert found.models == (
        ModelReference("2", "CheckpointLoaderSimple", "ckpt_name", "linked.safetensors", "checkpoints"),
    )
    certain = [item for item in found.inputs if not item.guessed]
    assert certain == [InputReference("4", "image", "photo.png"), InputReference("7", "image", "upload.png")]


def test_links_in_a_circle_end() -> None:
    workflow = {"1": node("CPackInputAny", input=["2", 0]), "2": node("CPackInputAny", input=["1", 0])}
    assert references(workflow | {"3": node("LoadImage", image=["1", 0])}).inputs == ()


def test_annotated_names_say_where_they_lie() -> None:
    assert files(
        node("LoadImage", image="sub/a.png [output]"),
        node("LoadImageOutput", image="b.png"),
        node("LoadImage", image="c.png [input]"),
        node("LoadVideo", file="d.mp4[temp]"),
        node("LoadImage", image=""),
    ) == [
        ("image", "sub/a.png", "output"),
        ("image", "b.png", "output"),
        ("image", "c.png", "input"),
        ("file", "d.mp4", "temp"),
    ]


def test_an_unknown_loader_is_guessed_by_the_shape_of_its_value() -> None:
    found = references(
        {
            "1": node("Power Lora Loader", lora_1={"on": True, "lora": "x.safetensors", "strength": 1}),
            "2": node("Own", model="folder\\y.GGUF", picture="z.JPG", address="https://hub.example/w.safetensors"),
            "3": node("Own", text="several lines\nending in.png", number=3, link=["1", 0], names=["a.ckpt", ["1", 0]]),
        }
    )
    assert [(model.input_name, model.value) for model in found.models] == [
        ("lora_1.lora", "x.safetensors"),
        ("model", "folder\\y.GGUF"),
        ("names.0", "a.ckpt"),
    ]
    assert [item.value for item in found.inputs] == ["z.JPG"]
    assert all(item.guessed for item in (*found.models, *found.inputs))


def test_embeddings_are_words_of_a_prompt() -> None:
    text = "a cat, embedding:bad-hands, (embedding:sub/style.pt:1.2) myembedding:no"
    found = references({"1": node("CLIPTextEncode", text=text, clip=["2", 0])}).models
    assert [model.value for model in found] == [
        "bad-hands.safetensors",
        "bad-hands.pt",
        "bad-hands.bin",
        "sub/style.pt",
    ]
    assert {(model.folder, model.guessed) for model in found} == {("embeddings", True)}


INFO: dict[str, Any] = {
    "LoraLoader": {"input": {"required": {"lora_name": [["a.safetensors", "b.safetensors"], {}]}}},
    "Stack": {
        "input": {
            "required": {"name": [["None", "b.safetensors", "a.safetensors"]], "mode": [["x", "y"], {"default": "x"}]},
            "optional": {"more": ["COMBO", {"options": ["z.onnx"]}]},
        }
    },
    "Pictures": {
        "input": {
            "required": {
                "one": [["a.png"], {"image_upload": True}],
                "two": ["COMBO", {"options": [], "video_upload": True, "image_folder": "output"}],
                "three": [["x.wav", "y.wav"]],
                "prompt": ["STRING", {"multiline": True}],
            }
        }
    },
}


def test_object_info_tells_the_loaders_of_custom_nodes() -> None:
    stack = node("Stack", name="b.safetensors", more="z.onnx", mode="x")
    found = references({"1": stack, "2": node("Stack", name="None")}, INFO).models
    assert [(model.input_name, model.folder, model.guessed) for model in found] == [
        ("name", "loras", False),
        ("more", None, False),
    ]
    pictures = node("Pictures", one="a.png", two="any name", three="z.wav", prompt="like that of c.png")
    assert files(pictures, info=INFO) == [
        ("one", "a.png", "input"),
        ("two", "any name", "output"),
        ("three", "z.wav", "input"),
    ]


def test_two_folders_with_the_same_files_are_not_told_apart() -> None:
    info = {
        **INFO,
        "VAELoader": {"input": {"required": {"vae_name": [["a.safetensors", "b.safetensors", "pixel_space"]]}}},
    }
    assert models(node("Stack", name="a.safetensors"), info=info) == [("name", "a.safetensors", None)]


def test_the_table_is_what_comfyui_declares() -> None:
    """Classes that both know have the inputs that the table names; one that has gone would never be found."""
    path = Path(__file__).parent / "object_info_0_3_64.json"
    info = json.loads(path.read_text())
    for table in (MODEL_INPUTS, FILE_INPUTS):
        for class_type, inputs in table.items():
            if class_type not in info:
                continue
            declared = {name for group in info[class_type]["input"].values() for name in group}
            assert set(inputs) <= declared, class_type
    known = set(MODEL_INPUTS) & set(info)
    assert {"CheckpointLoaderSimple", "UpscaleModelLoader", "VAELoader", "QuadrupleCLIPLoader"} <= known


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from(["a.png", "b.pt", "x [temp]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    workflow=st.dictionaries(
        st.sampled_from(["1", "2", "3:4"]),
        _JSON
        | st.fixed_dictionaries(
            {"class_type": st.sampled_from(["LoadImage", "CPackInputAny", "LoraLoader", "Stack"])},
            optional={"inputs": st.dictionaries(st.sampled_from(["image", "lora_name", "name"]), _JSON, max_size=3)},
        ),
        max_size=3,
    ),
    info=st.one_of(st.none(), st.just(INFO), st.dictionaries(st.sampled_from(["Stack", "LoraLoader"]), _JSON)),
)
def test_any_document_has_references_or_none(workflow: dict[str, Any], info: dict[str, Any] | None) -> None:
    found = references(workflow, info)
    assert all(item.value for item in (*found.models, *found.inputs))
