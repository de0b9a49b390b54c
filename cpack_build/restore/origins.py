"""Where the bytes of a workspace come from: git first, for it gives real checkouts, else the pack or the image.

An image's layers are read when something of them is missing and never before, each once; what is read is kept aside in
the workspace until it has its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpack_build.cpack.reader import Pack
from cpack_build.errors import NetworkError, ToolMissing, Unresolvable
from cpack_build.fetch.git import fetch_submodule, fetch_tree
from cpack_build.fetch.http import Offline, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.submodules import Submodule
from cpack_build.fetch.tree import Tree
from cpack_build.image.config import COMFYUI, COMFYUI_ENV
from cpack_build.lock.captured import Captured
from cpack_build.lock.nodes import open_tree
from cpack_build.lock.schema import GitTree, Lock
from cpack_build.progress import Progress
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.extract import Content, extract
from cpack_build.restore.parts import Pin, files_of, without_bytecode
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
    _files: dict[str, Content] | None = None

    def tree(self, pin: Pin) -> Source:
        """The files of *pin*, proved by the lock. Raises why it cannot be had where it should be first."""
        try:
            tree = self._from_outside(pin)
        except _CANNOT:
            if self.artifact is None:
                raise
            files = files_of(pin, self.lock, self._extracted())
            if not files:
                raise
            return opened(from_content(files, name=pin.name), pin.tree_sha256, name=pin.name)
        origin: Literal["git", "pack"] = "git" if isinstance(pin, GitTree) else "pack"
        return opened(self.opened.enter_context(from_git(tree, origin=origin)), pin.tree_sha256, name=pin.name)

    def commit(self, pin: GitTree) -> Tree | None:
        """*pin*'s commit as git has it, without its patch and submodules, or ``None`` where it cannot be had."""
        try:
            return fetch_tree(
                pin.url, pin.commit, store=self.store, mirrors=self.outside.mirrors, name=pin.name, submodules=False,
                progress=self.progress,
            )  # fmt: skip
        except _CANNOT:
            return None

    def submodule(self, tree: Tree, submodule: Submodule, name: str) -> Tree | None:
        """The commit of *submodule* of *tree*, or ``None`` where it cannot be had."""
        try:
            return fetch_submodule(tree, submodule, mirrors=self.outside.mirrors, name=name, progress=self.progress)
        except _CANNOT:
            return None

    def packages(self) -> dict[str, Content]:
        """The files of the image's Python packages, by path in the image."""
        prefix = f"{COMFYUI_ENV}/"
        return {path: content for path, content in self._extracted().items() if path.startswith(prefix)}

    @property
    def outside(self) -> Sources:
        """Where else things may be had; offline, only on this machine."""
        mirrors = self.sources.mirrors
        if not self.offline:
            return self.sources
        return Sources(Mirrors(mirrors.prefixes, is_offline=True), Offline())

    def _from_outside(self, pin: Pin) -> Tree:
        captured: Captured | None = self.pack
        if captured is None and self.artifact is not None:
            captured = _Documents(self.artifact.documents)
        return open_tree(pin, captured, store=self.store, sources=self.outside, progress=self.progress)

    def _extracted(self) -> dict[str, Content]:
        """ComfyUI, nodes and packages of the image, less their bytecode; each layer is read once."""
        assert self.artifact is not None
        if self._files is None:
            blobs = [layer.blob for layer in self.artifact.workspace_layers]
            found = extract(blobs, [f"{COMFYUI}/", f"{COMFYUI_ENV}/"], into=self.aside, progress=self.progress)
            self._files = without_bytecode(found, self.lock.interpreter.version)
        return self._files


class _Documents:
    """An image's documents, as what a pack holds: patches are among them, local nodes are not."""

    def __init__(self, documents: Mapping[str, bytes]) -> None:
        self._documents = documents

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self._documents.items() if name.startswith("patches/")}

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Iterator[bytes]]]:
        yield lambda name: iter([self._documents[name]])
