"""Files that travel in a pack themselves, for nobody else has them; listed with their sizes, to be shown first."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cpack_build.cpack.archive import unsafe_name

__all__ = ["COMPILED", "SKIPPED", "Capture", "CapturedFile", "captured"]

SKIPPED = frozenset({"__pycache__", ".git", ".venv", "venv", "node_modules", ".DS_Store", ".mypy_cache", ".ruff_cache"})
"""What a person's work leaves behind in a folder, and no node needs."""
COMPILED = (".pyc", ".pyo")
_DEPTH_LIMIT = 32


@dataclass(frozen=True)
class CapturedFile:
    """A file that goes into the pack as it is: its name in the pack, where it lies, and its size in bytes."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Capture:
    """What is captured whole: its *name* for people, the *reason* why nobody else has it, and its *files*.

    *is_known*: they are this program's own plugin, so nobody needs to be asked.
    """

    name: str
    reason: str
    files: tuple[CapturedFile, ...]
    is_known: bool = False

    @property
    def size(self) -> int:
        """Bytes that are captured."""
        return sum(file.size for file in self.files)


@dataclass
class _Found:
    files: list[CapturedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def captured(top: Path, prefix: str) -> _Found:
    """The regular files below *top*; links count as what they lead to within it, and are left out otherwise."""
    found = _Found()
    root = Path(os.path.realpath(top))

    def leave(path: Path, why: str) -> None:
        found.notes.append(
            f"{prefix.removeprefix('nodes/')}: {path.relative_to(top).as_posix()!r:.80} is left out: {why}."
        )

    def below(folder: Path, name: str, above: tuple[tuple[int, int], ...]) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            leave(folder, (error.strerror or str(error)).lower())
            return
        for entry in entries:
            path, inner = Path(entry.path), f"{name}/{entry.name}"
            if entry.name in SKIPPED or entry.name.endswith(COMPILED):
                continue
            if problem := unsafe_name(inner):
                leave(path, f"its name {problem}")
                continue
            try:
                info = path.stat()
            except OSError as error:
                leave(path, "a link that leads nowhere" if entry.is_symlink() else (error.strerror or "?").lower())
                continue
            if entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                leave(path, "a link that leads out of the node")
            elif stat.S_ISDIR(info.st_mode):
                key = (info.st_dev, info.st_ino)
                if key in above or len(above) >= _DEPTH_LIMIT:
                    leave(path, "a link to a folder that holds it" if key in above else "too deep")
                else:
                    below(path, inner, (*above, key))
            elif not stat.S_ISREG(info.st_mode):
                leave(path, "no regular file")
            elif not os.access(path, os.R_OK):
                leave(path, "permission denied")
            else:
                found.files.append(CapturedFile(inner, path, info.st_size))

    info = top.stat()
    below(top, prefix, ((info.st_dev, info.st_ino),))
    return found
