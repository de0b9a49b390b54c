"""A layer that several models share, from its models and back.

It is a function of its models alone, as a model's own layer is (:mod:`.modellayer`): where all of them are here it is
streamed from them and nothing is asked for, once its digest is known to be the very one that is wanted. Where it came
as a file, its models are taken out of it in one pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cpack_build.oci import tar
from cpack_build.oci.filesystem import stream_members
from cpack_build.oci.modellayer import ModelFile, entries, model_path
from cpack_build.oci.reference import is_digest
from cpack_build.oci.types import LAYER, Blob, Descriptor

__all__ = ["SHARED", "ModelStore", "SharedLayer", "shared_from", "shared_models", "take_out"]

SHARED = "io.cpack.models.sha256"
"""The annotation that lists the models of a shared layer, in hex, with commas between."""
_MEMO = "shared-layer-1"


class _File(Protocol):
    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int: ...


class ModelStore(Protocol):
    """What is needed of ``fetch.store.Store``."""

    def find(self, sha256: str) -> _File | None: ...

    def put(self, chunks: Iterator[bytes], *, what: object, sha256: str, size: int) -> Any: ...

    def recall(self, kind: str, key: str) -> str | None: ...

    def remember(self, kind: str, key: str, value: str) -> None: ...


@dataclass(frozen=True)
class SharedLayer:
    """The layer as a blob: a recipe over the files of its *models* (sha256 in hex, file)."""

    descriptor: Descriptor
    models: tuple[tuple[str, ModelFile], ...]

    def chunks(self) -> Iterator[bytes]:
        return self.chunks_from(0)

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on."""
        for chunk in tar.stream(entries(self.models)):
            rest = chunk[offset:]
            offset -= len(chunk) - len(rest)
            if rest:
                yield rest


def shared_models(descriptor: Descriptor) -> tuple[str, ...]:
    """The models that a layer says to share, in hex; none where it is not such a layer."""
    listed = descriptor.annotations.get(SHARED, "").split(",")
    if descriptor.media_type != LAYER or not all(is_digest(f"sha256:{sha256}") for sha256 in listed):
        return ()
    return tuple(sorted(set(listed)))


def shared_from(
    descriptor: Descriptor,
    store: ModelStore,
    *,
    prove: bool = True,
    on_read: Callable[[int], object] = lambda count: None,
) -> SharedLayer | None:
    """The shared layer of *descriptor* from the models in *store*, or ``None`` if one is not there or it is another.

    The first time the models are read for its digest, and *on_read* is told; without *prove* only sizes are compared.
    """
    listed = shared_models(descriptor)
    found = [(sha256, store.find(sha256)) for sha256 in listed]
    models = tuple((sha256, ModelFile(file.path, file.size)) for sha256, file in found if file is not None)
    if not models or len(models) != len(listed) or tar.size_of(entries(models)) != descriptor.size:
        return None
    layer = SharedLayer(descriptor, models)
    key = hashlib.sha256("".join(f"{sha256}:{file.size} " for sha256, file in models).encode()).hexdigest()
    if not prove or store.recall(_MEMO, key) == descriptor.digest:
        return layer
    hasher = hashlib.sha256()
    for chunk in layer.chunks():
        hasher.update(chunk)
        on_read(len(chunk))
    if f"sha256:{hasher.hexdigest()}" != descriptor.digest:
        return None
    store.remember(_MEMO, key, descriptor.digest)
    return layer


def take_out(
    layer: Blob,
    models: Mapping[str, int | None],
    store: ModelStore,
    *,
    what: str,
    on_read: Callable[[int], object] = lambda count: None,
) -> None:
    """Put those of *models* (their bytes by sha256, as far as known) that *layer* has and *store* lacks into the store.

    The layer is read once. *what* names it in errors. Raises :class:`HashMismatch` for a file that is not what its name
    says, and :class:`BadImage`.
    """
    wanted = {model_path(sha256): sha256 for sha256 in models if store.find(sha256) is None}

    def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            on_read(len(chunk))
            yield chunk

    for member, content in stream_members(layer):
        sha256 = wanted.pop(member.name.removeprefix("./"), None) if member.isreg() else None
        if sha256 is not None:
            size = models[sha256]
            store.put(
                counted(content()), what=f"The model in {what}", sha256=sha256,
                size=member.size if size is None else size,
            )  # fmt: skip
