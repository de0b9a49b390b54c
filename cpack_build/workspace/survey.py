"""What stands in the way of serving a workflow, and all that a pack of it could hold: told before anything is packed.

Reads no model and asks nobody, so it is quick enough to be asked for on every change of a workflow. Each finding names
the node or the thing that it is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cpack_build.errors import WorkflowError
from cpack_build.fetch.store import Store
from cpack_build.workflow import read_workflow
from cpack_build.workflow.interface import Interface
from cpack_build.workspace.inputs import list_inputs
from cpack_build.workspace.nodes import Node
from cpack_build.workspace.pack import Draft

__all__ = ["Problem", "available", "find_problems", "interface_document", "interface_of"]

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One finding. *code* is its kind for programs; *next* says what to do; *node_id* and *item* what it is about."""

    level: Level
    code: str
    message: str
    next: str = ""
    node_id: str = ""
    item: str = ""


def interface_of(draft: Draft) -> tuple[Interface | None, WorkflowError | None]:
    """What the draft's workflow takes and gives, or why it cannot be served."""
    try:
        return read_workflow(draft.workflow_api, name="The workflow").interface, None
    except WorkflowError as error:
        return None, error


def find_problems(draft: Draft) -> tuple[Problem, ...]:
    """Everything that is wrong or worth a thought, the worst first."""
    order: tuple[Level, ...] = ("error", "warning", "note")
    return tuple(sorted(_problems(draft), key=lambda one: order.index(one.level)))


def _problems(draft: Draft) -> Iterator[Problem]:
    _, error = interface_of(draft)
    if error is not None:
        yield Problem("error", "workflow", error.message, error.hint, node_id=error.node_id)
    for one in draft.missing:
        code = "missing_input" if one.where.startswith("input") else "missing_model"
        hint = "Put the file there, or choose another one in the node."
        yield Problem("error", code, f"{one.value} is not in {one.where}.", hint, one.node_id, one.value)
    for capture in draft.captured:
        yield Problem(
            "warning", "local_code", f"Only this machine has the code of {capture.name}: {capture.reason}.",
            "It travels in the pack if you allow it; a git repository with a remote is better.", item=capture.name,
        )  # fmt: skip
    for finding in draft.findings:
        hint = "Remove it, unless everybody may have it."
        yield Problem("warning", "secret", f"{finding}.", hint, item=finding.file)
    told = set()
    for node in draft.nodes:
        for note in node.notes:
            told.add(note)
            yield Problem("warning", "custom_node", note, item=node.name)
    for note in draft.notes:
        if note not in told:
            yield Problem("note", "note", note)


def available(draft: Draft, *, store: Store) -> dict[str, Any]:
    """All that a pack could hold, as one document: every model with its hash where *store* knows it, every input."""
    chosen = {file.name for file in draft.models} | {file.name for file in draft.inputs}
    models = []
    for file in draft.listing.files:
        sha256 = store.known(file.path) if store.root.exists() else None
        models.append(
            {"name": file.name, "folder": file.folder, "below": file.below, "size": file.size, "sha256": sha256,
             "referenced": file.name in chosen, "node_ids": list(draft.used_by.get(file.name, ()))}
        )  # fmt: skip
    inputs = [
        {"name": file.name, "size": file.size, "referenced": file.name in chosen,
         "node_ids": list(draft.used_by.get(file.name, ()))}
        for file in list_inputs(draft.comfyui)
    ]  # fmt: skip
    return {
        "models": models,
        "inputs": inputs,
        "packages": [_package(spec, source) for spec, source in sorted(draft.packages.pins.items())],
        "nodes": [_node(node) for node in draft.nodes],
        "comfyui": {"version": draft.source.version, "commit": draft.source.commit},
        "python": draft.environment.version,
    }


def interface_document(interface: Interface | None) -> dict[str, Any]:
    """``parameters`` and ``outputs`` of *interface*."""
    return {
        "parameters": [asdict(item) for item in interface.inputs] if interface else [],
        "outputs": [asdict(item) for item in interface.outputs] if interface else [],
    }


def _package(spec: str, source: str) -> Mapping[str, str]:
    name, _, version = spec.partition("==")
    return {"name": name, "version": version, **({"source": source} if source else {})}


def _node(node: Node) -> dict[str, Any]:
    git = node.git if node.kind == "git" else None
    return {
        "name": node.name,
        "kind": node.kind,
        "disabled": node.disabled,
        "version": node.version or None,
        "id": node.registry_id or None,
        "url": git.url if git else None,
        "commit": git.commit if git else None,
        "dirty": bool(git and git.changed),
        "local": bool(node.files),
        "size": sum(file.size for file in node.files) if node.files else None,
        "notes": list(node.notes),
    }
