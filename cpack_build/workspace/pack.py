"""A workspace and a workflow → a pack: first a :class:`Draft` that says what would be in it, then the file.

Drafting reads no model and asks nobody, so it is what ``--dry-run`` shows. Writing hashes the chosen models, asks where
they can be had again, and writes the pack in one go. The same workspace gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpack_build.cpack.archive import ENTRY_LIMIT, MEMBER_LIMIT, TOTAL_LIMIT
from cpack_build.cpack.workflowfile import check_workflow
from cpack_build.cpack.writer import write_pack
from cpack_build.errors import BadInput, UnsafeInput
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.progress import SILENT, Progress
from cpack_build.workflow.references import references
from cpack_build.workspace.capture import Capture, CapturedFile
from cpack_build.workspace.folders import RunningFolders
from cpack_build.workspace.hashing import hash_files
from cpack_build.workspace.hints import listed_hints, workflow_hints
from cpack_build.workspace.inputs import choose_inputs, list_inputs
from cpack_build.workspace.models import Listing, Missing, ModelFile, choose_models, list_models
from cpack_build.workspace.nodes import Node, find_nodes
from cpack_build.workspace.origins import find_origins
from cpack_build.workspace.packages import Environment, Packages, find_environment, read_packages
from cpack_build.workspace.place import Comfyui, find_comfyui
from cpack_build.workspace.secrets import Finding, scan
from cpack_build.workspace.source import Source, find_source
from cpack_build.workspace.ticked import Ticked, taken
from cpack_build.workspace.upstream import Upstream

__all__ = ["Draft", "Written", "draft_pack", "write_draft"]


@dataclass(frozen=True)
class Draft:
    """What a pack would hold. *models* are chosen, of all that *listing* has; *inputs* are files by their name below
    ``input/``; *missing* is what the workflow names and the workspace lacks, *used_by* which nodes name a file; *notes*
    and *findings* are for people; *settings* is the text of its ``cpack.yaml``."""

    comfyui: Comfyui
    source: Source
    environment: Environment
    packages: Packages
    nodes: tuple[Node, ...]
    listing: Listing
    models: tuple[ModelFile, ...]
    inputs: tuple[CapturedFile, ...]
    workflow_api: Mapping[str, Any]
    workflow: Mapping[str, Any] | None
    missing: tuple[Missing, ...]
    used_by: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    settings: str | None = None

    @property
    def captured(self) -> tuple[Capture, ...]:
        """What would be in the pack itself, for nobody else has it: nodes, and a ComfyUI that is no known release."""
        found = [Capture(node.name, node.reason, node.files, node.is_known) for node in self.nodes if node.files]
        if self.source.files:
            found.insert(0, Capture("ComfyUI", "neither a git checkout nor a known release", self.source.files))
        return tuple(found)


@dataclass(frozen=True)
class Written:
    """A pack that was written: its *sha256* (hex), its *size* in bytes, and its models with hash and source."""

    path: Path
    sha256: str
    size: int
    hashes: Mapping[str, str]
    sources: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]


def draft_pack(
    workspace: Path,
    workflow_api: Mapping[str, Any],
    *,
    workflow: Mapping[str, Any] | None = None,
    object_info: Mapping[str, Any] | None = None,
    python: Path | None = None,
    extra_model_paths: tuple[Path, ...] = (),
    models: Sequence[str] = (),
    inputs: Sequence[str] = (),
    all_models: bool = False,
    ticked: Ticked | None = None,
    running: RunningFolders | None = None,
    settings: str | None = None,
    exclude_nodes: tuple[str, ...] = (),
    capture_nodes: tuple[str, ...] = (),
    comfyui_commit: str | None = None,
    upstream: Upstream | None = None,
    progress: Progress = SILENT,
) -> Draft:
    """Look at the ComfyUI in *workspace* and at what *workflow_api* (in the API format) uses of it.

    *workflow* is the same in the editor's format, *object_info* ComfyUI's answer to ``/object_info``. *models* and
    *inputs* are globs of what to take besides, *all_models* takes every one; *ticked* takes exactly what it names.
    *running* are the folders of a ComfyUI that runs; *settings* is the ``cpack.yaml`` that the pack is to have. Nodes
    in *capture_nodes* are packed as they lie there. A ComfyUI without git, and nodes of the registry, are compared with
    what *upstream* has, if given.

    Raises :class:`BadInput` (no ComfyUI, or a file of it that is broken), :class:`WorkflowError`,
    :class:`Unresolvable` (no Python, a glob that fits nothing).
    """
    check_workflow(workflow_api)
    comfyui = find_comfyui(workspace, extra_model_paths=extra_model_paths, running=running)
    with progress.task("Looking at the workspace", unit="parts") as task:
        source = find_source(comfyui, commit=comfyui_commit, upstream=upstream)
        task.advance(1)
        nodes, node_notes = find_nodes(comfyui, exclude=exclude_nodes, capture=capture_nodes, upstream=upstream)
        task.advance(1)
        environment = find_environment(comfyui, python)
        packages = read_packages(environment)
        task.advance(1)
        listing = list_models(comfyui, tracked=source.tracked)
        task.advance(1)
    used = references(workflow_api, object_info)
    choice = choose_models(listing, comfyui=comfyui, references=used.models, globs=models, everything=all_models)
    found = choose_inputs(comfyui, used.inputs, inputs)
    files, input_notes = found.files, list(found.notes)
    chosen = {file.name: file for file in choice.files}
    if ticked is not None and ticked.models is not None:
        listed = {file.name: file for file in listing.files}
        chosen, told = taken(listed, ticked.models, used=chosen, what="model")
        input_notes += told
    if ticked is not None and ticked.inputs is not None:
        everything = {file.name: file for file in list_inputs(comfyui)}
        ours, told = taken(everything, ticked.inputs, used=[file.name for file in files], what="input file")
        files, input_notes = tuple(ours.values()), input_notes + told
    notes = [*comfyui.notes, *source.notes, *node_notes, *(note for node in nodes for note in node.notes)]
    notes += [*packages.notes, *listing.notes, *input_notes, *_node_notes(nodes)]
    draft = Draft(
        comfyui=comfyui, source=source, environment=environment, packages=packages, nodes=nodes, listing=listing,
        models=tuple(chosen.values()), inputs=files, workflow_api=workflow_api, workflow=workflow,
        missing=(*choice.missing, *found.missing), used_by={**choice.used_by, **found.used_by},
        notes=tuple(dict.fromkeys(notes)), findings=(), settings=settings,
    )  # fmt: skip
    _check_limits(draft)
    return replace(draft, findings=tuple(_findings(draft)))


def write_draft(
    draft: Draft,
    path: Path,
    *,
    store: Store,
    sources: Sources | None = None,
    offline: bool = False,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> Written:
    """Hash the chosen models, find where they can be had, and write the pack at *path*.

    With *offline* nobody is asked; without a network the same happens by itself. Raises :class:`BadInput` for a file
    that cannot be read, :class:`UnsafeInput` for one at *path* that is no pack,
    :class:`~cpack_build.errors.StorageError`.
    """
    if path.is_dir() or (path.exists() and not zipfile.is_zipfile(path)):
        raise UnsafeInput(f"{path} is there and is no pack.", hint="Name another file with -o.")
    hashes = hash_files([file.path for file in draft.models], store=store, workers=workers, progress=progress)
    by_name = {file.name: hashes[file.path] for file in draft.models}
    asker = Asker(sources or Sources(), offline=offline)
    hints = (*workflow_hints(draft.workflow), *listed_hints(draft.comfyui, draft.environment.libraries))
    origins = find_origins(
        {file.name: (file, by_name[file.name]) for file in draft.models},
        hints=hints, asker=asker, store=store, progress=progress,
    )  # fmt: skip
    notes = [f"{host} was not asked any further: {why}" for host, why in asker.silent.items()]
    notes += [f"{name}: source unknown; whoever gets the pack needs the file." for name in by_name if not origins[name]]
    write_pack(
        path,
        snapshot_document=_snapshot(draft, by_name, origins),
        workflow_api=draft.workflow_api,
        workflow=draft.workflow,
        inputs={file.name.removeprefix("input/"): file.path for file in draft.inputs},
        settings=draft.settings,
        other=_others(draft),
    )
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    return Written(path, sha256.hexdigest(), path.stat().st_size, by_name, origins, tuple(notes))


# -- the documents -----------------------------------------------------------------------------------------------------


def _snapshot(draft: Draft, hashes: Mapping[str, str], sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``snapshot.json`` as comfy-pack 0.4 reads it; what is ours alone is under ``cpack``, which it ignores."""
    git_nodes: dict[str, dict[str, Any]] = {}
    for node in sorted(draft.nodes, key=lambda node: (node.disabled, node.name)):
        if node.git is not None and node.kind == "git" and node.git.url not in git_nodes:
            entry: dict[str, Any] = {"hash": node.git.commit, "disabled": node.disabled}
            if node.name != re.split(r"[/:]", node.git.url.rstrip("/"))[-1].removesuffix(".git"):
                entry["path"] = node.name
            git_nodes[node.git.url] = entry
    ours: dict[str, Any] = {"comfyui": draft.source.document()}
    if local := [node.name for node in draft.nodes if node.kind == "local" and node.files]:
        ours["local_nodes"] = local
    if unused := [_disabled(node) for node in draft.nodes if node.disabled and node.kind in ("registry", "local")]:
        ours["disabled_nodes"] = unused
    return {
        "comfyui": draft.source.commit or None,
        "git_custom_nodes": {url: git_nodes[url] for url in sorted(git_nodes)},
        "cnr_custom_nodes": {
            node.registry_id: node.version for node in draft.nodes if node.kind == "registry" and not node.disabled
        },
        "file_custom_nodes": [
            {"filename": node.name, "disabled": node.disabled} for node in draft.nodes if node.kind == "file"
        ],
        "pips": draft.packages.pins,
        "python": draft.environment.version,
        "models": [
            {
                "filename": file.name,
                "size": file.size,
                "disabled": file.name not in hashes,
                # comfy-pack joins this to a path before it asks whether the model is disabled: null would end it.
                "sha256": hashes.get(file.name, ""),
                "source": dict(sources.get(file.name, {})),
            }
            for file in draft.listing.files
        ],
        "cpack": ours,
    }


def _disabled(node: Node) -> dict[str, str]:
    """A disabled node for which Manager's snapshot has no place; its files stay where they are."""
    said = {"name": node.name, "kind": node.kind}
    return said | ({"id": node.registry_id, "version": node.version} if node.kind == "registry" else {})


def _others(draft: Draft) -> dict[str, bytes | Path]:
    """What lies in the pack besides its documents: nodes that nobody else has, and changes to the others."""
    entries: dict[str, bytes | Path] = {file.name: file.path for item in draft.captured for file in item.files}
    return entries | _patches(draft)


def _patches(draft: Draft) -> dict[str, bytes]:
    patches = {
        f"patches/{node.name}.patch": node.git.patch
        for node in draft.nodes
        if node.git is not None and node.git.patch and not node.disabled
    }
    if draft.source.patch:
        patches["patches/ComfyUI.patch"] = draft.source.patch
    return patches


def _findings(draft: Draft) -> Iterator[Finding]:
    texts: list[tuple[str, bytes | Path]] = [
        (name, json.dumps(document, indent=2, ensure_ascii=False).encode())
        for name, document in (("workflow_api.json", draft.workflow_api), ("workflow.json", draft.workflow))
        if document is not None
    ]
    captured = [(file.name, file.path) for item in draft.captured for file in item.files]
    captured += [(file.name, file.path) for file in draft.inputs]
    yield from scan([*texts, *captured])
    yield from scan(_patches(draft).items(), added_only=True)


def _node_notes(nodes: Sequence[Node]) -> list[str]:
    notes = []
    seen: dict[str, Node] = {}
    for node in sorted(nodes, key=lambda node: (node.disabled, node.name)):
        if node.disabled and node.kind in ("registry", "local"):
            origin = "from the registry" if node.kind == "registry" else "local"
            notes.append(f"{node.name} is disabled and {origin}: the pack names it, and does not bring it.")
        if node.git is not None and node.git.url:
            twin = seen.setdefault(node.git.url, node)
            if twin is not node:
                notes.append(f"{node.name} is another clone of {node.git.url}, as {twin.name} is; it is left out.")
    return notes


def _check_limits(draft: Draft) -> None:
    """What a reader refuses is not written."""
    files = [*draft.inputs, *(file for item in draft.captured for file in item.files)]
    largest = max(files, key=lambda file: file.size, default=None)
    if largest is not None and largest.size > MEMBER_LIMIT:
        raise BadInput(
            f"{largest.name} has {largest.size / 1e9:.1f} GB; a file in a pack may have {MEMBER_LIMIT >> 30} GiB.",
            hint="Leave the node out with --exclude-node, or move the file to models/.",
        )
    if len(files) > ENTRY_LIMIT - 1000 or sum(file.size for file in files) > TOTAL_LIMIT:
        most = max(draft.captured, key=lambda item: (len(item.files), item.size), default=None)
        raise BadInput(
            f"The pack would hold {len(files)} files, {sum(file.size for file in files) / 1e9:.1f} GB: too much.",
            hint=f"Leave out {most.name if most else 'some inputs'}, or put it into a git repository with a remote.",
        )
