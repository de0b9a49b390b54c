"""A file that is looked for by its hash, and the folders of this machine in which it may lie.

Imported before most of the program (:mod:`cpack_build.lock.headstart`), so it needs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cpack_build.errors import Unresolvable, UnsafeInput
from cpack_build.filesystem import expanded

__all__ = ["Folders", "LocalFile", "Wanted", "safe_model_path"]


@dataclass(frozen=True)
class Wanted:
    """A file that is looked for: its *path* below ComfyUI, *sha256* in hex, *size* in bytes where it is known, *urls*
    with the likeliest first, and the digest of its *layer* (``oci.modellayer``) where that is known."""

    path: str
    sha256: str
    size: int | None
    urls: tuple[str, ...] = ()
    layer: str | None = None

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(self.path).name


def safe_model_path(name: str) -> str:
    """*name* as a path below ComfyUI, with ``/``. Raises :class:`UnsafeInput` if it would lead elsewhere."""
    path = name.replace("\\", "/")
    parts = path.split("/")
    if (
        not path
        or any(part in ("", ".", "..") for part in parts)
        or ":" in parts[0]
        or any(ord(character) < 32 or ord(character) == 127 for character in path)
        or max(len(part.encode("utf-8", "surrogatepass")) for part in parts) > 255
    ):
        raise UnsafeInput(f"The model's name {name!r} leads out of ComfyUI's folder.", hint="Correct it in the pack.")
    return path


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine; *is_exact* where it lies just where it should, so that another one there is a mistake."""

    path: Path
    is_exact: bool = False


@dataclass(frozen=True)
class Folders:
    """Folders that the user named (a ComfyUI ``models`` folder, or any): by path, then by file name."""

    folders: Sequence[str]

    def offers(self, wanted: Wanted) -> Iterator[LocalFile]:
        path = wanted.path
        for folder in self.folders:
            root = expanded(folder)
            if not root.is_dir():
                raise Unresolvable(f"--models names {folder}, where no folder is.", hint="Correct it.")
            for name, is_exact in ((path.removeprefix("models/"), True), (path, True), (wanted.name, False)):
                if (root / name).is_file():
                    yield LocalFile(root / name, is_exact)
