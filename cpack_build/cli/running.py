"""``cpack-build run PACK``: restored to a workspace that is kept, ComfyUI started, the workflow run once.

The flags are the workflow's own parameters, so they are known only when the pack has been read: ``--help`` after the
pack lists them with their types, bounds and defaults."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.options import Chosen
from cpack_build.cli.restore import goal_of
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.progress import Task
    from cpack_build.workflow.interface import Input, Workflow

__all__ = ["run_pack"]

_TYPES = {"image": "FILE", "file": "FILE", "string": "TEXT", "int": "INTEGER", "float": "NUMBER", "number": "NUMBER",
          "boolean": "true|false", "any": "JSON|TEXT"}  # fmt: skip


def run_pack(
    source: str,
    arguments: Sequence[str],
    *,
    chosen: Chosen,
    output: Path,
    trust: bool,
    offline: bool,
    terminal: Terminal,
) -> None:
    """Run the workflow of *source*, a pack or an image, with the values in *arguments*; its files go to *output*."""
    from cpack_build.errors import UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.restore.restoring import Options, restore
    from cpack_build.workflow.interface import read_workflow

    store = Store()
    if any(word in ("--help", "-h") for word in arguments):
        with _documents(source, chosen, store=store, terminal=terminal) as (name, documents):
            _print_help(source, read_workflow(documents["workflow_api.json"], name=f"{name}: workflow_api.json"))
        return
    with goal_of(source, chosen, store=store, offline=offline, terminal=terminal) as (goal, settings, sources):
        if "workflow_api.json" not in goal.documents:
            raise UsageError(f"{source} has no workflow to run.", hint="Pack it again with one.")
        workflow = read_workflow(
            json.loads(goal.documents["workflow_api.json"]), name=f"{goal.name}: workflow_api.json"
        )
        values = parse_values(workflow, arguments)
        root = store.root / "workspaces" / f"{goal.name}-{goal.lock.sha256[:16]}"
        done = restore(
            goal,
            root,
            options=Options(
                offline=offline,
                model_folders=settings.models,
                find_links=settings.python.find_links,
                consent=lambda scripts: trust,
            ),
            store=store,
            sources=sources,
            progress=terminal.progress,
        )
        files, seconds = _run(workflow, values, root, goal.lock.comfyui_args, output, terminal)
    terminal.result(
        {
            "files": [str(path) for path in files],
            "seconds": round(seconds, 3),
            "workspace": str(done.root),
            "made": done.made,
            "scripts_not_run": list(done.scripts),
        }
    )
    for path in files:
        terminal.say(f"{path}  {amount(path.stat().st_size, None, 'B')}")


@contextlib.contextmanager
def _documents(
    source: str, chosen: Chosen, *, store: Any, terminal: Terminal
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The workflow of *source*; a pack is not locked for that."""
    from cpack_build.cpack.reader import read_pack
    from cpack_build.restore.naming import pack_path

    path = pack_path(source)
    if path is not None:
        pack = read_pack(path)
        yield pack.name, {"workflow_api.json": pack.workflow_api}
        return
    with goal_of(source, chosen, store=store, offline=False, terminal=terminal) as (goal, _, _):
        yield goal.name, {"workflow_api.json": json.loads(goal.documents["workflow_api.json"])}


def _run(
    workflow: Workflow,
    values: Mapping[str, Any],
    root: Path,
    comfyui_args: tuple[str, ...],
    output: Path,
    terminal: Terminal,
) -> tuple[list[Path], float]:
    from tempfile import TemporaryDirectory

    from cpack_build.errors import ToolMissing
    from cpack_build.restore.environment import python_of

    try:
        from cpack_build.serve.once import run_once
        from cpack_build.serve.settings import Settings
    except ImportError as error:
        raise ToolMissing(
            f"The service's packages are not installed ({error.name}).", hint="Install cpack-build[serve]."
        ) from None
    with TemporaryDirectory(prefix="cpack-run-") as folder:
        app = Path(folder) / "app"
        app.mkdir()
        (app / "input").symlink_to(root / "input")
        given = {
            "CPACK_APP": str(app),
            "CPACK_DATA": str(Path(folder) / "data"),
            "COMFYUI_DIR": str(root),
            "COMFYUI_PYTHON": str(python_of(root)),
            "CPACK_COMFYUI_ARGS": json.dumps(list(comfyui_args)),
        }
        settings = Settings.from_environment({**os.environ, "COMFYUI_SERVER": "", **given}, pid=0)
        # ComfyUI's own lines belong to whoever asks for them, and never into the result.
        talk = sys.stderr if terminal.verbose else open(os.devnull, "w")  # noqa: SIM115
        begun = time.monotonic()
        with contextlib.ExitStack() as opened:
            if talk is not sys.stderr:
                opened.enter_context(talk)
            opened.enter_context(contextlib.redirect_stdout(talk))
            task = opened.enter_context(
                terminal.progress.task("Starting ComfyUI", unit="nodes", total=len(workflow.nodes))
            )
            files = run_once(
                workflow,
                values,
                settings=settings,
                output=output,
                watch=_watcher(task, workflow),
                log=lambda line: None,
            )
        return files, time.monotonic() - begun


def _watcher(task: Task, workflow: Workflow) -> Any:
    seen: set[str] = set()

    def watch(event: str, data: Mapping[str, Any]) -> None:
        nodes = data.get("nodes", []) if event == "cached" else [data["node"]] if event == "node" else []
        new = set(nodes) - seen
        seen.update(new)
        task.advance(len(new))

    return watch


# -- flags -----------------------------------------------------------------------------------------------------------


def parse_values(workflow: Workflow, arguments: Sequence[str]) -> dict[str, Any]:
    """``--name VALUE`` and ``--name=VALUE`` as values of *workflow*'s parameters. Raises :class:`UsageError`."""
    import difflib

    from cpack_build.errors import UsageError

    inputs = {item.name: item for item in workflow.interface.inputs}
    values: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise UsageError(f"{word!r} is no flag of the workflow.", hint="Values are given as --name VALUE.")
        name, equals, text = word[2:].partition("=")
        item = inputs.get(name) or inputs.get(name.replace("-", "_"))
        if item is None:
            near = difflib.get_close_matches(name, inputs, n=1)
            have = f"It has: {', '.join(f'--{one}' for one in inputs) or 'none'}."
            hint = f"Did you mean --{near[0]}?" if near else have
            raise UsageError(f"The workflow has no parameter {name!r}.", hint=hint)
        if not equals:
            if not words:
                raise UsageError(f"--{name} needs a value.", hint=f"Write --{name} {_metavar(item)}.")
            text = words.pop(0)
        values[item.name] = _value(item, text)
    if missing := [item.name for item in inputs.values() if item.required and item.name not in values]:
        raise UsageError(
            f"The workflow needs {', '.join(f'--{name}' for name in missing)}.",
            hint="It has no value of its own for it.",
        )
    return values


def _value(item: Input, text: str) -> Any:
    from cpack_build.errors import UsageError

    wrong = UsageError(f"--{item.name} {text!r:.80} is not {_metavar(item)}.", hint="See --help after the pack.")
    if item.type in ("image", "file"):
        path = Path(text).expanduser()
        if not path.is_file():
            raise UsageError(f"--{item.name} {text!r:.200} is no file.", hint="Name an existing file.")
        return path
    if item.choices:
        for choice in item.choices:
            if text == str(choice):
                return choice
        raise wrong
    if item.type == "string":
        return text
    if item.type == "boolean":
        if text.lower() not in ("true", "false"):
            raise wrong
        return text.lower() == "true"
    try:
        value = json.loads(text)
    except ValueError:
        if item.type == "any":
            return text
        raise wrong from None
    if item.type == "any":
        return value
    if isinstance(value, bool) or not isinstance(value, int if item.type == "int" else int | float):
        raise wrong
    if (item.minimum is not None and value < item.minimum) or (item.maximum is not None and value > item.maximum):
        raise wrong
    return value


def _metavar(item: Input) -> str:
    if item.choices:
        return "|".join(str(choice) for choice in item.choices[:8]) + ("|…" if len(item.choices) > 8 else "")
    bounds = ""
    if item.minimum is not None or item.maximum is not None:
        low = "" if item.minimum is None else f"{item.minimum:g}"
        high = "" if item.maximum is None else f"{item.maximum:g}"
        bounds = f"[{low}..{high}]"
    return _TYPES.get(item.type, "VALUE") + bounds


def _print_help(source: str, workflow: Workflow) -> None:
    formatter = click.HelpFormatter(max_width=100)
    formatter.write_usage("cpack-build run", f"{source} [-o DIR] [--NAME VALUE]...")
    rows = []
    for item in workflow.interface.inputs:
        told = item.description or (item.title if item.title and item.title != item.name else "")
        default = "required" if item.required else f"default: {item.default}" if item.default is not None else ""
        rows.append((f"--{item.name} {_metavar(item)}", f"{told} [{default}]".strip() if default else told))
    with formatter.section("The workflow's parameters"):
        formatter.write_dl(rows or [("none", "")])
    with formatter.section("Its results"):
        formatter.write_dl([(output.name, output.kind) for output in workflow.interface.outputs])
    click.echo(formatter.getvalue(), nl=False)
