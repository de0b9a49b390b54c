"""Custom nodes and ComfyUI itself: which of the pack's are wanted, and their trees by commit and content hash."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cpack_build.cpack.schema import NodePin, Snapshot
from cpack_build.errors import BadInput, CpackError, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.git import canonical_url, fetch_tree, open_locked
from cpack_build.fetch.http import Sources
from cpack_build.fetch.lfs import with_lfs
from cpack_build.fetch.patch import patched
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from cpack_build.lock.captured import (
    COMFYUI,
    Captured,
    captured_nodes,
    has_comfyui,
    lock_local,
    open_local,
    patch_names,
    patch_of,
)
from cpack_build.lock.installed import open_installed
from cpack_build.lock.registry import lock_registry_node, open_registry_node
from cpack_build.lock.schema import GitTree, LocalTree, Lock, NodeTree, RegistryNode
from cpack_build.progress import SILENT, Progress, working

__all__ = ["Trees", "kept_trees", "lock_trees", "open_tree"]

_FOLDER = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True)
class Trees:
    """ComfyUI and the custom nodes, by name; and what could not be found."""

    comfyui: GitTree | LocalTree | None
    nodes: tuple[GitTree, ...]
    registry_nodes: tuple[RegistryNode, ...]
    local_nodes: tuple[LocalTree, ...]
    missing: tuple[CpackError, ...]


@dataclass(frozen=True)
class _Wanted:
    """A git tree to be locked; *patch* is the name of its patch in the pack, if it has one."""

    name: str
    url: str
    commit: str
    patch: str | None


def lock_trees(
    snapshot: Snapshot,
    *,
    pack: Captured | None = None,
    exclude: Sequence[str] = (),
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> Trees:
    """Fetch and hash every tree that *snapshot* wants, less the nodes named in *exclude* (folder names or URLs); *pack*
    has those that nobody else has, and changes to others.

    What is missing is collected, to be told all at once. Raises :class:`UnsafeInput`, :class:`BadInput`.
    """
    has_own = pack is not None and snapshot.comfyui is None and has_comfyui(pack)
    if snapshot.comfyui is None and not has_own:
        raise BadInput(
            "The pack does not say which ComfyUI it needs: snapshot.json has no comfyui commit.",
            hint="Pack it again from a ComfyUI that is a git checkout, or name its commit with --comfyui-commit.",
        )
    left_out = _Exclusion(exclude)
    pins = [pin for pin in snapshot.nodes if not pin.disabled and not left_out(pin.name, pin.url)]
    missing: list[CpackError] = []
    registered = [item for item in sorted(snapshot.registry_nodes.items()) if not left_out(item[0])]
    off = {node.filename for node in snapshot.file_nodes if node.disabled}
    local = {
        name: kind
        for name, kind in (captured_nodes(pack) if pack is not None else {}).items()
        if name not in off and not left_out(name)
    }
    files = [
        node.filename
        for node in snapshot.file_nodes
        if not node.disabled and node.filename not in local and not left_out(node.filename)
    ]
    left_out.note_unknown(progress)
    patches = _patches(snapshot, pack)
    wanted = [_Wanted(_folder(pin), pin.url, pin.commit, pin.name if pin.name in patches else None) for pin in pins]
    _refuse_twins([*(one.name for one in wanted), *(name for name, _ in registered), *map(_checked_name, local)])
    if snapshot.comfyui is not None:
        patch = COMFYUI if COMFYUI in patches else None
        wanted.insert(0, _Wanted(COMFYUI, snapshot.comfyui.url, snapshot.comfyui.commit, patch))

    def lock(one: _Wanted, reports: Progress) -> tuple[GitTree, Tree] | CpackError:
        try:
            tree = fetch_tree(
                one.url, one.commit, store=store, mirrors=sources.mirrors, name=one.name, progress=reports
            )
            changes = patch_of(one.patch, pack) if one.patch is not None else None
            laid = patched(tree, changes, store=store) if changes is not None else tree
            laid = with_lfs(laid, name=one.name, store=store, sources=sources, progress=reports)
            pinned = GitTree(
                name=one.name,
                url=tree.url,
                commit=tree.commit,
                tree_sha256=laid.tree_digest(),
                committed_at=tree.committed_at,
                patch_sha256=changes.sha256 if changes else None,
            )
            return pinned, laid
        except (Unresolvable, NetworkError) as error:
            return error

    def lock_registered(item: tuple[str, str], reports: Progress) -> RegistryNode | CpackError:
        try:
            return lock_registry_node(*item, store=store, sources=sources, progress=reports)
        except (Unresolvable, NetworkError) as error:
            return error

    with working(4, progress) as (pool, reports):
        archives = list(pool.map(lambda item: lock_registered(item, reports), registered))
        answers = list(pool.map(lambda one: lock(one, reports), wanted))
    missing += [answer for answer in archives if isinstance(answer, CpackError)]
    missing += [answer for answer in answers if isinstance(answer, CpackError)]
    own = lock_local(COMFYUI, "comfyui", pack, store=store) if pack is not None and has_own else None
    locals_ = [lock_local(name, kind, pack, store=store) for name, kind in local.items()] if pack is not None else []
    comfyui: tuple[GitTree | LocalTree, Tree] | None = None
    if own is not None:
        comfyui = own, open_local(own, pack, store=store)
    else:
        first = answers.pop(0)
        comfyui = None if isinstance(first, CpackError) else first
    if comfyui is not None:
        there = {file.path for file in comfyui[1].files()} if files else set()
        missing += [_lost_file(name) for name in files if f"custom_nodes/{name}" not in there]
    nodes = [answer[0] for answer in answers if not isinstance(answer, CpackError)]
    kept = tuple(node for node in archives if not isinstance(node, CpackError))
    return Trees(
        comfyui[0] if comfyui is not None else None,
        tuple(sorted(nodes, key=lambda node: node.name)),
        kept,
        tuple(locals_),
        tuple(missing),
    )


def kept_trees(lock: Lock) -> Trees:
    """Those of an earlier *lock*, with nobody asked."""
    return Trees(lock.comfyui, lock.nodes, lock.registry_nodes, lock.local_nodes, ())


def open_tree(
    pin: NodeTree,
    pack: Captured | None,
    *,
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> Tree:
    """The tree that *pin* is locked to, proved by its hash; *pack* has what nobody else has.

    Raises :class:`HashMismatch`, :class:`Unresolvable`, :class:`NetworkError`, :class:`UnsafeInput`.
    """
    if pin.installed is not None:
        return open_installed(pin, pin.installed, pack, store=store)
    if isinstance(pin, LocalTree):
        return open_local(pin, pack, store=store)
    if isinstance(pin, RegistryNode):
        return open_registry_node(pin, store=store, sources=sources, progress=progress)
    return open_locked(
        pin.url,
        pin.commit,
        tree_sha256=pin.tree_sha256,
        patch=patch_of(pin.name, pack, sha256=pin.patch_sha256) if pin.patch_sha256 is not None else None,
        store=store,
        sources=sources,
        progress=progress,
    )


def _patches(snapshot: Snapshot, pack: Captured | None) -> frozenset[str]:
    """What the pack has patches for. Raises :class:`BadInput` for one that belongs to nothing."""
    names = patch_names(pack) if pack is not None else frozenset()
    known = {pin.name for pin in snapshot.nodes} | ({COMFYUI} if snapshot.comfyui is not None else set())
    for name in sorted(names - known):
        raise BadInput(f"patches/{name}.patch belongs to no git repository of the pack.", hint="Pack it again.")
    if COMFYUI in names and any(pin.name == COMFYUI for pin in snapshot.nodes):
        raise BadInput(
            f"patches/{COMFYUI}.patch may belong to ComfyUI or to the custom node of that name.",
            hint="Rename the custom node's folder, and pack it again.",
        )
    return names


def _lost_file(name: str) -> Unresolvable:
    return Unresolvable(
        f"The custom node {name} is a single file that is neither in the pack nor in its ComfyUI.",
        hint=f"Leave it out with nodes.exclude: [{name}] in cpack.yaml, or pack again with `cpack-build pack`.",
    )


def _folder(pin: NodePin) -> str:
    return _checked_name(pin.name or canonical_url(pin.url).replace(":", "/").rsplit("/", 1)[-1])


def _checked_name(name: str) -> str:
    if not _FOLDER.fullmatch(name) or name in (".", "..", "__pycache__"):
        raise UnsafeInput(f"The custom node's name {name!r} is no folder name.", hint="Correct it in the pack.")
    return name


def _refuse_twins(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if (twin := seen.setdefault(name.casefold(), name)) is not name:
            raise BadInput(
                f"Two custom nodes would share one folder: {twin} and {name}.",
                hint="Leave one of them out with nodes.exclude in cpack.yaml, by its URL.",
            )


class _Exclusion:
    """``nodes.exclude``, and which of its names were met."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = {_plain(name): name for name in names}
        self._met: set[str] = set()

    def __call__(self, *names: str) -> bool:
        met = {_plain(name) for name in names} & self._names.keys()
        self._met |= met
        return bool(met)

    def note_unknown(self, progress: Progress) -> None:
        for plain in self._names.keys() - self._met:
            progress.note(f"nodes.exclude names {self._names[plain]!r}, which the pack does not have.")


def _plain(name: str) -> str:
    return name.strip().rstrip("/").removesuffix(".git").casefold()
