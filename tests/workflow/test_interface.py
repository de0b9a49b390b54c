"""A workflow's parameters and results are named and typed by comfy-pack's rules, and nothing else than our errors comes
out of a document that cannot be served."""

from __future__ import annotations

import copy
import json
import keyword
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpack_build.errors import WorkflowError
from cpack_build.workflow import Input, Workflow, fill, json_schema, read_workflow

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "upscale.cpack.zip"
OUTPUT = {"class_type": "CPackOutputImage", "inputs": {"filename_prefix": "x", "images": ["elsewhere", 0]}, "_meta": {}}


def node(class_type: str, inputs: dict[str, Any], title: str | None = None, **meta: Any) -> dict[str, Any]:
    titled = {} if title is None else {"title": title}
    return {"class_type": class_type, "inputs": inputs, "_meta": {**titled, **meta}}


def read(*nodes: dict[str, Any], **named: dict[str, Any]) -> Workflow:
    numbered = {str(number): item for number, item in enumerate(nodes, start=1)}
    return read_workflow({**numbered, **named, "out": OUTPUT}, name="w")


def only(class_type: str, inputs: dict[str, Any], title: str | None = None, **meta: Any) -> Input:
    (item,) = read(node(class_type, inputs, title, **meta)).interface.inputs
    return item


def test_the_fixture_has_the_parameters_that_comfy_pack_gives_it() -> None:
    if not FIXTURE.is_file():
        pytest.skip("needs shared/fixtures/upscale.cpack.zip")
    with zipfile.ZipFile(FIXTURE) as pack:
        interface = read_workflow(pack.read("workflow_api.json"), name="upscale").interface
    found = {item.name: (item.type, item.default, item.required) for item in interface.inputs}
    assert found == {
        "photo": ("image", "example.png", False),
        "size": ("int", 64, False),
        "method": ("choice", "nearest-exact", False),
        "caption": ("string", "hello", False),
        "attachment": ("file", "input/notes.txt", False),
    }
    assert [(item.name, item.node_id, item.kind) for item in interface.outputs] == [
        ("picture", "7", "image"),
        ("note", "9", "text"),
        ("copied", "12", "file"),
    ]


@pytest.mark.parametrize(
    "title", [*keyword.kwlist, "_x", "_", "__init__", "model_config", "model_fields", "名前", "größe", "ctx", "self"]
)
def test_any_identifier_is_a_parameter_name_as_it_is(title: str) -> None:
    assert only("CPackInputString", {"value": "a"}, title).name == title


@pytest.mark.parametrize(
    ("title", "name"), [("My size!", "my_size"), ("2 cats", "2_cats"), ("*", "_"), ("", "string"), (None, "string")]
)
def test_another_title_is_normalised(title: str | None, name: str) -> None:
    assert only("CPackInputString", {"value": "a"}, title).name == name


def test_without_an_identifier_the_name_is_that_of_the_input_it_feeds() -> None:
    workflow = read(node("CPackInputInt", {"value": 1}, "Int Input"), node("KSampler", {"Seed": ["1", 0]}))
    assert workflow.interface.inputs[0].name == "seed"


def test_two_inputs_of_one_title_are_both_kept() -> None:
    workflow = read(node("CPackInputInt", {"value": 1}, "n"), **{"12:3": node("CPackInputInt", {"value": 2}, "n")})
    assert [item.name for item in workflow.interface.inputs] == ["n", "n_12_3"]
    assert fill(workflow, {"n": 7, "n_12_3": 8})["12:3"]["inputs"]["value"] == 8


def test_two_outputs_of_one_title_are_both_kept_and_an_input_may_share_it() -> None:
    outputs = {number: copy.deepcopy(OUTPUT) | {"_meta": {"title": "image"}} for number in ("8", "9")}
    nodes = {"1": node("CPackInputImage", {"image": "a.png"}, "image"), **outputs}
    interface = read_workflow(nodes, name="w").interface
    assert [item.name for item in interface.outputs] == ["image", "image_9"]
    assert [item.name for item in interface.inputs] == ["image"]


def test_an_int_needs_no_bounds_and_rounded_limits_are_none() -> None:
    plain = only("CPackInputInt", {"value": 5}, "n")
    assert (plain.minimum, plain.maximum) == (None, None)
    inputs = {"value": 5, "min": -9223372036854776000, "max": 9223372036854776000}
    rounded = only("CPackInputInt", inputs, "n")
    assert (rounded.minimum, rounded.maximum) == (None, None)
    bounded = only("CPackInputInt", {"min": 1, "max": 9, "value": 5}, "n")
    assert (bounded.minimum, bounded.maximum, bounded.default, bounded.key) == (1, 9, 5, "value")


def test_fractional_bounds_of_a_whole_number_are_the_next_ones_within() -> None:
    options = {"min": 0.5, "max": 7.5}
    for item in (
        only("CPackInputInt", {**options, "value": 3}, "n"),
        only("CPackInputAny", {"input": 3}, "n", options=options),
    ):
        assert (item.type, item.minimum, item.maximum) == ("int", 1, 7)


def test_bounds_that_exclude_everything_are_refused_by_name() -> None:
    with pytest.raises(WorkflowError, match=r"'n'.*minimum 9 above its maximum 1"):
        only("CPackInputInt", {"value": 5, "min": 9, "max": 1}, "n")


@pytest.mark.parametrize("class_type", ["CPackInputAny", "CPackInputFile"])
def test_the_value_of_any_and_file_may_have_any_key_and_is_put_back_under_the_nodes_own(class_type: str) -> None:
    workflow = read(node(class_type, {"cfg": "8"}, "guidance"))
    (item,) = workflow.interface.inputs
    assert (item.key, item.default) == ("cfg", "8")
    own = "input" if class_type == "CPackInputAny" else "path"
    assert fill(workflow, {})["1"]["inputs"] == {own: "8"}
    assert fill(workflow, {"guidance": "9"})["1"]["inputs"] == {own: "9"}


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        ("a", {"values": ["a", "b"]}, "choice"),
        (8, {"min": 0, "max": 100, "round": 0.01, "precision": 1}, "float"),
        (8, {"min": 0, "max": 100, "step": 10, "round": 1, "precision": 0}, "int"),
        (8, {"min": 0, "round": False}, "int"),
        (7.5, {"min": 0}, "float"),
        (8, {}, "number"),
        (8, None, "number"),
        (0.5, None, "float"),
        (True, {"on": "yes", "off": "no"}, "boolean"),
        ("text", {}, "string"),
        ("text", {"values": []}, "string"),
        ({"a": 1}, None, "any"),
        (None, None, "any"),
    ],
)
def test_the_type_of_any_is_that_of_the_widget_it_stands_for(value: object, options: object, expected: str) -> None:
    assert only("CPackInputAny", {"input": value}, "x", options=options).type == expected


def test_a_value_that_another_node_feeds_stays_unless_one_is_given() -> None:
    workflow = read(node("Other", {}), node("CPackInputInt", {"value": ["1", 0]}, "n"))
    (item,) = workflow.interface.inputs
    assert item.linked
    assert not item.required
    assert fill(workflow, {})["2"]["inputs"]["value"] == ["1", 0]
    assert fill(workflow, {"n": 3})["2"]["inputs"]["value"] == 3


def test_the_zip_switch_is_no_output_but_is_noticed() -> None:
    interface = read(node("CPackOutputZipSwitch", {}), node("CPackOutputZip", {"images": ["9", 0]})).interface
    assert interface.zipped
    assert [item.kind for item in interface.outputs] == ["zip", "image"]


def test_an_input_node_without_inputs_is_passed_over() -> None:
    assert read(node("CPackInputAny", {})).interface.inputs == ()


def test_the_ui_format_is_refused_with_the_way_to_the_other() -> None:
    with pytest.raises(WorkflowError, match=r"UI format.*Export \(API\)"):
        read_workflow(b'{"last_node_id": 3, "nodes": [], "links": []}', name="w")
    with pytest.raises(WorkflowError, match="UI format"):
        read_workflow({"nodes": [{"id": 1, "type": "X"}], "version": 1}, name="w")


def test_a_whole_request_is_refused() -> None:
    with pytest.raises(WorkflowError, match="under 'prompt'"):
        read_workflow({"prompt": {"1": OUTPUT}, "client_id": "x"}, name="w")


def test_a_workflow_without_output_node_is_refused_with_what_to_add() -> None:
    with pytest.raises(WorkflowError, match=r"no CPack output node.*CPackOutputImage"):
        read_workflow({"1": node("SaveImage", {"images": ["2", 0]})}, name="w")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b"null",
        b'{"1": 3}',
        b'{"1": {}}',
        b'{"1": {"class_type": "X", "inputs": []}}',
        b'{"1": {"class_type": "X", "inputs": {"a": NaN}}}',
        b'{"1": {"class_type": "X\\ud800", "inputs": {}}}',
        b"[" * 100_000,
        b'{"1": {"class_type": "X", "inputs": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}}",
    ],
)
def test_a_broken_document_is_our_error_in_one_sentence(document: bytes) -> None:
    with pytest.raises(WorkflowError) as caught:
        read_workflow(document, name="broken.json")
    assert "broken.json" in str(caught.value)


def test_filling_changes_neither_the_workflow_nor_the_values() -> None:
    workflow = read(node("CPackInputAny", {"input": ["a", "b", "c"]}, "x"), node("K", {"seed": ["1", 0]}))
    before = json.dumps(workflow.nodes)
    value = ["d", "e", "f"]
    prompt = fill(workflow, {"x": value}, prefixes={"image": "/tmp/out"})
    prompt["2"]["inputs"]["seed"].append(4)
    assert prompt["1"]["inputs"]["input"] == {"__value__": value}
    assert prompt["out"]["inputs"]["filename_prefix"] == "/tmp/out"
    assert json.dumps(workflow.nodes) == before
    assert value == ["d", "e", "f"]


@pytest.mark.parametrize("value", [["2", 0], {"__value__": ["2", 0]}])
def test_a_value_cannot_become_a_link_to_another_node(value: object) -> None:
    workflow = read(node("CPackInputAny", {"input": {}}, "x"), node("Secret", {}))
    with pytest.raises(WorkflowError, match="'x' reads as a link"):
        fill(workflow, {"x": value})


def test_filling_names_what_is_unknown_or_missing() -> None:
    workflow = read(node("CPackInputAny", {"input": None}, "x"))
    with pytest.raises(WorkflowError, match="no parameter 'y'"):
        fill(workflow, {"x": 1, "y": 2})
    with pytest.raises(WorkflowError, match="needs a value for x"):
        fill(workflow, {})


def test_the_schema_has_bounds_choices_and_defaults() -> None:
    interface = read(
        node("CPackInputInt", {"value": 5, "min": 1, "max": 9}, "n"),
        node("CPackInputAny", {"input": "a"}, "method", options={"values": ["a", "b"]}),
        node("CPackInputImage", {"image": ""}, "class"),
    ).interface
    schema = json_schema(interface)
    assert schema["properties"] == {
        "n": {"type": "integer", "minimum": 1, "maximum": 9, "default": 5},
        "method": {"enum": ["a", "b"], "default": "a"},
        "class": {"type": "string", "format": "binary"},
    }
    assert schema["required"] == ["class"]


def test_the_nodes_of_this_project_have_types_bounds_and_choices_of_their_own() -> None:
    interface = read(
        node("CPackInputFloat", {"value": 1, "min": 0, "max": 1.5}, "strength"),
        node("CPackInputFloat", {"value": 0.5, "min": -18446744073709551616, "max": 18446744073709551616}, "free"),
        node("CPackInputBoolean", {"value": False}, "tiled"),
        node("CPackInputChoice", {"value": "b", "choices": " a\n\nb\r\na\n"}, "method"),
        node("CPackInputChoice", {"value": "any", "choices": ""}, "open"),
        node("CPackInputMask", {"image": "m.png", "channel": "red", "upload": "image"}, "mask"),
    ).interface
    properties = json_schema(interface)["properties"]
    assert properties == {
        "strength": {"type": "number", "minimum": 0, "maximum": 1.5, "default": 1},
        "free": {"type": "number", "default": 0.5},
        "tiled": {"type": "boolean", "default": False},
        "method": {"enum": ["a", "b"], "default": "b"},
        "open": {"type": "string", "default": "any"},
        "mask": {"type": "string", "format": "binary"},
    }
    assert (interface.inputs[5].type, interface.inputs[5].default) == ("image", "m.png")


@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("CPackInputImage", {"image": "x.png"}),
        ("CPackInputMask", {"image": "x.png", "channel": "auto"}),
        ("CPackInputString", {"value": "x"}),
        ("CPackInputInt", {"value": 1, "min": 0, "max": 2}),
        ("CPackInputFloat", {"value": 1.5, "min": 0, "max": 2}),
        ("CPackInputBoolean", {"value": True}),
        ("CPackInputChoice", {"value": "a", "choices": "a\nb"}),
        ("CPackInputFile", {"path": "input/x.txt"}),
        ("CPackInputAny", {"input": 8}),
        ("CPackInputAny", {"cfg": 8}),
    ],
)
def test_description_and_required_of_every_input_reach_the_schema(class_type: str, inputs: dict[str, Any]) -> None:
    plain = only(class_type, {**inputs, "description": "", "required": False}, "p")
    assert (plain.required, plain.description) == (False, "")
    assert plain.default == inputs[plain.key]
    # Whatever comes first: a frontend writes inputs in the order of its widgets, another tool in that of their names.
    told = read(node(class_type, {"description": "what it is", "required": True, **inputs}, "p"))
    assert told.interface.inputs[0].key == plain.key
    schema = json_schema(told.interface)
    assert schema["required"] == ["p"]
    assert schema["properties"]["p"]["description"] == "what it is"
    assert "default" not in schema["properties"]["p"]
    with pytest.raises(WorkflowError, match="needs a value for p"):
        fill(told, {})


def test_a_parameter_of_any_that_feeds_an_input_called_description_is_still_one() -> None:
    item = only("CPackInputAny", {"description": "a text"})
    assert (item.key, item.default, item.description) == ("description", "a text", "")


@pytest.mark.parametrize(
    ("class_type", "inputs", "words"),
    [
        ("CPackInputFloat", {"value": "many"}, "not a number"),
        ("CPackInputFloat", {"value": True}, "not a number"),
        ("CPackInputFloat", {"value": 1, "min": 2, "max": 1}, "minimum 2 above its maximum 1"),
        ("CPackInputBoolean", {"value": "yes"}, "neither true nor false"),
        ("CPackInputChoice", {"value": "c", "choices": "a\nb"}, "none of its choices: a, b"),
    ],
)
def test_a_value_that_its_own_node_would_refuse_is_refused_by_name(
    class_type: str, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(WorkflowError, match=words):
        only(class_type, inputs, "p")


def test_a_choice_that_is_not_made_yet_must_be_made_by_the_caller() -> None:
    item = only("CPackInputChoice", {"value": "", "choices": "a\nb"}, "p")
    assert (item.required, item.choices) == (True, ("a", "b"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
classes = st.sampled_from(
    [
        f"CPackInput{kind}"
        for kind in ("Image", "String", "Int", "File", "Any", "Float", "Boolean", "Choice", "Mask", "New")
    ]
    + [f"CPackOutput{kind}" for kind in ("Image", "Zip", "ZipSwitch", "File")]
)
keys = st.sampled_from(
    ["value", "min", "max", "input", "image", "path", "cfg", "description", "required", "choices", "channel"]
) | st.text(max_size=6)
metas = st.fixed_dictionaries({}, optional={"title": st.text(max_size=10) | json_values, "options": json_values})
node_ids = st.from_regex(r"[0-9]{1,2}(:[0-9])?", fullmatch=True) | st.text(max_size=4)
nodes = st.fixed_dictionaries(
    {"class_type": classes, "inputs": st.dictionaries(keys, json_values, max_size=4), "_meta": metas | json_values}
)
documents = st.dictionaries(node_ids, nodes | json_values, max_size=6) | json_values


@given(documents)
@settings(max_examples=400, deadline=None)
def test_whatever_a_document_is_the_answer_is_an_interface_or_our_error(document: object) -> None:
    try:
        workflow = read_workflow(json.dumps(document).encode(), name="w")
    except WorkflowError:
        return
    names = [item.name for item in workflow.interface.inputs]
    assert len(set(names)) == len(names)
    assert workflow.interface.outputs
    json.dumps(json_schema(workflow.interface), allow_nan=False, ensure_ascii=False).encode()
    given_values = {item.name: "value" for item in workflow.interface.inputs}
    prompt = fill(workflow, given_values)
    assert set(prompt) == set(workflow.nodes)


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_whatever_the_bytes_are_the_error_is_ours(data: bytes) -> None:
    with pytest.raises(WorkflowError):
        read_workflow(data, name="w")
