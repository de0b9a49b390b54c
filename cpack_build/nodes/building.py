"""The jobs ``plan`` and ``image``: the workflow on the page is packed and locked, then its layers are shown or built.

Both work in one folder for each name, which lives as long as ComfyUI: the same workflow makes the same pack, whose lock
is then fresh, so a build after a look at its layers resolves nothing anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Failed, Refused
from .jobs import Job, Stage
from .packing import ENDING, PACKING, make_pack, require_absent, require_prompt
from .params import flag, name_of, pick, text, write_choice

if TYPE_CHECKING:
    from .asked import Asked
    from .plugin import Plugin

__all__ = ["NOT_OF_PLAN", "image", "of_plan", "plan"]

_REFERENCE = r"[A-Za-z0-9][\w.:/-]{0,254}"
_BASE = r"[A-Za-z0-9][\w.:/@-]{0,300}"
_LOCAL = ("oci:", "oci-archive:", "docker-archive:", "docker:", "podman:")
_LOCKING = ("lock", "Pin every byte")
NOT_OF_PLAN = {
    "--backend": 1, "--builder": 1, "--compression": 1, "--connections": 1, "--format-revision": 1, "--from": 1,
    "--limit-rate": 1, "--model-registry": 1, "--offline": 0, "--retries": 1, "--trust": 0,
}  # fmt: skip
"""Flags of ``lock`` and ``image`` that ``plan``, which asks nobody and makes nothing, does not have; and the words that
follow each."""


def plan(plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> Job:
    """Start the job that says which layers the image would have."""
    building = _Building(plugin, asked, params)

    def work(job: Job) -> dict[str, Any]:
        packed = building.packed_and_locked(job)
        job.stage("plan")
        told = job.tool(plugin.tool, "plan", packed, *of_plan(building.settings))
        return {"base": told.get("base"), "layers": [_layer(layer) for layer in told["layers"]]}

    stages = [Stage(*PACKING), Stage(*_LOCKING), Stage("plan", "Look at its layers")]
    return plugin.start(asked, "plan", f"Plan {building.name}", stages, work, without=["image"])


def image(plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> Job:
    """Start the job that builds the image and loads it, pushes it or writes it to a folder."""
    building = _Building(plugin, asked, params)
    then = pick(params, "then", "load", "push", "folder", default="load")
    reference = text(params, "reference", default="", pattern=_REFERENCE)
    folder: Path | None = None
    if then == "push" and "/" not in reference:
        raise Refused(
            "bad_value", f"The reference {reference!r} names no registry.", next="Write registry.example/team/name:1."
        )
    if then == "folder":
        folder = require_absent(plugin, f"{building.name}.oci")

    def work(job: Job) -> dict[str, Any]:
        packed = building.packed_and_locked(job)
        job.stage("image")
        where: list[str] = []
        if then == "push":
            where = ["--push", reference]
        elif folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            where = ["--output", f"oci:{folder}"]
        else:
            _require_engine(plugin, job, packed, building.settings)
        tag = ["--tag", reference] if reference and then != "push" else []
        told = job.tool(plugin.tool, "image", packed, "--locked", *tag, *where, *building.trust, *building.settings)
        (output,) = told["outputs"]
        # In a registry its layers are compressed, so its digest there is another.
        pushed = [one["reference"].partition("@")[2] for one in told.get("pushed", ())]
        return {
            "digest": pushed[0] if pushed else told["digest"],
            "image_id": told.get("image_id"),
            "size": told["size"],
            "layers": told.get("layers"),
            "reference": reference or (output["name"].partition(":")[2] if folder is None else None),
            "run": output["run"],
            "saved": f"cpack/{folder.name}" if folder is not None else None,
        }

    stages = [Stage(*PACKING), Stage(*_LOCKING), Stage("image", "Build the image")]
    return plugin.start(asked, "image", f"Build {reference or building.name}", stages, work, without=["plan"])


class _Building:
    """What both jobs begin with."""

    def __init__(self, plugin: Plugin, asked: Asked, params: Mapping[str, Any]) -> None:
        self.name = name_of(params).removesuffix(ENDING)
        self._plugin = plugin
        self._asked = asked
        self._prompt = require_prompt(asked)
        self._choice = write_choice(params, asked.folder)
        self._local = flag(params, "include_local")
        self.trust = ["--trust"] if flag(params, "trust") else []
        self.settings = [*_settings(params), *plugin.build_flags]

    def packed_and_locked(self, job: Job) -> str:
        """The pack, with its lock beside it."""
        folder = self._plugin.private.below("builds", self.name)
        job.stage("pack")
        told = make_pack(
            self._plugin, job, self._asked, self._prompt, self.name, self._choice,
            include_local=self._local, folder=folder,
        )  # fmt: skip
        packed = str(told["pack"])
        job.stage("lock")
        job.tool(self._plugin.tool, "lock", packed, *self.trust, *self.settings)
        return packed


def _settings(params: Mapping[str, Any]) -> Sequence[str]:
    """``--target`` and ``--base`` as they are asked for; a base on this machine is not a page's to name."""
    target = text(params, "target", default="", pattern=r"[a-z0-9.]{1,30}")
    base = text(params, "base", default="", pattern=_BASE)
    if base.startswith(_LOCAL):
        raise Refused("bad_value", f"The base {base!r} is a place on this machine.", next="Name one of a registry.")
    return [*(["--target", target] if target else []), *(["--base", base] if base else [])]


def of_plan(flags: Sequence[str]) -> list[str]:
    """Those of *flags* that ``plan`` knows, too."""
    known: list[str] = []
    words = iter(flags)
    for word in words:
        name, _, value = word.partition("=")
        if name not in NOT_OF_PLAN:
            known.append(word)
        elif NOT_OF_PLAN[name] and not value:
            next(words, None)
    return known


def _require_engine(plugin: Plugin, job: Job, packed: str, settings: Sequence[str]) -> None:
    """Raise :class:`Failed` where the tool would find no engine, and fall back on a folder that nobody asked for."""
    told = job.tool(plugin.tool, "image", packed, "--dry-run", *settings)
    if not str(told["outputs"][0]).startswith(("docker:", "podman:")):
        raise Failed(
            "no_engine", "Neither Docker nor podman answers on this machine.",
            next="Start one of them, or push the image, or have it written to a folder.",
        )  # fmt: skip


def _layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    shared = layer.get("shared", "")
    return {
        "kind": layer["kind"],
        "name": layer["name"],
        "size": layer["size"],
        "compressed": layer.get("compressed"),
        "digest": layer.get("digest"),
        "known": layer["known"],
        "shared_with": [] if shared in ("", "no other image") else [shared],
    }
