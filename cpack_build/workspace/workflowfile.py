"""A workflow from a file: ComfyUI's exports, and its check before it is packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpack_build.cpack.documents import parse_json
from cpack_build.errors import BadInput, WorkflowError

__all__ = ["check_workflow", "read_workflow_file"]

_JSON_LIMIT = 64 << 20


def read_workflow_file(path: Path, *, what: str = "workflow") -> dict[str, Any]:
    """The JSON object in the file at *path*. Raises :class:`WorkflowError`, :class:`BadInput`."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise WorkflowError(f"{path} is longer than a {what} can be.", hint="Name the file that ComfyUI exported.")
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}.", hint=f"Name the {what}'s JSON file."
        ) from error
    document = parse_json(data, name=str(path))
    if not isinstance(document, dict):
        raise WorkflowError(f"{path} holds no JSON object.", hint="Name the file that ComfyUI exported.")
    return document


def check_workflow(document: Mapping[str, Any]) -> None:
    """Whether it is in the API format; a pack that is only restored needs no output node."""
    if "last_node_id" in document or isinstance(document.get("nodes"), list):
        raise WorkflowError(
            "The workflow is in the editor's format, which says nothing about what is run.",
            hint="Export it with Workflow > Export (API) in ComfyUI.",
        )
    if not document:
        raise WorkflowError("The workflow holds no nodes.", hint="Export it with Workflow > Export (API) in ComfyUI.")
    for key, node in document.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(
                f"The workflow's node {key!r:.40} has no class_type.",
                hint="Export it with Workflow > Export (API) in ComfyUI.",
            )
        if not isinstance(node.get("inputs", {}), Mapping):
            raise WorkflowError(f"The workflow's node {key!r:.40}: inputs must be an object.", hint="Export it again.")
