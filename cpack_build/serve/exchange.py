"""The files of one request on their way into ComfyUI and out of it, and their removal afterwards.

Inputs are uploaded under the hash of their content, so equal names of different callers never meet and an unchanged
file leaves ComfyUI's cache valid. Outputs: comfy-pack's nodes write to the ``filename_prefix`` they are given,
absolute or not, and only some report what they wrote, while ordinary nodes report and may choose the place
themselves. So each output of a request gets a folder of its own within ComfyUI's output folder, and what lies in
there afterwards is its result, together with whatever its node reported. Where ComfyUI's folders cannot be reached (a
server on another machine) the reports, and ``/view``, are all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cpack_build.errors import RunError
from cpack_build.serve.client import Client, Outputs
from cpack_build.serve.comfyui import Engine
from cpack_build.workflow import Input, Output, Workflow

__all__ = ["Exchange", "Inbox", "Produced", "safe_name", "shipped_file"]


@dataclass(frozen=True)
class Produced:
    """A file at *path* that the workflow gave for *output*."""

    output: Output
    path: Path


def safe_name(name: str) -> str:
    """A file name made of *name*: its last part, letters, digits, ``_``, ``-`` and ``.`` only, no leading dot.

    Square brackets go too: ComfyUI reads ``x.png [output]`` as a file of another folder.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = re.sub(r"[^\w.-]+", "_", last, flags=re.ASCII).lstrip(".").rpartition(".")
    return f"{stem[-80:]}{dot}{suffix[-16:]}" or "file"


def shipped_file(inputs: Path, value: object) -> Path | None:
    """The file of the pack's *inputs* folder that *value*, a node's own value, means; None if the pack has none such.

    The value may be a name in ComfyUI's input folder, with its ``[input]`` mark, or a path that ends in ``input/…``.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    path = value.replace("\\", "/").removesuffix("[input]").rstrip()
    relative = path.removeprefix("input/") if path.startswith("input/") else path.rpartition("/input/")[2]
    candidate = PurePosixPath(relative)
    if candidate.is_absolute() or ".." in candidate.parts:
        return None
    found = inputs.joinpath(*candidate.parts)
    try:
        inside = found.is_file() and found.resolve().is_relative_to(inputs.resolve())
    except OSError:  # a name too long for the file system
        return None
    return found if inside else None


class Inbox:
    """What lies uploaded in ComfyUI's input folder, each file for as long as a request uses it."""

    def __init__(self, engine: Engine, client: Client) -> None:
        self._engine = engine
        self._client = client
        self._uploads: dict[str, asyncio.Task[str]] = {}
        self._users: dict[str, int] = {}

    async def put(self, path: Path) -> tuple[str, str]:
        """Upload the file at *path* unless it is there; returns its key for :meth:`take` and ComfyUI's name of it."""
        digest = await asyncio.to_thread(_sha256, path)
        name = safe_name(path.name)
        key = f"{self._engine.address}/{digest}/{name}"
        upload = self._uploads.get(key)
        if upload is None or (upload.done() and (upload.cancelled() or upload.exception() is not None)):
            # A folder of its own, also beside the same bytes under another name: it is removed with the file, perhaps
            # just as the other is written.
            folder = hashlib.sha256(f"{digest}/{name}".encode()).hexdigest()[:32]
            work = self._client.upload(path, name=name, subfolder=f"cpack/{folder}")
            upload = self._uploads[key] = asyncio.ensure_future(work)
        self._users[key] = self._users.get(key, 0) + 1
        try:
            return key, await asyncio.shield(upload)
        except BaseException:
            self.take(key)
            raise

    def take(self, key: str) -> None:
        """A request that put *key* is done with it; the last one removes it (from another machine it cannot)."""
        self._users[key] -= 1
        if self._users[key]:
            return
        del self._users[key]
        upload = self._uploads.pop(key)
        if not upload.done():
            upload.cancel()
        elif not upload.cancelled() and upload.exception() is None and self._engine.input_dir is not None:
            file = self._engine.input_dir / upload.result()
            with contextlib.suppress(OSError):
                file.unlink()
                file.parent.rmdir()


class Exchange:
    """One request's files; close it in any case."""

    def __init__(self, engine: Engine, client: Client, inbox: Inbox, *, workflow: Workflow, scratch: Path) -> None:
        self._engine = engine
        self._client = client
        self._inbox = inbox
        self._outputs = workflow.interface.outputs
        self._id = uuid.uuid4().hex
        self._keys: list[str] = []
        self._fetched = scratch / f"{self._id}-fetched"
        self._folder = engine.output_dir / "cpack" / self._id if engine.output_dir is not None else None

    async def put(self, item: Input, path: Path) -> str:
        """Make the file at *path* available to ComfyUI; returns the value for the node of *item*."""
        key, name = await self._inbox.put(path)
        self._keys.append(key)
        return f"{self._engine.input_path}/{name}" if item.type == "file" else name

    def default(self, item: Input, path: Path, inputs: Path) -> str | None:
        """The value for *item* when the pack's own file at *path* (within *inputs*) is used and ComfyUI has it."""
        if self._engine.input_dir is None:
            return None
        relative = path.relative_to(inputs)
        if not (self._engine.input_dir / relative).is_file():
            return None
        return f"{self._engine.input_path}/{relative.as_posix()}" if item.type == "file" else relative.as_posix()

    def prefixes(self) -> dict[str, str]:
        """The ``filename_prefix`` of each output by name; makes the folders that they are in."""
        found = {}
        for number, output in enumerate(self._outputs):
            if self._folder is not None:
                (self._folder / str(number)).mkdir(parents=True)
                found[output.name] = str(self._folder / str(number) / "out")
            else:
                # No folder can be made there, and CPackOutputTextFile makes none.
                found[output.name] = f"cpack-{self._id}-{number}"
        return found

    async def collect(self, reported: Outputs) -> list[Produced]:
        """The files of all outputs, in the workflow's order. Raises :class:`RunError` if there are none at all."""
        found: list[Produced] = []
        for number, output in enumerate(self._outputs):
            if self._folder is not None:
                paths = self._written(number)
                here = self._reported_here(output, reported.get(output.node_id))
                paths += [path for path in here if path not in paths]
            else:
                paths = await self._fetch(number, output, reported.get(output.node_id))
            found += [Produced(output, path) for path in paths]
        if not found:
            names = ", ".join(output.name for output in self._outputs)
            raise RunError(f"The workflow ran, but wrote no file for any of its outputs ({names}).")
        return found

    def _written(self, number: int) -> list[Path]:
        assert self._folder is not None
        entries = sorted((self._folder / str(number)).rglob("*"))
        return [path for path in entries if path.is_file() and not path.is_symlink()]

    def _reported_here(self, output: Output, ui: Mapping[str, Any] | None) -> list[Path]:
        found = []
        for reference in _references(ui):
            folder = self._engine.temp_dir if reference["type"] == "temp" else self._engine.output_dir
            if folder is None:
                continue
            path = folder / reference["subfolder"] / reference["filename"]
            if not (path.is_file() and path.resolve().is_relative_to(folder.resolve())):
                raise _missing(output)
            found.append(path)
        return found

    async def _fetch(self, number: int, output: Output, ui: Mapping[str, Any] | None) -> list[Path]:
        references = list(_references(ui))
        told = bool(references)
        if not references and output.kind == "text":  # writes where it is told, and reports nothing
            references = [{"filename": f"cpack-{self._id}-{number}_0001.txt", "subfolder": "", "type": "output"}]
        found = []
        for position, reference in enumerate(references):
            target = self._fetched / str(number) / f"{position:04}" / safe_name(reference["filename"])
            target.parent.mkdir(parents=True)
            if await self._client.fetch(reference, target):
                found.append(target)
            elif told:
                raise _missing(output)
        if not found and output.kind == "file":
            raise RunError(
                f"The output '{output.name}' ({output.node_class}) is written to a folder of ComfyUI's machine.",
                hint="Run the service on that machine, or use an output node that reports its files.",
            )
        return found

    def close(self) -> None:
        """Remove the request's files, wherever it got to."""
        for key in self._keys:
            self._inbox.take(key)
        self._keys.clear()
        for folder in (self._folder, self._fetched):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _missing(output: Output) -> RunError:
    return RunError(
        f"The output '{output.name}' ({output.node_class}) is missing: ComfyUI told of a file that is not there.",
        status=502,
    )


def _references(ui: Mapping[str, Any] | None) -> Iterator[dict[str, str]]:
    """The files that a node reported, under whatever name (``images``, ``audio``, ``zip``, …)."""
    for listed in (ui or {}).values():
        for item in listed if isinstance(listed, list) else ():
            if isinstance(item, Mapping) and isinstance(item.get("filename"), str):
                kind = item.get("type")  # CPackOutputZip says `zip`, and means the output folder
                yield {
                    "filename": item["filename"],
                    "subfolder": str(item.get("subfolder") or ""),
                    "type": kind if kind in ("output", "temp", "input") else "output",
                }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
