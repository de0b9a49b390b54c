"""``cpack-build run PACK``: restored to a workspace that is kept, ComfyUI started, the workflow run once.

The flags are the workflow's own parameters, so they are known only when the pack has been read: ``--help`` after the
pack lists them with their types, bounds and defaults."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.export import image_options
from cpack_build.cli.options import Chosen, terminal_options
from cpack_build.cli.parameters import parse_values, print_help
from cpack_build.cli.sources import goal_of, opened_at, restore_options, sources_of, trust_option
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.fetch.store import Store
    from cpack_build.progress import Task
    from cpack_build.serve.client import Watch
    from cpack_build.workflow.interface import Workflow

__all__ = ["run", "run_pack"]


class _Run(click.Command):
    """``--help`` after SOURCE is the workflow's, not the verb's."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        ours = args[: args.index("--")] if "--" in args else args
        if any(word.partition("=")[0] == "--engine" for word in ours):
            from cpack_build.cli.container import contained

            return contained.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and set(args) & {"--help", "-h"}:
            args = [*(word for word in args if word not in ("--help", "-h")), "--help-of-workflow"]
        return super().parse_args(ctx, args)


@click.command(
    cls=_Run,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Example: cpack-build run upscale.cpack.zip --photo cat.png -o results    (exit codes: docs/exit-codes.md)",
)
@click.argument("source")
@click.argument("values", nargs=-1, type=click.UNPROCESSED, metavar="[--NAME VALUE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=".",
    metavar="DIR",
    help="Where its files go; by default here.",
)
@trust_option
@click.option("--offline", is_flag=True, help="Use what the pack, the image and this machine have; ask nobody.")
@click.option("--help-of-workflow", is_flag=True, hidden=True)
@restore_options
@image_options
@terminal_options
def run(
    source: str,
    values: tuple[str, ...],
    output: Path,
    trust: bool,
    offline: bool,
    help_of_workflow: bool,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Run the workflow of SOURCE, a pack or an image, once: with its parameters as flags, its files into DIR.

    Its workspace is restored to a place that is kept, so the next run only starts ComfyUI. `cpack-build run SOURCE
    --help` lists the workflow's own flags.

    With --engine auto (or docker, podman) the image's service is run in a container instead, until Ctrl-C:
    `cpack-build run --engine auto --help`.
    """
    arguments = [*values, "--help"] if help_of_workflow else list(values)
    chosen = sources_of(**flags)
    run_pack(source, arguments, chosen=chosen, output=output, trust=trust, offline=offline, terminal=terminal)


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
    from cpack_build.fetch.store import Store
    from cpack_build.restore.goal import Options
    from cpack_build.restore.restoring import restore

    store = Store()
    if any(word in ("--help", "-h") for word in arguments):
        print_help(source, _workflow(source, chosen, store=store, terminal=terminal))
        return
    with goal_of(source, chosen, store=store, offline=offline, trust=trust, terminal=terminal) as (
        goal, settings, sources,
    ):  # fmt: skip
        workflow = _workflow_in(goal.documents, source)
        values = parse_values(workflow, arguments)
        root = store.derived.take("workspaces", f"{goal.name}-{goal.lock.sha256[:16]}")
        done = restore(
            goal,
            root,
            options=Options(
                offline=offline,
                model_folders=settings.models,
                find_links=settings.python.find_links,
                consent=lambda scripts: trust,
                trust=trust,
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


def _workflow(source: str, chosen: Chosen, *, store: Store, terminal: Terminal) -> Workflow:
    """The workflow of *source*; a pack is not locked for that."""
    from cpack_build.cpack.reader import read_pack
    from cpack_build.restore.artifact import read_artifact

    with opened_at(source, chosen, store=store, terminal=terminal) as found:
        if isinstance(found, Path):
            return read_pack(found).served()
        documents = read_artifact(found, name=source).documents
    return _workflow_in(documents, source)


def _workflow_in(documents: Mapping[str, bytes], name: str) -> Workflow:
    from cpack_build.errors import UsageError
    from cpack_build.workflow.interface import read_workflow

    if "workflow_api.json" not in documents:
        raise UsageError(f"{name} has no workflow to run.", hint="Pack it again with one.")
    return read_workflow(json.loads(documents["workflow_api.json"]), name=f"{name}: workflow_api.json")


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
                watch=_watcher(task, _previews(terminal)),
                log=lambda line: None,
            )
        return files, time.monotonic() - begun


def _previews(terminal: Terminal) -> Callable[[bytes], None]:
    from cpack_build.cli.previews import Previews, graphics_of

    graphics = graphics_of(os.environ, is_terminal=terminal.has_bars)
    return Previews(graphics, terminal.show) if graphics is not None else lambda picture: None


def _watcher(task: Task, preview: Callable[[bytes], None]) -> Watch:
    seen: set[str] = set()

    def watch(event: str, data: Mapping[str, Any]) -> None:
        if event == "preview":
            preview(data["data"])
            return
        nodes = data.get("nodes", []) if event == "cached" else [data["node"]] if event == "node" else []
        new = set(nodes) - seen
        seen.update(new)
        task.advance(len(new))

    return watch
