"""Keeping a store: what it holds and costs, whether it is still what it was, and what can go.

Collecting removes nothing that a running process has found or put (:mod:`.leases`), and nothing that lies elsewhere: of
an adopted file only the memory goes. When something was used last comes from the clock; a time in the future counts as
now, so a clock that jumps can only make things stay.
"""

from __future__ import annotations

import hashlib
import os
import stat as modes
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpack_build import filesystem
from cpack_build.errors import writing
from cpack_build.fetch import receipts
from cpack_build.fetch.derived import Derived
from cpack_build.fetch.store import CHUNK, Store, stat_key
from cpack_build.progress import SILENT, Progress, working

__all__ = ["Broken", "Collected", "Entry", "Holdings", "Leftover", "Removal", "collect", "holdings", "verify"]

Place = Literal["store", "adopted", "shared"]
_DAY = 86_400
_SUFFIXES = {".whl": "wheel", ".deb": "package", ".gz": "archive", ".zst": "archive", ".zip": "archive"}
_MODELS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".onnx")


@dataclass(frozen=True)
class Entry:
    """A file that the store knows. *used* is seconds since 1970, if it is known; *size* in bytes."""

    sha256: str
    size: int
    path: Path
    place: Place
    name: str = ""
    used: int | None = None
    in_use: bool = False

    @property
    def kind(self) -> str:
        """``model``, ``wheel``, ``package``, ``archive`` or ``other``, by its name."""
        suffix = os.path.splitext(self.name or self.path.name)[1].lower()
        return "model" if suffix in _MODELS else _SUFFIXES.get(suffix, "other")


@dataclass(frozen=True)
class Leftover:
    """Something that no build needs: a download that may go on, a rejected file, what a killed run was writing."""

    path: Path
    size: int
    why: Literal["partial", "rejected", "temporary"]


@dataclass(frozen=True)
class Holdings:
    """Everything in a store. *repositories* and *lists* are bytes of git repositories and of apt's lists."""

    entries: tuple[Entry, ...]
    leftovers: tuple[Leftover, ...]
    derived: tuple[Derived, ...]
    repositories: int
    lists: int

    @property
    def size(self) -> int:
        """Bytes that the main root takes on its disk."""
        own = sum(entry.size for entry in self.entries if entry.place == "store")
        others = sum(left.size for left in self.leftovers) + sum(folder.size for folder in self.derived)
        return own + others + self.repositories + self.lists


def holdings(store: Store) -> Holdings:
    """What *store* holds, the largest first. Reads no file."""
    with store.leases.alone() as held:
        names = dict(store.memo.rows("SELECT sha256, name FROM names"))
        uses = dict(store.memo.rows("SELECT sha256, used FROM uses"))
        entries = []
        for path, status in _files(store.root / "blobs" / "sha256"):
            used = max(held.get(path.name, 0), uses.get(path.name, 0)) or int(status.st_mtime)
            entries.append(
                Entry(path.name, status.st_size, path, "store", names.get(path.name, ""), used, path.name in held)
            )
        own = str(store.root / "blobs") + os.sep
        for text, key, sha256 in store.memo.rows("SELECT path, stat, sha256 FROM files"):
            with suppress(OSError):
                status = os.stat(text)
                if not text.startswith(own) and stat_key(status) == key:
                    entries.append(Entry(sha256, status.st_size, Path(text), "adopted", Path(text).name))
        for root in store.further:
            for path, status in _files(root / "blobs" / "sha256"):
                entries.append(Entry(path.name, status.st_size, path, "shared", names.get(path.name, "")))
    entries.sort(key=lambda entry: (-entry.size, entry.sha256, str(entry.path)))
    return Holdings(
        tuple(entries), tuple(_leftovers(store)), tuple(store.derived.all()), _weight(store.root / "git"),
        _weight(store.root / "apt"),
    )  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """A file that is not what the store takes it for. *actual* is its hash, empty for what is no file."""

    path: Path
    expected: str
    actual: str
    aside: Path | None = None
    """Where it was put."""


def verify(
    store: Store, *, workers: int | None = None, dry_run: bool = False, progress: Progress = SILENT
) -> tuple[int, tuple[Broken, ...]]:
    """Read every file of *store* again: how many there are, and those that are broken.

    A broken blob is put aside, so that it is fetched again; a changed adopted file is forgotten. With *dry_run* both
    stay.
    """
    entries = holdings(store).entries
    links = [path for path in _entries(store.root / "blobs" / "sha256") if not modes.S_ISREG(os.lstat(path).st_mode)]
    broken = [Broken(path, path.name, "") for path in links]
    with (
        progress.task("Reading the store", total=sum(entry.size for entry in entries)) as task,
        working(workers or os.cpu_count() or 1, progress) as (pool, reports),
    ):
        lock = threading.Lock()

        def hashed(entry: Entry) -> str:
            hasher = hashlib.sha256()
            with suppress(OSError), entry.path.open("rb") as file, reports.task(entry.name or entry.path.name) as own:
                while chunk := file.read(CHUNK):
                    hasher.update(chunk)
                    own.advance(len(chunk))
                    with lock:
                        task.advance(len(chunk))
                return hasher.hexdigest()
            return ""

        for entry, actual in zip(entries, pool.map(hashed, entries), strict=True):
            if actual != entry.sha256:
                aside = None
                if entry.place == "store" and actual and not dry_run:
                    aside = store.reject(entry.path, actual)
                elif entry.place != "store" and not dry_run:
                    store.memo.write("DELETE FROM files WHERE path = ?", str(entry.path))
                broken.append(Broken(entry.path, entry.sha256, actual, aside))
    return len(entries) + len(links), tuple(broken)


@dataclass(frozen=True)
class Removal:
    """One thing that was, or would be, removed, and why; *size* in bytes."""

    path: Path
    size: int
    why: str
    name: str = ""


@dataclass(frozen=True)
class Collected:
    """What a collection removed, and how many blobs it would have but for those that use them."""

    removals: tuple[Removal, ...]
    in_use: int

    @property
    def freed(self) -> int:
        return sum(removal.size for removal in self.removals)


def collect(
    store: Store,
    *,
    keep: Collection[str] = (),
    unused_days: float | None = None,
    max_size: int | None = None,
    dry_run: bool = False,
    now: Callable[[], float] = time.time,
) -> Collected:
    """Remove what can go: leftovers always; blobs and folders made of them that nobody used for *unused_days*; and the
    longest unused ones until all of them have no more than *max_size* bytes. The hashes in *keep* stay.

    Raises :class:`StorageError`.
    """
    held_before = holdings(store)
    removals: list[Removal] = []
    folders: list[Removal] = []
    in_use = 0
    with store.leases.alone() as held:
        blobs = [entry for entry in held_before.entries if entry.place == "store"]
        blobs.sort(key=lambda entry: (entry.used or 0, entry.sha256))
        total = sum(entry.size for entry in blobs) + sum(folder.size for folder in held_before.derived)
        # Folders go before what they were made of: to make them again costs no network.
        for folder in sorted(held_before.derived, key=lambda one: (one.used, one.path)):
            why = _why(folder.used, total, unused_days, max_size, now())
            if why and folder.in_use:
                in_use += 1
            elif why and (dry_run or store.derived.remove(folder)):
                total -= folder.size
                folders.append(Removal(folder.path, folder.size, why, f"{folder.kind}/{folder.path.name}"))
        for entry in blobs:
            why = _why(entry.used or 0, total, unused_days, max_size, now())
            if not why:
                continue
            if entry.sha256 in held:
                in_use += 1
                continue
            if entry.sha256 in keep:
                continue
            total -= entry.size
            removals.append(Removal(entry.path, entry.size, why, entry.name))
            if not dry_run:
                with writing(entry.path):
                    entry.path.unlink(missing_ok=True)
        gone = [str(removal.path) for removal in removals]
        for (text,) in store.memo.rows("SELECT path FROM files"):
            if not os.path.exists(text):
                gone.append(text)
        if gone and not dry_run:
            store.memo.write_many("DELETE FROM files WHERE path = ?", [(text,) for text in gone])
            hashes = [(removal.path.name,) for removal in removals]
            store.memo.write_many("DELETE FROM names WHERE sha256 = ?", hashes)
            store.memo.write_many("DELETE FROM uses WHERE sha256 = ?", hashes)
    for left in _leftovers(store):
        if dry_run or _remove(left):
            removals.append(Removal(left.path, left.size, left.why))
    if not dry_run:
        for receipt in receipts.stale(str(store.root)):
            receipts.forget(receipt)
    return Collected((*folders, *removals), in_use)


def _why(used: int, total: int, unused_days: float | None, max_size: int | None, now: float) -> str:
    """Why something is to go; empty if it is not."""
    age = max(0.0, now - used) / _DAY
    if unused_days is not None and age >= unused_days:
        return f"not used for {age:.0f} days"
    return "the longest unused" if max_size is not None and total > max_size else ""


def _remove(left: Leftover) -> bool:
    """Unlink *left* unless somebody works on it."""
    lock = left.path  # What comes from a container registry is its own lock, and so is a temporary file.
    if left.path.parent.name == "partial":
        lock = left.path.with_name(left.path.name.partition(".")[0] + ".lock")
    try:
        with open(lock, "rb", opener=filesystem.open_file) as file:
            if not filesystem.lock(file, wait=False):
                return False
            left.path.unlink(missing_ok=True)
    except FileNotFoundError:
        left.path.unlink(missing_ok=True)
    return True


def _leftovers(store: Store) -> Iterator[Leftover]:
    found: Sequence[tuple[str, Literal["partial", "rejected", "temporary"]]] = (
        ("partial", "partial"), ("rejected", "rejected"), ("pulled", "temporary"), ("tmp", "temporary"),
    )  # fmt: skip
    for folder, why in found:
        for path, status in _files(store.root / folder):
            if path.suffix == ".lock" or (why == "temporary" and _is_held(path)):
                continue
            yield Leftover(path, filesystem.allocated(status), why)


def _is_held(path: Path) -> bool:
    try:
        with open(path, "rb", opener=filesystem.open_file) as file:
            return not filesystem.lock(file, wait=False)
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files in *folder*, which need not be there."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            if modes.S_ISREG(status.st_mode):
                yield Path(entry.path), status


def _weight(folder: Path) -> int:
    """Bytes of all files below *folder*."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
