"""The one place the service writes to: its folders under ``CPACK_DATA``, and the pack's inputs laid out in them.

The image's root may be read-only and its user any number, so everything that ComfyUI or Python wants to write is
pointed here, and a folder that cannot be written is found at the start rather than in the first request.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import StorageError

__all__ = ["Folders", "folders_at", "prepare_folders"]


@dataclass(frozen=True)
class Folders:
    """The folders under *root*. *scratch* is for files that live as long as a request (and is ``TMPDIR``), *kept* for
    results that are fetched later."""

    root: Path
    input: Path
    output: Path
    temp: Path
    user: Path
    scratch: Path
    kept: Path
    bentoml: Path


def folders_at(root: Path) -> Folders:
    """The folders under *root*, as they will be; nothing is made."""
    return Folders(
        root=root,
        input=root / "input",
        output=root / "output",
        temp=root / "temp",
        user=root / "user",
        scratch=root / "scratch",
        kept=root / "kept",
        bentoml=root / "bentoml",
    )


def prepare_folders(root: Path, inputs: Path) -> Folders:
    """Make the folders under *root* and copy the files of *inputs* (the pack's ``input/``, which may be absent) there.

    Raises :class:`StorageError` that names the folder that cannot be written.
    """
    folders = folders_at(root)
    try:
        for left_over in (
            folders.scratch,
            folders.kept,
            folders.output / "cpack",
            folders.input / "cpack",
        ):
            shutil.rmtree(left_over, ignore_errors=True)  # of a run that was killed
        for folder in (
            folders.input,
            folders.output,
            folders.temp,
            folders.user,
            folders.scratch,
            folders.kept,
        ):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        for source, relative in _files(inputs):
            target = folders.input / relative
            if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    except OSError as error:
        raise StorageError(
            f"{error.filename or root} cannot be written ({error.strerror}) by {_user()}.",
            hint=f"Mount a writable volume at {root}, for example with `--tmpfs {root}:mode=1777`.",
        ) from None
    return folders


def _user() -> str:
    if sys.platform == "win32":
        return "this user"
    return f"user {os.getuid()}"


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The regular files under *folder*, with their paths relative to it; links are not followed."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(folder.resolve()):
            yield path, path.relative_to(folder)
