"""Custom nodes that only the pack had: an image has each as a layer, below ``custom_nodes``, and bytecode beside it."""

from __future__ import annotations

from pathlib import Path

from cpack_build.image.bytecode import cache_path
from cpack_build.image.config import COMFYUI
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.extract import Content, extract

__all__ = ["local_nodes", "without_bytecode"]


def local_nodes(artifact: Artifact, *, into: Path, progress: Progress = SILENT) -> dict[str, Path]:
    """The files of the image's local nodes, by their names in a pack (``nodes/<name>/…``); bytes are kept in *into*."""
    names = tuple(node.name for node in getattr(artifact.lock, "local_nodes", ()))
    if not names:
        return {}
    prefixes = [f"{COMFYUI}/custom_nodes/{name}" for name in names]
    layers = [layer.blob for layer in artifact.of_kinds("node", "nodes")]
    found = extract(layers, [f"{prefix}/" for prefix in prefixes], into=into, progress=progress)
    kept = without_bytecode(found, artifact.lock.interpreter.version)
    return {f"nodes/{path.removeprefix(f'{COMFYUI}/custom_nodes/')}": content.path for path, content in kept.items()}


def without_bytecode(files: dict[str, Content], python: str) -> dict[str, Content]:
    """*files* less the bytecode that the build laid beside their sources."""
    made = {cache_path(path, python) for path in files if path.endswith(".py")}
    return {path: content for path, content in files.items() if path not in made}
