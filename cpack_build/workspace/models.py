"""The models on a workspace's disk: listed through ComfyUI's own rules, and chosen by what a workflow refers to.

Listing reads no file, only folders. What a workflow names is found by its whole name in its loader's folders, in the
order in which ComfyUI looks; a shard brings its set along, a folder all its files.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import Unresolvable
from cpack_build.workflow.references import ModelReference
from cpack_build.workspace.place import EXTENSIONS, Comfyui, walk

__all__ = ["Choice", "Listing", "Missing", "ModelFile", "choose_models", "list_models"]

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<end>\.[A-Za-z]+)")
_INDEX = re.compile(r"(?P<stem>.+)(?P<end>\.[A-Za-z]+)\.index\.json")
_SIDECARS = (".civitai.info", ".metadata.json", ".cm-info.json", ".sha256", ".preview.png", ".preview.jpg")
_PLACEHOLDER = re.compile(r"put_.+_here(\.txt)?")
_PARTIAL = (".part", ".tmp", ".crdownload", ".aria2", ".incomplete")


@dataclass(frozen=True)
class ModelFile:
    """A file in a model folder. *name* is what a pack calls it (``models/loras/x.safetensors``), *below* its name
    within the model *folder* (empty for files that lie in ``models`` but in none that ComfyUI has), *size* in bytes."""

    name: str
    path: Path
    size: int
    folder: str
    below: str


@dataclass(frozen=True)
class Listing:
    """Every model file, by name; what was passed over, for people; and names that are *own* to ComfyUI itself."""

    files: tuple[ModelFile, ...]
    notes: tuple[str, ...]
    own: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Missing:
    """What input *input_name* of node *node_id* names, and the workspace has not in its place *where*."""

    value: str
    where: str
    node_id: str
    input_name: str
    class_type: str = ""

    def __str__(self) -> str:
        by = ", ".join(filter(None, (f"node {self.node_id}", self.class_type, self.input_name)))
        return f"{self.value} is not in {self.where} ({by})"


@dataclass(frozen=True)
class Choice:
    """The models that a pack is to bring, by name, what a workflow named in vain, and which nodes named each file."""

    files: tuple[ModelFile, ...]
    missing: tuple[Missing, ...]
    used_by: Mapping[str, tuple[str, ...]]


def list_models(comfyui: Comfyui, *, tracked: frozenset[str] = frozenset()) -> Listing:
    """The files of all model folders. *tracked* are names that belong to ComfyUI itself, and are left out.

    Where two directories of a folder hold one name, the first wins, as it does for ComfyUI.
    """
    notes: list[str] = []
    found: dict[str, ModelFile] = {}

    def unreadable(path: Path, why: str) -> None:
        if path.suffix.lower() in EXTENSIONS or path.is_dir() or not path.suffix:
            notes.append(f"{_shown(path, comfyui)} is passed over: {why}.")

    def add(folder: str, prefix: str, top: Path, but: frozenset[str] = frozenset()) -> None:
        for below, path, info in walk(top, skip=_is_no_model, unreadable=unreadable, but=but):
            name = f"{prefix}/{below}"
            if name in tracked or name in found:
                continue
            if problem := unsafe_name(name):
                notes.append(f"The model {name!a:.120} is passed over: its name {problem}.")
                continue
            found[name] = ModelFile(name, path, info.st_size, folder, below)

    for place in comfyui.folders:
        add(place.name, place.prefix, place.path)
    # Custom nodes make folders of their own in models/, which only their code could name.
    add("", "models", comfyui.models, frozenset(str(place.path) for place in comfyui.folders))
    return Listing(tuple(found[name] for name in sorted(found)), tuple(dict.fromkeys(notes)), tracked)


def choose_models(
    listing: Listing, *, comfyui: Comfyui, references: Sequence[ModelReference], globs: Iterable[str], everything: bool
) -> Choice:
    """What *references* name, what *globs* match (whole names, names below their folder, or file names), or all.

    A name that is not there is *missing*, unless it was only guessed to be one. Raises :class:`Unresolvable` for a
    glob that matches nothing.
    """
    chosen: dict[str, ModelFile] = {}
    missing: list[Missing] = []
    used_by: dict[str, tuple[str, ...]] = {}
    index = _Index(listing)
    for reference in references:
        files = index.find(reference, comfyui)
        chosen |= {file.name: file for file in files}
        for file in files:
            used_by[file.name] = tuple(dict.fromkeys((*used_by.get(file.name, ()), reference.node_id)))
        if not files and not reference.guessed and f"models/{reference.folder}/{reference.path}" not in listing.own:
            where = f"models/{reference.folder}" if reference.folder else "any model folder"
            missing.append(
                Missing(reference.value, where, reference.node_id, reference.input_name, reference.class_type)
            )
    for glob in globs:
        matched = [file for file in listing.files if _matches(file, glob)]
        if not matched:
            raise Unresolvable(
                f"--model {glob!r} matches no model of the workspace.",
                hint="Write it as in models/, with quotes: --model 'loras/*.safetensors'.",
            )
        chosen |= {file.name: file for file in matched}
    if everything:
        chosen = {file.name: file for file in listing.files}
    return Choice(tuple(chosen[name] for name in sorted(chosen)), tuple(dict.fromkeys(missing)), used_by)


class _Index:
    """Files by what a reference may call them."""

    def __init__(self, listing: Listing) -> None:
        self._by_name = {file.name: file for file in listing.files}
        self._by_below: dict[str, list[ModelFile]] = {}
        for file in listing.files:
            below = file.below if file.folder else file.below.partition("/")[2]
            self._by_below.setdefault(below, []).append(file)
        self._names = sorted(self._by_name)

    def find(self, reference: ModelReference, comfyui: Comfyui) -> list[ModelFile]:
        """The files that *reference* means: the one, the set it is a shard of, or those of the folder it names."""
        wanted = "/".join(part for part in reference.path.split("/") if part not in ("", "."))
        if not wanted:
            return []
        places = comfyui.searched(reference.folder) if reference.folder else ()
        for place in places:
            if found := self._at(f"{place.prefix}/{wanted}"):
                return found
        if places:
            return []
        # No folder is known, or it is one of a custom node's own.
        if reference.folder and (found := self._at(f"models/{reference.folder}/{wanted}")):
            return found
        files = self._by_below.get(wanted, [])
        if not files and (found := self._at(wanted if wanted.startswith("models/") else f"models/{wanted}")):
            return found
        return [file for one in files for file in self._set_of(one)]

    def _at(self, name: str) -> list[ModelFile]:
        if (file := self._by_name.get(name)) is not None:
            return self._set_of(file)
        return [self._by_name[other] for other in self._names if other.startswith(name + "/")]

    def _set_of(self, file: ModelFile) -> list[ModelFile]:
        folder, _, last = file.name.rpartition("/")
        shard, index = _SHARD.fullmatch(last), _INDEX.fullmatch(last)
        match = shard or index
        if match is None:
            return [file]
        stem, end = re.escape(match["stem"]), re.escape(match["end"])
        count = re.escape(shard["count"]) if shard else r"\d{5}"
        pattern = re.compile(rf"{stem}(-\d{{5}}-of-{count}{end}|{end}\.index\.json)")
        names = [name for name in self._names if name.startswith(folder + "/")]
        return [self._by_name[name] for name in names if pattern.fullmatch(name[len(folder) + 1 :])]


def _matches(file: ModelFile, glob: str) -> bool:
    names = (file.name, file.name.removeprefix("models/"), file.name.rsplit("/", 1)[-1])
    return any(fnmatch.fnmatchcase(name, glob.replace("\\", "/")) for name in names)


def _is_no_model(name: str) -> bool:
    lower = name.lower()
    return (
        name.startswith(".")
        or name == "__pycache__"
        or bool(_PLACEHOLDER.fullmatch(name))
        or lower.endswith((*_SIDECARS, *_PARTIAL))
    )


def _shown(path: Path, comfyui: Comfyui) -> str:
    return path.relative_to(comfyui.root).as_posix() if path.is_relative_to(comfyui.root) else str(path)
