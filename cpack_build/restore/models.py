"""Models in a workspace: the store's file, shared where the system can and copied where it cannot.

A reflink shares the bytes and nothing else; a hard link shares the file, so it is made only to the store's own, which
is read-only; a symlink leads to where the file lies. Copying comes last. A model that is there is never read again
while its file is as it was when it was hashed."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cpack_build.errors import UnsafeInput, writing
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store, StoredFile, stored_at
from cpack_build.lock.models import fetch_model
from cpack_build.lock.schema import Model
from cpack_build.oci.filesystem import stream_members
from cpack_build.oci.modellayer import model_path
from cpack_build.progress import SILENT, Progress, Task
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.folder import Folder

__all__ = ["How", "Linked", "bring_model", "is_model_there", "place_model"]

How = Literal["link", "copy"]
Linked = Literal["reflink", "hard link", "symlink", "copy"]
_FICLONE = 0x40049409
"""ioctl_ficlone(2)."""


def is_model_there(folder: Folder, model: Model, *, store: Store) -> bool | None:
    """Whether the workspace has *model*: ``True``, ``None`` for nothing at its path, ``False`` for something else."""
    status = folder.status(model.path)
    if status is None:
        return None
    path = folder.root / model.path
    if stat.S_ISLNK(status.st_mode) and not path.exists():
        # Ours once, and the store has let go of it: nothing is lost by making it anew.
        return None
    if not path.is_file() or path.stat().st_size != model.size:
        return False
    known = store.find(model.sha256)
    if known is not None and os.path.samefile(known.path, path):
        return True
    return store.adopt(path).sha256 == model.sha256


def bring_model(
    model: Model,
    *,
    artifact: Artifact | None,
    folders: Sequence[str],
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> StoredFile:
    """The file of *model*: from the store, a folder, the image's layer, or where the lock says that it can be had.

    Raises :class:`HashMismatch`, :class:`Unresolvable`, :class:`NetworkError`.
    """
    if (known := store.find(model.sha256)) is not None and known.size == model.size:
        return known
    layers = artifact.model_layers(model) if artifact is not None else ()
    if not layers:
        return fetch_model(model, folders=folders, store=store, sources=sources, progress=progress)
    wanted = model_path(model.sha256)
    found: StoredFile | None = None
    with progress.task(model.path, total=model.size) as task:
        for layer in layers:
            for member, chunks in stream_members(layer.blob):
                if member.name == wanted and member.isreg():
                    content = _counted(chunks(), task)
                    found = store.put(content, what=model.path, sha256=model.sha256, size=model.size)
            if found is not None:
                break
    if found is None:
        raise UnsafeInput(f"No layer of the image holds {model.path}.", hint="Do not use this image.")
    return found


def place_model(folder: Folder, path: str, file: StoredFile, *, how: How, store: Store) -> Linked:
    """Put *file* at *path* of the workspace. Raises :class:`StorageError`, :class:`UnsafeInput`."""
    folder.make(path.rpartition("/")[0])
    with folder.aside() as aside:
        made = _made(file, aside, how=how, is_own=file.path == store.blob_path(file.sha256))
        if made == "copy" and how == "link" and sys.platform != "win32":
            # A link costs nothing, and the store keeps the file; a copy is for whoever asks for one.
            aside.unlink(missing_ok=True)
            folder.link_outside(path, str(file.path.absolute()))
            return "symlink"
        if made == "copy":
            folder.write(path, _chunks(file.path), mode=0o644)
        else:
            folder.move(aside.relative_to(folder.root).as_posix(), path)
    # Both are known from now on: the new file, and the store's own, whose ctime a second name has changed.
    with suppress(OSError):
        store.remember_file(stored_at(folder.root / path, file.sha256))
        if made == "hard link":
            store.remember_file(stored_at(file.path, file.sha256))
    return made


def _made(file: StoredFile, aside: Path, *, how: How, is_own: bool) -> Linked:
    if _reflink(file.path, aside):
        return "reflink"
    if how == "link" and is_own:
        with suppress(OSError):
            os.link(file.path, aside, follow_symlinks=False)
            return "hard link"
    return "copy"


def _reflink(source: Path, target: Path) -> bool:
    """Whether *target* was made to share the blocks of *source*."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    with writing(target), source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
                raise
        else:
            return True
    target.unlink()
    return False


def _counted(chunks: Iterator[bytes], task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        task.advance(len(chunk))
        yield chunk


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
