"""What a pack holds itself because nobody else has it: custom nodes, changes to others, perhaps ComfyUI.

``nodes/<name>/`` and ``nodes/<name>.py`` are nodes, ``patches/<name>.patch`` changes of a git node (or of ComfyUI), and
``comfyui/`` a ComfyUI without a commit. A zip keeps no modes that mean anything, so each file is a plain one; compiled
files are left out, for they are made anew. A tree that was seen once is in the store, and the pack is not read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from cpack_build.errors import HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.patch import Patch
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree, files_digest, import_tree, imported_tree
from cpack_build.lock.schema import LocalTree

__all__ = [
    "CAPTURED", "COMFYUI", "Captured", "captured_nodes", "has_comfyui", "lock_local", "members_of", "open_local",
    "patch_names", "patch_of",
]  # fmt: skip

COMFYUI = "ComfyUI"
CAPTURED = ("nodes/", "patches/", "comfyui/")
Kind = Literal["comfyui", "folder", "file"]
_PATCH_LIMIT = 256 << 20
_COMPILED = (".pyc", ".pyo")


class Captured(Protocol):
    """Files by name, as a pack holds them (:class:`cpack_build.cpack.reader.Pack` is one)."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of each, as announced."""
        ...

    def reading(self) -> AbstractContextManager[Callable[[str], Iterator[bytes]]]:
        """A function from name to content in chunks, for as long as the context lasts."""
        ...


def captured_nodes(pack: Captured) -> dict[str, Kind]:
    """The custom nodes in *pack*, by folder or file name."""
    found: dict[str, Kind] = {}
    for name in sorted(pack.sizes):
        if name.startswith("nodes/"):
            node, slash, _ = name.removeprefix("nodes/").partition("/")
            if slash or node.endswith(".py"):
                found[node] = "folder" if slash else "file"
    return found


def has_comfyui(pack: Captured) -> bool:
    """Whether *pack* holds a ComfyUI."""
    return any(name.startswith("comfyui/") for name in pack.sizes)


def patch_names(pack: Captured) -> frozenset[str]:
    """What there are patches for."""
    return frozenset(
        name.removeprefix("patches/").removesuffix(".patch")
        for name in pack.sizes
        if name.startswith("patches/") and name.endswith(".patch")
    )


def patch_of(name: str, pack: Captured | None, *, sha256: str | None = None) -> Patch:
    """The patch for *name*: with *sha256* (hex) it is read from *pack* only if it has to be.

    Raises :class:`UnsafeInput` for one that is too long, :class:`Unresolvable` where there is none.
    """
    member = f"patches/{name}.patch"

    def read() -> bytes:
        if pack is None or member not in pack.sizes:
            raise Unresolvable(
                f"The changes of {name} are only in the pack that the lock was made from.",
                hint="Name that pack, or make a new lock.",
            )
        if pack.sizes[member] > _PATCH_LIMIT:
            raise UnsafeInput(f"{member} is longer than {_PATCH_LIMIT >> 20} MiB.", hint="Do not use this pack.")
        with pack.reading() as stream:
            return b"".join(stream(member))

    if sha256 is not None:
        return Patch(member, sha256, read)
    data = read()
    return Patch(member, hashlib.sha256(data).hexdigest(), lambda: data)


def lock_local(name: str, kind: Kind, pack: Captured, *, store: Store) -> LocalTree:
    """Pin the node (or ComfyUI) *name* of *pack* by its content, and keep it in the store.

    Raises :class:`UnsafeInput` for names that leave their place.
    """
    pin = LocalTree(name=name, kind=kind, tree_sha256=_digest(members_of(name, kind, pack), pack))
    open_local(pin, pack, store=store)
    return pin


def open_local(pin: LocalTree, pack: Captured | None, *, store: Store) -> Tree:
    """The tree of *pin*, proved by its hash: from the store, or from *pack*.

    Raises :class:`Unresolvable` where neither has it, :class:`HashMismatch` where *pack* has another.
    """
    what = "The pack's ComfyUI" if pin.kind == "comfyui" else f"The pack's custom node {pin.name}"
    if (tree := imported_tree(pin.tree_sha256, name=pin.name, store=store)) is None:
        files = members_of(pin.name, pin.kind, pack) if pack is not None else {}
        if pack is None or not files:
            raise Unresolvable(
                f"{what} is not here: only the pack that the lock was made from holds it.",
                hint="Name that pack, or make a new lock.",
            )
        if (found := _digest(files, pack)) != pin.tree_sha256:
            raise HashMismatch(what, expected=pin.tree_sha256, actual=found)
        sizes = {path: pack.sizes[member] for path, member in files.items()}
        with pack.reading() as stream:
            tree = import_tree(
                sizes, lambda path: stream(files[path]), name=pin.name, sha256=pin.tree_sha256, store=store
            )
    if (actual := tree.tree_digest()) != pin.tree_sha256:
        raise HashMismatch(what, expected=pin.tree_sha256, actual=actual)
    return tree


def members_of(name: str, kind: Kind, pack: Captured) -> dict[str, str]:
    """The files of the node (or ComfyUI) *name*: path in its tree → name in the pack."""
    if kind == "file":
        return {name: f"nodes/{name}"} if f"nodes/{name}" in pack.sizes else {}
    prefix = "comfyui/" if kind == "comfyui" else f"nodes/{name}/"
    members = (member for member in pack.sizes if member.startswith(prefix) and not member.endswith(_COMPILED))
    return {member.removeprefix(prefix): member for member in members}


def _digest(files: Mapping[str, str], pack: Captured) -> str:
    hashes = {}
    with pack.reading() as stream:
        for path, member in files.items():
            content = hashlib.sha256()
            for chunk in stream(member):
                content.update(chunk)
            hashes[path] = content.hexdigest()
    return files_digest(hashes)
