"""Taking over what is on this machine already: files that the user names, and the stores of other programs.

A file is hashed once, whatever its name says, and remembered with its stat; then it is used where it lies, or kept: its
blocks are shared (reflink) where the file system can, else it gets a second name in the store (hard link), else it is
copied.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat as modes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpack_build import filesystem
from cpack_build.errors import Unresolvable, UnsafeInput, writing
from cpack_build.fetch.store import CHUNK, Store, StoredFile, stat_key, stored_at
from cpack_build.progress import SILENT, Progress, working

__all__ = ["Added", "add", "by_hash", "found_below", "other_stores"]

MODEL_SUFFIXES = frozenset(
    {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft", ".gguf", ".onnx", ".whl", ".deb"}
)
"""What of a folder is taken; and files whose whole name is a sha256, as other stores call theirs."""
_HEX = re.compile(r"[0-9a-f]{64}")
"""ioctl_ficlone(2)."""


@dataclass(frozen=True)
class Added:
    """A file that was added, and how: where it lies, by shared blocks, by a second name, or as a copy."""

    source: Path
    file: StoredFile
    how: Literal["reference", "reflink", "hardlink", "copy", "known"]


def other_stores() -> tuple[Path, ...]:
    """Folders of other programs that hold models under their hash: comfy-pack's, and Hugging Face's caches."""
    from cpack_build.fetch.huggingface import cache_folders  # its modules are many, and few builds ask

    return (Path.home() / ".comfypack" / "models", *cache_folders())


def by_hash(sha256: str, stores: Sequence[Path]) -> Iterator[Path]:
    """Files in *stores* that are called *sha256*; whether they are it, only their bytes can tell."""
    for place in stores:
        if (place / sha256).is_file():
            yield place / sha256
        for repository in place.glob("*--*--*"):
            if (repository / "blobs" / sha256).is_file():
                yield repository / "blobs" / sha256


def found_below(path: Path) -> list[Path]:
    """The files that *path* means: itself, or every model below it. Links are followed, but each file counts once.

    Raises :class:`Unresolvable` where nothing is.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise Unresolvable(f"{path} is neither a file nor a folder.", hint="Correct it.")
    found: dict[tuple[int, int], Path] = {}
    for place, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() not in MODEL_SUFFIXES and not _HEX.fullmatch(name):
                continue
            file = Path(place, name)
            try:
                status = file.stat()
            except OSError:
                continue  # a link that leads nowhere
            if modes.S_ISREG(status.st_mode):
                found.setdefault((status.st_dev, status.st_ino), file)
    return list(found.values())


def add(
    files: Sequence[Path],
    *,
    store: Store,
    keep: bool = False,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Added, ...]:
    """Let *store* find *files*: where they lie, or with *keep* in the store itself.

    Raises :class:`Unresolvable` for a file that changes meanwhile, :class:`StorageError`.
    """
    with (
        progress.task("Hashing files", total=sum(path.stat().st_size for path in files)) as task,
        working(workers or os.cpu_count() or 1, progress) as (pool, reports),
    ):
        lock = threading.Lock()

        def one(path: Path) -> Added:
            with reports.task(path.name) as own:

                def read(amount: int) -> None:
                    own.advance(amount)
                    with lock:
                        task.advance(amount)

                if not keep:
                    return Added(path, store.adopt(path, on_read=read), "reference")
                return _kept(path, store, read)

        return tuple(pool.map(one, files))


def _kept(path: Path, store: Store, on_read: Callable[[int], object]) -> Added:
    with path.open("rb") as source, store.temporary() as file:
        before = os.fstat(source.fileno())
        if not modes.S_ISREG(before.st_mode):
            raise UnsafeInput(f"{path} is no regular file.", hint="Name a file.")
        with writing(store.root):
            shared = filesystem.share_blocks(source.fileno(), file.fileno())
        if not shared and before.st_dev == os.fstat(file.fileno()).st_dev:
            return _linked(path, store, on_read)
        hasher = hashlib.sha256()
        reading = file if shared else source
        while chunk := reading.read(CHUNK):
            hasher.update(chunk)
            on_read(len(chunk))
            if not shared:
                with writing(store.root):
                    file.write(chunk)
        if stat_key(os.fstat(source.fileno())) != stat_key(before):
            raise Unresolvable(f"{path} changed while it was read.", hint="Wait until it is written, and run it again.")
        sha256 = hasher.hexdigest()
        if store.is_blob(sha256):
            return Added(path, stored_at(store.blob_path(sha256), sha256), "known")
        blob = store.place(Path(file.name), sha256, descriptor=file.fileno(), name=path.name, flush=file.flush)
        return Added(path, stored_at(blob, sha256), "reflink" if shared else "copy")


def _linked(path: Path, store: Store, on_read: Callable[[int], object]) -> Added:
    """A second name in the store. The bytes can still be changed by the first, so the store believes the file's stat,
    never the name."""
    known = store.adopt(path, on_read=on_read)
    blob = store.blob_path(known.sha256)
    if store.is_blob(known.sha256):
        return Added(path, stored_at(blob, known.sha256), "known")
    with writing(blob):
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.link(os.path.realpath(path), blob)
    # A new name changes the ctime: the file at hand is the one that was hashed, for its inode, size and mtime stayed.
    for name in (path, blob):
        store.remember_file(stored_at(name, known.sha256))
    return Added(path, stored_at(blob, known.sha256), "hardlink")
