"""``snapshot.json`` of every era → :class:`~cpack_build.cpack.schema.Snapshot`.

Eras are told by what is there: ``pips`` since comfy-pack 0.4, where the document is ComfyUI-Manager's snapshot;
``custom_nodes`` as a list, with ``requirements.txt`` beside it, in 0.1 to 0.3; before that ``models.json`` and
``custom_nodes.json``. Values of the wrong type are errors that name the field; names that leave their place are
refused; what cannot be carried over but stops nothing becomes a note.
"""

from __future__ import annotations

import re
from typing import Any

from cpack_build.cpack.documents import Field
from cpack_build.cpack.pins import (
    comfyui_pin,
    models_of,
    named_apart,
    node_name,
    node_pin,
    python_version,
    requirements_of,
    sha256_of,
)
from cpack_build.cpack.schema import COMFYUI_URL, FileNode, NodePin, Snapshot
from cpack_build.errors import BadInput

__all__ = ["manager_pins", "numbered_lines", "read_first_weeks", "read_snapshot", "snapshot_document"]

_REPO = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")


def read_snapshot(document: object, *, requirements: str | None = None) -> Snapshot:
    """Normalise a snapshot. *requirements* is the text of ``requirements.txt``, which eras before 0.4 have beside it.

    Raises :class:`BadField` for a value of the wrong type, :class:`UnsafeInput` for a name or URL not to be used.
    """
    root = Field(document, "snapshot.json")
    if not isinstance(document, dict):
        root.wrong("an object")
    notes: list[str] = []
    _check_ours(root.get("cpack"))
    if "pips" in document:
        return manager_pins(root, python=python_version(root.get("python")))
    if requirements is None and "custom_nodes" not in document:
        root.refuse("has neither pips nor custom_nodes, so it is no snapshot of any known comfy-pack")
    return Snapshot(
        # The first snapshot.json of November 2024 had none.
        python=python_version(root.get("python")) if "python" in document else None,
        comfyui=comfyui_pin(root.get("comfyui")),
        nodes=named_apart(_listed_nodes(root), notes),
        requirements=requirements_of(numbered_lines(requirements or "", name="requirements.txt"), notes),
        models=tuple(models_of(root.get("models").items(), notes)),
        notes=tuple(notes),
    )


def _check_ours(ours: Field) -> None:
    """What cpack-build notes besides; it is kept as it stands (:attr:`Pack.extra`)."""
    comfyui = ours.get("comfyui")
    comfyui.get("version").text("")
    sha256_of(comfyui.get("content_sha256"))
    comfyui.get("files").integer()
    for item in ours.get("local_nodes").items():
        node_name(item.text(), item)
    for item in ours.get("disabled_nodes").items():
        node_name(item.get("name").text(), item)
        item.get("kind").text()
        item.get("id").text("")
        item.get("version").text("")


def manager_pins(root: Field, *, python: str | None) -> Snapshot:
    """A snapshot in the shape of ComfyUI-Manager's, which since 0.4 is that of a pack; *python* is not part of it."""
    notes: list[str] = []
    return Snapshot(
        python=python,
        comfyui=comfyui_pin(root.get("comfyui")),
        nodes=named_apart(_manager_nodes(root), notes),
        registry_nodes={node_name(key, field): field.text() for key, field in root.get("cnr_custom_nodes").members()},
        file_nodes=tuple(
            FileNode(filename=node_name(item.get("filename").text(), item), disabled=item.get("disabled").boolean())
            for item in root.get("file_custom_nodes").items()
        ),
        requirements=requirements_of(_manager_requirements(root), notes),
        models=tuple(models_of(root.get("models").items(), notes)),
        notes=tuple(notes),
    )


def read_first_weeks(models: object, custom_nodes: object, *, requirements: str | None) -> Snapshot:
    """Normalise what comfy-pack 0.0 (November 2024) wrote: ``models.json``, a list of names and hashes, and
    ``custom_nodes.json``, a list of GitHub repositories and commits.

    Neither ComfyUI nor Python are named there, so both are ``None``. Raises as :func:`read_snapshot`.
    """
    notes = ["comfy-pack 0.0 recorded neither ComfyUI nor the version of Python."]
    nodes: list[tuple[str, NodePin | None]] = []
    for item in Field(custom_nodes, "custom_nodes.json").items():
        repo = item.get("repo").text("").strip()
        known = _REPO.fullmatch(repo) is not None and repo != "unknown"
        url = f"https://github.com/{repo}.git" if known else repo if ":" in repo else ""
        nodes.append(node_pin(url, item, item.get("commit_hash"), False, "" if known else repo.rpartition("/")[2]))
    return Snapshot(
        python=None,
        comfyui=None,
        nodes=named_apart(nodes, notes),
        requirements=requirements_of(numbered_lines(requirements or "", name="requirements.txt"), notes),
        models=tuple(models_of(Field(models, "models.json").items(), notes)),
        notes=tuple(notes),
    )


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """``snapshot.json`` as comfy-pack 0.4 writes it; :func:`read_snapshot` gives *snapshot* again, without its notes.

    Raises :class:`BadInput` for what that format has no room for: no Python version, a ComfyUI from elsewhere, two
    custom nodes with one address.
    """
    if snapshot.python is None:
        raise BadInput("The snapshot names no version of Python, and a pack must.", hint="Say which, as 3.11.")
    if snapshot.comfyui is not None and snapshot.comfyui.url != COMFYUI_URL:
        raise BadInput(
            f"ComfyUI comes from {snapshot.comfyui.url}, and a pack names its commit only.",
            hint=f"Use a commit of {COMFYUI_URL}.",
        )
    nodes: dict[str, dict[str, Any]] = {}
    for pin in snapshot.nodes:
        if pin.url in nodes:
            raise BadInput(
                f"Two custom nodes come from {pin.url}, and a pack holds one of each address.", hint="Remove one."
            )
        named = {} if _folder_name(pin.url) == pin.name else {"path": pin.name}
        nodes[pin.url] = {"hash": pin.commit, "disabled": pin.disabled, **named}
    return {
        "comfyui": snapshot.comfyui.commit if snapshot.comfyui else None,
        "git_custom_nodes": nodes,
        "cnr_custom_nodes": dict(snapshot.registry_nodes),
        "file_custom_nodes": [node.model_dump() for node in snapshot.file_nodes],
        "pips": dict(_pip(requirement) for requirement in snapshot.requirements),
        "python": snapshot.python,
        "models": [
            {
                "filename": model.filename,
                "size": model.size,
                "disabled": model.disabled,
                # comfy-pack joins it to a path before it asks whether the model is disabled: null would end it.
                "sha256": model.sha256 or "",
                # comfy-pack takes the first; the others are ours.
                "source": {"download_url": model.urls[0], "urls": list(model.urls)} if model.urls else {},
            }
            for model in snapshot.models
        ],
    }


def numbered_lines(text: str, *, name: str) -> list[tuple[Field, str]]:
    """The lines of a ``requirements.txt`` called *name*, each with the field that errors name."""
    return [(Field(line, name, f"line {number}"), line) for number, line in enumerate(text.splitlines(), 1)]


def _pip(requirement: str) -> tuple[str, str]:
    name, separator, url = requirement.partition(" @ ")
    return (name, url) if separator else (requirement, "")


def _folder_name(url: str) -> str:
    return re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git")


def _manager_nodes(root: Field) -> list[tuple[str, NodePin | None]]:
    found: list[tuple[str, NodePin | None]] = []
    for url, item in root.get("git_custom_nodes").members():
        disabled = item.get("disabled").boolean()
        # "path" is ours: the folder, where it is not called like the repository.
        folder = item.get("path").text("")
        found.append(node_pin(url if url != "null" else "", item, item.get("hash"), disabled, folder))
    return found


def _listed_nodes(root: Field) -> list[tuple[str, NodePin | None]]:
    found: list[tuple[str, NodePin | None]] = []
    for item in root.get("custom_nodes").items():
        disabled = item.get("disabled").boolean()
        folder = item.get("path").text("").replace("\\", "/").removeprefix(".disabled/").removesuffix(".disabled")
        found.append(node_pin(item.get("url").text(""), item, item.get("commit_hash"), disabled, folder))
    return found


def _manager_requirements(root: Field) -> list[tuple[Field, str]]:
    """``pip freeze`` as Manager keeps it: ``{"pkg==1.0": ""}``, or ``{"pkg": "git+https://…"}``."""
    lines = []
    for key, field in root.get("pips").members():
        url = field.text("").strip()
        lines.append((field, f"{key.strip()} @ {url}" if url else key))
    return lines
