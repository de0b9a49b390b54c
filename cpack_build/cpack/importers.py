"""What other programs recorded of a ComfyUI → :class:`Imported`, from which a pack is made.

Read are ComfyUI-Manager's snapshots (JSON and YAML, with and without registry nodes and packages), ComfyUI Desktop's
(an export, or one of its own files), comfy-cli's ``comfy-build.yaml`` (``comfy-build/1``) and ``comfy-lock.yaml``, and
``requirements.txt``; which one a file is, its content tells. Nothing is fetched here: what is named by tag or branch is
handed back as :class:`Unpinned`. The formats were read from the programs' sources; the functions name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.cpack.documents import Field, parse_json, parse_yaml
from cpack_build.cpack.pins import (
    commit_of,
    git_url,
    models_of,
    named_apart,
    node_name,
    node_pin,
    python_version,
    requirements_of,
)
from cpack_build.cpack.schema import COMFYUI_URL, FileNode, GitPin, NodePin, Snapshot
from cpack_build.cpack.snapshot import manager_pins, numbered_lines
from cpack_build.errors import BadInput

__all__ = ["Imported", "NodeLines", "Unpinned", "node_lines", "read_foreign"]

_LIMIT = 16 << 20
"""Bytes of a file to import; a snapshot has some 20 kB."""
_YAML_LIMIT = 2 << 20
"""YAML is slow to parse."""
_COMMIT = re.compile(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)+")
_REGISTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NODE_LINE = re.compile(r"(?P<url>(?:[a-z+]+://|[\w.-]+@[\w.-]+:)\S+?)(?:@(?P<ref>[^@/\s:]\S*)|\s+(?P<word>\S+))?")
_REGISTRY_LINE = re.compile(r"(?P<id>[A-Za-z0-9][A-Za-z0-9._-]*)(?:@|==)(?P<version>[A-Za-z0-9][A-Za-z0-9.+_-]*)")


@dataclass(frozen=True)
class Unpinned:
    """A repository that is named by a tag or branch, *reference*, only. *name* is the node's folder, or ``ComfyUI``."""

    name: str
    url: str
    reference: str
    disabled: bool = False


@dataclass(frozen=True)
class NodeLines:
    """The custom nodes of a list: pinned, by id and version, and unpinned."""

    nodes: tuple[NodePin, ...] = ()
    registry_nodes: tuple[tuple[str, str], ...] = ()
    unpinned: tuple[Unpinned, ...] = ()


@dataclass(frozen=True)
class Imported:
    """What a file recorded. *format* is its kind, for people; *unpinned* is not in *snapshot*, for want of a commit."""

    format: str
    snapshot: Snapshot
    unpinned: tuple[Unpinned, ...] = ()


def read_foreign(path: Path) -> Imported:
    """Read the file at *path*, whichever kind it is.

    Raises :class:`~cpack_build.errors.BadInput` and :class:`~cpack_build.errors.BadField` for what it is not, and
    :class:`~cpack_build.errors.UnsafeInput` for names and addresses that leave their place.
    """
    data = _bytes(path)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _requirements_file(data, path)
    if suffix in (".yaml", ".yml"):
        if len(data) > _YAML_LIMIT:
            raise BadInput(f"{path} is bigger than {_YAML_LIMIT >> 20} MiB.", hint="Save it as JSON.")
        return _document(parse_yaml(data, name=str(path)), path)
    return _document(parse_json(data, name=str(path)), path)


def _document(document: Any, path: Path) -> Imported:
    root = Field(document, str(path))
    if not isinstance(document, dict):
        root.wrong("an object")
    if document.get("type") == "comfyui-desktop-2-snapshot":
        return _desktop_export(root)
    if "customNodes" in document and "pipPackages" in document:
        return _desktop(root)
    if str(document.get("schema", "")).startswith("comfy-build/"):
        if document["schema"] != "comfy-build/1":
            root.get("schema").refuse(f"{document['schema']!r:.40} is a newer format than comfy-build/1")
        return _comfy_build(root.get("definition"))
    if "customNodes" in document or document.get("schema") == "distribution-definition/0":
        return _comfy_build(root)
    if isinstance(document.get("custom_nodes"), dict) or ("basics" in document or "basic" in document):
        return _comfy_lock(root)
    if "git_custom_nodes" in document or "cnr_custom_nodes" in document:
        return Imported("ComfyUI-Manager snapshot", manager_pins(root, python=_python(root.get("python"))))
    raise BadInput(
        f"{path} is none of the formats that can be imported.",
        hint="They are: snapshots of ComfyUI-Manager and ComfyUI Desktop, comfy-cli's comfy-build.yaml and "
        "comfy-lock.yaml, requirements.txt, and packs.",
    )


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}.", hint="Name a file to import."
        ) from error
    if len(data) > _LIMIT:
        raise BadInput(f"{path} is bigger than {_LIMIT >> 20} MiB.", hint="Name a snapshot.")
    return data


def _python(field: Field) -> str | None:
    return python_version(field) if field.value else None


# -- ComfyUI Desktop ---------------------------------------------------------------------------------------------------


def _desktop_export(root: Field) -> Imported:
    """An export: ``{type, version, snapshots: […]}``, newest first (Comfy-Org, desktop: ``exportImport.ts``)."""
    snapshots = root.get("snapshots").items()
    if not snapshots:
        root.get("snapshots").refuse("holds no snapshot")
    found = _desktop(snapshots[0])
    if len(snapshots) == 1:
        return found
    note = f"The file holds {len(snapshots)} snapshots; the newest is taken."
    return Imported(
        found.format, found.snapshot.model_copy(update={"notes": (note, *found.snapshot.notes)}), found.unpinned
    )


def _desktop(root: Field) -> Imported:
    """One snapshot (Comfy-Org, desktop: ``snapshots/types.ts``, ``nodes.ts``)."""
    notes: list[str] = []
    unpinned: list[Unpinned] = []
    pins: list[tuple[str, NodePin | None]] = []
    registry: dict[str, str] = {}
    files: list[FileNode] = []
    for item in root.get("customNodes").items():
        kind, folder = item.get("type").text(), item.get("dirName").text(item.get("id").text("") or None)
        enabled = item.get("enabled").value
        disabled = not (item.get("enabled").boolean() if enabled is not None else True)
        name = node_name(folder, item.get("dirName"))
        if kind == "cnr":
            _add_registry_node(registry, item.get("id"), item.get("version"), disabled=disabled, notes=notes)
        elif kind == "file":
            files.append(FileNode(filename=name, disabled=disabled))
        elif kind == "git":
            _add_git_node(
                pins, unpinned, item.get("url"), item.get("commit"), name=name, disabled=disabled, notes=notes
            )
        else:
            item.get("type").wrong('"cnr", "git" or "file"')
    comfyui = root.get("comfyui")
    reference = comfyui.get("baseTag").text("") or comfyui.get("ref").text("")
    pin = GitPin(url=COMFYUI_URL, commit=commit_of(comfyui.get("commit"))) if comfyui.get("commit").value else None
    if pin is None:
        unpinned += _comfyui_reference(reference, notes)
    lines = [
        (field, f"{name} @ {field.text()}" if "://" in field.text() else f"{name}=={field.text()}")
        for name, field in root.get("pipPackages").members()
    ]
    if root.get("skipPipSync").boolean():
        notes.append("ComfyUI Desktop recorded the Python packages for information only; they are taken as pins.")
    stack = root.get("torchStack")
    torch = stack.get("ref").get("packages").members() if stack.get("kind").text("") == "managed" else []
    lines += [(field, f"{name}=={field.text()}") for name, field in torch]
    snapshot = Snapshot(
        python=_python(root.get("pythonVersion")),
        comfyui=pin,
        nodes=named_apart(pins, notes),
        registry_nodes=registry,
        file_nodes=tuple(files),
        requirements=requirements_of(lines, notes),
        notes=tuple(notes),
    )
    return Imported("ComfyUI Desktop snapshot", snapshot, tuple(unpinned))


def _add_registry_node(
    registry: dict[str, str], id_: Field, version: Field, *, disabled: bool, notes: list[str]
) -> None:
    name = node_name(id_.text(), id_)
    if disabled:
        notes.append(f"Registry node {name} is disabled; packs keep only enabled ones, so it is left out.")
    elif not version.text(""):
        notes.append(f"Registry node {name} has no version, so it cannot be pinned; it is left out.")
    else:
        registry[name] = version.text()


def _add_git_node(
    pins: list[tuple[str, NodePin | None]],
    unpinned: list[Unpinned],
    url: Field,
    reference: Field,
    *,
    name: str,
    disabled: bool,
    notes: list[str],
) -> None:
    address, wanted = url.text("").strip(), reference.text("").strip()
    if address and not _COMMIT.fullmatch(wanted):
        if wanted:
            unpinned.append(Unpinned(name, git_url(address, url), wanted, disabled))
        else:
            notes.append(f"Custom node {name} has no commit, so it cannot be pinned; it is left out.")
        return
    pins.append(node_pin(address, url, reference, disabled, name))


def _comfyui_reference(reference: str, notes: list[str]) -> list[Unpinned]:
    """Releases are tagged ``v0.3.64`` and mostly written without the ``v``; a word with a space is a person's."""
    reference = reference.strip()
    if not reference or " " in reference:
        notes.append("The file does not say which ComfyUI it was.")
        return []
    return [Unpinned("ComfyUI", COMFYUI_URL, f"v{reference}" if _RELEASE.fullmatch(reference) else reference)]


# -- comfy-cli ---------------------------------------------------------------------------------------------------------


def _comfy_build(root: Field) -> Imported:
    """``definition`` of ``comfy-build/1`` (Comfy-Org/comfy-cli: ``build_spec.py`` and its authoring page)."""
    if not isinstance(root.value, dict):
        root.wrong("an object")
    notes: list[str] = []
    unpinned: list[Unpinned] = []
    pins: list[tuple[str, NodePin | None]] = []
    registry: dict[str, str] = {}
    for item in root.get("customNodes").items():
        name = node_name(item.get("name").text(), item.get("name"))
        if item.get("registryVersion").value:
            id_ = item.get("id") if item.get("id").value else item.get("name")
            _add_registry_node(registry, id_, item.get("registryVersion"), disabled=False, notes=notes)
        elif item.get("repository").value:
            reference = item.get("commit") if item.get("commit").value else item.get("gitRef")
            _add_git_node(pins, unpinned, item.get("repository"), reference, name=name, disabled=False, notes=notes)
        else:
            notes.append(f"Custom node {name} was to be uploaded, so the file does not hold it; it is left out.")
    models = []
    for item in root.get("models").items():
        url = item.get("sourceUri").text("")
        filename = item.get("filename").text("") or url.partition("?")[0].rpartition("/")[2]
        entry = {
            "filename": f"models/{item.get('type').text()}/{filename}" if filename else "",
            "sha256": item.get("sha256").value,
            "size": item.get("sizeBytes").value,
            "source": {"download_url": url} if url else {},
        }
        models.append(Field(entry, item.document, item.path))
    base = root.get("baseComfyVersion").text("").strip()
    commit = base if _COMMIT.fullmatch(base) else ""
    if not commit:
        unpinned += _comfyui_reference(base, notes)
    image = re.search(r"py3([0-9]{1,2})$", root.get("baseImage").text(""))
    snapshot = Snapshot(
        python=_python(root.get("environment").get("pythonVersion")) or (f"3.{image[1]}" if image else None),
        comfyui=GitPin(url=COMFYUI_URL, commit=commit.lower()) if commit else None,
        nodes=named_apart(pins, notes),
        registry_nodes=registry,
        requirements=requirements_of(
            numbered_lines(root.get("pipDependencies").text(""), name=f"{root.document}: pipDependencies"), notes
        ),
        models=tuple(models_of(models, notes)),
        notes=tuple(notes),
    )
    return Imported("comfy-cli build", snapshot, tuple(unpinned))


def _comfy_lock(root: Field) -> Imported:
    """``comfy-lock.yaml``, and ComfyUI-Manager's YAML, which is its part ``custom_nodes`` (README of comfy-cli)."""
    nodes = root.get("custom_nodes")
    listed = Field({}, nodes.document, nodes.path) if nodes.value == [] else nodes
    found = manager_pins(listed, python=_python(listed.get("python")))
    notes = list(found.notes)
    models = list(models_of(_lock_models(root.get("models").items()), notes))
    lock = "basics" in root.object() or "basic" in root.object() or bool(models)
    snapshot = found.model_copy(update={"models": (*found.models, *models), "notes": tuple(notes)})
    return Imported("comfy-lock.yaml" if lock else "ComfyUI-Manager snapshot", snapshot)


def _lock_models(items: Iterable[Field]) -> Iterable[Field]:
    for item in items:
        name, url = item.get("model").text(""), item.get("url").text("")
        hashes = [(entry.get("type").text(""), entry.get("hash").text("")) for entry in item.get("hashes").items()]
        single = item.get("hash").text("")
        sha256 = next(
            (text for kind, text in hashes if kind.upper() == "SHA256"), single if len(single) == 64 else None
        )
        paths = [entry.get("path").text() for entry in item.get("paths").items()]
        for path in paths or [f"models/{item.get('type').text('checkpoints')}/{name}"]:
            entry = {"filename": path, "sha256": sha256, "source": {"download_url": url} if url else {}}
            yield Field(entry, item.document, item.path)


# -- lists -------------------------------------------------------------------------------------------------------------


def _requirements_file(data: bytes, path: Path) -> Imported:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text (byte {error.start}).", hint="Save it as UTF-8.") from error
    notes: list[str] = []
    requirements = requirements_of(numbered_lines(text, name=str(path)), notes)
    return Imported(
        "requirements.txt", Snapshot(python=None, comfyui=None, requirements=requirements, notes=tuple(notes))
    )


def node_lines(text: str, *, name: str) -> NodeLines:
    """A list of custom nodes, one a line: ``URL@COMMIT``, ``URL@TAG``, ``URL COMMIT``, or ``ID@VERSION`` (registry).

    Empty lines and comments are passed over. Raises :class:`~cpack_build.errors.BadField`,
    :class:`~cpack_build.errors.UnsafeInput`.
    """
    notes: list[str] = []
    pins: list[tuple[str, NodePin | None]] = []
    registry: dict[str, str] = {}
    unpinned: list[Unpinned] = []
    for field, line in numbered_lines(text, name=name):
        words = line.partition(" #")[0].strip()
        if not words or words.startswith("#"):
            continue
        match = _NODE_LINE.fullmatch(words.removeprefix("git+"))
        if match is None:
            listed = _REGISTRY_LINE.fullmatch(words)
            if listed is None or not _REGISTRY_ID.fullmatch(listed["id"]):
                field.refuse(f"{words!r:.80} is neither URL@COMMIT nor ID@VERSION")
            registry[node_name(listed["id"], field)] = listed["version"]
            continue
        reference = match["ref"] or match["word"]
        if reference is None:
            field.refuse(f"{words!r:.80} names no commit; write URL@COMMIT or URL@TAG")
        folder, pin = (
            node_pin(match["url"], field, Field(reference, name, field.path), False, "")
            if _COMMIT.fullmatch(reference)
            else (_last(match["url"], field), None)
        )
        if pin is not None:
            pins.append((folder, pin))
        else:
            unpinned.append(Unpinned(folder, git_url(match["url"], field), reference))
    return NodeLines(named_apart(pins, notes), tuple(registry.items()), tuple(unpinned))


def _last(url: str, field: Field) -> str:
    return node_name(re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git"), field)
