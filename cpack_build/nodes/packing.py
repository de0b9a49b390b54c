"""The job ``pack``: the workflow on the page, with what was ticked, becomes a pack to download or to keep here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Failed, Refused
from .jobs import Job, Stage
from .params import flag, name_of, write_choice

if TYPE_CHECKING:
    from .asked import Asked
    from .plugin import Plugin

__all__ = ["PACKING", "make_pack", "observing", "pack", "require_absent", "require_prompt", "save"]

ENDING = ".cpack.zip"
PACKING = ("pack", "Pack the workflow")


def require_prompt(asked: Asked) -> Path:
    """The workflow's file. Raises :class:`Refused`."""
    if asked.prompt is None:
        raise Refused("no_prompt", "The request has no workflow.", next="Send it in the API format, as `prompt`.")
    return asked.prompt


def pack(plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> Job:
    """Start the job."""
    name = name_of(params).removesuffix(ENDING)
    prompt, flags = require_prompt(asked), write_choice(params, asked.folder)
    saved = name_of(params, "save_as").removesuffix(ENDING) + ENDING if params.get("save_as") else None
    local = flag(params, "include_local")
    if saved is not None:
        require_absent(plugin, saved)

    def work(job: Job) -> dict[str, Any]:
        job.stage("pack")
        told = make_pack(plugin, job, asked, prompt, name, flags, include_local=local)
        file = job.file = Path(told["pack"])
        result = {
            "name": file.name,
            "size": told["size"],
            "sha256": told["sha256"],
            "download": True,
            "missing": told["missing"],
            "notes": told["notes"],
        }
        if saved is not None:
            job.stage("save")
            result["saved"] = save(plugin, file, saved)
        return result

    stages = [Stage(*PACKING), *([Stage("save", "Save it here")] if saved else [])]
    return plugin.start(asked, "pack", f"Package {name}", stages, work)


def observing(plugin: Plugin, asked: Asked, prompt: Path) -> list[str]:
    """The tool's arguments that say what to look at: this ComfyUI as it is now, and the workflow. Takes a moment."""
    comfyui, folder = plugin.comfyui, prompt.parent
    return [
        str(comfyui.root), "--workflow", str(prompt),
        *(["--editor-workflow", str(asked.workflow)] if asked.workflow is not None else []),
        "--python", comfyui.python,
        "--folders", str(comfyui.write_folders(folder / "folders.json")),
        "--object-info", str(comfyui.write_object_info(folder / "object_info.json", asked.classes)),
    ]  # fmt: skip


def make_pack(
    plugin: Plugin,
    job: Job,
    asked: Asked,
    prompt: Path,
    name: str,
    flags: Sequence[str],
    *,
    include_local: bool,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Have the tool write NAME.cpack.zip to *folder*, by default the job's own; what it told."""
    folder = folder or job.folder
    try:
        return job.tool(
            plugin.tool, "pack", *observing(plugin, asked, prompt), *flags, *plugin.pack_flags,
            *(["--include-local"] if include_local else []),
            "--output", str(folder / f"{name}{ENDING}"),
        )  # fmt: skip
    except Failed as failed:
        if "--include-local" not in failed.next:
            raise
        raise Failed(
            "local_code", failed.message,
            next="Allow it to travel in the pack, or give the custom node a git repository with a remote.",
        ) from None  # fmt: skip


def save(plugin: Plugin, file: Path, name: str) -> str:
    """Put *file* as *name* where its user finds it; the place below ComfyUI's output folder. Replaces nothing."""
    import secrets
    import shutil

    place = plugin.comfyui.saved / name
    aside = place.with_name(f".cpack-{secrets.token_hex(8)}.part")  # Short: *name* may be as long as a name can be.
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file, aside)
            try:
                os.link(aside, place)  # which fails, rather than replaces
            except FileExistsError:
                raise
            except OSError:  # There are no hard links on exFAT, nor on much that is mounted with FUSE.
                _copy(aside, place)
        finally:
            aside.unlink(missing_ok=True)
    except FileExistsError:
        raise Failed("exists", f"{name} is there already.", next="Choose another name.") from None
    except OSError as error:
        raise Failed("storage", f"{name} cannot be saved: {error.strerror}.", next="Free some space.") from None
    return f"cpack/{name}"


def _copy(file: Path, place: Path) -> None:
    """Copy *file* to *place*, whole or not at all. Raises FileExistsError if something is there."""
    import shutil

    with open(place, "xb"):
        pass
    try:
        shutil.copyfile(file, place)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def require_absent(plugin: Plugin, name: str) -> Path:
    """The place of *name* where its user finds it. Raises :class:`Refused` (409) if something is there."""
    place = plugin.comfyui.saved / name
    if place.exists():
        raise Refused(
            "exists", f"{name} is there already.", next="Choose another name, or remove that file.", status=409
        )
    return place
