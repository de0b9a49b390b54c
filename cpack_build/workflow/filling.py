"""Puts a caller's values into a workflow, and tells its parameters as a JSON Schema.

Neither changes what it is given: a service fills the same workflow many times at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from cpack_build.errors import WorkflowError
from cpack_build.workflow.interface import VALUE_KEYS, Input, Interface, Workflow, is_link

__all__ = ["FILE_TYPES", "fill", "json_schema"]

FILE_TYPES = frozenset({"image", "file"})
"""The types of :class:`Input` whose value is a file."""

_SCHEMA_TYPES: Mapping[str, Mapping[str, Any]] = {
    "image": {"type": "string", "format": "binary"},
    "file": {"type": "string", "format": "binary"},
    "string": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "choice": {},
    "any": {},
}


def fill(workflow: Workflow, values: Mapping[str, Any], *, prefixes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The prompt for ComfyUI: *workflow* with *values* (by parameter name) in their nodes.

    A file's value is the name or path by which ComfyUI is to find it. *prefixes* gives the ``filename_prefix`` of
    outputs by name. A parameter without a value keeps the workflow's own. Raises :class:`WorkflowError` for a name that
    the workflow does not have, for a required parameter without a value, and for a value that ComfyUI would take for a
    link to another node. The types of values are not checked otherwise.
    """
    prompt = copy.deepcopy({node_id: dict(node) for node_id, node in workflow.nodes.items()})
    interface = workflow.interface
    inputs = {item.name: item for item in interface.inputs}
    for name, value in values.items():
        item = inputs.get(name)
        if item is None:
            raise WorkflowError(
                f"{workflow.name} has no parameter '{name}'.",
                hint=f"It has: {', '.join(inputs) or 'none'}.",
            )
        if is_link(value) or (isinstance(value, Mapping) and "__value__" in value):
            raise WorkflowError(
                f"The value of '{name}' reads as a link to another node of {workflow.name}.",
                hint="Give a plain value.",
            )
        prompt[item.node_id]["inputs"][item.key] = {"__value__": value} if isinstance(value, list) else value
    missing = [item.name for item in interface.inputs if item.required and item.name not in values]
    if missing:
        raise WorkflowError(
            f"{workflow.name} needs a value for {', '.join(missing)}.", hint="Give it; the workflow has no default."
        )
    for item in interface.inputs:
        # The frontend renames the only input of Any and File; the node itself knows but its own name for it.
        node_inputs = prompt[item.node_id]["inputs"]
        node_inputs[VALUE_KEYS.get(item.node_class, item.key)] = node_inputs.pop(item.key)
    outputs = {item.name: item for item in interface.outputs}
    for name, prefix in (prefixes or {}).items():
        output = outputs.get(name)
        if output is None:
            raise WorkflowError(f"{workflow.name} has no output '{name}'.", hint=f"It has: {', '.join(outputs)}.")
        prompt[output.node_id]["inputs"][output.key] = prefix
    return prompt


def json_schema(interface: Interface) -> dict[str, Any]:
    """The parameters of *interface* as a JSON Schema (draft 2020-12) of one object; files are ``format: binary``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {item.name: _property(item) for item in interface.inputs},
        "required": [item.name for item in interface.inputs if item.required],
        "additionalProperties": False,
    }


def _property(item: Input) -> dict[str, Any]:
    schema: dict[str, Any] = dict(_SCHEMA_TYPES[item.type])
    if item.title and item.title != item.name:
        schema["title"] = item.title
    if item.description:
        schema["description"] = item.description
    if item.choices:
        schema["enum"] = list(item.choices)
    if item.minimum is not None:
        schema["minimum"] = item.minimum
    if item.maximum is not None:
        schema["maximum"] = item.maximum
    if item.default is not None and item.type not in FILE_TYPES:
        schema["default"] = item.default
    return schema
