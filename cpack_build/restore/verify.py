"""A restored workspace beside its lock: which file is missing, changed or one too many.

The lock pins each tree by the hash of its manifest, and the manifest lies in the workspace, so neither network nor
store is needed. What ComfyUI and its user make (outputs, the user's folder, bytecode) is nobody's drift."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpack_build.errors import BadInput
from cpack_build.lock.schema import Lock
from cpack_build.lock.wheels import wheels_of
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.environment import check_files, installed_in
from cpack_build.restore.folder import OWN, Folder
from cpack_build.restore.goal import Goal, documents_of, is_there, tree_key
from cpack_build.restore.parts import place_of
from cpack_build.restore.state import State, load_manifest, load_state, workspace_lock
from cpack_build.restore.trees import File

__all__ = ["Drift", "verify"]

_CHUNK = 1 << 20
_WORDS = {
    "missing": "is missing",
    "changed": "has changed",
    "mode": "has other permissions",
    "extra": "is not in the lock",
    "not provable": "cannot be proved",
}


@dataclass(frozen=True)
class Drift:
    """One difference: *path* in the workspace, and *what* about it."""

    part: str
    path: str
    what: Literal["missing", "changed", "mode", "extra", "not provable"]

    def __str__(self) -> str:
        return f"{self.part}: {self.path} {_WORDS[self.what]}"


def verify(root: Path, *, progress: Progress = SILENT) -> tuple[tuple[Drift, ...], int]:
    """Every difference of the workspace at *root* from its lock, and how many files were looked at.

    Raises :class:`BadInput` for a folder that no restore made.
    """
    if not root.is_dir():
        raise BadInput(f"There is no folder {root}.", hint="Name a restored workspace.")
    folder = Folder(root)
    try:
        lock, state = workspace_lock(folder), load_state(folder)
        looking = _Looking(folder, lock, state)
        with progress.task("Comparing the workspace with its lock", unit="files") as task:
            drifts = []
            for drift in looking.drifts():
                if drift is not None:
                    drifts.append(drift)
                task.advance(1)
        return tuple(drifts), looking.count
    finally:
        folder.close()


class _Looking:
    def __init__(self, folder: Folder, lock: Lock, state: State) -> None:
        self._folder, self._lock, self._state = folder, lock, state
        self.count = 0

    def drifts(self) -> Iterator[Drift | None]:
        """Each file's difference, or ``None`` for one that is as it should be."""
        documents = self._documents()
        models = {} if "models" in self._state.left_out else {model.path: model for model in self._lock.models}
        for pin in (self._lock.comfyui, *self._lock.custom_nodes):
            manifest = load_manifest(self._folder, tree_key(pin, self._lock), pin.tree_sha256)
            if manifest is None:
                yield Drift(pin.name, f"{OWN}/trees/{tree_key(pin, self._lock)}", "not provable")
                continue
            prefix = place_of(pin, self._lock)
            for file in manifest.files:
                path = prefix + file.path
                if path not in documents and path not in models:
                    yield self._file(pin.name, path, file)
            if prefix and prefix != "custom_nodes/":
                yield from self._extra(pin.name, prefix, {prefix + file.path for file in manifest.files})
        yield from self._extra_nodes()
        for path in documents:
            if self._folder.status(path) is None:
                yield Drift("inputs", path, "missing")
        for path, model in models.items():
            yield self._model(path, model.sha256, model.size)
        if "environment" not in self._state.left_out:
            yield from self._environment()

    def _file(self, part: str, path: str, file: File) -> Drift | None:
        self.count += 1
        found = is_there(self._folder, path, file)
        if found is None:
            return Drift(part, path, "missing")
        if not found:
            return Drift(part, path, "changed")
        status = self._folder.status(path)
        assert status is not None
        if os.name == "posix" and file.mode != "120000" and bool(status.st_mode & 0o100) != (file.mode == "100755"):
            return Drift(part, path, "mode")
        return None

    def _extra(self, part: str, prefix: str, known: set[str]) -> Iterator[Drift]:
        """Python files of a node that its tree does not have: they would be loaded."""
        pending = [prefix.rstrip("/")]
        while pending:
            place = pending.pop()
            for name in self._folder.names(place):
                path = f"{place}/{name}"
                status = self._folder.status(path)
                if status is None or name in ("__pycache__", ".git"):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
                elif path not in known and name.endswith(".py"):
                    yield Drift(part, path, "extra")

    def _extra_nodes(self) -> Iterator[Drift]:
        manifest = load_manifest(self._folder, "ComfyUI", self._lock.comfyui.tree_sha256)
        known = {pin.name for pin in self._lock.custom_nodes} | {"__pycache__"}
        known |= {
            file.path.split("/")[1]
            for file in (manifest.files if manifest else ())
            if file.path.startswith("custom_nodes/")
        }
        for name in self._folder.names("custom_nodes"):
            path = f"custom_nodes/{name}"
            status = self._folder.status(path)
            loaded = status is not None and (not stat.S_ISREG(status.st_mode) or name.endswith(".py"))
            if name not in known and loaded and not name.startswith(".") and not name.endswith(".disabled"):
                yield Drift("custom nodes", path, "extra")

    def _model(self, path: str, sha256: str, size: int) -> Drift | None:
        import hashlib

        self.count += 1
        place = self._folder.root / path
        if self._folder.status(path) is None or not place.is_file():
            return Drift("models", path, "missing")
        hasher = hashlib.sha256()
        if place.stat().st_size == size:
            with place.open("rb") as file:  # it may be a link of ours into the store
                while chunk := file.read(_CHUNK):
                    hasher.update(chunk)
        return None if hasher.hexdigest() == sha256 else Drift("models", path, "changed")

    def _environment(self) -> Iterator[Drift | None]:
        installed = installed_in(self._folder.root)
        if installed is None:
            yield Drift("environment", ".venv", "missing")
            return
        wheels = wheels_of(self._lock.python)
        for wheel in wheels:
            self.count += 1
            for line in check_files(installed, wheel, deep=True):
                yield Drift("environment", line, "changed")
            yield None
        for name in sorted(installed.keys() - {wheel.name for wheel in wheels}):
            yield Drift("environment", f"{name} {installed[name][0]}", "extra")

    def _documents(self) -> set[str]:
        names = self._folder.names(OWN)
        documents = {f"input/{name}": b"" for name in self._state.inputs}
        goal = Goal(self._state.name, self._lock, documents | dict.fromkeys(names, b""))
        return {path for path in documents_of(goal) if path.startswith("input/")}
