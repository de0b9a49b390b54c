"""What a workspace remembers of its restore, in ``.cpack/``: its lock, the manifests of its trees, and how far it came.

Nothing in it is believed where it can be proved: the lock has a hash in it, a manifest is proved by the lock, and what
lies in the workspace is looked at. One restore at a time works in a workspace; the system lets go of the lock when a
run is killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from cpack_build import filesystem
from cpack_build.errors import BadInput, UnsafeInput, UsageError
from cpack_build.lock.schema import Lock, read_lock
from cpack_build.restore.folder import OWN, Folder
from cpack_build.restore.trees import Manifest, read_manifest

__all__ = [
    "State", "check_owner", "held", "load_manifest", "load_state", "save_manifest", "save_state", "take_over",
    "workspace_lock",
]  # fmt: skip

_STATE = f"{OWN}/state.json"
_LOCK = f"{OWN}/cpack.lock"
_REVISION = 1
_WAIT_SECONDS = 5.0


@dataclass
class State:
    """How far a restore came. *trees* has origin and commit of each tree and of its submodules, *environment*
    ``making``, ``wheels`` or ``image``, *scripts* the hash of each ``install.py`` that was run, by node; *models* how
    each lies there, *stand_ins* the hash of what lies for a link where the system made none."""

    name: str = ""
    lock_sha256: str = ""
    trees: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    stand_ins: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    environment: str = ""
    scripts: dict[str, str] = field(default_factory=dict)
    complete: bool = False


def load_state(folder: Folder) -> State:
    """The state of the workspace; an empty one where there is none, or none that can be read."""
    data = folder.read(_STATE)
    try:
        document = json.loads(data) if data is not None else {}
        document.pop("revision", None)
        return State(**document)
    except (ValueError, TypeError, AttributeError):
        return State()


def save_state(folder: Folder, state: State) -> None:
    document = {"revision": _REVISION, **asdict(state)}
    folder.write(_STATE, [(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()])


def workspace_lock(folder: Folder) -> Lock:
    """The lock that the workspace was restored from. Raises :class:`BadInput`."""
    data = folder.read(_LOCK)
    if data is None:
        raise BadInput(
            f"{folder.root} is no workspace that cpack-build restored: it has no {_LOCK}.",
            hint="Name the folder that `cpack-build restore -d` was given.",
        )
    return read_lock(data, name=folder.root / _LOCK)


def take_over(folder: Folder, lock: Lock) -> None:
    """Make the workspace *lock*'s."""
    if folder.read(_LOCK) is None:
        folder.write(_LOCK, [lock.to_bytes()])


def check_owner(folder: Folder, lock: Lock) -> None:
    """Raise :class:`UnsafeInput` when the workspace is another lock's."""
    present = folder.read(_LOCK)
    if present is not None and read_lock(present, name=folder.root / _LOCK) != lock:
        raise UnsafeInput(
            f"{folder.root} was restored from another lock.",
            hint="Restore to another folder with -d; nothing was touched.",
        )


def load_manifest(folder: Folder, name: str, tree_sha256: str) -> Manifest | None:
    """The manifest of the tree *name*, if it is there and that of *tree_sha256*."""
    data = folder.read(_manifest_path(name))
    if data is None:
        return None
    try:
        manifest = read_manifest(data, name=f"{folder.root / _manifest_path(name)}")
    except BadInput:
        return None
    return manifest if manifest.sha256 == tree_sha256 else None


def save_manifest(folder: Folder, name: str, manifest: Manifest) -> None:
    folder.write(_manifest_path(name), [manifest.to_bytes()])


def _manifest_path(name: str) -> str:
    return f"{OWN}/trees/{name}"


@contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Hold the workspace: nobody else restores to it meanwhile. Raises :class:`UsageError` when somebody does."""
    folder.make(OWN)
    if folder.status(f"{OWN}/held") is None:
        folder.write(f"{OWN}/held", [])
    descriptor = folder.opened(f"{OWN}/held")
    try:
        # What we start (uv) holds it too, so the next run never meets a program that a killed one has left at work.
        os.set_inheritable(descriptor, True)
        until = time.monotonic() + _WAIT_SECONDS
        while not filesystem.lock(descriptor, wait=False):
            if time.monotonic() > until:
                raise UsageError(f"Another restore to {folder.root} is under way.", hint="Wait for its end.")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
