"""Trees as layers: ComfyUI and custom nodes, read from git's object database without a checkout.

Modes are git's two (0644 and 0755), symlinks that leave the tree were refused when it was opened
(:func:`cpack_build.fetch.git.open_locked`), and no ``.git`` enters the image. The key is the tree's content hash, which
the lock pins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cpack_build.fetch.tree import Tree, TreeFile
from cpack_build.image.bytecode import Compiler, identity, sources_of
from cpack_build.image.config import COMFYUI
from cpack_build.image.layer import MTIME, Recipe, arrange, key_of, symlink
from cpack_build.lock.schema import GitTree, LocalTree, NodeTree
from cpack_build.oci import tar

__all__ = ["comfyui_layer", "node_layer"]


def comfyui_layer(pin: GitTree | LocalTree, tree: Tree, *, compiler: Compiler | None = None) -> Recipe:
    """ComfyUI itself. *tree* was opened with the pin's hash."""
    return _tree_layer("comfyui", pin, tree, COMFYUI, compiler)


def node_layer(pin: NodeTree, tree: Tree, *, compiler: Compiler | None = None) -> Recipe:
    """One custom node. *tree* was opened with the pin's hash."""
    folder = f"{COMFYUI}/custom_nodes"
    is_file = isinstance(pin, LocalTree) and pin.kind == "file"
    return _tree_layer("node", pin, tree, folder if is_file else f"{folder}/{pin.name}", compiler)


def _tree_layer(kind: str, pin: NodeTree, tree: Tree, prefix: str, compiler: Compiler | None) -> Recipe:
    def entries() -> Iterator[tar.Entry]:
        with tree.reader() as read:
            every = [_entry(tree, file, f"{prefix}/{file.path}", read) for file in tree.files()]
            if compiler is not None:
                every += compiler.entries([pin.tree_sha256, prefix], sources_of(every))
            yield from arrange(every)

    return Recipe(kind, pin.name, key_of("tree", prefix, pin.tree_sha256, identity(compiler)), entries)


def _entry(tree: Tree, file: TreeFile, path: str, read: Callable[[str], bytes]) -> tar.Entry:
    if file.mode == "120000":
        return symlink(path, read(file.oid).decode("utf-8", "surrogateescape"))
    return tar.Entry(path, "file", 0o755 if file.mode == "100755" else 0o644, MTIME, _GitBlob(tree, file, read))


@dataclass(frozen=True)
class _GitBlob:
    """A file's bytes, read from git when they are streamed; a big file never whole."""

    tree: Tree
    file: TreeFile
    read: Callable[[str], bytes]

    @property
    def size(self) -> int:
        return self.file.size

    def chunks(self) -> Iterator[bytes]:
        return self.tree.content(self.file, self.read)
