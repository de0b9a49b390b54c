"""Two packs compared by what they mean: which commit, version, model, parameter or setting became which.

The order of entries, how an era writes a thing, and how the editor draws the workflow are no differences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cpack_build.cpack.reader import Pack
from cpack_build.cpack.settings import parse_settings
from cpack_build.errors import WorkflowError

__all__ = ["Change", "compare"]

_IGNORED = ("service.py", "comfy_pack/", "workflow.png")
"""What comfy-pack put in for itself, and a picture."""


@dataclass(frozen=True)
class Change:
    """One difference. *before* or *after* is None when *name* is only in the other pack.

    *section* is one of ``python``, ``comfyui``, ``node``, ``registry node``, ``single-file node``, ``package``,
    ``model``, ``input file``, ``parameter``, ``result``, ``workflow``, ``setting``, ``record`` (what else is noted)
    and ``file``; *field* names the part that changed, empty when that is the thing itself.
    """

    section: str
    name: str
    field: str
    before: Any
    after: Any


def compare(one: Pack, other: Pack) -> tuple[Change, ...]:
    """How *other* differs from *one*; empty when they mean the same.

    Raises :class:`~cpack_build.errors.CpackError` when a file within cannot be read, or a ``cpack.yaml`` is wrong.
    """
    changes: list[Change] = []
    before, after = one.snapshot, other.snapshot
    if before.python != after.python:
        changes.append(Change("python", "Python", "", before.python, after.python))
    commits = [pack.snapshot.comfyui.commit if pack.snapshot.comfyui else None for pack in (one, other)]
    if commits[0] != commits[1]:
        changes.append(Change("comfyui", "ComfyUI", "commit", *commits))
    sections: dict[str, Callable[[Pack], Mapping[str, Any]]] = {
        "node": _nodes,
        "registry node": lambda pack: dict(pack.snapshot.registry_nodes),
        "single-file node": lambda pack: {
            node.filename: node.model_dump(exclude={"filename"}) for node in pack.snapshot.file_nodes
        },
        "package": _packages,
        "input file": lambda pack: {item.path: _digest(pack, item.name) for item in pack.inputs},
        "parameter": lambda pack: _interface(pack)[0],
        "result": lambda pack: _interface(pack)[1],
        "workflow": _workflow,
        "setting": _settings,
        "record": lambda pack: pack.extra,
        "file": lambda pack: {name: _digest(pack, name) for name in pack.other if not name.startswith(_IGNORED)},
    }
    for section, read in sections.items():
        if section == "input file":
            changes += _models(one, other)
        changes += _between(section, read(one), read(other))
    return tuple(changes)


def _between(section: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    changes = []
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            changes += [Change(section, name, key, one.get(key), other.get(key)) for key in keys]
        elif one != other:
            changes.append(Change(section, name, "", one, other))
    return changes


def _nodes(pack: Pack) -> dict[str, Any]:
    """By folder; a disabled namesake is told by its address."""
    found: dict[str, Any] = {}
    for node in sorted(pack.snapshot.nodes, key=lambda node: node.disabled):
        name = f"{node.name} of {node.url}" if node.name in found else node.name
        found[name] = node.model_dump(exclude={"name"})
    return found


def _packages(pack: Pack) -> dict[str, str]:
    """Name → its version, or whatever else follows the name."""
    found: dict[str, str] = {}
    for text in pack.snapshot.requirements:
        requirement = Requirement(text)
        rest = text[len(requirement.name) :].strip()
        found[canonicalize_name(requirement.name)] = rest.removeprefix("==") or "any version"
    return found


def _models(one: Pack, other: Pack) -> list[Change]:
    before, after = (
        {model.filename: model.model_dump(mode="json", exclude={"filename"}) for model in pack.snapshot.models}
        for pack in (one, other)
    )
    moved = []
    for old in [name for name in before if name not in after]:
        sha256 = before[old]["sha256"]
        new = next((name for name in after if name not in before and after[name]["sha256"] == sha256), None)
        if sha256 is not None and new is not None:
            moved.append(Change("model", old, "path", old, new))
            before[new] = before.pop(old)
    return moved + _between("model", before, after)


def _interface(pack: Pack) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        interface = pack.served().interface
    except WorkflowError as error:
        return {}, {"the workflow": error.message.replace(str(pack.path), "the pack")}
    inputs = {
        item.name: {
            "type": item.type, "default": item.default, "minimum": item.minimum, "maximum": item.maximum,
            "choices": list(item.choices), "required": item.required, "description": item.description,
        }
        for item in interface.inputs
    }  # fmt: skip
    outputs = {item.name: {"kind": item.kind} for item in interface.outputs}
    return inputs, outputs | ({"all in one zip": {"kind": "zip"}} if interface.zipped else {})


def _workflow(pack: Pack) -> dict[str, Any]:
    """Node → its class and inputs, but for the values of parameters, which are told as such."""
    try:
        parameters = {(item.node_id, item.key) for item in pack.served().interface.inputs}
    except WorkflowError:
        parameters = set()
    found: dict[str, Any] = {}
    for node_id, node in pack.workflow_api.items():
        inputs = {key: value for key, value in node.get("inputs", {}).items() if (node_id, key) not in parameters}
        found[f"node {node_id}"] = {"class": node["class_type"], **inputs}
    return found


def _settings(pack: Pack) -> dict[str, Any]:
    settings = parse_settings(pack.settings_text or "", name=f"{pack.path}: cpack.yaml").model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": below for inner, below in value.items()}
        else:
            flat[key] = value
    return flat


def _digest(pack: Pack, name: str) -> str:
    hasher = hashlib.sha256()
    for chunk in pack.stream_member(name):
        hasher.update(chunk)
    return f"sha256 {hasher.hexdigest()}"
