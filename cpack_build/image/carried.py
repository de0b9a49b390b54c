"""What an image holds of the pack that it was made from, read as if from that pack: local nodes and patches.

A local node's files lie in its layer, a patch among the documents. Nothing here is believed: whoever opens them proves
them by the lock's hashes (:mod:`cpack_build.lock.captured`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

from cpack_build.image.config import COMFYUI
from cpack_build.lock.schema import LocalTree, Lock
from cpack_build.oci.filesystem import FileTree, file_tree
from cpack_build.oci.types import Image

__all__ = ["Carried"]


class Carried:
    """A :class:`~cpack_build.lock.captured.Captured`. The layers are read only when they are asked for."""

    def __init__(self, lock: Lock, image: Image, documents: Mapping[str, bytes]) -> None:
        self._lock = lock
        self._image = image
        self._documents = {name: data for name, data in documents.items() if name.startswith("patches/")}

    @cached_property
    def _files(self) -> tuple[FileTree, dict[str, str]]:
        """The trees' layers, which are the uppermost but one; and the path in them by name in the pack."""
        trees = 1 + len(self._lock.custom_nodes)
        tree = file_tree(replace(self._image, layers=self._image.layers[-1 - trees : -1]))
        names: dict[str, str] = {}
        for pin in (self._lock.comfyui, *self._lock.local_nodes):
            if not isinstance(pin, LocalTree):
                continue
            place = COMFYUI if pin.kind == "comfyui" else f"{COMFYUI}/custom_nodes/{pin.name}"
            prefix = "comfyui" if pin.kind == "comfyui" else f"nodes/{pin.name}"
            others = {f"{COMFYUI}/custom_nodes/{node.name}" for node in self._lock.custom_nodes}
            for path in [place] if pin.kind == "file" else tree.below(place):
                node = tree.nodes.get(path)
                is_other = pin.kind == "comfyui" and "/".join(path.split("/")[:4]) in others
                if node is not None and node.kind == "file" and not is_other:
                    names[prefix + path.removeprefix(place)] = path
        return tree, names

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of each file, by its name in the pack."""
        tree, names = self._files
        sizes = {name: tree.nodes[path].size for name, path in names.items()}
        return sizes | {name: len(data) for name, data in self._documents.items()}

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Iterator[bytes]]]:
        """A function from name to content. What is asked for first is read together with all else of its node."""
        contents: dict[str, bytes] = {}

        def stream(name: str) -> Iterator[bytes]:
            if name in self._documents:
                yield self._documents[name]
                return
            tree, names = self._files
            if name not in contents:
                node = "/".join(name.split("/")[:2]) if name.startswith("nodes/") else "comfyui"
                members = {path: one for one, path in names.items() if one == node or one.startswith(f"{node}/")}
                contents.clear()
                contents.update((members[path], data) for path, data in tree.read(members).items())
            yield contents[name]

        yield stream
