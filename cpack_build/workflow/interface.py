"""Reads ``workflow_api.json`` and says what its CPack nodes ask for and give back.

The rules of naming and typing are comfy-pack's, so that a workflow made for it has the same parameters here, without
its crashes: a title may be a Python keyword, begin with ``_``, or not be ASCII; an Int needs no bounds; two nodes may
have one title. Everything a workflow can be is checked here once, so that later stages meet only :class:`Workflow`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from cpack_build.errors import WorkflowError
from cpack_build.workflow.parametertypes import InputType, type_of

__all__ = [
    "HOW_TO_EXPORT",
    "VALUE_KEYS",
    "Input",
    "InputType",
    "Interface",
    "Output",
    "OutputKind",
    "Workflow",
    "is_link",
    "read_workflow",
    "value_key",
]

OutputKind = Literal["image", "audio", "video", "text", "json", "zip", "file"]

INPUT_PREFIX = "CPackInput"
OUTPUT_PREFIX = "CPackOutput"
ZIP_SWITCH = "CPackOutputZipSwitch"

_OUTPUT_KINDS: Mapping[str, OutputKind] = {
    "CPackOutputImage": "image",
    "CPackOutputAudio": "audio",
    "CPackOutputVideo": "video",
    "CPackOutputTextFile": "text",
    "CPackOutputJSON": "json",
    "CPackOutputZip": "zip",
    "CPackOutputFile": "file",
}

# The key that holds the value, where the class has one of its own. Current frontends rename the only input of Any and
# File to that of the node they feed, so there any other key does as well.
VALUE_KEYS: Mapping[str, str] = {
    "CPackInputImage": "image",
    "CPackInputMask": "image",
    "CPackInputFile": "path",
    "CPackInputString": "value",
    "CPackInputInt": "value",
    "CPackInputFloat": "value",
    "CPackInputBoolean": "value",
    "CPackInputChoice": "value",
    "CPackInputAny": "input",
}
# What a node holds besides: the nodes of this project tell of a parameter in two more widgets.
ABOUT = frozenset({"description", "required"})
_NOT_VALUES: Mapping[str, frozenset[str]] = {
    "CPackInputImage": frozenset({"upload"}),
    "CPackInputMask": frozenset({"upload", "channel"}),
    "CPackInputInt": frozenset({"min", "max"}),
    "CPackInputFloat": frozenset({"min", "max"}),
    "CPackInputChoice": frozenset({"choices"}),
}

HOW_TO_EXPORT = (
    "Export it again in the API format: in ComfyUI choose Workflow > Export (API), "
    "or with older versions enable Dev mode and use Save (API Format)."
)


@dataclass(frozen=True)
class Input:
    """One parameter of a workflow.

    *key* is the input of the node that holds the value. *default* is the workflow's own value (a file's name for the
    types ``image`` and ``file``), or None when there is none. *linked* says that another node feeds the value, which
    then stays as it is when the caller gives none. *minimum* and *maximum* are inclusive; None is no bound.
    """

    name: str
    node_id: str
    node_class: str
    key: str
    type: InputType
    default: Any = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    choices: tuple[Any, ...] = ()
    required: bool = False
    linked: bool = False
    title: str = ""
    description: str = ""


@dataclass(frozen=True)
class Output:
    """One result of a workflow; *key* is the input of its node that takes the prefix of the files to write."""

    name: str
    node_id: str
    node_class: str
    kind: OutputKind
    title: str = ""
    key: str = "filename_prefix"


@dataclass(frozen=True)
class Interface:
    """What a workflow takes and gives, in the document's order. *zipped*: it has a ``CPackOutputZipSwitch``."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    zipped: bool = False

    def input(self, name: str) -> Input | None:
        """The parameter *name*, or None."""
        return next((item for item in self.inputs if item.name == name), None)


@dataclass(frozen=True)
class Workflow:
    """A workflow in the API format. *nodes* is the prompt as it was read; treat it as read-only and use ``fill``."""

    name: str
    nodes: Mapping[str, Mapping[str, Any]]
    interface: Interface

    def title(self, node_id: str) -> str:
        """What a person calls the node *node_id*: its title, else its class, else its id."""
        node = self.nodes.get(node_id)
        return (_title(node) or str(node["class_type"])) if node is not None else node_id


def read_workflow(data: bytes | Mapping[str, Any], *, name: str) -> Workflow:
    """The workflow in *data*: the bytes of a ``workflow_api.json``, or the object in it.

    *name* is what messages call it. Raises :class:`WorkflowError` for anything that cannot be served: not JSON, the UI
    format, a broken node, or no CPack output node.
    """
    document = _parse(data, name)
    _refuse_ui_format(document, name)
    nodes = {}
    for node_id, node in document.items():
        with _at(node_id):
            nodes[node_id] = _node(node_id, node, name)
    if not nodes:
        raise WorkflowError(f"{name} has no nodes.", hint=HOW_TO_EXPORT)
    return Workflow(name=name, nodes=nodes, interface=_interface(nodes, name))


@contextmanager
def _at(node_id: object) -> Iterator[None]:
    """Let a :class:`WorkflowError` know which node it is about."""
    try:
        yield
    except WorkflowError as error:
        error.node_id = str(node_id)
        raise


def _parse(data: bytes | Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        document = json.loads(data) if isinstance(data, bytes | bytearray | str) else dict(data)
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"{name} is not JSON: {error}.", hint=HOW_TO_EXPORT) from None
    if not isinstance(document, dict):
        raise WorkflowError(f"{name} holds no JSON object but a {type(document).__name__}.", hint=HOW_TO_EXPORT)
    return document


def _refuse_ui_format(document: Mapping[str, Any], name: str) -> None:
    if "last_node_id" in document or isinstance(document.get("nodes"), list):
        raise WorkflowError(
            f"{name} is in the UI format, which holds the drawing of a workflow rather than what to run.",
            hint=HOW_TO_EXPORT,
        )
    wrapped = document.get("prompt")
    if isinstance(wrapped, Mapping) and "class_type" not in document["prompt"]:
        raise WorkflowError(
            f"{name} is a whole request to ComfyUI, with the workflow under 'prompt'.",
            hint="Keep only the object under 'prompt'.",
        )


def _node(node_id: object, node: object, name: str) -> dict[str, Any]:
    if not isinstance(node_id, str):
        raise WorkflowError(f"{name}: the id {node_id!r} of a node is no string.", hint=HOW_TO_EXPORT)
    if not isinstance(node, Mapping):
        raise WorkflowError(f"{name}: node {node_id} is no object.", hint=HOW_TO_EXPORT)
    class_type, inputs, meta = node.get("class_type"), node.get("inputs"), node.get("_meta", {})
    if not isinstance(class_type, str) or not class_type:
        raise WorkflowError(f"{name}: node {node_id} has no class_type.", hint=HOW_TO_EXPORT)
    if inputs is None:
        inputs = {}
    if not isinstance(inputs, Mapping) or not all(isinstance(key, str) for key in inputs):
        raise WorkflowError(f"{name}: the inputs of node {node_id} ({class_type}) are no object.", hint=HOW_TO_EXPORT)
    # Only what ComfyUI runs is kept: other fields (`is_changed`, …) come from dumps and may hold NaN.
    kept = {"class_type": class_type, "inputs": dict(inputs), "_meta": dict(meta) if isinstance(meta, Mapping) else {}}
    try:
        json.dumps({node_id: kept}, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise WorkflowError(
            f"{name}: node {node_id} ({class_type!a}) holds a value that JSON cannot: {error!a}.",
            hint="Set that value again in ComfyUI and export the workflow again.",
        ) from None
    return kept


def _interface(nodes: Mapping[str, Mapping[str, Any]], name: str) -> Interface:
    feeds = _feeds(nodes)
    inputs: dict[str, Input] = {}
    outputs: dict[str, Output] = {}
    zipped = False
    for node_id, node in nodes.items():
        class_type = node["class_type"]
        if class_type == ZIP_SWITCH:
            zipped = True
        elif class_type.startswith(INPUT_PREFIX):
            key = value_key(class_type, node["inputs"])
            if key is not None:  # comfy-pack, too, passes over a node without any input
                wanted = _parameter_name(node, feeds.get(node_id), class_type.removeprefix(INPUT_PREFIX))
                with _at(node_id):
                    item = _input(_unique(wanted, node_id, inputs), node_id, node, key=key, workflow=name)
                inputs[item.name] = item
        elif class_type.startswith(OUTPUT_PREFIX) and node["inputs"]:
            wanted = _parameter_name(node, None, class_type.removeprefix(OUTPUT_PREFIX))
            unique = _unique(wanted, node_id, outputs)
            kind = _OUTPUT_KINDS.get(class_type, "file")
            outputs[unique] = Output(unique, node_id, class_type, kind, title=_title(node))
    if not outputs:
        raise WorkflowError(
            f"{name} has no CPack output node, so nothing of it would be returned.",
            hint="In ComfyUI add a node from ComfyPack/output, such as Image Output (CPackOutputImage), connect the "
            "result to it, and export or pack the workflow again.",
        )
    return Interface(inputs=tuple(inputs.values()), outputs=tuple(outputs.values()), zipped=zipped)


def is_link(value: object) -> bool:
    """Whether ComfyUI takes *value* for a link to another node's result: ``[node id, index]``."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


def _feeds(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Node id → the name of the input that its first result feeds (the last one found, as in comfy-pack)."""
    found = {}
    for node in nodes.values():
        for input_name, value in node["inputs"].items():
            if is_link(value) and value[1] == 0:
                found[value[0]] = input_name
    return found


def _title(node: Mapping[str, Any]) -> str:
    title = node["_meta"].get("title")
    return title if isinstance(title, str) else ""


def _parameter_name(node: Mapping[str, Any], feeds: str | None, fallback: str) -> str:
    title = _title(node)
    if title.isidentifier():
        return title
    return _normalised(feeds or title or fallback)


def _normalised(text: str) -> str:
    """*text* as comfy-pack normalises it: other characters become ``_``, runs of it one, lower case.

    The result may begin with a digit: comfy-pack means to prevent that and does not, and its clients know the names.
    """
    return re.sub(r"[^a-zA-Z0-9]+", "_", text).strip("_").lower() or "_"


def _unique(wanted: str, node_id: str, taken: Mapping[str, object]) -> str:
    if wanted not in taken:
        return wanted
    candidates = _candidates(f"{wanted}_{re.sub(r'[^a-zA-Z0-9_]', '_', node_id)}")
    return next(candidate for candidate in candidates if candidate not in taken)


def _candidates(base: str) -> Iterator[str]:
    yield base
    number = 2
    while True:
        yield f"{base}_{number}"
        number += 1


def value_key(class_type: str, inputs: Mapping[str, Any]) -> str | None:
    """The input of a ``CPackInput…`` node that holds the parameter's value; None if it has no input at all."""
    usual = VALUE_KEYS.get(class_type)
    if usual is not None and usual in inputs:
        return usual
    others = _NOT_VALUES.get(class_type, frozenset())
    likely = (key for key in inputs if key not in others and key not in ABOUT)
    # The input that Any feeds may itself be called `description`.
    return next(likely, next((key for key in inputs if key not in others), None))


def _input(name: str, node_id: str, node: Mapping[str, Any], *, key: str, workflow: str) -> Input:
    class_type, inputs, title = node["class_type"], node["inputs"], _title(node)
    linked = is_link(inputs[key])
    wanted = key != "required" and inputs.get("required") is True
    where = f"{workflow}: the value of '{name}' (node {node_id})"
    typed = type_of(class_type, None if linked else inputs[key], inputs, node["_meta"].get("options"), where=where)
    minimum, maximum = typed.minimum, typed.maximum
    if typed.type == "int":  # a fractional bound of a whole number means the next one within
        minimum = None if minimum is None else math.ceil(minimum)
        maximum = None if maximum is None else math.floor(maximum)
    if minimum is not None and maximum is not None and minimum > maximum:
        raise WorkflowError(
            f"{workflow}: the parameter '{name}' (node {node_id}, {class_type}) has the minimum {minimum} above its "
            f"maximum {maximum}.",
            hint="Correct its bounds in ComfyUI and export the workflow again.",
        )
    default = None if wanted else typed.default
    told = [text for text in (inputs.get("description"), node["_meta"].get("description")) if key != "description"]
    return Input(
        name=name,
        node_id=node_id,
        node_class=class_type,
        key=key,
        type=typed.type,
        default=default,
        minimum=minimum,
        maximum=maximum,
        choices=typed.choices,
        required=wanted or (default is None and not linked),
        linked=linked,
        title=title,
        description=next((text for text in told if isinstance(text, str) and text), ""),
    )
