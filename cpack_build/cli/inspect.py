"""``cpack-build inspect PACK|MODEL``: what a pack, a workflow or a model file holds, without building or loading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.lock import counted_in, told
from cpack_build.cli.lockfile import LockFile, is_lock, lock_file
from cpack_build.cli.objectinfo import object_info_option, read_object_info
from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.workflow.interface import Workflow
    from cpack_build.workflow.references import InputReference, ModelReference

__all__ = ["inspect"]

_OTHER_SHOWN = 5
_MODELS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl")


@click.command(epilog="Example: cpack-build inspect upscale.cpack.zip --json    (exit codes: docs/exit-codes.md)")
@click.argument("pack", metavar="PACK|MODEL", type=click.Path(path_type=Path))
@click.option(
    "--all", "everything", is_flag=True, help="Also models and nodes that were not chosen, packages and addresses."
)
@object_info_option
@terminal_options
def inspect(pack: Path, everything: bool, object_info: str | None, terminal: Terminal) -> None:
    """Show what PACK holds: its workflow's parameters and results, and what its image needs.

    PACK may be a workflow, too: ComfyUI's JSON, or a picture that ComfyUI made; or a lock. Of a MODEL file: its kind,
    tensors and types; and what a pickled one would import when it is loaded.
    """
    if pack.suffix.lower() in _MODELS:
        _inspect_model(pack, terminal)
        return
    if pack.suffix.lower() == ".lock" and is_lock(pack):
        _inspect_lock(LockFile(pack, False, pack.read_bytes()), terminal)
        return
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import WorkflowError
    from cpack_build.workflow.embedded import is_medium

    if pack.suffix.lower() == ".json" or (pack.is_file() and is_medium(pack)):
        _inspect_workflow(pack, object_info, terminal)
        return
    read = read_pack(pack)
    try:
        workflow, problem = read.served(), None
    except WorkflowError as error:
        workflow, problem = None, error
    terminal.result(_document(read, workflow, problem))
    if not terminal.json:
        for line in _lines(read, workflow, problem, everything=everything):
            terminal.say(line)
    for note in read.snapshot.notes:
        terminal.progress.note(note)


def _inspect_model(path: Path, terminal: Terminal) -> None:
    from cpack_build.errors import BadInput
    from cpack_build.fetch.inventory import describe

    if not path.is_file():
        raise BadInput(f"There is no file {path}.", hint="Correct it.")
    found = {"model": str(path), **describe(path, name=path.name)}
    terminal.result(found)
    terminal.say(f"{path}  {amount(found['size'], None, 'B')}")
    quantised = f", {found['quantisation']}" if found.get("quantisation") else ""
    terminal.say(f"  {found['format']}, {found['kind'] or 'kind not known'}{quantised}")
    if "tensors" in found:
        types = ", ".join(found["dtypes"])
        terminal.say(f"  {found['tensors']} tensors, {found['parameters'] / 1e6:,.1f} M parameters, {types}")
    for key, value in sorted(found.get("metadata", {}).items()):
        terminal.say(f"  {key}: {value[:100]}{'…' if len(value) > 100 else ''}")
    if "verdict" in found:
        terminal.say(f"  {found['verdict']}")
        for title in ("dangerous", "unknown"):
            for one in found[title]:
                terminal.say(f"    {title:<10} {one}")


def _inspect_lock(file: LockFile, terminal: Terminal) -> None:
    """What each platform of a lock pins, in numbers."""
    platforms = [counted_in(lock) for lock in file.locks()]
    terminal.result({"lock": str(file.path), "platforms": platforms})
    for line in [f"{file}", *(f"  {told(one)}" for one in platforms)] if not terminal.json else ():
        terminal.say(line)


def _inspect_workflow(path: Path, object_info: str | None, terminal: Terminal) -> None:
    from cpack_build.cpack.workflowfile import check_workflow, open_workflow
    from cpack_build.errors import WorkflowError
    from cpack_build.workflow import read_workflow

    info = read_object_info(object_info)
    api, notes = open_workflow(path).in_api_format(info)
    check_workflow(api)
    for note in notes:
        terminal.progress.note(note)
    try:
        workflow, problem = read_workflow(api, name=str(path)), None
    except WorkflowError as error:
        workflow, problem = None, error
    terminal.result({"workflow": str(path), **_workflow_document(api, workflow, problem, info)})
    if not terminal.json:
        for line in [str(path), *_interface(workflow, problem), *_uses(api, info)]:
            terminal.say(line)


def _workflow_document(
    api: dict[str, Any], workflow: Workflow | None, problem: Exception | None, info: dict[str, Any] | None = None
) -> dict[str, Any]:
    from dataclasses import asdict

    from cpack_build.workflow.references import references

    interface = None
    if workflow is not None:
        interface = {
            "inputs": [asdict(item) for item in workflow.interface.inputs],
            "outputs": [asdict(item) for item in workflow.interface.outputs],
            "zipped": workflow.interface.zipped,
        }
    found = references(api, info)
    return {
        "interface": interface,
        "problem": str(problem) if problem else None,
        "references": {
            "models": [asdict(item) for item in found.models],
            "inputs": [asdict(item) for item in found.inputs],
            "node_classes": sorted(found.node_classes),
        },
    }


def _document(pack: Pack, workflow: Workflow | None, problem: Exception | None) -> dict[str, Any]:
    return {
        "pack": str(pack.path),
        "sha256": pack.sha256,
        "era": pack.era,
        "snapshot": pack.snapshot.model_dump(mode="json"),
        **_workflow_document(pack.workflow_api, workflow, problem),
        "inputs": [{"name": item.name, "size": item.size} for item in pack.inputs],
        "settings": pack.settings_text is not None,
        "settings_text": pack.settings_text,
        "other": list(pack.other),
        "extra": pack.extra,
    }


def _lines(pack: Pack, workflow: Workflow | None, problem: Exception | None, *, everything: bool) -> list[str]:
    from cpack_build.cpack.reader import LOCK_FILES
    from cpack_build.lock.captured import CAPTURED, has_comfyui

    snapshot = pack.snapshot
    chosen = [model for model in snapshot.models if everything or not model.disabled]
    nodes = [node for node in snapshot.nodes if everything or not node.disabled]
    comfyui = "in the pack" if has_comfyui(pack) else "not recorded"
    if snapshot.comfyui is not None:
        comfyui = snapshot.comfyui.commit[:12]
    lines = [
        f"{pack.path}  sha256 {pack.sha256[:12]}",
        f"  written as comfy-pack {pack.era} does",
        f"  Python {snapshot.python or 'not recorded'}, ComfyUI {comfyui}, "
        f"{len(snapshot.requirements)} Python packages",
    ]
    lines += _interface(workflow, problem)
    lines += _table("custom nodes", [(n.name, n.commit[:12], n.url + _off(n.disabled)) for n in nodes])
    lines += _table(
        "registry nodes", [(name, version, "") for name, version in sorted(snapshot.registry_nodes.items())]
    )
    lines += _table(
        "single-file nodes",
        [(n.filename, _whence(n.filename, pack), _off(n.disabled)) for n in snapshot.file_nodes],
    )
    lines += _table("in the pack itself", _held(pack))
    lines += _table(
        "models",
        [
            (
                model.filename,
                "size unknown" if model.size is None else amount(model.size, None, "B"),
                (f"sha256 {model.sha256[:12]}" if model.sha256 else "no hash") + _off(model.disabled),
            )
            for model in chosen
        ],
    )
    if hidden := len(snapshot.models) - len(chosen):
        lines.append(f"    and {hidden} that were not chosen (--all shows them)")
    if everything:
        lines += _table("model addresses", [(m.filename, "from", url) for m in chosen for url in m.urls])
    lines += _uses(pack.workflow_api)
    lines += _table("files", [(item.name, amount(item.size, None, "B"), "") for item in pack.inputs])
    if everything:
        lines += _table("Python packages", [(requirement, "", "") for requirement in snapshot.requirements])
    if pack.settings_text is not None:
        lines += ["  settings (cpack.yaml)", *(f"    {line}" for line in pack.settings_text.splitlines())]
    if "cpack.lock" in pack.sizes:
        lines += _own_lock(pack)
    unused = [name for name in pack.other if not name.startswith(CAPTURED) and name not in LOCK_FILES]
    shown = unused if everything else unused[:_OTHER_SHOWN]
    if pack.extra:
        lines.append(f"  also in snapshot.json: {', '.join(sorted(pack.extra))} (--json shows it)")
    lines += _table("other files, not used", [(name, "", "") for name in shown])
    if hidden := len(unused) - len(shown):
        lines.append(f"    and {hidden} more (--all shows them)")
    return lines


def _own_lock(pack: Pack) -> list[str]:
    """What the lock in *pack* pins; one that cannot be used keeps nobody from looking at the rest."""
    from cpack_build.errors import CpackError

    try:
        return [
            "  holds its own lock",
            *(f"    {told(counted_in(one))}" for one in lock_file(pack, inside=True).locks()),
        ]
    except CpackError as error:
        return [f"  holds a lock that cannot be used: {error.message}"]


def _whence(filename: str, pack: Pack) -> str:
    """Where a single-file node comes from."""
    from cpack_build.workspace.place import OWN_NODES

    if f"nodes/{filename}" in pack.other:
        return "in the pack"
    return "with ComfyUI" if filename in OWN_NODES else "not in the pack"


def _held(pack: Pack) -> list[tuple[str, str, str]]:
    """Local nodes, patches and ComfyUI itself, as far as the pack holds them."""
    from cpack_build.lock.captured import CAPTURED

    files: dict[str, int] = {}
    for name in pack.other:
        if name.startswith(CAPTURED) and not (name.startswith("nodes/") and name.count("/") == 1):
            top = "/".join(name.split("/")[: 2 if name.startswith("nodes/") else 1])
            files[name if name.startswith("patches/") else top] = files.get(top, 0) + 1
    return [(name, "changes" if name.startswith("patches/") else f"{count} files", "") for name, count in files.items()]


def _interface(workflow: Workflow | None, problem: Exception | None) -> list[str]:
    if workflow is None:
        return [f"  cannot be served: {problem}"]
    takes = [(i.name, i.type, "" if i.default is None else f"{i.default!r:.60}") for i in workflow.interface.inputs]
    gives = [(item.name, item.kind, item.node_class) for item in workflow.interface.outputs]
    return [*_table("takes", takes), *_table("gives", gives)]


def _uses(api: dict[str, Any], info: dict[str, Any] | None = None) -> list[str]:
    from cpack_build.workflow.references import references

    used = references(api, info)
    lines = _table(
        "the workflow uses",
        [(item.value, item.folder or "some model folder", _by(item)) for item in used.models]
        + [(item.value, f"{item.place} file", _by(item)) for item in used.inputs],
    )
    return [*lines, f"  node classes: {', '.join(sorted(used.node_classes)) or 'none'}"]


def _by(item: ModelReference | InputReference) -> str:
    return f"by node {item.node_id}{', a guess by its name' if item.guessed else ''}"


def _off(disabled: bool) -> str:
    return " (disabled)" if disabled else ""


def _table(title: str, rows: Sequence[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"  {title}", *(f"    {a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in rows)]
