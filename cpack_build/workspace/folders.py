"""The folders of a ComfyUI that runs, as it told them itself: they may differ from what its files say.

Its command line may name others (``--base-directory``, ``--input-directory``), and custom nodes add some while they are
loaded. The plugin writes them to a file: ``{"models": {"loras": ["/srv/loras"]}, "custom_nodes": [], "input": "/in"}``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpack_build.cpack.workflowfile import read_json_file
from cpack_build.errors import BadField

__all__ = ["RunningFolders", "read_folders"]


@dataclass(frozen=True)
class RunningFolders:
    """Absolute folders: *models* by ComfyUI's names, in the order in which it searches; *inputs* has input files."""

    models: Mapping[str, tuple[Path, ...]]
    custom_nodes: tuple[Path, ...]
    inputs: Path


def read_folders(file: Path) -> RunningFolders:
    """The folders in *file*. Raises :class:`~cpack_build.errors.BadInput`."""
    document = read_json_file(file, what="the folders of a ComfyUI")
    models = document.get("models")
    if not isinstance(models, dict):
        raise BadField(file, "models", "must be an object of lists")
    return RunningFolders(
        {name: _paths(file, f"models.{name}", places) for name, places in models.items()},
        _paths(file, "custom_nodes", document.get("custom_nodes")),
        _paths(file, "input", [document.get("input")])[0],
    )


def _paths(file: Path, field: str, given: object) -> tuple[Path, ...]:
    if not isinstance(given, list):
        raise BadField(file, field, "must be a list of folders")
    for text in given:
        if not isinstance(text, str) or not os.path.isabs(text) or "\0" in text:
            raise BadField(file, field, f"{text!r:.80} is no absolute path")
    return tuple(dict.fromkeys(Path(os.path.normpath(text)) for text in given))
