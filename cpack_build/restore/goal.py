"""What a restore is asked for and what it answers: documents without a deed, told from a lock and a pack alone."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cpack_build.cpack.reader import Pack
from cpack_build.fetch.folders import safe_model_path
from cpack_build.lock.schema import Lock, Model
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.folder import OWN, Folder
from cpack_build.restore.models import How
from cpack_build.restore.parts import Pin
from cpack_build.restore.scripts import Consent
from cpack_build.restore.trees import File

__all__ = [
    "Goal", "Options", "Part", "Restored", "disabled_models", "documents_of", "is_there", "outlook", "tree_key",
]  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """What is to be restored: the *lock*, the pack's *documents* by name, and what they came from."""

    name: str
    lock: Lock
    documents: Mapping[str, bytes]
    artifact: Artifact | None = None
    pack: Pack | None = None


@dataclass(frozen=True)
class Options:
    """How. *force* names paths that may be replaced, *models* is ``none`` to leave them out; the folders and indexes
    are where things may be found."""

    models: How | Literal["none"] = "link"
    environment: bool = True
    offline: bool = False
    dry_run: bool = False
    force: tuple[str, ...] = ()
    model_folders: Sequence[str] = ()
    find_links: Sequence[str] = ()
    index_urls: Sequence[str] = ()
    disabled_models: bool = False
    """Also the models that the pack lists as not chosen, as far as it says their hashes."""
    consent: Consent = field(default=lambda scripts: False)
    """Whether programs of custom nodes may be run."""
    trust: bool = False
    """That wheels which were built from source for the lock may be built here."""


@dataclass(frozen=True)
class Part:
    """One part of the workspace: how many of its files were *there*, and how many were (or would be) *made*."""

    kind: str
    name: str
    there: int
    made: int
    origin: str = ""


@dataclass(frozen=True)
class Restored:
    """What was done, or with ``dry_run`` would be. *notes* are for people."""

    root: Path
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    scripts: tuple[str, ...]
    """``install.py`` files that were not run, for nobody said that they may."""

    @property
    def made(self) -> int:
        return sum(part.made for part in self.parts)


def tree_key(pin: Pin, lock: Lock) -> str:
    """What the manifest of *pin* is called in the workspace."""
    return "ComfyUI" if pin == lock.comfyui else f"custom_nodes/{pin.name}"


def is_there(folder: Folder, path: str, file: File, *, stand_in: str | None = None) -> bool | None:
    """Whether *file* lies at *path*: ``True``, ``None`` for nothing, ``False`` for something else.

    *stand_in* is the hash of the regular file that was put there for a link, where the system made none.
    """
    status = folder.status(path)
    if status is None:
        return None
    hasher = hashlib.sha256()
    if stand_in is not None and stat.S_ISREG(status.st_mode):
        return hashlib.sha256(folder.read(path) or b"").hexdigest() == stand_in
    if file.mode == "120000":
        if not stat.S_ISLNK(status.st_mode):
            return False
        hasher.update(folder.target(path).encode("utf-8", "surrogateescape"))
    elif not stat.S_ISREG(status.st_mode):
        return False
    else:
        for chunk in folder.chunks(path):
            hasher.update(chunk)
    return hasher.hexdigest() == file.sha256


def documents_of(goal: Goal) -> dict[str, bytes]:
    """The files that come from the pack's documents, by their paths in the workspace."""
    files = {name: data for name, data in goal.documents.items() if name.startswith("input/")}
    if (drawing := goal.documents.get("workflow.json")) is not None:
        files[f"user/default/workflows/{goal.name}.json"] = drawing
    own = ("snapshot.json", "workflow_api.json", "workflow.json", "cpack.yaml")
    return files | {f"{OWN}/{name}": goal.documents[name] for name in own if name in goal.documents}


def disabled_models(pack: Pack) -> Iterator[Model]:
    """The models of *pack* that are not chosen and whose hash and size it knows."""
    for entry in pack.snapshot.models:
        if entry.disabled and entry.sha256 and entry.size is not None:
            path = safe_model_path(entry.filename)
            # Its layer is nobody's business: it is in no image.
            yield Model(
                path=path, sha256=entry.sha256, size=entry.size, layer_digest=f"sha256:{'0' * 64}", sources=entry.urls
            )


def outlook(goal: Goal, root: Path, options: Options) -> Restored:
    """What a restore to a folder that is not there would make, told from the lock alone."""
    lock = goal.lock
    parts = [Part("comfyui", "ComfyUI", 0, 1)]
    parts += [Part("node", pin.name, 0, 1) for pin in lock.custom_nodes]
    parts.append(Part("files", "workflows and inputs", 0, len(documents_of(goal))))
    if options.models != "none":
        parts += [Part("model", model.path, 0, 1) for model in lock.models]
    if options.environment:
        parts.append(Part("environment", ".venv", 0, 1))
    return Restored(root, tuple(parts), (), ())
