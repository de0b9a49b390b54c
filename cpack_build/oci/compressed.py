"""The compressed form of an image: what registries are given, while local engines get the plain one.

Models stay as they are, for their numbers do not compress; every other layer is compressed once, remembered by its diff
ID and by what compressed it, and kept in the store. What was kept and is gone is made again, to the same bytes. Those
are a function of the layer, the algorithm, its level and the *compressor*, the very library: two releases of one may
differ, so a lock names it (``docs/decisions/025-compression.md``). The image ID depends on none of this.

Formats: RFC 8878 (zstd), RFC 1952 (gzip); OCI image-spec v1.1, layer.md ("+gzip", "+zstd").
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from cpack_build.errors import HashMismatch, ToolMissing, UsageError
from cpack_build.oci.download import BlobStore
from cpack_build.oci.types import (
    CONFIG,
    LAYER,
    LAYER_GZIP,
    LAYER_ZSTD,
    MANIFEST,
    Blob,
    BytesBlob,
    Descriptor,
    FileBlob,
    Image,
    Seekable,
    canonical_json,
)
from cpack_build.oci.uncompressed import Uncompressed, uncompressed
from cpack_build.progress import SILENT, Progress, working

__all__ = ["DEFAULT", "Compression", "compressed", "compressed_image", "known_size", "parse_compression", "takes_zstd"]

Algorithm = Literal["zstd", "gzip", "none"]
DEFAULT = "zstd:3"
_LEVELS = {"zstd": (3, range(1, 20)), "gzip": (6, range(1, 10))}
"""The usual level, and those that there are; zstd's highest would want gigabytes of memory."""
_KINDS = {
    LAYER: LAYER,
    LAYER_GZIP: LAYER_GZIP,
    LAYER_ZSTD: LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}
_WANTED = {"zstd": LAYER_ZSTD, "gzip": LAYER_GZIP, "none": LAYER}
_MEMO = "compressed"
_WORKERS = min(4, os.cpu_count() or 1)
_LARGE = 8 << 20
"""Bytes of a layer that is worth a second thread of zstd's."""
_CHANGED = "Its source has changed since it was measured. Nothing was used of it: build the image again."


@dataclass(frozen=True)
class Compression:
    """An *algorithm*, its *level* (0 for none) and the *compressor*: ``libzstd 1.5.7``, ``zlib 1.2.13``."""

    algorithm: Algorithm
    level: int = 0
    compressor: str = ""

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.level}" if self.level else self.algorithm

    @property
    def media_type(self) -> str:
        """Of a layer so compressed."""
        return _WANTED[self.algorithm]

    def require(self) -> None:
        """See that this machine compresses to the same bytes. Raises :class:`ToolMissing`."""
        here = compressor_of(self.algorithm)
        if self.compressor != here:
            raise ToolMissing(
                f"The lock has its layers compressed by {self.compressor}, and here is {here}, whose bytes may differ.",
                hint=f"Name --compression {self.algorithm} to use the one that is here: the image ID stays what it is, "
                "the digest in the registry does not. Or install the cpack-build that made the lock.",
            )


def compressor_of(algorithm: Algorithm) -> str:
    """Which library *algorithm* is on this machine, with its version; empty for ``none``."""
    if algorithm == "zstd":
        import zstandard

        return "libzstd " + ".".join(map(str, zstandard.ZSTD_VERSION))
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION}" if algorithm == "gzip" else ""


def parse_compression(text: str) -> Compression:
    """``zstd``, ``zstd:19``, ``gzip``, ``gzip:9`` or ``none``, by this machine's compressor. Raises
    :class:`UsageError`."""
    found = re.fullmatch(r"(zstd|gzip)(?::([0-9]{1,2}))?|none", text)
    if found is None:
        raise UsageError(
            f"Compression {text!r} is not known.", hint="Write zstd, zstd:LEVEL, gzip, gzip:LEVEL or none."
        )
    if text == "none":
        return Compression("none")
    algorithm: Algorithm = "zstd" if found[1] == "zstd" else "gzip"
    usual, levels = _LEVELS[algorithm]
    level = int(found[2]) if found[2] else usual
    if level not in levels:
        raise UsageError(f"Compression {text!r}: {algorithm} has the levels {levels[0]} to {levels[-1]}.")
    return Compression(algorithm, level, compressor_of(algorithm))


def compressed_image(
    image: Image, compression: Compression, *, store: BlobStore, workers: int = _WORKERS, progress: Progress = SILENT
) -> Image:
    """*image* as registries are given it; *image* itself if it is that already.

    A base's layers stay as the base has them, so that a registry has them already; but zstd becomes gzip where that is
    wanted, for engines that read no zstd. Raises :class:`HashMismatch` when a layer is not what its diff ID says.
    """
    diff_ids = json.loads(image.config.data)["rootfs"]["diff_ids"]
    with working(workers, progress) as (pool, reports):

        def wanted(layer: Blob, diff_id: str) -> Blob:
            return _as_wanted(layer, diff_id, compression, store=store, progress=reports)

        layers = tuple(pool.map(wanted, image.layers, diff_ids))
    document = json.loads(image.manifest.data)
    config = BytesBlob(CONFIG, image.config.data)
    document |= {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor.to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
    }
    manifest = BytesBlob(MANIFEST, canonical_json(document))
    if json.loads(image.manifest.data) == document and image.manifest.media_type == MANIFEST:
        return image
    return Image(manifest, config, layers)


def compressed(layer: Blob, compression: Compression, *, store: BlobStore, progress: Progress = SILENT) -> Blob:
    """The uncompressed *layer* compressed, from memory or by making it; see :func:`compressed_image`."""
    plain = layer.descriptor
    annotations = plain.annotations
    if (known := _recalled(plain.digest, compression, store)) is not None:
        digest, size = known
    else:
        with progress.task(f"Compressing {plain.shown}", total=plain.size) as task:
            hasher, size = hashlib.sha256(), 0

            def passing() -> Iterator[bytes]:
                nonlocal size
                for chunk in _chunks(layer, compression, on_read=task.advance):
                    hasher.update(chunk)
                    size += len(chunk)
                    yield chunk

            store.put(passing(), what=f"The compressed form of {plain.digest}")
        digest = f"sha256:{hasher.hexdigest()}"
        store.remember(_MEMO, _key(plain.digest, compression), f"{digest} {size}")
    return _Compressed(Descriptor(compression.media_type, digest, size, annotations), layer, compression, store)


def known_size(diff_id: str, compression: Compression, *, store: Memo) -> int | None:
    """Bytes of the layer with that diff ID when it is compressed, if that is known."""
    known = _recalled(diff_id, compression, store)
    return None if known is None else known[1]


def takes_zstd(image: Image) -> bool:
    """Whether whoever pulls *image* must read zstd: Docker does from 23.0 on (moby/moby#41759), podman since 2."""
    return any(layer.descriptor.media_type == LAYER_ZSTD for layer in image.layers)


class Memo(Protocol):
    """What is needed of a store to know what was compressed."""

    def recall(self, kind: str, key: str) -> str | None: ...


@dataclass(frozen=True)
class _Compressed:
    """A layer in its compressed form: from the store, or made again."""

    descriptor: Descriptor
    layer: Blob
    compression: Compression
    store: BlobStore = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        return self.chunks_from(0)

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on."""
        own = self.descriptor
        found = self.store.find(own.digest)
        if found is None:
            chunks = _chunks(self.layer, self.compression)
            found = self.store.put(chunks, what=own.shown, sha256=own.digest, size=own.size)
        return FileBlob(own, found.path).chunks_from(offset)


def _as_wanted(layer: Blob, diff_id: str, compression: Compression, *, store: BlobStore, progress: Progress) -> Blob:
    own = layer.stored if isinstance(layer, Uncompressed) else layer
    kind = LAYER if own.descriptor.digest == diff_id else _KINDS.get(own.descriptor.media_type, "")
    is_model = layer.descriptor.annotations.get("io.cpack.layer.kind") in ("model", "models")
    wanted = LAYER if is_model else compression.media_type
    stays = isinstance(layer, Uncompressed) and kind in (LAYER, LAYER_GZIP, wanted)
    if kind == wanted or stays:
        renamed = replace(own.descriptor, media_type=kind)
        if own.descriptor == renamed:
            return own
        return _SeekableRenamed(renamed, own) if isinstance(own, Seekable) else _Renamed(renamed, own)
    plain = layer if isinstance(layer, Uncompressed) else uncompressed(layer, diff_id, memo=store)
    return plain if wanted == LAYER else compressed(plain, compression, store=store, progress=progress)


@dataclass(frozen=True)
class _Renamed:
    """A layer under the OCI's name for its media type."""

    descriptor: Descriptor
    layer: Blob

    def chunks(self) -> Iterator[bytes]:
        return self.layer.chunks()


class _SeekableRenamed(_Renamed):
    """One that a registry can be sent from any place on: another registry's goes past the store."""

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        assert isinstance(self.layer, Seekable)
        return self.layer.chunks_from(offset)


def _chunks(
    layer: Blob, compression: Compression, *, on_read: Callable[[int], object] = lambda count: None
) -> Iterator[bytes]:
    """The compressed bytes of *layer*; they end only if its own, which are proved as they pass, were right."""
    plain = layer.descriptor

    def proved() -> Iterator[bytes]:
        hasher, count = hashlib.sha256(), 0
        for chunk in layer.chunks():
            hasher.update(chunk)
            count += len(chunk)
            if count > plain.size:
                break
            on_read(len(chunk))
            yield chunk
        actual = f"sha256:{hasher.hexdigest()}"
        if actual != plain.digest or count != plain.size:
            what = f"{plain.shown} ({count} bytes)"
            raise HashMismatch(what, expected=plain.digest, actual=actual, hint=_CHANGED)

    engine = _zstd(compression.level, plain.size) if compression.algorithm == "zstd" else _gzip(compression.level)
    for chunk in proved():
        if piece := engine.compress(chunk):
            yield piece
    yield engine.flush()


class _Engine(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _zstd(level: int, size: int) -> _Engine:
    """One frame that says its size. With one worker thread or more the bytes are the same; with none they differ."""
    import zstandard

    engine: _Engine = zstandard.ZstdCompressor(level=level, threads=2 if size > _LARGE else 1).compressobj(size=size)
    return engine


def _gzip(level: int) -> _Engine:
    """One member, without a name or a time (zlib.h, "deflateInit2")."""
    return zlib.compressobj(level, zlib.DEFLATED, wbits=31)


def _key(diff_id: str, compression: Compression) -> str:
    return f"{diff_id} {compression} {compression.compressor}"


def _recalled(diff_id: str, compression: Compression, store: Memo) -> tuple[str, int] | None:
    known = store.recall(_MEMO, _key(diff_id, compression))
    digest, _, size = (known or "").partition(" ")
    return (digest, int(size)) if size.isdigit() else None
