"""One run of a workflow without a service: ComfyUI is started, asked once, and ended; its files go to a folder."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpack_build.errors import EngineUnavailable, StorageError
from cpack_build.serve.answer import names_of
from cpack_build.serve.client import Client, Watch
from cpack_build.serve.comfyui import Engine, make_engines
from cpack_build.serve.exchange import Exchange, Inbox, shipped_file
from cpack_build.serve.folders import prepare_folders
from cpack_build.serve.settings import Settings
from cpack_build.workflow import FILE_TYPES, Workflow, fill

__all__ = ["run_once"]

_START_SECONDS = 600.0
_TRIES = 2
"""Ends of ComfyUI before it has ever answered: the second says that it is no accident."""


def run_once(
    workflow: Workflow,
    values: Mapping[str, Any],
    *,
    settings: Settings,
    output: Path,
    watch: Watch | None = None,
    log: Callable[[str], None],
) -> list[Path]:
    """Run *workflow* with *values* (a file's is a :class:`Path`) and put its files into the folder *output*.

    Raises :class:`RunError`, :class:`WorkflowError`, :class:`StorageError`.
    """
    return asyncio.run(_run(workflow, values, settings, output, watch, log))


async def _run(
    workflow: Workflow,
    values: Mapping[str, Any],
    settings: Settings,
    output: Path,
    watch: Watch | None,
    log: Callable[[str], None],
) -> list[Path]:
    folders = prepare_folders(settings.data, settings.app / "input")
    (engine,) = make_engines(settings, folders, log=log)
    client = Client(engine)
    await engine.start()
    await client.start()
    try:
        await asyncio.wait_for(_ready(engine), _START_SECONDS)
        exchange = Exchange(engine, client, Inbox(engine, client), workflow=workflow, scratch=folders.scratch)
        try:
            given = {}
            for item in workflow.interface.inputs:
                value = values.get(item.name)
                if item.type not in FILE_TYPES:
                    if item.name in values:
                        given[item.name] = value
                elif isinstance(value, Path):
                    given[item.name] = await exchange.put(item, value)
                elif (shipped := shipped_file(settings.app / "input", item.default)) is not None:
                    own = exchange.default(item, shipped, settings.app / "input")
                    given[item.name] = own or await exchange.put(item, shipped)
            prompt = fill(workflow, given, prefixes=exchange.prefixes())
            reported = await asyncio.wait_for(client.run(prompt, watch=watch), settings.timeout)
            files = await exchange.collect(reported)
            return [_kept(file.path, output, name) for file, name in zip(files, names_of(files), strict=True)]
        finally:
            exchange.close()
    except asyncio.TimeoutError:
        raise EngineUnavailable("it took longer than it may") from None
    finally:
        await client.close()
        await engine.stop()


async def _ready(engine: Engine) -> None:
    """Wait until ComfyUI answers; one that ends before it ever did is not waited for."""
    ends = 0
    while engine.address is None:
        before = engine.trouble
        await engine.changed()
        ends += engine.address is None and engine.trouble != "it is starting" and bool(before)
        if ends >= _TRIES:
            raise EngineUnavailable(engine.trouble)


def _kept(path: Path, output: Path, name: str) -> Path:
    """A copy of the file at *path* in *output*, beside what lies there already."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in range(100_000):
            target = output / (f"{Path(name).stem}-{number}{Path(name).suffix}" if number else name)
            with contextlib.suppress(FileExistsError):
                with path.open("rb") as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
                return target
    except OSError as error:
        raise StorageError(
            f"{output} cannot be written: {error.strerror}.", hint="Name another folder with -o."
        ) from error
    raise StorageError(f"{output} is full of files called {name}.", hint="Name another folder with -o.")
