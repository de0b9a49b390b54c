"""Proving that a file is a locked model by one hash, that of its layer, which the lock pins as well.

What that proves is believed of this lock alone: another's word for the model's sha256 is no fact for the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cpack_build.fetch.folders import Folders, Wanted, safe_model_path
from cpack_build.fetch.store import Store, StoredFile, stamp_of
from cpack_build.oci.modellayer import LAYER_MEMO, hash_layer
from cpack_build.progress import Progress

__all__ = ["Pin", "candidates", "is_layer_proved", "prove", "proved"]

_FILE = "model-file-1"


class Pin(Protocol):
    """What a lock says of a model (``lock.schema.Model``)."""

    @property
    def path(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def layer_digest(self) -> str: ...


def candidates(model: Pin, *, folders: Sequence[str], store: Store) -> Iterator[StoredFile]:
    """The files in *folders* that may be *model*, with their stats of now: of its name and size, and not known to be
    another. None of them is read. Raises :class:`Unresolvable`, :class:`UnsafeInput`."""
    for offer in Folders(folders).offers(Wanted(safe_model_path(model.path), model.sha256, model.size)):
        status = offer.path.stat()
        if status.st_size == model.size and store.known(offer.path) in (None, model.sha256):
            yield StoredFile(offer.path.absolute(), model.sha256, model.size, stamp_of(status))


def proved(model: Pin, *, store: Store) -> StoredFile | None:
    """The file that had the model's layer digest, as long as it is unchanged."""
    known = store.recall(_FILE, _key(model))
    if known is None:
        return None
    place, *stamp = json.loads(known)
    file = StoredFile(Path(place), model.sha256, model.size, tuple(stamp))
    try:
        return file if stamp_of(file.path.stat()) == file.stamp else None
    except OSError:
        return None


def prove(model: Pin, file: StoredFile, *, store: Store, progress: Progress) -> bool:
    """Whether *file*, one of the :func:`candidates`, has the model's layer digest. It is read once, unless that has
    begun already (``store.begun``). Raises :class:`Unresolvable` if it changes meanwhile."""
    begun = store.begun.get(file)
    with progress.task(f"Hashing {file.path.name}", total=model.size) as task:
        if begun is not None:
            digest = begun.digest(on_read=task.advance)
        else:
            digest = hash_layer(file.path, model.sha256, model.size, on_read=task.advance)
    if digest != model.layer_digest:
        return False
    file.require_unchanged()
    assert file.stamp is not None
    store.remember(_FILE, _key(model), json.dumps([str(file.path), *file.stamp]))
    return True


def is_layer_proved(model: Pin, file: StoredFile, *, store: Store) -> bool:
    """Whether this machine computed the digest of the model's layer from *file*, and the lock says the same."""
    if store.recall(LAYER_MEMO, f"{model.sha256}:{model.size}") == model.layer_digest:
        found = store.find(model.sha256)
        return found is not None and (found.path, found.stamp) == (file.path, file.stamp)
    return proved(model, store=store) == file


def _key(model: Pin) -> str:
    return f"{model.layer_digest}:{model.sha256}:{model.size}"
