"""The uncompressed form of a layer: what a diff ID names, and what local engines are given.

gzip and zstd are undone while the layer is streamed and nothing is stored; the bytes are proved by the diff ID each
time. The size, which a descriptor needs before the first byte, is found by one pass and remembered, or told by
somebody who is believed until the layer is read.

Specification: OCI image-spec v1.1, config.md ("Layer DiffID"), layer.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from cpack_build.errors import BadImage, HashMismatch
from cpack_build.oci.compression import decompressed_chunks
from cpack_build.oci.types import LAYER, Blob, Descriptor, Filed

__all__ = ["Memo", "Uncompressed", "decompressed", "uncompressed"]

_MEMO = "uncompressed-size"


class Memo(Protocol):
    """What is needed of ``fetch.store.Store``."""

    def recall(self, kind: str, key: str) -> str | None: ...

    def remember(self, kind: str, key: str, value: str) -> None: ...


def uncompressed(layer: Blob, diff_id: str, *, memo: Memo | None = None, told: int | None = None) -> Uncompressed:
    """*layer* as an uncompressed tar whose digest is *diff_id*.

    The first time a compressed layer is seen it is read through for its size, which *memo* keeps; it is not where
    somebody has *told* the size. Raises :class:`BadImage` and, here or at the end of reading, :class:`HashMismatch`.
    """
    own = layer.descriptor
    if own.digest == diff_id:
        return Uncompressed(layer, Descriptor(LAYER, diff_id, own.size, own.annotations))
    known = memo.recall(_MEMO, diff_id) if memo is not None else None
    if known is not None and known.isdigit():
        told = int(known)
    if told is not None:
        return Uncompressed(layer, Descriptor(LAYER, diff_id, told, own.annotations))
    size = 0
    hasher = hashlib.sha256()
    for chunk in decompressed(layer):
        hasher.update(chunk)
        size += len(chunk)
    _prove(hasher.hexdigest(), diff_id, own)
    if memo is not None:
        memo.remember(_MEMO, diff_id, str(size))
    return Uncompressed(layer, Descriptor(LAYER, diff_id, size, own.annotations))


@dataclass(frozen=True)
class Uncompressed:
    """The plain form of *stored*, the layer as its origin has it."""

    stored: Blob
    descriptor: Descriptor

    def opened(self) -> BinaryIO | None:
        """The file that it lies in, where it is stored as it is (:class:`~cpack_build.oci.types.Filed`)."""
        is_plain = self.descriptor.digest == self.stored.descriptor.digest
        return self.stored.opened() if is_plain and isinstance(self.stored, Filed) else None

    def chunks(self) -> Iterator[bytes]:
        if self.descriptor.digest == self.stored.descriptor.digest and getattr(self.stored, "proves_itself", False):
            yield from self.stored.chunks()
            return
        hasher, size = hashlib.sha256(), 0
        for chunk in decompressed(self.stored):
            hasher.update(chunk)
            size += len(chunk)
            if size <= self.descriptor.size:  # Who is given more would end here, and not be told why.
                yield chunk
        _prove(hasher.hexdigest(), self.descriptor.digest, self.stored.descriptor)
        if size != self.descriptor.size:
            what = f"Layer {self.stored.descriptor.digest}"
            raise BadImage(what, f"is not {self.descriptor.size} bytes long when it is uncompressed, as was told")


def decompressed(layer: Blob) -> Iterator[bytes]:
    """The tar in *layer*, whatever it is compressed with. Raises :class:`BadImage`."""
    return decompressed_chunks(layer.chunks(), what=f"Layer {layer.descriptor.digest}")


def _prove(actual: str, diff_id: str, layer: Descriptor) -> None:
    if f"sha256:{actual}" != diff_id:
        raise HashMismatch(f"Layer {layer.digest}, uncompressed,", expected=diff_id, actual=actual)
