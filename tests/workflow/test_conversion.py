"""A drawing of the editor becomes the prompt that its frontend would export, or an error says how to export it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpack_build.errors import WorkflowError
from cpack_build.workflow import read_workflow
from cpack_build.workflow.conversion import Converted, convert, is_ui_format

INFO: dict[str, Any] = json.loads((Path(__file__).parent / "object_info_0_3_64.json").read_text())
INFO |= {
    "CPackInputAny": {"input": {"required": {"input": ["*", {"default": ""}]}}, "display_name": "Any Input"},
    "CPackOutputImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "x"}]}},
        "display_name": "Image Output",
    },
    "Grown": {"input": {"required": {"parts": ["COMFY_AUTOGROW_V3", {"template": {
        "input": {"required": {"part": ["STRING", {}]}}, "prefix": "part", "min": 1}}]}}},
    "Growing": {"input": {"required": {"pics": ["COMFY_AUTOGROW_V3", {"template": {
        "input": {"required": {"pic": ["IMAGE", {}]}}, "prefix": "pic", "min": 1}}],
        "after": ["STRING", {"default": ""}]}}, "output": ["IMAGE"]},
    "Dynamic": {"input": {"required": {"mode": ["COMFY_DYNAMICCOMBO_V3", {"options": [
        {"key": "a", "inputs": {"required": {"words": ["STRING", {"default": "x"}]}}},
        {"key": "b", "inputs": {"required": {
            "strength": ["FLOAT", {"default": 0.5}], "seed": ["INT", {"control_after_generate": True}],
            "pic": ["IMAGE"],
        }}},
    ]}], "tail": ["STRING", {"default": ""}]}}, "output": ["IMAGE"]},
    "Anything Everywhere": {"input": {"optional": {"anything": ["*", {}]}}},
    "Choosing": {"input": {"required": {"mode": ["COMBO", {"options": ["a", "b"], "control_after_generate": True}],
                                        "strength": ["FLOAT", {"default": 0.5}]}}},
}  # fmt: skip


class Drawing:
    """A workflow as the editor keeps it, node by node."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []
        self.subgraphs: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}

    def node(self, identity: int, kind: str, *values: Any, inputs: str = "", outputs: str = "", **more: Any) -> Drawing:
        """*inputs* and *outputs* are ``name:TYPE`` words."""
        slots = [dict(zip(("name", "type"), word.split(":"), strict=True)) for word in inputs.split()]
        for slot in slots:
            slot["link"] = None  # type: ignore[assignment]
        results = [dict(zip(("name", "type"), word.split(":"), strict=True)) for word in outputs.split()]
        self.nodes.append(
            {"id": identity, "type": kind, "mode": 0, "order": len(self.nodes), "inputs": slots, "outputs": results,
             "widgets_values": list(values), **more}
        )  # fmt: skip
        return self

    def link(self, origin: int, origin_slot: int, target: int, target_slot: int, kind: str = "IMAGE") -> Drawing:
        identity = len(self.links) + 1
        self.links.append([identity, origin, origin_slot, target, target_slot, kind])
        for node in self.nodes:
            if node["id"] == target:
                node["inputs"][target_slot]["link"] = identity
        return self

    def document(self) -> dict[str, Any]:
        return {
            "last_node_id": 99, "nodes": self.nodes, "links": self.links, "definitions": {"subgraphs": self.subgraphs},
            "extra": self.extra,
        }  # fmt: skip

    def convert(self) -> Converted:
        return convert(self.document(), INFO, name="w")

    def prompt(self) -> dict[str, Any]:
        return self.convert().prompt


def picture() -> Drawing:
    return Drawing().node(1, "LoadImage", "a.png", "image", outputs="IMAGE:IMAGE MASK:MASK")


def saved(drawing: Drawing, **more: Any) -> Drawing:
    return drawing.node(9, "SaveImage", "out", inputs="images:IMAGE", **more)


def test_widget_values_go_to_inputs_in_declared_order_and_controls_to_none() -> None:
    sampler = "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT"
    drawing = Drawing().node(3, "KSampler", 42, "randomize", 20, 8, "euler", "normal", 0.75, inputs=sampler)
    assert drawing.prompt()["3"] == {
        "inputs": {
            "seed": 42, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.75
        },
        "class_type": "KSampler",
        "_meta": {"title": "KSampler"},
    }  # fmt: skip


def test_a_combo_with_a_control_has_a_filter_too() -> None:
    assert Drawing().node(1, "Choosing", "b", "increment", "", 0.25).prompt()["1"]["inputs"] == {
        "mode": "b",
        "strength": 0.25,
    }
    assert Drawing().node(1, "Choosing", "b", "fixed", 0.25).prompt()["1"]["inputs"]["strength"] == 0.25


def test_values_that_a_later_comfyui_added_take_their_defaults() -> None:
    inputs = Drawing().node(1, "Choosing", "a", "fixed", "").prompt()["1"]["inputs"]
    assert inputs == {"mode": "a", "strength": 0.5}


def test_links_come_over_widgets_and_names_of_widgets_may_be_given() -> None:
    drawing = picture().node(2, "PrimitiveInt", 64, outputs="INT:INT")
    drawing.node(3, "ImageScale", "area", 10, 20, "disabled", inputs="image:IMAGE width:INT", outputs="IMAGE:IMAGE")
    saved(drawing).link(1, 0, 3, 0).link(2, 0, 3, 1, "INT").link(3, 0, 9, 0)
    prompt = drawing.prompt()
    assert prompt["3"]["inputs"] == {
        "upscale_method": "area", "width": ["2", 0], "height": 20, "crop": "disabled", "image": ["1", 0]
    }  # fmt: skip
    assert prompt["1"]["inputs"] == {"image": "a.png"}
    drawing.nodes[0]["widgets_values"] = {"image": "b.png"}
    assert drawing.prompt()["1"]["inputs"] == {"image": "b.png"}


def test_a_title_is_kept_and_notes_vanish() -> None:
    drawing = saved(picture()).node(5, "MarkdownNote", "read me", title="About").link(1, 0, 9, 0)
    drawing.nodes[1]["title"] = "picture"
    prompt = drawing.prompt()
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["_meta"] == {"title": "picture"}


def test_a_muted_node_and_the_links_from_it_vanish() -> None:
    drawing = saved(picture().node(2, "ImageInvert", inputs="image:IMAGE", outputs="IMAGE:IMAGE", mode=2))
    prompt = drawing.link(1, 0, 2, 0).link(2, 0, 9, 0).prompt()
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["inputs"] == {"filename_prefix": "out"}


def test_a_bypassed_node_hands_on_the_input_of_the_wanted_type() -> None:
    """The input at the same place if it fits, else the first of that very type, else none."""
    drawing = picture().node(2, "Unknown", inputs="mask:MASK image:IMAGE", outputs="IMAGE:IMAGE", mode=4)
    saved(drawing).link(1, 1, 2, 0, "MASK").link(1, 0, 2, 1).link(2, 0, 9, 0)
    assert drawing.prompt()["9"]["inputs"]["images"] == ["1", 0]
    drawing.nodes[1]["inputs"][1]["type"] = "LATENT"
    assert "images" not in drawing.prompt()["9"]["inputs"]


def test_reroutes_and_set_and_get_are_followed() -> None:
    drawing = picture().node(2, "Reroute", inputs="in:*", outputs="out:*")
    drawing.node(3, "SetNode", "name", inputs="IMAGE:IMAGE").node(4, "GetNode", "name", outputs="IMAGE:IMAGE")
    saved(drawing).link(1, 0, 2, 0).link(2, 0, 3, 0).link(4, 0, 9, 0)
    prompt = drawing.prompt()
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["inputs"]["images"] == ["1", 0]


def test_a_primitive_gives_its_value_also_through_a_reroute() -> None:
    drawing = picture().node(5, "PrimitiveNode", 7, "fixed", outputs="INT:INT")
    drawing.node(6, "Reroute", inputs="in:*", outputs="out:*")
    drawing.node(3, "ImageScale", "area", 10, 20, "disabled", inputs="image:IMAGE width:INT height:INT")
    drawing.link(1, 0, 3, 0).link(5, 0, 3, 1, "INT").link(5, 0, 6, 0, "INT").link(6, 0, 3, 2, "INT")
    inputs = drawing.prompt()["3"]["inputs"]
    assert (inputs["width"], inputs["height"]) == (7, 7)


def with_subgraph(**more: Any) -> Drawing:
    """Picture → a subgraph that inverts and scales → saved."""
    drawing = picture().node(5, "sub-1", inputs="image:IMAGE", outputs="IMAGE:IMAGE", **more)
    drawing.nodes[1]["widgets_values"] = more.get("widgets_values", [])
    inner = Drawing().node(1, "ImageInvert", inputs="image:IMAGE", outputs="IMAGE:IMAGE")
    inner.node(2, "ImageScale", "area", 10, 20, "disabled", inputs="image:IMAGE width:INT", outputs="IMAGE:IMAGE")
    for identity, (origin, slot, target, target_slot) in enumerate(((-10, 0, 1, 0), (1, 0, 2, 0), (2, 0, -20, 0)), 1):
        link = {
            "id": identity,
            "origin_id": origin,
            "origin_slot": slot,
            "target_id": target,
            "target_slot": target_slot,
        }
        inner.links.append(link)  # type: ignore[arg-type]
    inner.nodes[0]["inputs"][0]["link"] = 1
    inner.nodes[1]["inputs"][0]["link"] = 2
    drawing.subgraphs.append({"id": "sub-1", "nodes": inner.nodes, "links": inner.links})
    return saved(drawing).link(1, 0, 5, 0).link(5, 0, 9, 0)


def test_a_subgraph_is_laid_flat_under_ids_with_a_colon() -> None:
    prompt = with_subgraph().prompt()
    assert set(prompt) == {"1", "5:1", "5:2", "9"}
    assert prompt["5:1"]["inputs"] == {"image": ["1", 0]}
    assert prompt["5:2"]["inputs"]["image"] == ["5:1", 0]
    assert prompt["9"]["inputs"]["images"] == ["5:2", 0]


def test_a_bypassed_or_muted_subgraph_is_as_one_node() -> None:
    assert with_subgraph(mode=4).prompt()["9"]["inputs"]["images"] == ["1", 0]
    assert set(with_subgraph(mode=2).prompt()) == {"1", "9"}


def test_values_that_a_subgraph_shows_are_those_of_its_own_node() -> None:
    drawing = with_subgraph(widgets_values=[333], properties={"proxyWidgets": [["2", "width"]]})
    assert drawing.prompt()["5:2"]["inputs"]["width"] == 333
    with pytest.raises(WorkflowError, match=r"subgraph 5.*Export \(API\)"):
        with_subgraph(widgets_values=[1, 2, 3]).convert()


def test_a_subgraph_may_show_widgets_by_inputs_that_its_own_node_does_not_list() -> None:
    """As frontends of 2025 wrote it: the value belongs to the first input that ends in a widget."""
    drawing = with_subgraph(widgets_values=[444])
    definition = drawing.subgraphs[0]
    definition["inputs"] = [{"name": "shown"}, {"name": "image"}]
    links = definition["links"]
    links[0]["origin_slot"] = 1
    links.append({"id": 9, "origin_id": -10, "origin_slot": 0, "target_id": 2, "target_slot": 1})
    definition["nodes"][1]["inputs"][1] |= {"link": 9, "widget": {"name": "width"}}
    prompt = drawing.prompt()
    assert prompt["5:2"]["inputs"]["width"] == 444
    assert prompt["5:1"]["inputs"] == {"image": ["1", 0]}


def test_controls_of_the_first_frontends_and_of_later_declarations_are_told() -> None:
    values = (42, True, 20, 8, "euler", "normal", 1)
    assert Drawing().node(3, "KSampler", *values).prompt()["3"]["inputs"]["steps"] == 20
    values = (42, 20, "fixed", 8, "euler", "normal", 1)
    assert Drawing().node(3, "KSampler", *values).prompt()["3"]["inputs"]["cfg"] == 8


def test_a_subgraph_within_itself_ends_in_an_error() -> None:
    drawing = with_subgraph()
    drawing.subgraphs[0]["nodes"].append({"id": 7, "type": "sub-1"})
    with pytest.raises(WorkflowError, match="without end"):
        drawing.convert()


def test_a_choice_that_brings_inputs_and_inputs_that_grow() -> None:
    """As frontend 1.58 exported these very drawings."""
    drawing = picture().node(2, "Dynamic", "b", 0.25, 7, "fixed", "t", inputs="mode.pic:IMAGE", outputs="IMAGE:IMAGE")
    drawing.node(4, "Dynamic", "a", "hello", "tail2", outputs="IMAGE:IMAGE")
    drawing.node(6, "Growing", "after", inputs="pics.pic0:IMAGE pics.pic1:IMAGE pics.pic2:IMAGE", outputs="I:IMAGE")
    saved(drawing).link(1, 0, 2, 0).link(2, 0, 6, 0).link(4, 0, 6, 1).link(6, 0, 9, 0)
    inputs = {key: node["inputs"] for key, node in drawing.prompt().items()}
    assert inputs["2"] == {
        "mode": "b", "mode.strength": 0.25, "mode.seed": 7, "tail": "t", "mode.pic": ["1", 0],
    }  # fmt: skip
    assert inputs["4"] == {"mode": "a", "mode.words": "hello", "tail": "tail2"}
    assert inputs["6"] == {"pics.pic0": ["2", 0], "pics.pic1": ["4", 0], "after": "after"}
    named = {"mode": "b", "mode.strength": 0.25, "mode.seed": 7, "control_after_generate": "fixed", "tail": "t"}
    drawing.nodes[1] |= {"widgets_values": ["not", "looked", "at"], "widgets_values_named": named}
    assert drawing.prompt()["2"]["inputs"] == inputs["2"]


def group_node() -> Drawing:
    """A loader, a group node of five, and what saves its picture."""
    inside = [
        {"type": "CLIPTextEncode", "inputs": [{"name": "clip", "type": "CLIP"}], "widgets_values": ["old"]},
        {"type": "CLIPTextEncode", "title": "negative", "inputs": [{"name": "clip", "type": "CLIP"}],
         "widgets_values": ["old"]},
        {"type": "EmptyLatentImage", "inputs": [], "widgets_values": [64, 64, 1]},
        {"type": "KSampler", "inputs": [
            {"name": name, "type": "*"} for name in ("model", "positive", "negative", "latent_image")
        ], "widgets_values": [1, "fixed", 20, 8, "euler", "normal", 1]},
        {"type": "VAEDecode", "inputs": [{"name": "samples", "type": "LATENT"}, {"name": "vae", "type": "VAE"}]},
    ]  # fmt: skip
    links = [[0, 0, 3, 1, 1, "CONDITIONING"], [1, 0, 3, 2, 2, "CONDITIONING"], [2, 0, 3, 3, 3, "LATENT"],
             [3, 0, 4, 0, 4, "LATENT"]]  # fmt: skip
    drawing = Drawing().node(1, "CheckpointLoaderSimple", "m.pt", outputs="MODEL:MODEL CLIP:CLIP VAE:VAE")
    values = ("a cat", "a dog", 128, 96, 2, 77, "randomize", 15, 7.5, "euler", "karras", 0.9)
    drawing.node(
        2, "workflow>gen", *values, inputs="clip:CLIP negative_clip:CLIP model:MODEL vae:VAE", outputs="IMAGE:IMAGE"
    )
    drawing.nodes[1]["inputs"][1]["name"] = "negative clip"
    saved(drawing).link(1, 1, 2, 0).link(1, 1, 2, 1).link(1, 0, 2, 2).link(1, 2, 2, 3).link(2, 0, 9, 0)
    drawing.extra = {"groupNodes": {"gen": {"nodes": inside, "links": links, "external": []}}}
    return drawing


def test_a_group_node_is_laid_flat_with_its_own_values() -> None:
    """As frontend 1.27 exported this very drawing."""
    prompt = {key: node["inputs"] for key, node in group_node().prompt().items()}
    assert prompt["2:0"] == {"text": "a cat", "clip": ["1", 1]}
    assert prompt["2:1"] == {"text": "a dog", "clip": ["1", 1]}
    assert prompt["2:2"] == {"width": 128, "height": 96, "batch_size": 2}
    assert prompt["2:3"] == {
        "seed": 77, "steps": 15, "cfg": 7.5, "sampler_name": "euler", "scheduler": "karras", "denoise": 0.9,
        "model": ["1", 0], "positive": ["2:0", 0], "negative": ["2:1", 0], "latent_image": ["2:2", 0],
    }  # fmt: skip
    assert prompt["2:4"] == {"samples": ["2:3", 0], "vae": ["1", 2]}
    assert prompt["9"]["images"] == ["2:4", 0]


def test_a_group_node_whose_values_do_not_come_out_even_is_refused() -> None:
    drawing = group_node()
    drawing.nodes[1]["widgets_values"] = ["a cat", 3, "more"]
    with pytest.raises(WorkflowError, match="group node 2"):
        drawing.convert()
    drawing.nodes[1]["widgets_values"] = [*"abcdefgh"] * 3
    with pytest.raises(WorkflowError, match="group node 2"):
        drawing.convert()


def test_a_widget_shown_through_two_subgraphs_has_the_outermost_value() -> None:
    """As frontend 1.58 exported this very drawing."""
    drawing = with_subgraph(widgets_values=[777], properties={"proxyWidgets": [["3", "width"]]})
    inner = drawing.subgraphs[0]
    deep = {**inner, "id": "sub-2"}
    use = {
        "id": 3, "type": "sub-2", "widgets_values": [555], "properties": {"proxyWidgets": [["2", "width"]]},
        "inputs": [{"name": "image", "type": "IMAGE", "link": 1}], "outputs": [{"name": "I", "type": "IMAGE"}],
    }  # fmt: skip
    links = [[1, -10, 0, 3, 0], [2, 3, 0, -20, 0]]
    drawing.subgraphs[:] = [{"id": "sub-1", "nodes": [use], "links": links}, deep]
    assert drawing.prompt()["5:3:2"]["inputs"]["width"] == 777
    drawing.nodes[1]["properties"] = {}
    drawing.nodes[1]["widgets_values"] = []
    assert drawing.prompt()["5:3:2"]["inputs"]["width"] == 555


def test_a_value_held_for_an_input_of_the_subgraph_counts() -> None:
    drawing = with_subgraph(widgets_values=[444], properties={"proxyWidgets": [["-1", "shown"]]})
    definition = drawing.subgraphs[0]
    definition["inputs"] = [{"name": "image"}, {"name": "shown"}]
    definition["links"].append({"id": 9, "origin_id": -10, "origin_slot": 1, "target_id": 2, "target_slot": 1})
    definition["nodes"][1]["inputs"][1] |= {"link": 9, "widget": {"name": "width"}}
    assert drawing.prompt()["5:2"]["inputs"]["width"] == 444


def test_nodes_for_the_person_at_the_editor_vanish_and_missing_links_are_told() -> None:
    drawing = saved(picture()).node(5, "Fast Groups Bypasser (rgthree)").node(6, "Label (rgthree)")
    found = drawing.convert()
    assert set(found.prompt) == {"1", "9"}
    assert "nothing is linked to images of node 9 (SaveImage)" in found.notes[0]
    assert drawing.link(1, 0, 9, 0).convert().notes == ()


def test_our_any_and_file_inputs_keep_what_they_say_of_a_parameter() -> None:
    about = {"description": ["STRING", {"default": ""}], "required": ["BOOLEAN", {"default": False}]}
    info = {
        "CPackInputAny": {"input": {"required": {"input": ["*", {"default": ""}]}, "optional": about}},
        "CPackInputFile": {"input": {"required": {"path": ["STRING", {"default": ""}]}, "optional": about}},
    }
    drawing = picture().node(4, "CPackInputAny", 8, "how much", True, outputs="value:*", title="n")
    drawing.node(5, "CPackInputFile", "a.txt", "which", True, outputs="path:*", title="f")
    drawing.node(6, "CPackInputAny", 7, outputs="value:*", title="old")  # as comfy-pack saved it
    prompt = convert(drawing.document(), {**INFO, **info}, name="w").prompt
    assert prompt["4"]["inputs"] == {"input": 8, "description": "how much", "required": True}
    assert prompt["5"]["inputs"] == {"path": "a.txt", "description": "which", "required": True}
    assert prompt["6"]["inputs"] == {"input": 7, "description": "", "required": False}


def test_an_any_input_has_the_value_and_the_choices_of_what_it_feeds() -> None:
    drawing = picture().node(4, "CPackInputAny", "bicubic", outputs="value:*", title="method")
    drawing.node(
        3, "ImageScale", "area", 10, 20, "disabled", inputs="upscale_method:COMBO image:IMAGE", outputs="I:IMAGE"
    )
    drawing.node(9, "CPackOutputImage", "x", inputs="images:IMAGE").link(4, 0, 3, 0).link(1, 0, 3, 1).link(3, 0, 9, 0)
    prompt = drawing.prompt()
    assert prompt["4"]["inputs"] == {"input": "bicubic"}
    (parameter,) = read_workflow(prompt, name="w").interface.inputs
    assert (parameter.name, parameter.type, parameter.default) == ("method", "choice", "bicubic")
    assert "lanczos" in parameter.choices


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        (Drawing().node(1, "NotInstalled"), "node 1 of class NotInstalled"),
        (Drawing().node(1, "workflow>mine"), "a group node"),
        (Drawing().node(1, "Grown"), "makes by code"),
        (Drawing().node(1, "Anything Everywhere"), "links by code"),
        (Drawing().node(3, "KSampler", "randomize", 20, 8), "where its input seed is INT"),
        (Drawing(), "no nodes to run"),
    ],
)
def test_what_cannot_be_converted_says_how_to_export_it(drawing: Drawing, words: str) -> None:
    with pytest.raises(WorkflowError, match=words) as caught:
        drawing.convert()
    assert "Export (API)" in caught.value.hint


def test_without_object_info_the_error_says_both_ways() -> None:
    with pytest.raises(WorkflowError, match="UI format") as caught:
        convert(picture().document(), None, name="w")
    assert "Export (API)" in caught.value.hint
    assert "/object_info" in caught.value.hint


def test_links_in_a_circle_are_an_error() -> None:
    drawing = (
        Drawing().node(1, "Reroute", inputs="in:*", outputs="out:*").node(2, "Reroute", inputs="in:*", outputs="o:*")
    )
    saved(drawing).link(1, 0, 2, 0).link(2, 0, 1, 0).link(2, 0, 9, 0)
    with pytest.raises(WorkflowError, match="circle"):
        drawing.convert()


def test_a_long_chain_of_reroutes_is_followed_or_refused() -> None:
    drawing = picture()
    for number in range(10, 2000):
        drawing.nodes.append({"id": number, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": number}]})
        drawing.links.append([number, number - 1 if number > 10 else 1, 0, number, 0, "*"])
    drawing.nodes.append(
        {"id": 9999, "type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 9999}]}
    )
    drawing.links.append([9999, 1999, 0, 9999, 0, "*"])
    with pytest.raises(WorkflowError, match="too deeply"):
        drawing.convert()


def test_values_that_nobody_declares_are_told() -> None:
    found = Drawing().node(1, "Choosing", "a", "fixed", "", 0.5, "more").convert()
    assert "node 1 (Choosing) keeps 1 values" in found.notes[0]
    assert is_ui_format(picture().document())
    assert not is_ui_format({"1": {"class_type": "X", "inputs": {}}})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-30, 30) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "link", "type"]), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    path=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    value=_JSON,
    base=st.sampled_from([lambda: saved(picture()), with_subgraph, group_node]),
)
def test_any_change_of_a_drawing_is_converted_or_refused(
    path: list[int], value: Any, base: Callable[[], Drawing]
) -> None:
    document: Any = json.loads(json.dumps(base().document()))
    place = document
    for step in path:
        members = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
        if not members:
            break
        key = members[step % len(members)]
        if step is path[-1] or not isinstance(place[key], dict | list):
            place[key] = value
            break
        place = place[key]
    with suppress(WorkflowError):
        convert(document, INFO, name="w")
