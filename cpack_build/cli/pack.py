"""``cpack-build pack WORKSPACE -w WORKFLOW``: a ComfyUI install and a workflow become a pack."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.objectinfo import object_info_option, read_object_info
from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal, amount, printable

if TYPE_CHECKING:
    from cpack_build.workspace import Draft, Written
    from cpack_build.workspace.nodes import Node

__all__ = ["pack"]

_ENDING = re.compile(r"([ _.-]api)?\.(json|png|webp|jpe?g|flac|mp4|webm)$", re.IGNORECASE)
_SHOWN = 30
"""Files of a captured node that are shown; -v shows all."""


@click.command(
    epilog="Example: cpack-build pack ~/ComfyUI -w upscale_api.json -o upscale.cpack.zip    (exit codes: "
    "docs/exit-codes.md)"
)
@click.argument("workspace", type=click.Path(path_type=Path))
@click.option(
    "-w", "--workflow", "workflow_file", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="The workflow in ComfyUI's API format, or a picture that it made; with --object-info also as the editor saves "
    "it.",
)  # fmt: skip
@click.option(
    "--editor-workflow", type=click.Path(path_type=Path), metavar="FILE", help="The same as the editor saves it."
)
@object_info_option
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="By default NAME.cpack.zip here.")
@click.option("--model", "models", metavar="GLOB", multiple=True, help="Also these models: 'loras/*.safetensors'.")
@click.option("--input", "inputs", metavar="GLOB", multiple=True, help="Also these files of input/.")
@click.option(
    "--choice", type=click.Path(path_type=Path), metavar="FILE",
    help="Exactly these models and inputs, whatever the workflow uses: "
    '{"models": ["models/loras/x.safetensors"], "inputs": ["input/a.png"]}.',
)  # fmt: skip
@click.option("--all-models", is_flag=True, help="All models, not only those that the workflow uses.")
@click.option("--include-local", is_flag=True, help="Capture nodes that have no remote, without asking.")
@click.option("--exclude-node", metavar="NAME", multiple=True, help="Leave a custom node out.")
@click.option("--capture-node", metavar="NAME", multiple=True, help="Pack a custom node whole, as it lies there.")
@click.option("--python", type=click.Path(path_type=Path), metavar="PATH", help="The Python that runs this ComfyUI.")
@click.option(
    "--extra-model-paths-config", "extra_paths", type=click.Path(path_type=Path), metavar="FILE", multiple=True,
    help="As ComfyUI's own option.",
)  # fmt: skip
@click.option(
    "--folders", type=click.Path(path_type=Path), metavar="FILE",
    help="The folders of a ComfyUI that runs, as it told them (the plugin writes this), instead of what its files say.",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings to put into the pack, as cpack.yaml."
)
@click.option(
    "--comfyui-commit", metavar="COMMIT", help="Which commit a ComfyUI without git is, instead of its version's."
)
@click.option("--mirror", metavar="PREFIX=PREFIX", help="Ask the second instead of the first.", multiple=True)
@click.option(
    "--offline",
    is_flag=True,
    help="Ask nobody where models can be had, or what was published.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be packed; read no model, and write nothing.")
@terminal_options
def pack(
    workspace: Path,
    workflow_file: Path,
    editor_workflow: Path | None,
    object_info: str | None,
    output: Path | None,
    models: tuple[str, ...],
    inputs: tuple[str, ...],
    choice: Path | None,
    all_models: bool,
    include_local: bool,
    exclude_node: tuple[str, ...],
    capture_node: tuple[str, ...],
    python: Path | None,
    extra_paths: tuple[Path, ...],
    folders: Path | None,
    config: Path | None,
    comfyui_commit: str | None,
    mirror: tuple[str, ...],
    offline: bool,
    dry_run: bool,
    terminal: Terminal,
) -> None:
    """Pack a workflow with the ComfyUI, nodes, packages, models and inputs that it uses of WORKSPACE.

    WORKSPACE is the folder of a ComfyUI install; it need not run, and nothing of it is run.
    """
    from cpack_build.cpack.settings import settings_to_carry
    from cpack_build.cpack.workflowfile import open_workflow
    from cpack_build.errors import UsageError, WorkflowError
    from cpack_build.fetch.http import RequestsTransport, Sources
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.workspace import Upstream, draft_pack, write_draft
    from cpack_build.workspace.folders import read_folders
    from cpack_build.workspace.ticked import read_ticked

    if choice is not None and (models or inputs or all_models):
        raise UsageError("--choice names everything.", hint="Leave --model, --input and --all-models out.")
    store = Store()
    sources = Sources(Mirrors.parse(mirror), RequestsTransport(timeouts=(5.0, 20.0)))
    info = read_object_info(object_info)
    given = open_workflow(workflow_file)
    api, notes = given.in_api_format(info)
    for note in notes:
        terminal.progress.note(note)
    drawing = given.drawing
    if editor_workflow is not None and (drawing := open_workflow(editor_workflow).drawing) is None:
        raise WorkflowError(
            f"{editor_workflow} is not as the editor saves it.", hint="Save it with Workflow > Save, or leave it out."
        )
    draft = draft_pack(
        workspace, api, workflow=drawing, object_info=info,
        python=python, extra_model_paths=extra_paths, models=models, inputs=inputs, all_models=all_models,
        ticked=None if choice is None else read_ticked(choice),
        running=None if folders is None else read_folders(folders),
        settings=None if config is None else settings_to_carry(config),
        exclude_nodes=exclude_node, capture_nodes=capture_node, comfyui_commit=comfyui_commit,
        upstream=Upstream(store, sources, offline=offline, progress=terminal.progress),
        progress=terminal.progress,
    )  # fmt: skip
    target = output or Path(_name(workflow_file) + ".cpack.zip")
    for line in (*draft.notes, *(f"Missing: {what}." for what in draft.missing)):
        terminal.progress.note(line)
    for finding in draft.findings:
        terminal.progress.note(f"{finding}: remove it, unless everybody may have it.")
    if draft.captured:
        _show_captured(draft, terminal)
        if not dry_run and not include_local and any(not node.is_known for node in draft.captured):
            _ask(draft, terminal)
    if dry_run:
        terminal.result(_document(draft, target, None))
        _say(draft, target, terminal, dry_run=True)
        return
    written = write_draft(draft, target, store=store, sources=sources, offline=offline, progress=terminal.progress)
    for note in written.notes:
        terminal.progress.note(note)
    terminal.result(_document(draft, target, written))
    _say(draft, target, terminal, dry_run=False)


def _name(workflow: Path) -> str:
    """What a pack of that file is called: without its ending and ``_api``."""
    return (
        re.sub(r"([ _.-]api)?\.(json|png|webp|jpe?g|flac|mp4|webm)$", "", workflow.name, flags=re.IGNORECASE)
        or "workflow"
    )


def _show_captured(draft: Draft, terminal: Terminal) -> None:
    """The size and files of what is captured whole."""
    for node in draft.captured:
        if node.is_known:
            continue
        terminal.progress.note(
            f"{node.name} would be captured whole ({node.reason}): {len(node.files)} files, "
            f"{amount(node.size, None, 'B')}."
        )
        shown = node.files if terminal.verbose else node.files[:_SHOWN]
        for file in shown:
            terminal.progress.note(f"  {file.name}  {amount(file.size, None, 'B')}")
        if len(shown) < len(node.files):
            terminal.progress.note(f"  and {len(node.files) - len(shown)} more (-v shows all)")


def _ask(draft: Draft, terminal: Terminal) -> None:
    """Have the user agree that captured nodes travel. Raises :class:`UnsafeInput` where there is nobody to ask."""
    from cpack_build.errors import UnsafeInput

    names = ", ".join(
        f"{node.name} ({len(node.files)} files, {amount(node.size, None, 'B')})"
        for node in draft.captured
        if not node.is_known
    )
    asked = not terminal.json and sys.stdin.isatty() and sys.stderr.isatty()
    if asked and click.confirm(printable(f"Put the code of {names} into the pack?"), err=True):
        return
    raise UnsafeInput(
        f"Only this machine has the code of {names}, so it would have to travel in the pack.",
        hint=f"Allow it with --include-local, or {_instead(draft)}. --dry-run lists its files.",
    )


def _instead(draft: Draft) -> str:
    """How to do without the first thing that would be captured."""
    name = next(node.name for node in draft.captured if not node.is_known)
    return "name its commit: --comfyui-commit" if draft.source.files else f"leave it out: --exclude-node {name}"


def _document(draft: Draft, target: Path, written: Written | None) -> dict[str, Any]:
    """The result as one object."""
    hashes = written.hashes if written else {}
    return {
        "pack": str(target),
        "written": written is not None,
        "sha256": written.sha256 if written else None,
        "size": written.size if written else None,
        "comfyui": {
            "commit": draft.source.commit or None,
            "patched": bool(draft.source.patch),
            "captured": [{"filename": file.name, "size": file.size} for file in draft.source.files],
            **draft.source.document(),
        },
        "python": {"version": draft.environment.version, "kind": draft.environment.kind},
        "packages": len(draft.packages.pins),
        "nodes": [_node(node) for node in draft.nodes],
        "models": [
            {
                "filename": file.name,
                "size": file.size,
                "sha256": hashes.get(file.name),
                "source": dict(written.sources[file.name]) if written else None,
            }
            for file in draft.models
        ],
        "models_not_chosen": len(draft.listing.files) - len(draft.models),
        "inputs": [{"filename": file.name, "size": file.size} for file in draft.inputs],
        "missing": [str(one) for one in draft.missing],
        "notes": [*draft.notes, *(written.notes if written else ())],
        "findings": [{"file": item.file, "line": item.line, "kind": item.kind} for item in draft.findings],
    }


def _node(node: Node) -> dict[str, Any]:
    said: dict[str, Any] = {"name": node.name, "kind": node.kind, "disabled": node.disabled}
    if node.git is not None and node.kind == "git":
        said |= {"url": node.git.url, "commit": node.git.commit, "changed": list(node.git.changed)}
    if node.version:
        said |= {"id": node.registry_id, "version": node.version}
    if node.files:
        size = sum(file.size for file in node.files)
        said |= {"captured": [{"filename": file.name, "size": file.size} for file in node.files], "size": size}
    return said


def _say(draft: Draft, target: Path, terminal: Terminal, *, dry_run: bool) -> None:
    """One line, and what is missing."""
    what = "would be written" if dry_run else "is written"
    version = draft.source.version or draft.source.commit[:12] or "of unknown version"
    enabled = sum(not node.disabled for node in draft.nodes)
    size = amount(sum(file.size for file in draft.models), None, "B")
    terminal.say(
        f"{target} {what}: ComfyUI {version}, Python {draft.environment.version}, {len(draft.packages.pins)} packages, "
        f"{enabled} custom nodes, {len(draft.models)} of {len(draft.listing.files)} models ({size}), "
        f"{len(draft.inputs)} inputs."
    )
    if dry_run:
        for file in draft.models:
            terminal.say(f"  {file.name}  {amount(file.size, None, 'B')}")
        for item in draft.inputs:
            terminal.say(f"  {item.name}  {amount(item.size, None, 'B')}")
