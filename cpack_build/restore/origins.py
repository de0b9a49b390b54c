"""Where the bytes of a workspace come from: git first, for it gives real checkouts, else the pack or the image.

An image's layers are read when something of them is missing and never before, each once; what is read is kept aside in
the workspace until it has its place."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cpack_build.cpack.reader import Pack
from cpack_build.errors import CpackError, NetworkError, ToolMissing, Unresolvable
from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from cpack_build.image.config import COMFYUI, COMFYUI_ENV
from cpack_build.lock.registry import open_registry_node
from cpack_build.lock.schema import GitTree, Lock, RegistryNode
from cpack_build.progress import Progress
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.extract import Content, extract
from cpack_build.restore.localnodes import without_bytecode
from cpack_build.restore.trees import Source, from_content, from_git, opened

__all__ = ["Origins"]

_CANNOT = (NetworkError, Unresolvable, ToolMissing)


@dataclass
class Origins:
    """The sources of one restore. *aside* is a folder for what is read of an image; sources stay open until *opened*
    ends."""

    lock: Lock
    pack: Pack | None
    artifact: Artifact | None
    aside: Path
    store: Store
    sources: Sources
    offline: bool
    progress: Progress
    opened: ExitStack
    _commits: dict[str, Tree | None] = field(default_factory=dict)
    _files: dict[str, Content] | None = None

    def tree(self, pin: GitTree | RegistryNode, *, prefix: str) -> Source:
        """The files of *pin*, whose place in the workspace is *prefix*; proved by the lock.

        Raises why it cannot be had from the first place that should have it.
        """
        try:
            tree = self._from_outside(pin)
        except _CANNOT as error:
            if self.artifact is None:
                raise
            return self._from_image(pin, prefix, error)
        return opened(self.opened.enter_context(from_git(tree)), pin.tree_sha256, name=pin.name)

    def commit(self, pin: GitTree) -> Tree | None:
        """*pin*'s commit as git has it, or ``None`` where it cannot be had."""
        key = f"{pin.url} {pin.commit}"
        if key not in self._commits:
            try:
                self._commits[key] = self._fetched(pin)
            except _CANNOT:
                self._commits[key] = None
        return self._commits[key]

    def packages(self) -> dict[str, Content]:
        """The files of the image's Python packages, by path in the image."""
        prefix = f"{COMFYUI_ENV}/"
        return {path: content for path, content in self._extracted().items() if path.startswith(prefix)}

    def _from_outside(self, pin: GitTree | RegistryNode) -> Tree:
        if isinstance(pin, RegistryNode):
            return open_registry_node(pin, store=self.store, sources=self.sources, progress=self.progress)
        tree = self._fetched(pin)
        self._commits[f"{pin.url} {pin.commit}"] = tree
        return tree

    def _fetched(self, pin: GitTree) -> Tree:
        mirrors = Mirrors(self.sources.mirrors.prefixes, self.offline or self.sources.mirrors.is_offline)
        return fetch_tree(pin.url, pin.commit, store=self.store, mirrors=mirrors, name=pin.name, progress=self.progress)

    def _from_image(self, pin: GitTree | RegistryNode, prefix: str, why: CpackError) -> Source:
        files = self._extracted()
        place = f"{COMFYUI}/{prefix}"
        own = {path.removeprefix(place): content for path, content in files.items() if path.startswith(place)}
        if not prefix:
            nodes = tuple(f"custom_nodes/{node.name}/" for node in (*self.lock.nodes, *self.lock.registry_nodes))
            own = {path: content for path, content in own.items() if not path.startswith(nodes)}
        if not own:
            raise why
        own = without_bytecode(own, self.lock.interpreter.version)
        return opened(from_content(own, name=pin.name), pin.tree_sha256, name=pin.name)

    def _extracted(self) -> dict[str, Content]:
        """ComfyUI, nodes and packages of the image; each layer is read once."""
        assert self.artifact is not None
        if self._files is None:
            blobs = [layer.blob for layer in self.artifact.of_kinds("comfyui", "node", "nodes", "wheel", "wheels")]
            prefixes = [f"{COMFYUI}/", f"{COMFYUI_ENV}/"]
            self._files = extract(blobs, prefixes, into=self.aside, progress=self.progress)
        return self._files
