"""Custom nodes and ComfyUI itself: which of the pack's are wanted, and their trees by commit and content hash."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cpack_build.cpack.schema import NodePin, Snapshot
from cpack_build.errors import BadInput, CpackError, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.git import canonical_url, fetch_tree
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.registry import lock_registry_node
from cpack_build.lock.schema import GitTree, RegistryNode
from cpack_build.progress import SILENT, Progress, working

__all__ = ["Trees", "lock_trees"]

_FOLDER = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True)
class Trees:
    """ComfyUI and the custom nodes, by name; and what could not be found."""

    comfyui: GitTree | None
    nodes: tuple[GitTree, ...]
    registry_nodes: tuple[RegistryNode, ...]
    missing: tuple[CpackError, ...]


def lock_trees(
    snapshot: Snapshot,
    *,
    exclude: Sequence[str] = (),
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> Trees:
    """Fetch and hash every tree that *snapshot* wants, less the nodes named in *exclude* (folder names or URLs).

    What is missing is collected, to be told all at once. Raises :class:`UnsafeInput`, :class:`BadInput`.
    """
    if snapshot.comfyui is None:
        raise BadInput(
            "The pack does not say which ComfyUI it needs: snapshot.json has no comfyui commit.",
            hint="Pack it again from a ComfyUI that is a git checkout.",
        )
    left_out = _Exclusion(exclude)
    pins = [pin for pin in snapshot.nodes if not pin.disabled and not left_out(pin.name, pin.url)]
    missing: list[CpackError] = []
    registered = [item for item in sorted(snapshot.registry_nodes.items()) if not left_out(item[0])]
    files = [node.filename for node in snapshot.file_nodes if not node.disabled and not left_out(node.filename)]
    left_out.note_unknown(progress)
    wanted = [(_folder(pin), pin.url, pin.commit) for pin in pins]
    _refuse_twins([*(name for name, _, _ in wanted), *(name for name, _ in registered)])
    wanted.insert(0, ("ComfyUI", snapshot.comfyui.url, snapshot.comfyui.commit))

    def lock(pin: tuple[str, str, str], reports: Progress) -> tuple[GitTree, frozenset[str]] | CpackError:
        name, url, commit = pin
        try:
            tree = fetch_tree(url, commit, store=store, mirrors=sources.mirrors, name=name, progress=reports)
            digest = tree.tree_digest()
            for path in tree.lfs_pointers():
                reports.note(f"{name}: {path} is a Git LFS pointer; the file itself is not in the repository.")
            top = frozenset(file.path for file in tree.files() if file.path.startswith("custom_nodes/"))
            pinned = GitTree(
                name=name, url=tree.url, commit=tree.commit, tree_sha256=digest, committed_at=tree.committed_at
            )
            return pinned, top
        except (Unresolvable, NetworkError) as error:
            return error

    def lock_registered(item: tuple[str, str], reports: Progress) -> RegistryNode | CpackError:
        try:
            return lock_registry_node(*item, store=store, sources=sources, progress=reports)
        except (Unresolvable, NetworkError) as error:
            return error

    with working(4, progress) as (pool, reports):
        archives = list(pool.map(lambda item: lock_registered(item, reports), registered))
        answers = list(pool.map(lambda pin: lock(pin, reports), wanted))
    missing += [answer for answer in archives if isinstance(answer, CpackError)]
    missing += [answer for answer in answers if isinstance(answer, CpackError)]
    found = [answer for answer in answers if not isinstance(answer, CpackError)]
    comfyui = next((tree for tree, _ in found if tree.name == "ComfyUI" and answers[0] == found[0]), None)
    if comfyui is not None:
        missing += [_lost_file(name, comfyui) for name in files if f"custom_nodes/{name}" not in found[0][1]]
    nodes = [tree for tree, _ in found if tree is not comfyui]
    kept = tuple(node for node in archives if not isinstance(node, CpackError))
    return Trees(comfyui, tuple(sorted(nodes, key=lambda tree: tree.name)), kept, tuple(missing))


def _lost_file(name: str, comfyui: GitTree) -> Unresolvable:
    return Unresolvable(
        f"The custom node {name} is a single file that is neither in the pack nor in ComfyUI at {comfyui.commit}.",
        hint=f"Leave it out with nodes.exclude: [{name}] in cpack.yaml, or keep it in a git repository and pack again.",
    )


def _folder(pin: NodePin) -> str:
    name = pin.name or canonical_url(pin.url).replace(":", "/").rsplit("/", 1)[-1]
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
