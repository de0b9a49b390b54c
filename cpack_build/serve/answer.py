"""What a caller gets back: a file, several by ``Accept``, or an error that names the node and no more than it should.

Several files come in a zip, as ``multipart/mixed``, or as JSON with base64 or with links (``application/json;
files=links``). One file comes as it is, unless JSON with ``files=`` is asked for.

Answers do not need the request's files any more once they are made: small ones are in memory, larger ones are read
from an open file that has no name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cpack_build.errors import NodeFailed, PromptRefused, RunError
from cpack_build.serve.exchange import Produced
from cpack_build.serve.kept import Keeper, Result
from cpack_build.serve.media import disposition, media_type
from cpack_build.workflow import Workflow

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = [
    "answer_with_error",
    "answer_with_files",
    "choose_bundle",
    "choose_file",
    "describe_error",
    "describe_result",
    "names_of",
]

_IN_MEMORY = 4 << 20
_BLOCK = 1 << 18


def names_of(files: Sequence[Produced]) -> list[str]:
    """The name of each of *files* for the caller: its output's, numbered where an output has several; all differ."""
    names: list[str] = []
    for file in files:
        group = [other for other in files if other.output is file.output]
        number = f"_{group.index(file) + 1}" if len(group) > 1 else ""
        stem = re.sub(r"[/\\\0-\x1f]", "_", file.output.name)
        name = f"{stem}{number}{file.path.suffix.lower()}"
        while name in names:
            name = f"_{name}"
        names.append(name)
    return names


_BUNDLES = {"application/zip": "zip", "multipart/mixed": "multipart", "application/json": "base64"}


def _accepted(accept: str) -> list[tuple[str, str]]:
    """The media types that *accept* names, the most wanted first, each with its parameter ``files``."""
    wanted = []
    for position, item in enumerate(accept.split(",")):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        values = dict(part.partition("=")[::2] for part in parameters)
        quality = _quality(values.get("q", "1"))
        if "/" in kind and "*" not in kind.partition("/")[0] and quality > 0:
            wanted.append((-quality, position, kind, values.get("files", "").strip('"')))
    return [(kind, files) for _, _, kind, files in sorted(wanted)]


def choose_file(files: Sequence[Produced], accept: str) -> Produced | None:
    """Which of *files* is the answer by itself; None for all of them together.

    An only file is; of several, the first of a type that *accept* (the request's header) names.
    """
    if len(files) == 1:
        in_json = any(kind == "application/json" and how for kind, how in _accepted(accept))
        return None if in_json else files[0]
    for kind, how in _accepted(accept):
        if kind in ("application/zip", "multipart/mixed") or (kind == "application/json" and how):
            return None
        for file in files:
            own = media_type(file.path)
            if own == kind or (kind.endswith("/*") and own.startswith(kind[:-1])):
                return file
        if kind == "application/json":
            return None
    return None


def choose_bundle(accept: str) -> str:
    """How several files come together: ``zip``, ``multipart``, ``base64`` or ``links``."""
    for kind, how in _accepted(accept):
        if kind in _BUNDLES:
            return "links" if kind == "application/json" and how == "links" else _BUNDLES[kind]
    return "zip"


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


async def answer_with_files(
    files: Sequence[Produced], *, accept: str, title: str, scratch: Path, keeper: Keeper, links_first: bool = False
) -> Response:
    """The response for *files*; *title* names the zip, *scratch* is where it is made, *keeper* holds what links name.

    With *links_first* a caller who names no media type is given links.
    """
    if links_first and not _accepted(accept):
        from starlette.responses import JSONResponse

        return JSONResponse(describe_result(await keeper.put(files, names_of(files))))
    chosen = choose_file(files, accept)
    names = names_of(files)
    if chosen is not None:
        name = names[list(files).index(chosen)]
        return await _respond(chosen.path.open("rb"), kind=media_type(chosen.path), name=name)
    bundle = choose_bundle(accept)
    if bundle == "links":
        from starlette.responses import JSONResponse

        return JSONResponse(describe_result(await keeper.put(files, names)))
    if bundle == "multipart":
        boundary = uuid.uuid4().hex
        body = await asyncio.to_thread(_multipart, files, names, scratch, boundary)
        return await _respond(body, kind=f"multipart/mixed; boundary={boundary}", name="")
    if bundle == "base64":
        return await _respond(await asyncio.to_thread(_base64, files, names, scratch), kind="application/json", name="")
    archive = await asyncio.to_thread(_zip, files, names, scratch)
    return await _respond(archive, kind="application/zip", name=f"{title}.zip")


def describe_result(result: Result) -> dict[str, Any]:
    """*result* as JSON: each file with its name, output, media type, size and link."""
    return {
        "id": result.id,
        "outputs": [
            {**_described(file, name), "url": result.url(name)}
            for file, name in zip(result.files, result.names, strict=True)
        ],
    }


def _described(file: Produced, name: str) -> dict[str, Any]:
    size = file.path.stat().st_size
    return {"name": name, "output": file.output.name, "media_type": media_type(file.path), "size": size}


def _zip(files: Sequence[Produced], names: Sequence[str], scratch: Path) -> IO[bytes]:
    archive = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it is read after this function
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, strict_timestamps=False) as into:
        for file, name in zip(files, names, strict=True):
            into.write(file.path, name)
    archive.seek(0)
    return archive


def _multipart(files: Sequence[Produced], names: Sequence[str], scratch: Path, boundary: str) -> IO[bytes]:
    body = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it is read after this function
    for file, name in zip(files, names, strict=True):
        head = {
            "Content-Type": media_type(file.path),
            "Content-Disposition": disposition(media_type(file.path), name),
            "Content-Length": str(file.path.stat().st_size),
        }
        lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
        body.write(f"--{boundary}\r\n{lines}\r\n".encode())
        with file.path.open("rb") as source:
            shutil.copyfileobj(source, body, _BLOCK)
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body


def _base64(files: Sequence[Produced], names: Sequence[str], scratch: Path) -> IO[bytes]:
    body = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it is read after this function
    body.write(b'{"outputs": [')
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        described = json.dumps(_described(file, name))
        body.write(f'{", " if number else ""}{described[:-1]}, "data": "'.encode())
        with file.path.open("rb") as source:
            while block := source.read(3 << 16):  # whole groups of three bytes, so that nothing is padded between
                body.write(base64.b64encode(block))
        body.write(b'"}')
    body.write(b"]}")
    return body


async def _respond(file: IO[bytes], *, kind: str, name: str) -> Response:
    from starlette.responses import Response, StreamingResponse

    size = file.seek(0, 2)
    file.seek(0)
    headers = {"content-length": str(size), "x-content-type-options": "nosniff"}
    if name:
        headers["content-disposition"] = disposition(kind, name)
    if size <= _IN_MEMORY:
        with file:
            return Response(file.read(), headers=headers, media_type=kind)
    return StreamingResponse(_blocks(file), headers=headers, media_type=kind)


async def _blocks(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while block := await asyncio.to_thread(file.read, _BLOCK):
            yield block


def answer_with_error(error: RunError, workflow: Workflow) -> Response:
    """The response for *error*: JSON that names the node of *workflow* that is at fault, if one is."""
    from starlette.responses import JSONResponse

    status, body = describe_error(error, workflow)
    headers = {"retry-after": "2"} if status in (429, 503) else None
    return JSONResponse(body, status_code=status, headers=headers)


def describe_error(error: RunError, workflow: Workflow) -> tuple[int, dict[str, Any]]:
    """The HTTP status for *error* and what is said of it."""
    message = _without_paths(error.message)
    body: dict[str, Any] = {"error": message, "type": type(error).__name__}
    if error.hint:
        body["hint"] = error.hint
    if error.node_id:
        title = workflow.title(error.node_id)
        body["error"] = f"The node '{title}' ({error.node_class}): {message}"
        body["node"] = {"id": error.node_id, "title": title, "class": error.node_class, "message": message}
        body["parameters"] = _parameters_of(error.node_id, workflow)
    status = error.status
    if isinstance(error, PromptRefused) and not body.get("parameters"):
        status = 500  # nothing that the caller gave is at fault: a model or a node is missing
    if type(error) is NodeFailed and any(item.node_id == error.node_id for item in workflow.interface.inputs):
        status = 422  # an interface node only reads what it was given, such as a picture that is none
    return status, body


def _parameters_of(node_id: str, workflow: Workflow) -> list[str]:
    """The parameters that set a value of the node *node_id* itself."""
    node = workflow.nodes.get(node_id, {})
    sources = {value[0] for value in node.get("inputs", {}).values() if isinstance(value, list) and len(value) == 2}
    return [item.name for item in workflow.interface.inputs if item.node_id == node_id or item.node_id in sources]


def _without_paths(text: str) -> str:
    """*text* with absolute paths cut down to their last part: a caller has no business with the image's inside."""
    text = text.encode(errors="replace").decode()  # a lone surrogate could not be sent
    return re.sub(r"(?<![\w.:/<])(/[^\s'\"`:;,()\[\]{}<>]+)+/([^\s'\"`:;,()\[\]{}<>/]*)", r"…/\2", text)
