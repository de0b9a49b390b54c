"""Receiving one blob from a registry, straight into the store and hashed on the way.

A blob that the store has is not asked for. A model's layer is none either when the store has the model: the layer is
a function of the model's bytes, so it is streamed from there, once its digest is known to be the very one that the
manifest names. A model's layer that is received becomes the model in the store and not a tar that holds one; out of a
layer that several models share they are taken, and where the store has most of it only the others are asked for, each
by its range. What was received before a break is kept for the next run, which hashes it and asks for the rest.

Specification: distribution-spec v1.1, "Pulling blobs"; RFC 9110, section 14 (ranges).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cpack_build.errors import BadImage, HashMismatch
from cpack_build.oci import tar
from cpack_build.oci.modellayer import (
    DATA_OFFSET,
    FIRST,
    LAYER_MEMO,
    ModelLayer,
    data_place,
    hash_model,
    layer_size,
    layer_tail,
    prefix,
    size_at,
    size_in,
    stamp,
)
from cpack_build.oci.partial import Partial, PartialStore, held_partial
from cpack_build.oci.reference import is_digest
from cpack_build.oci.sharedlayer import SharedLayer, shared_from, shared_models, take_out
from cpack_build.oci.types import LAYER, Blob, Descriptor, FileBlob

__all__ = ["BlobStore", "Ranged", "Received", "Unranged", "download", "missing_bytes", "stored"]

_WORTH = 1 << 20
"""Bytes that the two requests for one model out of a shared layer must save."""


class _File(Protocol):
    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int: ...


class BlobStore(PartialStore, Protocol):
    """What is needed of ``fetch.store.Store``: verified files by hash, and a memory for what was computed."""

    def find(self, sha256: str) -> _File | None: ...

    def put(
        self, chunks: Iterable[bytes], *, what: object, sha256: str | None = None, size: int | None = None
    ) -> _File: ...

    def recall(self, kind: str, key: str) -> str | None: ...

    def remember(self, kind: str, key: str, value: str) -> None: ...


class Ranged(Protocol):
    """Bytes of a blob from *start* to before *stop* (or to its end), not to be trusted.

    With *strict* :class:`Unranged` is raised rather than what comes before *start* received and passed over.
    """

    def blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None, strict: bool = False
    ) -> Iterator[bytes]: ...

    def hang_up(self) -> None: ...


class Unranged(Exception):
    """The registry gives no ranges of a blob."""


@dataclass(frozen=True)
class Received:
    """A blob that is on this machine now, and how many of its bytes came from the registry for it."""

    blob: Blob
    count: int = 0


def stored(
    descriptor: Descriptor, store: BlobStore, *, on_read: Callable[[int], object] | None = None
) -> FileBlob | ModelLayer | SharedLayer | None:
    """The blob as the store has it: a file, or the recipe over a model; ``None`` if it has neither.

    A model whose layer's digest is not known yet is read for it; *on_read* is told of its bytes.
    """
    found = store.find(descriptor.digest)
    if found is not None and found.size == descriptor.size:
        return FileBlob(descriptor, found.path)
    if shared_models(descriptor):
        return shared_from(descriptor, store, on_read=on_read or (lambda count: None))
    sha256 = _model_of(descriptor)
    model = store.find(sha256) if sha256 is not None else None
    if sha256 is None or model is None or layer_size(model.size) != descriptor.size:
        return None
    status = model.path.stat()
    key = f"{sha256}:{model.size}"
    digest = store.recall(LAYER_MEMO, key)
    if digest is None:
        digest = hash_model(model.path, sha256, model.size, on_read=on_read)
        store.remember(LAYER_MEMO, key, digest)
    return _recipe(descriptor, sha256, model.size, model.path, status) if digest == descriptor.digest else None


def download(
    origin: Ranged,
    descriptor: Descriptor,
    store: BlobStore,
    *,
    what: str,
    moved: Callable[[int], object] = lambda count: None,
    waiting: Callable[[], object] = lambda: None,
) -> Received:
    """The blob of *descriptor*, from the store or from *origin* through the store. *what* names it in errors.

    *moved* is told of its bytes as they become known here, by whatever way. *waiting* is called when another program
    receives the same blob. Raises :class:`HashMismatch` (nothing is used), :class:`BadImage`, :class:`StorageError` and
    what *origin* raises; what is here by then stays for the next run.
    """
    if (blob := stored(descriptor, store, on_read=moved)) is not None:
        return Received(blob)
    sha256 = _model_of(descriptor)
    if sha256 is not None:
        head = b"".join(origin.blob(descriptor, stop=DATA_OFFSET))
        size = size_in(head, sha256, descriptor.size)
        if size is not None:
            return _Download(origin, descriptor, store, what, moved, waiting, _Model(sha256, size)).run()
    count = _fill(origin, descriptor, store, what, moved, waiting)
    if count and (shared := shared_from(descriptor, store, on_read=moved)) is not None:
        return Received(shared, count)
    # One that says that it is a model's and is no layer of ours is a layer like any other.
    received = _Download(origin, descriptor, store, what, moved, waiting, None).run()
    if listed := shared_models(descriptor):
        take_out(received.blob, dict.fromkeys(listed), store, what=what)
    return received


def missing_bytes(descriptor: Descriptor, store: BlobStore) -> int:
    """Bytes of the blob that would have to come, as far as can be told without reading."""
    found = store.find(descriptor.digest)
    if found is not None and found.size == descriptor.size:
        return 0
    sha256 = _model_of(descriptor)
    model = store.find(sha256) if sha256 is not None else None
    if model is not None and layer_size(model.size) == descriptor.size:
        return 0
    if shared_from(descriptor, store, prove=False) is not None:
        return 0
    if here := _worth_filling(descriptor, store):
        return max(0, descriptor.size - sum(here.values()))
    begun = store.root / "pulled" / (sha256 or descriptor.digest.removeprefix("sha256:"))
    return max(0, descriptor.size - (begun.stat().st_size if begun.is_file() else 0))


def _worth_filling(descriptor: Descriptor, store: BlobStore) -> dict[str, int]:
    """The models of a shared layer that *store* has (bytes by sha256), where that saves more than the requests for each
    of the others cost; else none."""
    listed = shared_models(descriptor)
    found = {sha256: file.size for sha256 in listed if (file := store.find(sha256)) is not None}
    return found if sum(found.values()) > _WORTH * (len(listed) - len(found)) else {}


def _fill(
    origin: Ranged,
    descriptor: Descriptor,
    store: BlobStore,
    what: str,
    moved: Callable[[int], object],
    waiting: Callable[[], object],
) -> int:
    """Receive those models of a shared layer that *store* lacks, each from where it lies in the layer; the bytes that
    came.

    Where each begins follows from the sizes of those before it, and its own size stands in its header. The layer may
    turn out to be laid out otherwise, or the registry to give no ranges: then not all come, and the whole is needed.
    """
    here = _worth_filling(descriptor, store)
    count, place = 0, FIRST
    with suppress(Unranged):
        for sha256 in shared_models(descriptor) if here else ():
            begin = data_place(place)
            size = here.get(sha256)
            if size is None:
                head = b"".join(origin.blob(descriptor, start=place, stop=begin, strict=True))
                count += len(head)
                size = size_at(head, sha256, place)
                if size is None or begin + size >= descriptor.size:
                    break
                part = _Part(origin, descriptor, begin)
                own = Descriptor(LAYER, f"sha256:{sha256}", size)
                name = f"The model {sha256} in {what}"
                count += _Download(part, own, store, name, moved, waiting, None).run().count
            place = begin + size + tar.padding(size)
    return count


@dataclass(frozen=True)
class _Part:
    """What lies in a blob from *begin* on, as if it were a blob."""

    origin: Ranged
    whole: Descriptor
    begin: int

    def blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None, strict: bool = True
    ) -> Iterator[bytes]:
        end = self.begin + (descriptor.size if stop is None else stop)
        return self.origin.blob(self.whole, start=self.begin + start, stop=end, strict=strict)

    def hang_up(self) -> None:
        self.origin.hang_up()


@dataclass(frozen=True)
class _Model:
    sha256: str
    size: int


class _Download:
    """One blob on its way. Of a *model*'s layer only the model is kept: what is around it follows from its size."""

    def __init__(
        self,
        origin: Ranged,
        descriptor: Descriptor,
        store: BlobStore,
        what: str,
        moved: Callable[[int], object],
        waiting: Callable[[], object],
        model: _Model | None,
    ) -> None:
        self._origin = origin
        self._own = descriptor
        self._store = store
        self._what = what
        self._moved = moved
        self._waiting = waiting
        self._model = model
        self._target = model.sha256 if model is not None else descriptor.digest.removeprefix("sha256:")
        self._size = model.size if model is not None else descriptor.size
        self._before = prefix(model.sha256, model.size) if model is not None else b""
        self._after = layer_tail(model.size) if model is not None else b""
        self._count = 0
        self._told = 0

    def run(self) -> Received:
        with held_partial(self._store, self._target, waiting=self._waiting) as partial:
            if (blob := stored(self._own, self._store)) is not None:
                return Received(blob)  # Another program has just finished it.
            if partial.size > self._size:
                partial.clear()
            resumed = partial.size > 0
            try:
                return self._attempt(partial)
            except HashMismatch:
                partial.clear()
                if not resumed:
                    raise
            # What lay here was wrong, perhaps; what comes now is all the registry's.
            try:
                return self._attempt(partial)
            except HashMismatch:
                partial.clear()
                raise

    def _attempt(self, partial: Partial) -> Received:
        with _Hashes(self._before, of_model=self._model is not None) as hashes:
            self._tell(len(self._before))
            for chunk in partial.chunks():
                hashes.update(chunk)
                self._tell(len(chunk))
            start = len(self._before) + partial.size
            if start < self._own.size:
                for chunk in self._origin.blob(self._own, start=start):
                    self._count += len(chunk)
                    if start + len(chunk) > self._own.size:
                        partial.clear()
                        raise BadImage(self._what, f"has more than the {self._own.size} bytes that its descriptor says")
                    start += len(chunk)
                    data = chunk[: self._size - partial.size]
                    hashes.update(data, rest=chunk[len(data) :])
                    if data:
                        partial.append(data)
                    self._tell(len(chunk))
            if start < self._own.size:
                raise BadImage(self._what, f"ends after {start} of {self._own.size} bytes")
            whole, inner = hashes.result()
        if f"sha256:{whole}" != self._own.digest:
            raise HashMismatch(self._what, expected=self._own.digest, actual=whole)
        if self._model is None:
            return Received(FileBlob(self._own, partial.place(self._target)), self._count)
        if inner != self._model.sha256:
            raise HashMismatch(f"The model in {self._what}", expected=self._model.sha256, actual=inner)
        path = partial.place(self._target)
        self._store.remember(LAYER_MEMO, f"{self._model.sha256}:{self._model.size}", self._own.digest)
        return Received(_recipe(self._own, self._model.sha256, self._size, path, path.stat()), self._count)

    def _tell(self, count: int) -> None:
        """What is read a second time is told once."""
        count = min(count, self._own.size - self._told)
        self._told += count
        self._moved(count)


class _Hashes:
    """The hash of the whole, and of a model within it, each in a thread of its own: ``hashlib`` lets go of the
    interpreter while the next bytes are received."""

    def __init__(self, before: bytes, *, of_model: bool) -> None:
        self._hashers = [hashlib.sha256(before), *([hashlib.sha256()] if of_model else [])]
        self._threads = ThreadPoolExecutor(len(self._hashers))
        self._pending: list[Future[None]] = []

    def __enter__(self) -> _Hashes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown()

    def update(self, data: bytes, *, rest: bytes = b"") -> None:
        """Take *data*, and *rest* that belongs to the whole alone."""
        self._settle()
        if data:
            self._pending = [self._threads.submit(hasher.update, data) for hasher in self._hashers]
        if rest:
            self._settle()
            self._hashers[0].update(rest)

    def result(self) -> tuple[str, str]:
        """In hex: the whole's, and the model's (or the whole's again)."""
        self._settle()
        return self._hashers[0].hexdigest(), self._hashers[-1].hexdigest()

    def _settle(self) -> None:
        for pending in self._pending:
            pending.result()
        self._pending = []


def _model_of(descriptor: Descriptor) -> str | None:
    """The model whose layer this says to be."""
    sha256 = descriptor.annotations.get("io.cpack.model.sha256", "")
    return sha256 if descriptor.media_type == LAYER and is_digest(f"sha256:{sha256}") else None


def _recipe(descriptor: Descriptor, sha256: str, size: int, path: Path, status: os.stat_result) -> ModelLayer:
    title = descriptor.annotations.get("io.cpack.model.path", "")
    return ModelLayer(path, sha256, size, descriptor.digest, title, stamp(status))
