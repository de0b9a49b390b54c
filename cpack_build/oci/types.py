"""The nouns of the OCI image spec that the rest of the program passes around.

A :class:`Blob` is bytes that can be produced again and again: a file, a byte string, or a recipe from which a layer's
tar is streamed. An :class:`Image` is a manifest, a config and the layers as blobs; an :class:`ImageIndex` is one for
each of several platforms. Writing one somewhere (layout, archive, engine, registry) is a publisher's work.

Section numbers: OCI image-spec v1.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

__all__ = [
    "CHUNK",
    "CONFIG",
    "EMPTY",
    "INDEX",
    "LAYER",
    "LAYER_GZIP",
    "LAYER_ZSTD",
    "MANIFEST",
    "TITLE",
    "Blob",
    "BytesBlob",
    "Descriptor",
    "FileBlob",
    "Filed",
    "Image",
    "ImageIndex",
    "Seekable",
    "canonical_json",
    "digest_of",
    "platform_document",
]

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"

EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
"""The annotation with a file's name (annotations.md)."""

CHUNK = 1 << 20
"""Bytes moved at a time."""


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of *data* (descriptor.md, "Digests")."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(document: Any) -> bytes:
    """The one byte form of a JSON document: sorted keys, no spaces, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True)
class Descriptor:
    """What a blob is: media type, ``sha256:<hex>`` digest, size in bytes (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """What it is, for people: the model or packages of a layer where its annotations say so."""
        return f"The blob {self.digest}" if self.title == self.digest else f"The layer of {self.title}"

    @property
    def title(self) -> str:
        """The same in short: the model, packages or file, else the digest."""
        names = (self.annotations.get(key) for key in ("io.cpack.model.path", "io.cpack.layer.name", TITLE))
        return next(filter(None, names), self.digest)

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        return document


class Blob(Protocol):
    """Content with a known descriptor.

    :meth:`chunks` may be called several times, also at once from several threads; each call yields the same bytes from
    the beginning. Whoever consumes them need not trust them: publishers hash what they write.
    """

    @property
    def descriptor(self) -> Descriptor: ...

    def chunks(self) -> Iterator[bytes]: ...


@runtime_checkable
class Seekable(Protocol):
    """A blob that can be read from any place on without making what comes before it.

    Nothing proves what comes from within, so :meth:`chunks_from` never does, not even from the beginning."""

    def chunks_from(self, offset: int) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class BytesBlob:
    """A blob held in memory: manifests, configs, small documents."""

    media_type: str
    data: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, digest_of(self.data), len(self.data), self.annotations)

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@runtime_checkable
class Filed(Protocol):
    """A blob that may lie in a file as it is, whose blocks can be shared with another file."""

    def opened(self) -> BinaryIO | None:
        """The file with the blob's bytes and no others, if there is one. Nobody has proved it."""


@dataclass(frozen=True)
class FileBlob:
    """A blob whose bytes lie in a file."""

    descriptor: Descriptor
    path: Path

    def opened(self) -> BinaryIO:
        """The file with the blob's bytes and no others: a :class:`Filed`."""
        return self.path.open("rb")

    def chunks(self) -> Iterator[bytes]:
        return self.chunks_from(0)

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on, without reading those before it."""
        with self.path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK):
                yield chunk


@dataclass(frozen=True)
class Image:
    """One platform's image: manifest and config as bytes, layers as blobs from bottom to top (manifest.md, config.md).

    ``config`` lists the diff IDs; for uncompressed layers these are the layers' digests.
    """

    manifest: BytesBlob
    config: BytesBlob
    layers: tuple[Blob, ...]

    @property
    def id(self) -> str:
        """The image ID that engines show: the digest of the config."""
        return self.config.descriptor.digest

    @property
    def digest(self) -> str:
        """The digest by which a registry knows the image: that of the manifest."""
        return self.manifest.descriptor.digest

    @property
    def platform(self) -> str:
        """``os/architecture`` as written in the config."""
        config = json.loads(self.config.data)
        return f"{config.get('os')}/{config.get('architecture')}"

    def blobs(self) -> Iterator[Blob]:
        """Layers, config and last the manifest."""
        yield from (*self.layers, self.config, self.manifest)

    @property
    def size(self) -> int:
        """Bytes of manifest, config and all layers as they are stored."""
        blobs = [self.manifest.descriptor.size, self.config.descriptor.size]
        return sum(blobs) + sum(layer.descriptor.size for layer in self.layers)


@dataclass(frozen=True)
class ImageIndex:
    """Images for several platforms under one name (image-index.md). Blobs that they share are the same blobs."""

    images: tuple[Image, ...]
    document: BytesBlob | None = None
    """The index itself, where others have written it."""

    @property
    def manifest(self) -> BytesBlob:
        """The index: a descriptor of each manifest with its platform, ordered by that."""
        if self.document is not None:
            return self.document
        entries = [
            {**image.manifest.descriptor.to_json(), "platform": platform_document(image)}
            for image in sorted(self.images, key=lambda image: image.platform)
        ]
        return BytesBlob(INDEX, canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))

    @property
    def digest(self) -> str:
        """The digest by which a registry knows all of them together."""
        return self.manifest.descriptor.digest

    @property
    def size(self) -> int:
        """Bytes of everything, each blob once."""
        return sum({blob.descriptor.digest: blob.descriptor.size for blob in self.blobs()}.values())

    def blobs(self) -> Iterator[Blob]:
        """Every blob below the index, and last the index itself; what several images have comes several times."""
        for image in self.images:
            yield from (*image.layers, image.config, image.manifest)
        yield self.manifest

    def image_for(self, platform: str) -> Image | None:
        """The image for *platform* (``linux/amd64``), if there is one."""
        return next((image for image in self.images if image.platform == platform), None)


def platform_document(image: Image) -> dict[str, str]:
    """The platform of *image* as an index has it (image-index.md, "platform")."""
    config = json.loads(image.config.data)
    return {key: config[key] for key in ("architecture", "os", "variant") if config.get(key)}
