"""``cpack-build import FILE``: what another program recorded of a ComfyUI becomes a pack, and an old pack a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.objectinfo import object_info_option, read_object_info
from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal
from cpack_build.errors import BadInput, UsageError

if TYPE_CHECKING:
    from cpack_build.cpack.importers import Imported, Unpinned
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.schema import GitPin, Snapshot
    from cpack_build.fetch.mirrors import Mirrors

__all__ = ["import_"]

_PATH = click.Path(path_type=Path)
_CARRIED = ("comfyui/", "nodes/", "patches/", "workflow.png")
"""What a new pack keeps besides documents and inputs; a lock would be stale, and comfy-pack's own code is not used."""


@click.command(
    "import",
    epilog="Example: cpack-build import snapshot.json -w workflow_api.json --python 3.11 -o upscale.cpack.zip    "
    "(exit codes: docs/exit-codes.md)",
)
@click.argument("file", type=_PATH)
@click.option("-o", "--output", type=_PATH, metavar="PACK", help="By default NAME.cpack.zip beside FILE.")
@click.option("-w", "--workflow", type=_PATH, metavar="FILE", help="The workflow to put in: JSON, or a picture.")
@object_info_option
@click.option("--python", metavar="X.Y", help="The version of Python, where FILE does not say.")
@click.option("--comfyui", metavar="COMMIT|TAG", help="ComfyUI, where FILE does not say, or to replace it.")
@click.option("--node", metavar="URL@COMMIT|ID@VERSION", multiple=True, help="One more custom node.")
@click.option("--nodes", type=_PATH, metavar="FILE", help="A list of custom nodes, one a line, as for --node.")
@click.option("--mirror", metavar="PREFIX=PREFIX", multiple=True, help="Where to ask for tags instead.")
@click.option("--force", is_flag=True, help="Replace PACK if it is there.")
@terminal_options
def import_(
    file: Path,
    output: Path | None,
    workflow: Path | None,
    object_info: str | None,
    python: str | None,
    comfyui: str | None,
    node: tuple[str, ...],
    nodes: Path | None,
    mirror: tuple[str, ...],
    force: bool,
    terminal: Terminal,
) -> None:
    """Make a pack of FILE: a snapshot of ComfyUI-Manager or ComfyUI Desktop, comfy-build.yaml or comfy-lock.yaml of
    comfy-cli, a requirements.txt (with --node or --nodes), or a pack of any age."""
    from cpack_build.cpack.reader import read_pack
    from cpack_build.fetch.mirrors import Mirrors

    target = output or _beside(file)
    if target.exists() and not force:
        raise UsageError(f"{target} is already there.", hint="Name another with -o, or replace it with --force.")
    before = read_pack(file) if _is_zip(file) else None
    imported = _imported(file, before)
    snapshot, unpinned = _with_nodes(imported, node, nodes)
    snapshot = _with_python(snapshot, python, file)
    snapshot = _pinned(snapshot, _wanted(unpinned, comfyui), Mirrors.parse(mirror))
    if comfyui is None and snapshot.comfyui is None:
        note = "The pack does not say which ComfyUI it needs; --comfyui names it, and locking asks for it."
        snapshot = snapshot.model_copy(update={"notes": (*snapshot.notes, note)})
    api, drawing = _workflow(workflow, object_info, before, terminal)
    _write(target, snapshot, api, drawing, before)
    made = read_pack(target)
    terminal.result(
        {
            "pack": str(target),
            "sha256": made.sha256,
            "format": imported.format,
            "snapshot": made.snapshot.model_dump(mode="json"),
            "workflow": bool(api),
            "notes": list(snapshot.notes),
        }
    )
    for note in snapshot.notes:
        terminal.progress.note(note)
    if not api:
        terminal.progress.note("The pack has no workflow, so it can be restored but not served; -w puts one in.")
    count = len(made.snapshot.nodes) + len(made.snapshot.registry_nodes) + len(made.snapshot.file_nodes)
    terminal.say(
        f"{target} is written from a {imported.format}: Python {made.snapshot.python}, {count} custom nodes, "
        f"{len(made.snapshot.requirements)} Python packages, {len(made.snapshot.models)} models."
    )


def _beside(file: Path) -> Path:
    name = file.name
    for suffix in (".zip", ".cpack", ".json", ".yaml", ".yml", ".txt"):
        name = name.removesuffix(suffix)
    return file.with_name(f"{name}.cpack.zip")


def _is_zip(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(4) in (b"PK\3\4", b"PK\5\6")
    except OSError:
        return False  # reading it as a document tells why


def _imported(file: Path, before: Pack | None) -> Imported:
    from cpack_build.cpack.importers import Imported, read_foreign

    if before is None:
        return read_foreign(file)
    return Imported(f"pack of comfy-pack {before.era}", before.snapshot)


def _with_nodes(imported: Imported, node: tuple[str, ...], nodes: Path | None) -> tuple[Snapshot, tuple[Unpinned, ...]]:
    from cpack_build.cpack.importers import node_lines

    lists = [node_lines("\n".join(node), name="--node")]
    if nodes is not None:
        try:
            lists.append(node_lines(nodes.read_text("utf-8-sig"), name=str(nodes)))
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{nodes} cannot be read as text: {error}.", hint="Name a list of nodes.") from error
    snapshot = imported.snapshot
    changes = {
        "nodes": (*snapshot.nodes, *(pin for found in lists for pin in found.nodes)),
        "registry_nodes": dict(snapshot.registry_nodes, **{k: v for found in lists for k, v in found.registry_nodes}),
    }
    unpinned = (*imported.unpinned, *(item for found in lists for item in found.unpinned))
    return snapshot.model_copy(update=changes), unpinned


def _with_python(snapshot: Snapshot, python: str | None, file: Path) -> Snapshot:
    from cpack_build.cpack.documents import Field
    from cpack_build.cpack.pins import python_version

    if python is not None:
        return snapshot.model_copy(update={"python": python_version(Field(python, "the command line", "--python"))})
    if snapshot.python is None:
        raise UsageError(
            f"{file} does not say which version of Python ComfyUI ran on, and a pack must.",
            hint="Add it, for example --python 3.11.",
        )
    return snapshot


def _wanted(unpinned: tuple[Unpinned, ...], comfyui: str | None) -> list[Unpinned]:
    from cpack_build.cpack.importers import Unpinned
    from cpack_build.cpack.schema import COMFYUI_URL

    if comfyui is None:
        return list(unpinned)
    others = [item for item in unpinned if item.name != "ComfyUI"]
    return [Unpinned("ComfyUI", COMFYUI_URL, comfyui), *others]


def _pinned(snapshot: Snapshot, unpinned: list[Unpinned], mirrors: Mirrors) -> Snapshot:
    """*snapshot* with the commits that tags and branches name now."""
    import re

    from cpack_build.cpack.schema import GitPin, NodePin
    from cpack_build.fetch.git import named_commit

    notes = list(snapshot.notes)
    pins = list(snapshot.nodes)
    comfyui: GitPin | None = snapshot.comfyui
    for item in unpinned:
        if re.fullmatch(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}", item.reference):
            commit = item.reference.lower()
        else:
            commit = named_commit(item.url, item.reference, mirrors=mirrors)
            notes.append(f"{item.name} was named by {item.reference}, which is {commit} now.")
        if item.name == "ComfyUI":
            comfyui = GitPin(url=item.url, commit=commit)
        else:
            pins.append(NodePin(name=item.name, url=item.url, commit=commit, disabled=item.disabled))
    pins.sort(key=lambda pin: (pin.name, pin.url))
    return snapshot.model_copy(update={"nodes": tuple(pins), "comfyui": comfyui, "notes": tuple(notes)})


def _workflow(
    workflow: Path | None, object_info: str | None, before: Pack | None, terminal: Terminal
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The workflow in the API format, and as the editor draws it."""
    if workflow is None:
        return (before.workflow_api, before.workflow) if before is not None else ({}, None)
    from cpack_build.cpack.workflowfile import open_workflow
    from cpack_build.workflow import read_workflow

    given = open_workflow(workflow)
    api, notes = given.in_api_format(read_object_info(object_info))
    for note in notes:
        terminal.progress.note(note)
    read_workflow(api, name=str(workflow))
    return api, given.drawing


def _write(
    target: Path, snapshot: Snapshot, api: dict[str, Any], drawing: dict[str, Any] | None, before: Pack | None
) -> None:
    from cpack_build.cpack.snapshot import snapshot_document
    from cpack_build.cpack.writer import write_pack

    write_pack(
        target,
        snapshot_document={**(before.extra if before else {}), **snapshot_document(snapshot)},
        workflow_api=api,
        workflow=drawing,
        inputs={item.path: before.open_member(item.name) for item in before.inputs} if before else None,
        settings=before.settings_text if before else None,
        other={name: before.open_member(name) for name in before.other if name.startswith(_CARRIED)}
        if before
        else None,
    )
