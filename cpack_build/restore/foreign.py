"""An image that cpack-build did not make: ComfyUI, its nodes and its models, found by looking.

Nothing says what they should be, so nothing is proved; but nothing is believed either: the layers are laid over one
another as an engine would (whiteouts and all), and what lies at ComfyUI's place is written by the same rules as
everything else."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import BadImage, Occupied, UnsafeInput
from cpack_build.fetch.links import stays
from cpack_build.oci.filesystem import FileTree, file_tree, stream_members
from cpack_build.oci.types import Image
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.extract import RATIO_FREE, RATIO_LIMIT
from cpack_build.restore.folder import Folder
from cpack_build.restore.names import is_reserved

__all__ = ["Recovered", "recover"]

_MARKS = ("main.py", "nodes.py", "folder_paths.py")
SIZE_LIMIT = 4 << 40
"""Bytes of all that is recovered, models among it, whatever the image says of its own size."""
_SKIPPED = ("__pycache__", ".venv", "venv", "node_modules", "output", "temp")


@dataclass(frozen=True)
class Recovered:
    """What was found at *place* of the image; *left_out* are links out of it, special files, and what git or we would
    read as our own: a ``.git/config`` names programs that git then runs."""

    place: str
    files: int
    nodes: tuple[str, ...]
    models: tuple[str, ...]
    left_out: tuple[str, ...]


def recover(image: Image, root: Path, *, name: str, progress: Progress = SILENT) -> Recovered:
    """Write the ComfyUI of *image* to the folder *root*, which must be new or empty.

    Raises :class:`BadImage` where there is none, :class:`Occupied` for a folder that holds something.
    """
    tree = file_tree(image)
    place = _comfyui(tree)
    if place is None:
        raise BadImage(name, f"has no folder with {', '.join(_MARKS)}", hint="There is no ComfyUI in it to recover.")
    if root.exists() and any(root.iterdir()):
        raise Occupied(root, ["."])
    wanted: dict[tuple[int, int], list[str]] = {}
    links: dict[str, str] = {}
    left_out = []
    size = 0
    for path in tree.below(place):
        node = tree.nodes.get(path)
        below = path.removeprefix(f"{place}/") if place else path
        if node is None or node.kind == "directory" or set(below.split("/")) & set(_SKIPPED):
            continue
        real = tree.find(path) if node.kind == "symlink" else None
        if is_reserved(below):
            left_out.append(below)
        elif real is not None and real.kind == "file" and below.startswith(("models/", "input/")):
            # A model that lies elsewhere in the image is wanted all the same, as a file of its own.
            wanted.setdefault((real.layer, real.member), []).append(below)
            size += real.size
        elif node.kind == "symlink":
            links[below] = node.target
        elif node.kind == "file":
            wanted.setdefault((node.layer, node.member), []).append(below)
            size += node.size
        else:
            left_out.append(below)
    if size > RATIO_FREE + RATIO_LIMIT * image.size:
        raise UnsafeInput(
            f"The ComfyUI of {name} would take {size >> 20} MiB, more than {RATIO_LIMIT} times the image's size.",
            hint="That is how bombs are made. Do not use this image.",
        )
    if size > SIZE_LIMIT:
        raise UnsafeInput(
            f"The ComfyUI of {name} would take {size >> 40} TiB, and {SIZE_LIMIT >> 40} TiB is the most that is taken.",
            hint="Do not use this image.",
        )
    leading_out = [path for path in links if not stays(path, links)]
    left_out += leading_out
    links = {path: target for path, target in links.items() if path not in leading_out}
    folder = Folder(root)
    try:
        count = _write(image, folder, wanted, tree, progress)
        for path, target in links.items():
            folder.link(path, target)
    finally:
        folder.close()
    paths = [path for group in wanted.values() for path in group]
    nodes = {path.split("/")[1] for path in paths if path.startswith("custom_nodes/") and path.count("/") > 1}
    models = (
        path
        for path in paths
        if path.startswith("models/") and path.endswith((".safetensors", ".ckpt", ".pt", ".pth", ".gguf", ".bin"))
    )
    return Recovered(place, count + len(links), tuple(sorted(nodes)), tuple(sorted(models)), tuple(sorted(left_out)))


def _comfyui(tree: FileTree) -> str | None:
    """The folder that looks like ComfyUI's, the shallowest of several."""
    found = [
        posixpath.dirname(path)
        for path, node in tree.nodes.items()
        if posixpath.basename(path) == _MARKS[0] and node.kind == "file"
    ]
    found = [place for place in found if all(tree.find(posixpath.join(place, mark)) for mark in _MARKS)]
    return min(found, key=lambda place: (place.count("/"), place), default=None)


def _write(
    image: Image, folder: Folder, wanted: dict[tuple[int, int], list[str]], tree: FileTree, progress: Progress
) -> int:
    count = 0
    for index, layer in enumerate(image.layers):
        members = {member for number, member in wanted if number == index}
        if not members:
            continue
        with progress.task(layer.descriptor.shown, total=len(members), unit="files") as task:
            for number, (member, content) in enumerate(stream_members(layer)):
                if number not in members:
                    continue
                first, *others = wanted[index, number]
                folder.write(first, content(), mode=0o755 if member.mode & 0o100 else 0o644)
                for other in others:
                    folder.write(other, _again(folder, first))
                count += 1 + len(others)
                task.advance(1)
    return count


def _again(folder: Folder, path: str) -> Iterator[bytes]:
    yield from folder.chunks(path)
