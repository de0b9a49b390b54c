"""The body of a request: read within a limit, and its workflow laid aside as files for the tool.

A workflow may hold megabytes, and Python parses JSON without letting another thread run; so a large body is split by a
process of its own (this file, run as a program) and only what is small comes back. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["LIMIT", "Asked", "read_body", "split"]

LIMIT = 64 << 20
"""Bytes that a JSON body may have."""
_INLINE = 128 << 10
"""Bytes that are parsed at once: about a millisecond."""
_PROMPT, _WORKFLOW = "workflow_api.json", "workflow.json"


@dataclass(frozen=True)
class Asked:
    """A request's parameters. *folder* is its own, in which *prompt* and *workflow* lie, if it had them; *classes* are
    the prompt's node classes."""

    folder: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    prompt: Path | None = None
    workflow: Path | None = None
    classes: tuple[str, ...] = ()


def split(body: bytes, folder: Path) -> dict[str, Any]:
    """Lay ``prompt`` and ``workflow`` of *body* (also those below ``params``) aside in *folder*; the rest.

    Raises :class:`ValueError` that says what is wrong.
    """
    try:
        document = json.loads(body or b"{}")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is no object")
    params = document.get("params", document)
    if not isinstance(params, dict):
        raise ValueError("its params are no object")
    classes: set[str] = set()
    for key, name in (("prompt", _PROMPT), ("workflow", _WORKFLOW)):
        given = params.pop(key, None)
        if given is None or given == {}:  # an empty canvas
            continue
        if not isinstance(given, dict):
            raise ValueError(f"its {key} is no object")
        (folder / name).write_text(json.dumps(given), "utf-8")
        if key == "prompt":
            nodes = [node.get("class_type") for node in given.values() if isinstance(node, dict)]
            classes = {node for node in nodes if isinstance(node, str)}
    return {"values": document, "classes": sorted(classes)}


async def read_body(request: web.Request, folder: Path) -> Asked:
    """The body of *request*. Raises :class:`.errors.Refused` where it is too large (413) or no JSON object (400)."""
    from .errors import Refused

    if request.content_type != "application/json":
        raise Refused("no_json", "The body must be JSON.", next="Send it as `Content-Type: application/json`.")
    body = bytearray()
    async for chunk in request.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > LIMIT:
            raise Refused(
                "too_large", f"The request has more than {LIMIT >> 20} MiB.",
                next="Take large pictures out of the workflow.", status=413,
            )  # fmt: skip
    try:
        if len(body) <= _INLINE:
            told = split(bytes(body), folder)
        else:
            told = await asyncio.to_thread(_split_apart, bytes(body), folder)
    except ValueError as error:
        raise Refused("bad_request", f"The request cannot be used: {error}.") from None
    except OSError as error:
        raise Refused("storage", f"The request cannot be kept: {error.strerror}.", status=507) from None
    prompt, workflow = folder / _PROMPT, folder / _WORKFLOW
    return Asked(
        folder,
        told["values"],
        prompt if prompt.is_file() else None,
        workflow if workflow.is_file() else None,
        tuple(told["classes"]),
    )


def _split_apart(body: bytes, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, str(folder)], input=body, capture_output=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr.decode("utf-8", "replace").strip()[:500] or "it cannot be parsed")
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


if __name__ == "__main__":
    try:
        json.dump(split(sys.stdin.buffer.read(), Path(sys.argv[1])), sys.stdout)
    except ValueError as wrong:
        sys.exit(str(wrong))
