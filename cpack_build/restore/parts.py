"""What only the pack or the maker of the lock had: an image has local nodes, and nodes as their ``install.py`` left
them, as layers below ``custom_nodes``, with bytecode beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from cpack_build.errors import HashMismatch
from cpack_build.image.bytecode import cache_path
from cpack_build.image.config import COMFYUI
from cpack_build.lock.installed import LeftFile, archive_of, archived
from cpack_build.lock.schema import GitTree, LocalTree, Lock, RegistryNode
from cpack_build.oci.types import Blob
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.extract import Content, extract

__all__ = ["Pin", "captured_files", "files_of", "installed_archives", "place_of", "without_bytecode"]

Pin = GitTree | RegistryNode | LocalTree
"""ComfyUI or a custom node, as a lock names it."""


def place_of(pin: Pin, lock: Lock) -> str:
    """Where the files of *pin* lie below ComfyUI's folder: a prefix, empty for ComfyUI itself."""
    if pin == lock.comfyui:
        return ""
    if isinstance(pin, LocalTree) and pin.kind == "file":
        return "custom_nodes/"
    return f"custom_nodes/{pin.name}/"


def files_of(pin: Pin, lock: Lock, files: Mapping[str, Content]) -> dict[str, Content]:
    """Those of an image's *files* (by path in the image) that are *pin*'s, by path in its tree."""
    prefix = f"{COMFYUI}/{place_of(pin, lock)}"
    own = {path.removeprefix(prefix): content for path, content in files.items() if path.startswith(prefix)}
    if isinstance(pin, LocalTree) and pin.kind == "file":
        return {path: content for path, content in own.items() if path == pin.name}
    if pin == lock.comfyui:
        others = tuple(f"custom_nodes/{node.name}/" for node in lock.custom_nodes)
        # The links to the models are the build's, and no part of the tree.
        links = {model.path for model in lock.models}
        return {
            path: content
            for path, content in own.items()
            if not f"{path}/".startswith(others) and not (content.mode == "120000" and path in links)
        }
    return own


def captured_files(artifact: Artifact, *, into: Path, progress: Progress = SILENT) -> dict[str, Path]:
    """The files of *artifact*'s local trees, by their names in a pack; their bytes are kept in *into*.

    A node whose ``install.py`` ran is no longer what the pack had; the image has that among its documents.
    """
    lock = artifact.lock
    pins = [pin for pin in (lock.comfyui, *lock.local_nodes) if isinstance(pin, LocalTree) and pin.installed is None]
    if not pins:
        return {}
    layers = [layer.blob for layer in artifact.workspace_layers]
    found = without_bytecode(extract(layers, [f"{COMFYUI}/"], into=into, progress=progress), lock.interpreter.version)
    kept: dict[str, Path] = {}
    for pin in pins:
        prefix = {"comfyui": "comfyui/", "file": "nodes/"}.get(pin.kind, f"nodes/{pin.name}/")
        kept |= {prefix + path: content.path for path, content in files_of(pin, lock, found).items()}
    return kept


def installed_archives(
    lock: Lock, layers: Iterable[Blob], *, into: Path, progress: Progress = SILENT
) -> dict[str, Path]:
    """The nodes of *lock* as their ``install.py`` left them, made again of an image's *layers*: the tars, below *into*,
    by their names in a pack. Raises :class:`HashMismatch` where that is not what the lock pins."""
    pins = [(pin, pin.installed) for pin in lock.custom_nodes if pin.installed is not None]
    if not pins:
        return {}
    prefixes = [f"{COMFYUI}/{place_of(pin, lock)}" for pin, _ in pins]
    links = {model.path for model in lock.models}  # the build's, and no part of a tree
    contents = into / "contents"
    contents.mkdir(parents=True)
    found = without_bytecode(extract(layers, prefixes, into=contents, progress=progress), lock.interpreter.version)
    made: dict[str, Path] = {}
    for number, (pin, installed) in enumerate(pins):
        left = [
            LeftFile(path, None, target=b"".join(content.chunks()).decode("utf-8", "surrogateescape"))
            if content.mode == "120000"
            else LeftFile(path, content.path, is_executable=content.mode == "100755")
            for path, content in files_of(pin, lock, found).items()
            if not (content.mode == "120000" and place_of(pin, lock) + path in links)
        ]
        archive = into / f"{number}.tar"
        hasher = sha256()
        with archive.open("wb") as file:
            for chunk in archived(left):
                hasher.update(chunk)
                file.write(chunk)
        if (actual := hasher.hexdigest()) != installed.sha256:
            raise HashMismatch(
                f"The image's {pin.name}, as its install.py left it,", expected=installed.sha256, actual=actual
            )
        made[archive_of(pin.name)] = archive
    return made


def without_bytecode(files: Mapping[str, Content], python: str) -> dict[str, Content]:
    """*files* less the bytecode that the build laid beside their sources."""
    made = {cache_path(path, python) for path in files if path.endswith(".py")}
    return {path: content for path, content in files.items() if path not in made}
