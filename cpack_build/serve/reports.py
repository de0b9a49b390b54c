"""What ComfyUI's own words for a failure mean: its answer to a prompt, its events, its history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpack_build.errors import NodeFailed, OutOfMemory, PromptRefused, RunError

__all__ = ["failure", "refusal", "unreadable"]


def unreadable(what: str, error: Exception) -> RunError:
    """That ComfyUI's answer to *what* could not be read."""
    return RunError(f"ComfyUI's answer to {what} is unreadable: {type(error).__name__}.", status=502)


def failure(kind: str, data: Mapping[str, Any]) -> RunError:
    """What the event *kind*, ``execution_error`` or ``execution_interrupted``, with *data* tells."""
    node_id, node_class = str(data.get("node_id", "")), str(data.get("node_type", ""))
    if kind == "execution_interrupted":
        return RunError("The request was interrupted.", status=503, node_id=node_id, node_class=node_class)
    message = str(data.get("exception_message") or "").strip()
    kind_of_error = str(data.get("exception_type") or "").rpartition(".")[2]
    if "OutOfMemory" in kind_of_error or "out of memory" in message.lower():
        return OutOfMemory(message.partition("\n")[0] or kind_of_error, node_id=node_id, node_class=node_class)
    return NodeFailed(message or kind_of_error or "it gave no reason", node_id=node_id, node_class=node_class)


def refusal(body: Mapping[str, Any], prompt: Mapping[str, Any]) -> PromptRefused:
    """What ComfyUI found wrong, from its answer: the first node's first error, or the error of the whole."""
    node_errors = body.get("node_errors")
    if isinstance(node_errors, dict) and node_errors:
        # A node is listed, too, when one that it depends on is wrong; that has no errors of its own.
        nothing: tuple[str, dict[str, Any]] = ("", {})
        node_id, found = next(((key, value) for key, value in node_errors.items() if value.get("errors")), nothing)
        problems = [": ".join(filter(None, (e.get("message"), e.get("details")))) for e in found.get("errors", [])]
        text = "; ".join(problems) or "it gave no reason"
        return PromptRefused(text, node_id=str(node_id), node_class=str(found.get("class_type", "")), status=422)
    error = body.get("error")
    if isinstance(error, dict):
        text = ": ".join(filter(None, (error.get("message"), error.get("details"))))
        return PromptRefused(text or "it gave no reason", status=422)
    return PromptRefused(str(error or "it gave no reason"), status=422)
