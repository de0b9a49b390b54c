"""The interface nodes in ComfyUI's own editor: what is set lasts through connecting, saving, subgraphs and export."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import pytest

from cpack_build.workflow import read_workflow
from cpack_build.workflow.conversion import convert
from tests.nodes.comfy import Comfy
from tests.nodes.conftest import ComfyPage, OpenComfy
from tests.serve.running import FIXTURE_PACK
from tests.serve.workflows import picture

# Puts one of every node into the editor and connects those that take the look of what they feed; returns nothing.
MAKE = """
() => {
  const app = window.app, graph = app.graph;
  graph.clear();
  const add = (type, x, y, title) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    graph.add(node);
    if (title) node.title = title;
    return node;
  };
  const slot = (node, name) => node.inputs.findIndex(input => input.name === name);
  const feed = (from, output, to, name) => from.connect(output, to, slot(to, name));
  const set = (node, values) => {
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets.find(widget => widget.name === name);
      widget.value = value;
      widget.callback?.(value);
    }
  };
  const photo = add("CPackInputImage", 0, 0, "photo"), mask = add("CPackInputMask", 0, 250, "mask");
  const scale = add("ImageScale", 400, 0), fail = add("StandinFail", 800, 0), wait = add("StandinSleep", 1000, 0);
  const width = add("CPackInputAny", 0, 500), method = add("CPackInputAny", 0, 650, "how to scale");
  const crop = add("CPackInputChoice", 0, 800), switched = add("CPackInputAny", 0, 1050);
  const height = add("CPackInputInt", 400, 500, "height"), seconds = add("CPackInputFloat", 400, 700, "seconds");
  const text = add("CPackInputString", 400, 900, "caption"), message = add("CPackInputAny", 400, 1000);
  const doFail = add("CPackInputBoolean", 800, 500, "doomed"), file = add("CPackInputFile", 800, 700, "attachment");
  const shown = add("MaskToImage", 400, 250);
  feed(photo, 0, scale, "image");
  feed(mask, 0, shown, "mask");
  feed(width, 0, scale, "width");
  feed(method, 0, scale, "upscale_method");
  feed(crop, 0, scale, "crop");
  feed(height, 0, scale, "height");
  feed(scale, 0, fail, "value");
  feed(doFail, 0, fail, "fail");
  feed(message, 0, fail, "message");
  feed(fail, 0, wait, "value");
  feed(seconds, 0, wait, "seconds");
  const pictures = add("CPackOutputImage", 1300, 0, "picture"), zip = add("CPackOutputZip", 1300, 150, "all");
  const note = add("CPackOutputTextFile", 1300, 350, "note"), json = add("CPackOutputJSON", 1300, 500, "value");
  const copy = add("CPackOutputFile", 1300, 650, "copied"), film = add("CPackOutputVideo", 1300, 800, "film");
  const make = add("CreateVideo", 1000, 800);
  feed(wait, 0, pictures, "images");
  feed(shown, 0, zip, "images");
  feed(text, 0, note, "text");
  feed(switched, 0, json, "value");
  feed(file, 0, copy, "filename");
  feed(scale, 0, make, "images");
  feed(make, 0, film, "video");
  add("CPackOutputZipSwitch", 1300, 1000);
  set(photo, {image: "editor.png", description: "What to scale"});
  set(mask, {image: "editor.png", channel: "red", required: true});
  set(width, {input: 77, description: "Pixels"});
  set(method, {input: "bicubic"});
  set(height, {min: 16, max: 512, value: 48});
  set(seconds, {min: 0, max: 2.5, value: 0.25});
  set(text, {value: "grüße"});
  set(doFail, {value: false});
  set(file, {path: "input/editor.txt", description: "A file"});
}
"""
PARAMETERS = {
    "photo": {"type": "string", "format": "binary", "description": "What to scale"},
    "mask": {"type": "string", "format": "binary"},
    "width": {"type": "integer", "minimum": 0, "maximum": 16384, "default": 77, "description": "Pixels"},
    "upscale_method": {
        "title": "how to scale",
        "enum": ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"],
        "default": "bicubic",
    },
    "crop": {"enum": ["disabled", "center"], "default": "disabled"},
    "value": {"type": "string", "default": ""},
    "height": {"type": "integer", "minimum": 16, "maximum": 512, "default": 48},
    "seconds": {"type": "number", "minimum": 0, "maximum": 2.5, "default": 0.25},
    "caption": {"type": "string", "default": "grüße"},
    "message": {"type": "string", "default": "asked to fail"},
    "doomed": {"type": "boolean", "default": False},
    "attachment": {"type": "string", "format": "binary", "description": "A file"},
}
OUTPUTS = {
    "picture": "image",
    "all": "zip",
    "note": "text",
    "value": "json",
    "copied": "file",
    "film": "video",
}
_LOOKS = """
() => {
  const all = graph => graph.nodes.flatMap(node => node.subgraph ? [node, ...all(node.subgraph)] : [node]);
  const found = all(window.app.rootGraph ?? window.app.graph.rootGraph ?? window.app.graph)
    .filter(node => node.type.startsWith("CPack"));
  return Object.fromEntries(found.map(node => [
    `${node.type} ${node.title}`, (node.widgets ?? [])
      .filter(widget => !widget.name.startsWith("$$")) // the frontend's own preview of a picture, once that is there
      .map(widget => [widget.name, widget.type, widget.value])]));
}
"""


def from_json_schema(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the service reads in an export: the schema of its parameters, and the kinds of its outputs."""
    from cpack_build.workflow import json_schema

    interface = read_workflow(document, name="export").interface
    return dict(json_schema(interface)["properties"]), {item.name: item.kind for item in interface.outputs}


@pytest.fixture
def opened(comfy: Comfy, comfy_page: OpenComfy) -> ComfyPage:
    """The editor, with one of every node."""
    (comfy.folder / "input" / "editor.png").write_bytes(picture())
    (comfy.folder / "input" / "editor.txt").write_bytes(b"x")
    page = comfy_page()
    page.page.evaluate(MAKE)
    return page


def test_an_export_of_every_node_is_what_the_service_expects(opened: ComfyPage) -> None:
    parameters, outputs = from_json_schema(opened.export())
    assert parameters == PARAMETERS
    assert outputs == OUTPUTS
    assert read_workflow(opened.export(), name="w").interface.zipped
    required = [item.name for item in read_workflow(opened.export(), name="w").interface.inputs if item.required]
    assert required == ["mask"]
    opened.shot("every-node")


def test_values_titles_and_looks_are_the_same_after_saving_and_opening_again(opened: ComfyPage) -> None:
    exported, looks, drawing = opened.export(), opened.page.evaluate(_LOOKS), opened.drawing()
    assert looks["CPackInputAny width"][0] == ["input", "number", 77]
    assert looks["CPackInputAny how to scale"][0] == ["input", "combo", "bicubic"]
    assert looks["CPackInputChoice crop"][0] == ["value", "combo", "disabled"]
    opened.page.reload()
    opened.ready()
    opened.load(json.loads(json.dumps(drawing)))
    assert opened.export() == exported
    assert opened.page.evaluate(_LOOKS) == looks
    again = opened.drawing()
    assert [node.get("widgets_values") or [] for node in again["nodes"]] == [
        node.get("widgets_values") or [] for node in drawing["nodes"]
    ]


def test_a_drawing_is_converted_without_the_editor_as_the_editor_exports_it(comfy: Comfy, opened: ComfyPage) -> None:
    info = comfy.get("/object_info").json()
    converted = convert(opened.drawing(), info, name="drawing").prompt
    exported = opened.export()
    assert converted.keys() == exported.keys()
    for node_id, node in exported.items():
        assert converted[node_id]["inputs"] == node["inputs"], (node_id, node["class_type"])
    assert from_json_schema(converted) == from_json_schema(exported)


def test_a_value_or_title_that_was_set_before_connecting_stays(opened: ComfyPage) -> None:
    found = opened.page.evaluate("""
    () => {
      const graph = window.app.graph; graph.clear();
      const add = type => { const node = LiteGraph.createNode(type); graph.add(node); return node; };
      const any = add("CPackInputAny"), scale = add("ImageScale"), other = add("ImageScale");
      const images = add("ImageInvert");
      any.widgets[0].value = "300"; any.title = "mine";
      const at = name => scale.inputs.findIndex(input => input.name === name);
      const told = () => [any.title, any.widgets[0].type, any.widgets[0].value, any.widgets.length, any.inputs.length];
      any.connect(0, scale, at("width")); const first = told();
      any.connect(0, other, at("crop")); const second = told();
      scale.disconnectInput(at("width")); const third = told();
      other.disconnectInput(at("crop")); const alone = told();
      any.connect(0, scale, at("crop")); const combo = told();
      const file = add("CPackInputFile");
      const refused = !file.connect(0, images, 0);
      return {first, second, third, alone, combo, refused};
    }""")
    assert found["first"] == ["mine", "number", 300, 3, 3]
    assert found["second"] == ["mine", "number", 300, 3, 3]  # the first that it feeds says what it looks like
    assert found["third"] == found["first"]
    assert found["alone"] == found["first"]
    assert found["combo"] == ["mine", "combo", "disabled", 3, 3]  # a number is none of the choices
    assert found["refused"] is True


def test_in_a_subgraph_everything_stays_and_the_export_names_the_inner_nodes(opened: ComfyPage) -> None:
    before = opened.export()
    opened.page.evaluate("""
    () => {
      const graph = window.app.graph;
      const inner = ["width", "how to scale", "crop", "caption", "note"];
      const chosen = graph.nodes.filter(node => inner.includes(node.title) || node.type === "ImageScale");
      graph.convertToSubgraph(new Set(chosen));
    }""")
    exported, looks = opened.export(), opened.page.evaluate(_LOOKS)
    inside = [node_id for node_id in exported if ":" in node_id]
    assert len(inside) == 6
    parameters, outputs = from_json_schema(exported)
    assert parameters == PARAMETERS
    assert outputs == OUTPUTS
    by_class = lambda prompt: sorted((n["class_type"], n["_meta"]["title"]) for n in prompt.values())  # noqa: E731
    assert by_class(exported) == by_class(before)
    drawing = opened.drawing()
    opened.page.reload()
    opened.ready()
    opened.load(drawing)
    assert opened.export() == exported
    assert opened.page.evaluate(_LOOKS) == looks


def test_an_input_outside_a_subgraph_takes_the_look_of_the_widget_within(opened: ComfyPage) -> None:
    opened.page.evaluate("""
    () => {
      const graph = window.app.graph;
      graph.convertToSubgraph(new Set(graph.nodes.filter(node => node.type === "ImageScale")));
    }""")
    exported = opened.export()
    assert from_json_schema(exported)[0] == {**PARAMETERS}
    drawing = opened.drawing()
    opened.page.reload()
    opened.ready()
    opened.load(drawing)
    assert opened.export() == exported


LEGACY: dict[str, Any] = {
    "last_node_id": 8, "last_link_id": 4, "version": 0.4, "config": {}, "extra": {}, "groups": [],
    "links": [[1, 1, 0, 3, 0, "IMAGE"], [2, 2, 0, 3, 1, "INT"], [3, 4, 0, 3, 2, "COMBO"], [4, 3, 0, 8, 0, "IMAGE"]],
}  # fmt: skip


def legacy_node(number: int, kind: str, title: str, values: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "id": number, "type": kind, "title": title, "widgets_values": values, "pos": [300 * (number % 3), 200 * number],
        "size": [210, 100], "flags": {}, "order": number, "mode": 0, "properties": {}, "inputs": [], "outputs": [],
        **more,
    }  # fmt: skip


def result(kind: str, *links: int) -> list[dict[str, Any]]:
    return [{"name": kind, "type": kind, "links": list(links) or None}]


def test_a_workflow_that_comfy_pack_saved_opens_unchanged(comfy: Comfy, opened: ComfyPage) -> None:
    """As its own frontend code left Any: with a slot named after the target, or with none at all."""
    renamed = [{"name": "cfg", "type": "FLOAT", "link": None, "widget": {"name": "cfg"}}]
    fed = [
        {"name": "image", "type": "IMAGE", "link": 1},
        {"name": "width", "type": "INT", "link": 2, "widget": {"name": "width"}},
        {"name": "upscale_method", "type": "COMBO", "link": 3, "widget": {"name": "upscale_method"}},
    ]
    nodes = [
        legacy_node(1, "CPackInputImage", "photo", ["editor.png", "image"], outputs=result("IMAGE", 1)),
        legacy_node(2, "CPackInputAny", "size", [300], inputs=renamed, outputs=result("*", 2)),
        legacy_node(3, "ImageScale", "x", ["bilinear", 64, 65, "disabled"], inputs=fed, outputs=result("IMAGE", 4)),
        legacy_node(4, "CPackInputAny", "how", ["area"], outputs=result("*", 3)),
        legacy_node(5, "CPackInputString", "t", ["hello"], outputs=result("STRING")),
        legacy_node(6, "CPackInputInt", "n", [5000, 0, 9999], outputs=result("INT")),
        legacy_node(7, "CPackInputFile", "f", ["input/editor.txt"], outputs=result("*")),
        legacy_node(8, "CPackOutputImage", "out", ["mine"], inputs=[{"name": "images", "type": "IMAGE", "link": 4}]),
    ]
    opened.load({**LEGACY, "nodes": nodes})
    exported = opened.export()
    plain = {"description": "", "required": False}
    values = {node_id: node["inputs"] for node_id, node in exported.items()}
    assert values == {
        "1": {"image": "editor.png", **plain},
        "2": {"input": 300, **plain},
        "3": {"image": ["1", 0], "width": ["2", 0], "upscale_method": ["4", 0], "height": 65, "crop": "disabled"},
        "4": {"input": "area", **plain},
        "5": {"value": "hello", **plain},
        "6": {"value": 5000, "min": 0, "max": 9999, **plain},
        "7": {"path": "input/editor.txt", **plain},
        "8": {"images": ["3", 0], "filename_prefix": "mine"},
    }
    assert [node["_meta"]["title"] for node in exported.values()] == ["photo", "size", "x", "how", "t", "n", "f", "out"]
    info = comfy.get("/object_info").json()
    converted = convert({**LEGACY, "nodes": nodes}, info, name="drawing").prompt
    assert {node_id: node["inputs"] for node_id, node in converted.items()} == values


def test_the_workflow_of_a_pack_of_comfy_packs_opens_and_exports_as_it_was_packed(opened: ComfyPage) -> None:
    if not FIXTURE_PACK.is_file():
        pytest.skip("needs the shared fixture upscale.cpack.zip")
    with zipfile.ZipFile(FIXTURE_PACK) as pack:
        packed = json.loads(pack.read("workflow_api.json"))  # it has no drawing
    opened.page.evaluate("packed => window.app.loadApiJson(packed, 'upscale')", packed)
    exported = opened.export()
    about = {"description", "required"}
    assert {
        node_id: {name: value for name, value in node["inputs"].items() if name not in about}
        for node_id, node in exported.items()
    } == {node_id: node["inputs"] for node_id, node in packed.items()}
    assert from_json_schema(exported) == from_json_schema(packed)
