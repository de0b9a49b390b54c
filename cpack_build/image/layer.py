"""The contract of a layer: a key that says what its bytes depend on, and entries from which they are streamed.

There is no tar on disk: bytes are made each time from the store and the recipe. The digest of a recipe's tar is
remembered by its key, so an unchanged layer is never read again to learn its digest.

Every entry but a model's carries the same timestamp, :data:`MTIME`, whatever the lock says: a layer must be the same
blob in every image that has it (``docs/decisions/003-one-timestamp.md``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.oci import tar
from cpack_build.oci.types import LAYER, Descriptor, canonical_json
from cpack_build.progress import SILENT, Progress

__all__ = [
    "IMAGE_REVISION",
    "MTIME",
    "Recipe",
    "TarLayer",
    "arrange",
    "directory",
    "key_of",
    "safe_path",
    "symlink",
    "text",
]

IMAGE_REVISION = 1
MTIME = 315532800
"""1980-01-01 00:00:00 UTC, the earliest time that a zip can hold (APPNOTE 4.4.6), since programs zip what they find."""


def key_of(kind: str, *parts: object) -> str:
    """The key of a recipe: a hash over the rules, the kind and everything else that its bytes depend on.

    It is for this machine's memo alone. The rules are this package's own code, so what another cpack-build remembered,
    right or wrong, is measured anew.
    """
    return hashlib.sha256(canonical_json([IMAGE_REVISION, _rules(), kind, *parts])).hexdigest()


@cache
def _rules() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*sorted(here.glob("*.py")), here.parent / "oci" / "tar.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What a layer is made of.

    *entries* yields the entries in their final order each time it is called; an entry's content may be read only until
    the next entry is asked for. *kind* and *name* are for people and annotations. *inputs* are the files that are read
    by their hash: what is computed of them is remembered only if they are still what was hashed.
    """

    kind: str
    name: str
    key: str
    entries: Callable[[], Iterator[tar.Entry]]
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Further ones, beside kind and name."""
    inputs: tuple[StoredFile, ...] = ()

    @property
    def title(self) -> str:
        """What people are shown: ``wheel torch 2.13.0``, ``system packages``."""
        return f"{self.kind} {self.name}" if self.kind in ("node", "wheel") else self.name

    def measured(self, store: Store, *, progress: Progress = SILENT) -> TarLayer:
        """The layer with its digest and size: remembered, or from streaming it once."""
        remembered = store.recall("layer", self.key)
        if remembered is None:
            hasher, size = hashlib.sha256(), 0
            with progress.task(self.title) as task:
                for chunk in tar.stream(self.entries()):
                    hasher.update(chunk)
                    size += len(chunk)
                    task.advance(len(chunk))
            for file in self.inputs:
                file.require_unchanged()
            remembered = f"sha256:{hasher.hexdigest()} {size}"
            store.remember("layer", self.key, remembered)
        digest, _, length = remembered.partition(" ")
        return TarLayer(self, digest, int(length))


@dataclass(frozen=True)
class TarLayer:
    """A layer as a blob: uncompressed, streamed from its recipe."""

    recipe: Recipe
    digest: str
    size: int

    @property
    def descriptor(self) -> Descriptor:
        annotations = {"io.cpack.layer.kind": self.recipe.kind, "io.cpack.layer.name": self.recipe.name}
        return Descriptor(LAYER, self.digest, self.size, {**annotations, **self.recipe.annotations})

    def chunks(self) -> Iterator[bytes]:
        return tar.stream(self.entries())

    def entries(self) -> Iterator[tar.Entry]:
        return self.recipe.entries()


def directory(path: str, mode: int = 0o755) -> tar.Entry:
    """A directory entry with the one timestamp."""
    return tar.Entry(path, "directory", mode, MTIME)


def symlink(path: str, target: str) -> tar.Entry:
    """A symlink entry with the one timestamp."""
    return tar.Entry(path, "symlink", 0o777, MTIME, target=target)


def text(path: str, content: str | bytes, mode: int = 0o644) -> tar.Entry:
    """A small file with the one timestamp."""
    data = content.encode() if isinstance(content, str) else content
    return tar.Entry(path, "file", mode, MTIME, tar.BytesContent(data))


def arrange(entries: Iterable[tar.Entry]) -> list[tar.Entry]:
    """The entries sorted by path, with every parent directory once.

    Of several entries for one path the last wins (callers report clashes before). A directory that is also a parent is
    emitted with its own mode. Raises :class:`UnsafeInput` for a path below something that is not a directory, through
    which a reader could be led elsewhere.
    """
    by_path: dict[str, tar.Entry] = {}
    for entry in entries:
        by_path[safe_path(entry.path)] = entry
    for path in list(by_path):
        parent = path.rpartition("/")[0]
        while parent:
            above = by_path.setdefault(parent, directory(parent))
            if above.kind != "directory":
                raise UnsafeInput(f"{path} lies below {parent}, which is a {above.kind} and no directory.")
            parent = parent.rpartition("/")[0]
    _settle_hard_links(by_path)
    return [by_path[path] for path in sorted(by_path)]


def _settle_hard_links(by_path: dict[str, tar.Entry]) -> None:
    """Let the first path of each group of hard links hold the content: a reader must have met it before a link to
    it."""
    groups: dict[str, list[str]] = {}
    for path, entry in by_path.items():
        if entry.kind == "hardlink":
            target = by_path.get(entry.target)
            if target is None or target.kind != "file":
                raise UnsafeInput(f"{path} is a hard link to {entry.target}, which is no file of the same layer.")
            groups.setdefault(entry.target, []).append(path)
    for name, links in groups.items():
        original = by_path[name]
        first, *others = sorted([name, *links])
        by_path[first] = replace(original, path=first)
        for other in others:
            by_path[other] = tar.Entry(other, "hardlink", original.mode, original.mtime, target=first)


def safe_path(path: str) -> str:
    """*path* if it is relative, normal and printable; :class:`UnsafeInput` otherwise."""
    parts = path.split("/")
    if not path or "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise UnsafeInput(f"The file name {path!r} does not stay in its place.", hint="Nothing was written.")
    return path
