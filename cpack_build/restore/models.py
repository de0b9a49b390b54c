"""Models in a workspace: the store's file, shared where the system can and copied where it cannot.

A reflink shares the bytes and nothing else; a hard link shares the file, so it is made only to the store's own, which
is read-only; a symlink leads to where the file lies. Copying comes last. A model that is there is never read again
while its file is as it was when it was hashed."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store, StoredFile, stored_at
from cpack_build.lock.models import fetch_model
from cpack_build.lock.schema import Model
from cpack_build.oci.pull import bring, bring_all
from cpack_build.oci.sharedlayer import take_out
from cpack_build.oci.storage import reflink
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.folder import Folder

__all__ = ["How", "Linked", "bring_layers", "bring_model", "is_model_there", "place_model"]

How = Literal["link", "copy"]
Linked = Literal["reflink", "hard link", "symlink", "copy"]


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


def bring_layers(
    models: Iterable[Model], *, artifact: Artifact | None, store: Store, progress: Progress = SILENT
) -> None:
    """Let the layers of those of *models* that the store lacks come at once, where it is known which they are."""
    if artifact is None:
        return
    missing = [model for model in models if store.find(model.sha256) is None]
    found = [artifact.model_layers(model) for model in missing]
    bring_all([layers[0].blob for layers in found if len(layers) == 1], progress=progress)


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
    assert artifact is not None
    sizes = {one.sha256: one.size for one in artifact.lock.models}
    for layer in layers:
        blob = bring(layer.blob, progress=progress)
        # What came from a registry has become the model on its way.
        if (found := store.find(model.sha256)) is None:
            with progress.task(model.path, total=model.size) as task:
                take_out(blob, sizes, store, what=artifact.name, on_read=task.advance)
            found = store.find(model.sha256)
        if found is not None and found.size == model.size:
            return found
    raise UnsafeInput(f"No layer of the image holds {model.path}.", hint="Do not use this image.")


def place_model(folder: Folder, path: str, file: StoredFile, *, how: How, store: Store) -> Linked:
    """Put *file* at *path* of the workspace. Raises :class:`StorageError`, :class:`UnsafeInput`."""
    folder.make(path.rpartition("/")[0])
    with folder.aside() as aside:
        made = _made(file, aside, how=how, is_own=file.path == store.blob_path(file.sha256))
        if made == "copy" and how == "link" and sys.platform != "win32":
            # A link costs nothing, and the store keeps the file; a copy is for whoever asks for one.
            aside.unlink(missing_ok=True)
            if folder.link_outside(path, str(file.path.absolute())):
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
    if reflink(file.path, aside):
        return "reflink"
    if how == "link" and is_own:
        with suppress(OSError):
            os.link(file.path, aside, follow_symlinks=False)
            return "hard link"
    return "copy"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
