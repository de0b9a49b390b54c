"""Models: each is found by its hash, proved by one read, and never copied if it lies on this machine already.

Looked for in the store, then in the folders that the user named and in other programs' stores, then under what a
mirror maps its URLs to, in registries that it was pushed to, and at its addresses (:mod:`cpack_build.fetch.places`).
The digest of the model's layer comes from the same read or download and is remembered, so a warm lock reads no byte of
a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from cpack_build.cpack.schema import ModelEntry
from cpack_build.errors import CpackError, HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.folders import Folders, Wanted, safe_model_path
from cpack_build.fetch.http import Sources
from cpack_build.fetch.obtain import obtain
from cpack_build.fetch.pickles import PICKLED
from cpack_build.fetch.places import Place, places_of
from cpack_build.fetch.store import CHUNK, Store, StoredFile, stamp_of
from cpack_build.fetch.urls import redact, without_credentials
from cpack_build.lock.proof import candidates, prove, proved
from cpack_build.lock.schema import Model
from cpack_build.oci.modellayer import LAYER_MEMO, frame, hash_model
from cpack_build.progress import SILENT, Progress, working

__all__ = ["fetch_model", "local_model", "lock_models", "pin_local_model", "refuse_pickles"]

_PARALLEL = max(4, os.cpu_count() or 1)
"""Models at once: more than cores, for some wait for a network."""


def lock_models(
    entries: Sequence[ModelEntry],
    *,
    folders: Sequence[str],
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> tuple[list[Model], list[CpackError]]:
    """The enabled models, by path, and what could not be found, so that all of it can be told at once.

    Raises :class:`HashMismatch` and :class:`UnsafeInput` at once.
    """
    wanted = [(safe_model_path(entry.filename), entry) for entry in entries if not entry.disabled]
    locked: dict[str, Model] = {}
    missing: list[CpackError] = []
    places = places_of(sources, folders=folders)
    with working(_PARALLEL, progress) as (pool, reports):

        def found(path: str, entry: ModelEntry) -> Model | CpackError:
            try:
                file = _find(
                    path, entry, folders=folders, places=places, store=store, sources=sources, progress=reports
                )
            except (Unresolvable, NetworkError) as error:
                return error
            urls = tuple(dict.fromkeys(without_credentials(url) for url in entry.urls))
            digest = _layer_digest(file, store=store, progress=reports)
            return Model(path=path, sha256=file.sha256, size=file.size, layer_digest=digest, sources=urls)

        waiting = {id(entry): pool.submit(found, path, entry) for path, entry in _largest_first(wanted)}
        for path, entry in wanted:
            model = waiting[id(entry)].result()
            if not isinstance(model, Model):
                missing.append(model)
                continue
            twin = locked.setdefault(path.casefold(), model)
            if (twin.path, twin.sha256) != (model.path, model.sha256):
                raise UnsafeInput(
                    f"The pack has two models at {path}, {twin.sha256} and {model.sha256}.", hint="Disable one of them."
                )
    return sorted(locked.values(), key=lambda model: model.path), missing


def pin_local_model(path: str, file: Path, *, store: Store, progress: Progress = SILENT) -> Model:
    """*file* as the model at *path* (relative to ComfyUI), which nobody else has: its bytes are put into the store.

    Raises :class:`UnsafeInput` for a path that leads elsewhere.
    """

    def chunks() -> Iterator[bytes]:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                yield chunk

    path = safe_model_path(path)
    stored = store.put(chunks(), what=path)
    digest = _layer_digest(stored, store=store, progress=progress)
    return Model(path=path, sha256=stored.sha256, size=stored.size, layer_digest=digest, sources=())


def _largest_first(wanted: list[tuple[str, ModelEntry]]) -> list[tuple[str, ModelEntry]]:
    """So that no core is left with a big one at the end."""
    return sorted(wanted, key=lambda item: -(item[1].size or 0))


def fetch_model(
    model: Model,
    *,
    store: Store,
    sources: Sources,
    folders: Sequence[str] = (),
    places: Sequence[Place] | None = None,
    progress: Progress = SILENT,
) -> StoredFile:
    """The file of a locked model, from *places* (by default all, with *folders*).

    Raises :class:`Unresolvable`, :class:`NetworkError`, :class:`HashMismatch`. A file that this machine has not hashed
    is proved by the hash of its layer (:mod:`cpack_build.lock.proof`).
    """
    path = safe_model_path(model.path)
    if (known := store.find(model.sha256) or proved(model, store=store)) is not None:
        return known
    for file in candidates(model, folders=folders, store=store):
        if prove(model, file, store=store, progress=progress):
            return file
    return _find(
        path,
        ModelEntry(filename=model.path, size=model.size, sha256=model.sha256, urls=model.sources),
        layer=model.layer_digest,
        folders=folders,
        places=places_of(sources, folders=folders) if places is None else places,
        store=store,
        sources=sources,
        progress=progress,
    )


def refuse_pickles(paths: Iterable[str]) -> None:
    """See that none of *paths* is of a model in a pickled format, by its name. Raises :class:`UnsafeInput` naming
    those."""
    pickled = [path for path in paths if PurePosixPath(path).suffix.lower() in PICKLED]
    if pickled:
        raise UnsafeInput(
            f"Pickled models are refused, as you asked, and these are: {', '.join(pickled)}. Loading one can run code.",
            hint="Take the .safetensors version of each, or allow them (--no-pickle, `pickles` in cpack.yaml) if you "
            "trust where they come from.",
        )


def local_model(model: Model, folders: Sequence[str]) -> Path | None:
    """A file in *folders* that has the model's name and size; it is not read."""
    wanted = Wanted(safe_model_path(model.path), model.sha256, model.size)
    for offer in Folders(folders).offers(wanted):
        if offer.path.stat().st_size == model.size:
            return offer.path
    return None


def _find(
    path: str,
    entry: ModelEntry,
    *,
    layer: str | None = None,
    folders: Sequence[str],
    places: Sequence[Place],
    store: Store,
    sources: Sources,
    progress: Progress,
) -> StoredFile:
    if not entry.sha256:
        for offer in Folders(folders).offers(Wanted(path, "", entry.size)):
            size = offer.path.stat().st_size
            if offer.is_exact and entry.size in (None, size):
                with progress.task(f"Hashing {offer.path.name}", total=size) as task:
                    return store.adopt(offer.path, on_read=task.advance)
        raise _not_found(path, entry, folders, ())
    sha256 = entry.sha256

    def prove(candidate: Path, size: int) -> StoredFile:
        return _proved(candidate, sha256, size, store=store, progress=progress)

    done = obtain(
        Wanted(path, sha256, entry.size, entry.urls, layer),
        places,
        store=store,
        tuning=sources.tuning,
        frame=lambda size: frame(sha256, size),
        prove=prove,
        progress=progress,
    )
    if done.file is None:
        for problem in done.problems:
            if isinstance(problem, HashMismatch):
                raise problem
        raise _not_found(path, entry, folders, done.problems)
    if done.framed is not None:
        store.remember(LAYER_MEMO, f"{sha256}:{done.file.size}", f"sha256:{done.framed}")
    return done.file


def _not_found(path: str, entry: ModelEntry, folders: Sequence[str], problems: Sequence[CpackError]) -> Unresolvable:
    looked = f", nor in {', '.join(folders)}" if folders else ""
    if not entry.sha256:
        return Unresolvable(
            f"The model {path} has no sha256 in the pack{looked}: it cannot be told from another.",
            hint="Name the folder that holds it with --models DIR, or pack it again.",
        )
    hint = "Name the folder that holds it with --models DIR, or a copy with --mirror URL=PATH."
    if problems:
        tried = f" Tried: {' '.join(problem.message for problem in problems)}"
        if len(problems) == 1 and problems[0].hint:
            hint = problems[0].hint
    elif entry.urls:
        tried = f" Its addresses: {', '.join(redact(url) for url in entry.urls)}."
    else:
        tried = " The pack names no address for it."
    return Unresolvable(
        f"The model {path} (sha256 {entry.sha256}) is not in the store{looked}.{tried}",
        hint=hint,
    )


def _proved(path: Path, sha256: str, size: int, *, store: Store, progress: Progress) -> StoredFile:
    """*path* if it has that hash; the layer's digest comes from the same read."""
    if store.recall(LAYER_MEMO, f"{sha256}:{size}") is not None:
        with progress.task(f"Hashing {path.name}", total=size) as task:
            file = store.adopt(path, on_read=task.advance)
        if file.sha256 != sha256:
            raise HashMismatch(path, expected=sha256, actual=file.sha256)
        return file
    proved = StoredFile(path.absolute(), sha256, size, stamp_of(path.stat()))
    with progress.task(f"Hashing {path.name}", total=size) as task:
        digest = hash_model(path, sha256, size, on_read=task.advance)
    store.remember(LAYER_MEMO, f"{sha256}:{size}", digest)
    proved.require_unchanged()
    store.remember_file(proved)
    return proved


def _layer_digest(file: StoredFile, *, store: Store, progress: Progress) -> str:
    key = f"{file.sha256}:{file.size}"
    if (known := store.recall(LAYER_MEMO, key)) is not None:
        return known
    with progress.task(f"Hashing the layer of {file.path.name}", total=file.size) as task:
        digest = hash_model(file.path, file.sha256, file.size, on_read=task.advance)
    store.remember(LAYER_MEMO, key, digest)
    return digest
