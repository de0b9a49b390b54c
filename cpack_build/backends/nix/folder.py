"""What Nix reads: the lock, which layers it makes, what only the pack has, and cpack-build itself, in one folder.

The lock lacks one thing that Nix must know beforehand, the NAR hash of each tree; and how layers are grouped is
:mod:`cpack_build.image`'s to say. Both stand in ``plan.json``, which names the lock that it was made for. The folder is
whole: a machine with Nix and a Python for cpack-build builds from it alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cpack_build
from cpack_build.backends.nix.base import CONFIG, MANIFEST
from cpack_build.backends.nix.nar import nar_sha256
from cpack_build.backends.protocol import Request
from cpack_build.errors import Unresolvable, writing
from cpack_build.fetch.store import Store
from cpack_build.image.base import locked_documents
from cpack_build.image.layer import Recipe
from cpack_build.image.plan import sketched_parts
from cpack_build.lock.captured import CAPTURED
from cpack_build.lock.nodes import open_tree
from cpack_build.lock.schema import BaseImage, Lock, locks_to_bytes
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.sharedlayer import SHARED
from cpack_build.oci.types import BytesBlob

__all__ = ["expressions", "planned_layers", "write_folder"]

_EXPRESSIONS = ("default.nix", "flake.nix")
_SKIPPED = ("__pycache__", "*.pyc", "nix-expressions")


def write_folder(request: Request, folder: Path) -> None:
    """Fill *folder*, which is there and empty. Fetches the trees, if this machine has never seen them, and a base
    image's documents.

    Raises :class:`StorageError`, and what opening a tree raises.
    """
    data = locks_to_bytes(request.locks)
    bases = {
        lock.platform: _base(lock.base, lock, request) for lock in request.locks if isinstance(lock.base, BaseImage)
    }
    trees = {tree: nar for lock in request.locks for tree, nar in _trees(lock, request).items()}
    platforms = {
        lock.platform: {"layers": planned_layers(lock, store=request.store, siblings=request.siblings)}
        for lock in request.locks
    }
    plan = {"lock": hashlib.sha256(data).hexdigest(), "platforms": platforms, "trees": trees}
    program = Path(cpack_build.__file__).parent
    with writing(folder):
        for name in _EXPRESSIONS:
            shutil.copyfile(expressions() / name, folder / name)
        (folder / "cpack.lock").write_bytes(data)
        _write_json(folder / "plan.json", plan)
        _write_json(folder / "host.json", _host())
        for name, document in request.documents.items():
            _write(folder / "documents" / name, document)
        for platform, base in bases.items():
            place = folder / "base" / platform.replace("/", "-")
            _write(place / MANIFEST, base[0].data)
            _write(place / CONFIG, base[1].data)
        _write_captured(request, folder / "captured")
        shutil.copytree(program, folder / "tool" / program.name, ignore=shutil.ignore_patterns(*_SKIPPED))


def planned_layers(lock: Lock, *, store: Store, siblings: Sequence[Lock] = ()) -> list[dict[str, Any]]:
    """The layers of *lock* from bottom to top, but the topmost, which the image's derivation makes: kind, name and the
    hashes of what they hold, as ``nix/default.nix`` reads them."""
    parts = sketched_parts(lock, documents={}, store=store, siblings=siblings)
    return [_planned(part) for part in parts[:-1]]


def _planned(part: Recipe | ModelLayer) -> dict[str, Any]:
    if isinstance(part, ModelLayer):
        return {"kind": "model", "name": part.sha256, "sha256": part.sha256}
    entry: dict[str, Any] = {"kind": part.kind, "name": part.name}
    if part.kind in ("wheel", "wheels"):
        entry["sha256"] = [file.sha256 for file in part.inputs]
    if part.kind == "models":
        entry["sha256"] = part.annotations[SHARED].split(",")
        entry["number"] = int(part.name.rpartition(" ")[2], 16)
    return entry


def _base(pin: BaseImage, lock: Lock, request: Request) -> tuple[BytesBlob, BytesBlob]:
    """Manifest and config: they name the layers that are to be fetched, and their digest is in the lock."""
    return locked_documents(
        pin, platform=lock.platform, name=request.places[lock.platform].base, store=request.store,
        sources=request.sources,
    )  # fmt: skip


def _trees(lock: Lock, request: Request) -> dict[str, str]:
    """NAR hash of each tree by its own."""
    found = {}
    for pin in (lock.comfyui, *lock.custom_nodes):
        known = request.store.recall("nar", pin.tree_sha256)
        if known is None:
            tree = open_tree(pin, request.pack, store=request.store, sources=request.sources, progress=request.progress)
            known = nar_sha256(tree, pin.tree_sha256, store=request.store)
        found[pin.tree_sha256] = known
    return found


def _host() -> dict[str, str]:
    """This machine's Python, and where its programs are, for a build without nixpkgs."""
    git = shutil.which("git")
    folders = dict.fromkeys([*([os.path.dirname(git)] if git else []), "/usr/bin", "/bin"])
    return {"path": ":".join(folders), "python": sys.executable}


def _write_captured(request: Request, folder: Path) -> None:
    if request.pack is None:
        return
    names = [name for name in request.pack.sizes if name.startswith(CAPTURED)]
    with request.pack.reading() as stream:
        for name in names:
            _write(folder / name, b"".join(stream(name)))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def expressions() -> Path:
    """Where ``default.nix`` and ``flake.nix`` lie: within an installed cpack-build, or in its repository."""
    package = Path(cpack_build.__file__).parent
    for place in (package / "nix-expressions", package.parent / "nix"):
        if (place / "default.nix").is_file():
            return place
    raise Unresolvable("The Nix expressions are missing: this cpack-build is damaged.", hint="Install it again.")
