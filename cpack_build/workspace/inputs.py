"""The files of ``input/`` that a pack brings: those that the workflow names whole, and what the user asks for."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import Unresolvable
from cpack_build.workflow.references import InputReference
from cpack_build.workspace.capture import CapturedFile
from cpack_build.workspace.models import Missing
from cpack_build.workspace.place import Comfyui, walk

__all__ = ["ChosenInputs", "choose_inputs", "list_inputs"]


def list_inputs(comfyui: Comfyui, *, unreadable: Callable[[Path, str], object] = lambda *_: None) -> list[CapturedFile]:
    """Every file of the input folder but hidden ones, named as in a pack; *unreadable* is told of what cannot be
    listed. Some may have names that no pack takes."""
    files = walk(comfyui.inputs, skip=lambda name: name.startswith("."), unreadable=unreadable)
    return [CapturedFile(f"input/{name}", path, info.st_size) for name, path, info in files]


@dataclass(frozen=True)
class ChosenInputs:
    """The files of ``input/`` that a pack is to bring, what a workflow named in vain, notes for people, and which nodes
    named each file."""

    files: tuple[CapturedFile, ...]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    used_by: Mapping[str, tuple[str, ...]]


def choose_inputs(comfyui: Comfyui, used: Sequence[InputReference], globs: Sequence[str]) -> ChosenInputs:
    """The files of ``input/`` that are named whole, or match a glob."""
    found: dict[str, CapturedFile] = {}
    missing: list[Missing] = []
    used_by: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    top = comfyui.inputs

    def unreadable(path: Path, why: str) -> None:
        notes.append(f"{path.name!r:.80} in input/ is passed over: {why}.")

    listed: list[CapturedFile] | None = None

    def everything() -> list[CapturedFile]:
        nonlocal listed
        if listed is None:
            listed = list_inputs(comfyui, unreadable=unreadable)
        return listed

    for reference in used:
        name = "/".join(part for part in reference.path.split("/") if part not in ("", "."))
        where = f"(node {reference.node_id}, {reference.input_name})"
        if reference.place == "base" and name.startswith("input/"):
            name = name.removeprefix("input/")
        elif reference.place != "input":
            if not reference.guessed:
                notes.append(f"{reference.value!r:.80} lies outside input/, so it is not packed {where}.")
            continue
        if reference.path.startswith("/") or unsafe_name(name):
            if not reference.guessed:
                notes.append(f"{reference.value!r:.80} is no name in input/, so it is not packed {where}.")
            continue
        path = top / name
        named: dict[str, CapturedFile] = {}
        if path.is_file():
            named[f"input/{name}"] = CapturedFile(f"input/{name}", path, path.stat().st_size)
        elif path.is_dir():
            named = {file.name: file for file in everything() if file.name.startswith(f"input/{name}/")}
        elif not reference.guessed:
            missing.append(Missing(reference.value, "input/", reference.node_id, reference.input_name))
        found |= named
        for one in named:
            used_by[one] = tuple(dict.fromkeys((*used_by.get(one, ()), reference.node_id)))
    for glob in globs:
        matched = [file for file in everything() if fnmatch.fnmatchcase(file.name.removeprefix("input/"), glob)]
        if not matched:
            raise Unresolvable(f"--input {glob!r} matches no file in input/.", hint="Write it as below input/, quoted.")
        found |= {file.name: file for file in matched}
    sound = {}
    for name, file in sorted(found.items()):
        if problem := unsafe_name(name):
            notes.append(f"{name!a:.80} is not packed: its name {problem}.")
        else:
            sound[name] = file
    return ChosenInputs(tuple(sound.values()), tuple(missing), tuple(notes), used_by)
