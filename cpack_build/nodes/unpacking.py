"""The jobs ``inspect`` and ``unpack``: what a pack needs and what of that is missing here; and its workspace, made anew
in a folder beside this ComfyUI, which stays as it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Refused
from .jobs import Job, Stage
from .params import flag, name_of

if TYPE_CHECKING:
    from .asked import Asked
    from .plugin import Plugin

__all__ = ["inspect", "unpack"]


def inspect(plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> Job:
    """Start the job that reads the pack."""
    upload = plugin.uploads.get(params)

    def work(job: Job) -> dict[str, Any]:
        job.stage("inspect")
        told = job.tool(plugin.tool, "inspect", upload.path)
        listed = job.tool(plugin.tool, "models", upload.path, "--offline", *_folders(plugin, "--models"))
        snapshot = told["snapshot"]
        commit = (snapshot.get("comfyui") or {}).get("commit")
        return {
            "name": upload.name,
            "size": upload.size,
            "comfyui": {"commit": commit, "same": None},
            "python": snapshot.get("python"),
            "models": [_model(row) for row in listed["models"]],
            "nodes": _nodes(plugin, snapshot),
            "inputs": told["inputs"],
            "packages": snapshot.get("requirements", []),
            "interface": told["interface"],
            "problem": told["problem"],
            "notes": snapshot.get("notes", []),
        }

    return plugin.start(asked, "inspect", f"Read {upload.name}", [Stage("inspect", "Read the pack")], work)


def unpack(plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> Job:
    """Start the job that restores it."""
    upload = plugin.uploads.get(params)
    name = name_of(params, default=upload.name)
    models = params.get("models", True)
    if not isinstance(models, bool):
        raise Refused("bad_value", f"models {models!r:.80} is neither true nor false.", next="Correct it.")
    folder = plugin.comfyui.beside / name
    if folder.exists() or folder.is_symlink():
        raise Refused(
            "exists", f"There is a folder {name} beside this ComfyUI already.", next="Choose another name.", status=409
        )
    trust = ["--trust"] if flag(params, "trust") else []
    venv = ["--no-venv"] if flag(params, "no_venv") else []

    def work(job: Job) -> dict[str, Any]:
        job.stage("restore")
        told = job.tool(
            plugin.tool, "restore", upload.path, "--dir", folder, "--models", "link" if models else "none",
            *_folders(plugin, "--models-dir"), *trust, *venv, *plugin.restore_flags,
        )  # fmt: skip
        start = "python" if venv else ".venv/bin/python"
        return {
            "folder": str(folder),
            "command": f"cd {shlex.quote(str(folder))} && {start} main.py",
            "notes": told["notes"],
            "scripts_not_run": told["scripts_not_run"],
        }

    return plugin.start(asked, "unpack", f"Unpack {upload.name}", [Stage("restore", "Make its workspace")], work)


def _folders(plugin: Plugin, option: str) -> list[str]:
    """This ComfyUI's model folders as flags: ``models`` itself, and others as they are."""
    places: dict[str, None] = {}
    for name, directories in plugin.comfyui.model_folders().items():
        for directory in directories:
            above, _, last = directory.rstrip("/").rpartition("/")
            places[above if last == name else directory] = None
    return [word for place in places if Path(place).is_dir() for word in (option, place)]


def _model(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path": row["path"],
        "name": row["name"],
        "folder": row["folder"],
        "size": row["size"],
        "here": row["state"] == "here",
        "source": row["hosts"][0] if row["hosts"] else None,
    }


def _nodes(plugin: Plugin, snapshot: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pack's custom nodes, and whether one of that name is loaded here."""
    here = {name.lower() for name in plugin.comfyui.custom_nodes()}
    nodes = [
        {"name": node["name"], "kind": "git", "commit": node["commit"], "version": None, "url": node["url"]}
        for node in snapshot.get("nodes", [])
        if not node.get("disabled")
    ]
    nodes += [
        {"name": name, "kind": "registry", "commit": None, "version": version, "url": None}
        for name, version in snapshot.get("registry_nodes", {}).items()
    ]
    nodes += [
        {"name": node["filename"], "kind": "file", "commit": None, "version": None, "url": None}
        for node in snapshot.get("file_nodes", [])
        if not node.get("disabled")
    ]
    return [node | {"here": node["name"].lower() in here} for node in nodes]
