"""What a caller gets back: a file, several in a zip, or an error that names the node and says no more than it should.

Answers do not need the request's files any more once they are made: small ones are in memory, larger ones are read
from an open file that has no name.
"""

from __future__ import annotations

import asyncio
import mimetypes
import re
import tempfile
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from cpack_build.errors import PromptRefused, RunError
from cpack_build.serve.exchange import Produced
from cpack_build.workflow import Workflow

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["answer_with_error", "answer_with_files", "choose_file", "media_type", "names_of"]

_IN_MEMORY = 4 << 20
_BLOCK = 1 << 18
_INLINE = re.compile(r"(image/(?!svg)|audio/|video/)")
# An image has no /etc/mime.types, and what Python itself knows depends on its version.
_TYPES = {
    ".avif": "image/avif",
    ".flac": "audio/flac",
    ".glb": "model/gltf-binary",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".m4a": "audio/mp4",
    ".md": "text/markdown",
    ".mkv": "video/x-matroska",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".png": "image/png",
    ".txt": "text/plain",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".zip": "application/zip",
}


def media_type(path: Path) -> str:
    """The media type of the file at *path*, by its suffix."""
    suffix = path.suffix.lower()
    return _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")


def names_of(files: Sequence[Produced]) -> list[str]:
    """The name of each of *files* for the caller: its output's, numbered where an output has several."""
    names: list[str] = []
    for file in files:
        group = [other for other in files if other.output is file.output]
        number = f"_{group.index(file) + 1}" if len(group) > 1 else ""
        stem = re.sub(r"[/\\\0-\x1f]", "_", file.output.name)
        names.append(f"{stem}{number}{file.path.suffix.lower()}")
    return names


def choose_file(files: Sequence[Produced], accept: str) -> Produced | None:
    """Which of *files* is the answer by itself; None for all of them in a zip.

    An only file is; of several, the first of a type that *accept* (the request's header) names.
    """
    if len(files) == 1:
        return files[0]
    wanted = []
    for position, item in enumerate(accept.split(",")):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((_quality(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        if "/" in kind and "*" not in kind.partition("/")[0] and quality > 0:
            wanted.append((-quality, position, kind))
    for _, _, kind in sorted(wanted):
        if kind == "application/zip":
            return None
        for file in files:
            own = media_type(file.path)
            if own == kind or (kind.endswith("/*") and own.startswith(kind[:-1])):
                return file
    return None


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


async def answer_with_files(files: Sequence[Produced], *, accept: str, title: str, scratch: Path) -> Response:
    """The response for *files*; *title* names the zip, *scratch* is where it is made."""
    chosen = choose_file(files, accept)
    names = names_of(files)
    if chosen is not None:
        name = names[list(files).index(chosen)]
        return await _respond(chosen.path.open("rb"), kind=media_type(chosen.path), name=name)
    archive = await asyncio.to_thread(_zip, files, names, scratch)
    return await _respond(archive, kind="application/zip", name=f"{title}.zip")


def _zip(files: Sequence[Produced], names: Sequence[str], scratch: Path) -> IO[bytes]:
    archive = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it is read after this function
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, strict_timestamps=False) as into:
        taken: set[str] = set()
        for file, name in zip(files, names, strict=True):
            unique = name
            while unique in taken:
                unique = f"_{unique}"
            taken.add(unique)
            into.write(file.path, unique)
    archive.seek(0)
    return archive


async def _respond(file: IO[bytes], *, kind: str, name: str) -> Response:
    from starlette.responses import Response, StreamingResponse

    size = file.seek(0, 2)
    file.seek(0)
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    disposition = f'{"inline" if _INLINE.match(kind) else "attachment"}; filename="{plain}"'
    if plain != name:
        disposition += f"; filename*=utf-8''{quote(name)}"
    headers = {
        "content-disposition": disposition,
        "content-length": str(size),
        "x-content-type-options": "nosniff",
    }
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
    headers = {"retry-after": "2"} if status == 503 else None
    return JSONResponse(body, status_code=status, headers=headers)


def _parameters_of(node_id: str, workflow: Workflow) -> list[str]:
    """The parameters that set a value of the node *node_id* itself."""
    node = workflow.nodes.get(node_id, {})
    sources = {value[0] for value in node.get("inputs", {}).values() if isinstance(value, list) and len(value) == 2}
    return [item.name for item in workflow.interface.inputs if item.node_id == node_id or item.node_id in sources]


def _without_paths(text: str) -> str:
    """*text* with absolute paths cut down to their last part: a caller has no business with the image's inside."""
    text = text.encode(errors="replace").decode()  # a lone surrogate could not be sent
    return re.sub(r"(?<![\w.:/<])(/[^\s'\"`:;,()\[\]{}<>]+)+/([^\s'\"`:;,()\[\]{}<>/]*)", r"…/\2", text)
