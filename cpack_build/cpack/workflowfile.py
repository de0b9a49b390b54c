"""A workflow from a file: what ComfyUI exported (API or editor's format), or a picture that it made.

A picture holds both what was run and what was drawn, so it needs no conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.cpack.documents import parse_json
from cpack_build.errors import BadInput, WorkflowError
from cpack_build.workflow.conversion import convert, is_ui_format
from cpack_build.workflow.embedded import is_medium, read_embedded

__all__ = ["WorkflowFile", "check_workflow", "open_workflow", "read_json_file"]

_JSON_LIMIT = 64 << 20


@dataclass(frozen=True)
class WorkflowFile:
    """What the file at *path* holds: the workflow in the API format, as the editor keeps it, or both."""

    path: Path
    api: dict[str, Any] | None
    drawing: dict[str, Any] | None

    def in_api_format(self, object_info: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The workflow in the API format, converted with *object_info* where need be, and what about it is uncertain.

        Raises :class:`WorkflowError`.
        """
        if self.api is not None:
            return self.api, ()
        converted = convert(self.drawing or {}, object_info, name=str(self.path))
        return converted.prompt, converted.notes


def open_workflow(path: Path) -> WorkflowFile:
    """The workflow in the file at *path*: JSON, or a picture or sound that ComfyUI made.

    Raises :class:`WorkflowError`, :class:`BadInput`.
    """
    try:
        texts = read_embedded(path) if is_medium(path) else None
    except OSError as error:
        raise _unreadable(path, error, "workflow") from error
    if texts is None:
        document = read_json_file(path, what="workflow")
        return WorkflowFile(path, None, document) if is_ui_format(document) else WorkflowFile(path, document, None)
    if not texts:
        raise WorkflowError(
            f"{path} holds no workflow.",
            hint="ComfyUI writes it into what it saves, unless it was started with --disable-metadata; programs that "
            "edit or send pictures leave it out.",
        )
    found = {key: parse_json(text, name=f"{path}: its {key}") for key, text in texts.items()}
    for key, document in found.items():
        if not isinstance(document, dict):
            raise WorkflowError(f"{path}: its {key} is no JSON object.", hint="Name the file that ComfyUI exported.")
    if (prompt := found.get("prompt")) is not None:
        for node in prompt.values():
            if isinstance(node, dict):
                node.pop("is_changed", None)  # what ComfyUI noted while it ran
    return WorkflowFile(path, prompt, found.get("workflow"))


def read_json_file(path: Path, *, what: str) -> dict[str, Any]:
    """The JSON object in the file at *path*, a *what*. Raises :class:`WorkflowError`, :class:`BadInput`."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise WorkflowError(f"{path} is longer than a {what} can be.", hint="Name the file that ComfyUI exported.")
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, what) from error
    document = parse_json(data, name=str(path))
    if not isinstance(document, dict):
        raise WorkflowError(f"{path} holds no JSON object.", hint="Name the file that ComfyUI exported.")
    return document


def check_workflow(document: Mapping[str, Any]) -> None:
    """See that *document* is in the API format; a pack that is only restored needs no output node.

    Raises :class:`WorkflowError`.
    """
    if is_ui_format(document):
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


def _unreadable(path: Path, error: OSError, what: str) -> BadInput:
    why = (error.strerror or str(error)).lower()
    return BadInput(f"{path} cannot be read: {why}.", hint=f"Name the {what}'s file.")
