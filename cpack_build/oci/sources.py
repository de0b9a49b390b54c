"""Reading images: from OCI layouts, archives and registries, nothing believed before its hash is known.

An :class:`Origin` gives bytes and need not be trusted; there is one for folders and archives with an OCI layout, one
for what ``docker save`` of old writes, and one for registries (:mod:`cpack_build.oci.registry`). :class:`ImageSource`
puts the rules around any of them: documents are small, digests and sizes hold, an index leads to the image of one
platform.

Specification: OCI image-spec v1.1, image-index.md, manifest.md, descriptor.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cpack_build.errors import BadImage, HashMismatch, Unresolvable, UsageError
from cpack_build.oci.files import FolderFiles, LayoutFiles, TarFiles
from cpack_build.oci.reference import (
    ArchiveName,
    EngineName,
    ImageName,
    LayoutName,
    is_digest,
    parse_image_name,
    parse_reference,
)
from cpack_build.oci.types import (
    CONFIG,
    INDEX,
    LAYER,
    LAYER_GZIP,
    MANIFEST,
    Blob,
    BytesBlob,
    Descriptor,
    FileBlob,
    Image,
    canonical_json,
    digest_of,
)

if TYPE_CHECKING:
    from cpack_build.oci.connection import Access

__all__ = ["DOCUMENT_LIMIT", "BlobStore", "Document", "ImageSource", "Mirror", "Origin", "open_source"]

DOCUMENT_LIMIT = 4 << 20
"""Bytes of an index, manifest or config; registries take no larger ones ("Pushing Manifests")."""
_INDEX_TYPES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFEST_TYPES = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_DOCUMENT_COUNT = 16
"""Indexes that one image name may lead through: enough for any real image, and no loop runs for long."""


class Origin(Protocol):
    """Where an image's bytes come from. They are not to be trusted: :class:`ImageSource` proves them."""

    def top(self) -> Document:
        """The index or manifest that the image's name stands for, with its digest if the name has one."""

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of an index or manifest."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of a config or layer, from the beginning."""


@dataclass(frozen=True)
class Document:
    """An index or manifest: its bytes, and what its origin says that it is (perhaps nothing)."""

    data: bytes
    media_type: str = ""
    digest: str | None = None


class _Stored(Protocol):
    @property
    def path(self) -> Path: ...


class BlobStore(Protocol):
    """What is needed of ``fetch.store.Store``: verified files by hash, and a memory for what was computed."""

    def find(self, sha256: str) -> _Stored | None: ...

    def put(
        self, chunks: Iterable[bytes], *, what: object, sha256: str | None = None, size: int | None = None
    ) -> _Stored: ...

    def recall(self, kind: str, key: str) -> str | None: ...

    def remember(self, kind: str, key: str, value: str) -> None: ...


class Mirror(Protocol):
    """What is needed of ``fetch.mirrors.Mirrors``."""

    def apply(self, url: str) -> str: ...


def open_source(
    name: ImageName,
    *,
    mirrors: Mirror | None = None,
    store: BlobStore | None = None,
    access: Access | None = None,
) -> ImageSource:
    """The image called *name*. What a registry sends is kept in *store* and taken from there the next time.

    *mirrors* maps prefixes of a registry reference (``docker.io/``) to another registry's (``localhost:5000/hub/``),
    or to a folder or archive (``oci:/srv/base``). Nothing is read yet. Raises :class:`UsageError` for names of
    engines.
    """
    if isinstance(name, EngineName):
        raise UsageError(
            f"{name} is an image in an engine, which cannot be read from here.",
            hint=f"Save it first with `{name.engine} save -o image.tar NAME`, and name docker-archive:image.tar.",
        )
    if isinstance(name, LayoutName):
        return ImageSource(str(name), _LayoutOrigin(str(name), FolderFiles(name.path), name.tag, name.digest))
    if isinstance(name, ArchiveName):
        return ImageSource(str(name), _open_archive(str(name), name.path))
    version = f":{name.tag}" if name.tag else ""
    version += f"@{name.digest}" if name.digest else ""
    place = mirrors.apply(name.name) if mirrors is not None else name.name
    if place.startswith(("/", "./", "../")):
        place = f"oci:{place}"
    if place.startswith("oci:"):
        return open_source(parse_image_name(place + version))
    if place.startswith(("oci-archive:", "docker-archive:")):
        return open_source(parse_image_name(place))
    from cpack_build.oci.registry import RegistryOrigin

    plain = place.startswith("http://")
    target = parse_reference(place.removeprefix("https://").removeprefix("http://") + version)
    return ImageSource(str(name), RegistryOrigin(target, plain=plain, access=access), store)


class ImageSource:
    """One name's images, one for each platform: what it gives is verified, or an error comes instead of its end."""

    def __init__(self, name: str, origin: Origin, store: BlobStore | None = None) -> None:
        self.name = name
        self._origin = origin
        self._store = store
        self._found: dict[str, tuple[Descriptor, bytes]] = {}

    def manifest(self, platform: str) -> tuple[Descriptor, bytes]:
        """Descriptor and bytes of the manifest for *platform* (``linux/amd64``).

        Raises :class:`Unresolvable` when there is none, :class:`BadImage`, :class:`HashMismatch`, ``NetworkError``.
        """
        if platform not in self._found:
            document = self._origin.top()
            if document.digest is not None:
                _prove(document.data, document.digest, f"{self.name}: the index or manifest")
            self._found[platform] = self._walk(document, platform)
        return self._found[platform]

    def config(self, platform: str) -> bytes:
        """The image config's bytes (config.md)."""
        return self._config(platform, _parse_manifest(self.name, self.manifest(platform)[1])).data

    def layers(self, platform: str) -> tuple[Blob, ...]:
        """The layers from bottom to top, as they are stored; each is verified while it is read."""
        _, layers = _parse_manifest(self.name, self.manifest(platform)[1])
        return tuple(_SourceBlob(layer, self) for layer in layers)

    def as_image(self, platform: str) -> Image:
        """All of it; layers are read when asked for."""
        descriptor, data = self.manifest(platform)
        parsed = _parse_manifest(self.name, data)
        config = self._config(platform, parsed)
        return Image(BytesBlob(descriptor.media_type, data), config, self.layers(platform))

    def read_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob of this image; :class:`HashMismatch` at its end if they are not its own."""
        what = f"{self.name}: blob {descriptor.digest}"
        if self._store is None:
            yield from _proved(self._origin.blob(descriptor), descriptor, what)
            return
        stored = self._store.find(descriptor.digest) or self._store.put(
            _proved(self._origin.blob(descriptor), descriptor, what),
            what=what,
            sha256=descriptor.digest,
            size=descriptor.size,
        )
        yield from FileBlob(descriptor, stored.path).chunks()

    def _config(self, platform: str, parsed: tuple[Descriptor, tuple[Descriptor, ...]]) -> BytesBlob:
        descriptor, layers = parsed
        _limited(self.name, descriptor)
        data = b"".join(self.read_blob(descriptor))
        config = _parse(data, f"{self.name}: the config")
        own = f"{config.get('os')}/{config.get('architecture')}"
        if own != platform:
            raise Unresolvable(
                f"{self.name} is an image for {own}, and {platform} is wanted.", hint="Name another image or platform."
            )
        rootfs = config.get("rootfs")
        diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(diff_ids, list) or not all(isinstance(one, str) and is_digest(one) for one in diff_ids):
            raise BadImage(f"{self.name}: the config", "has no list of diff IDs")
        if len(diff_ids) != len(layers):
            raise BadImage(self.name, f"has {len(layers)} layers, but its config has {len(diff_ids)} diff IDs")
        return BytesBlob(descriptor.media_type, data)

    def _walk(self, document: Document, platform: str) -> tuple[Descriptor, bytes]:
        """From the top document down to the manifest of *platform*, breadth first."""
        queue = [document]
        seen: list[str] = []
        for _ in range(_DOCUMENT_COUNT):
            if not queue:
                break
            document = queue.pop(0)
            parsed = _parse(document.data, f"{self.name}: the index or manifest")
            if _is_manifest(parsed, document.media_type):
                media_type = parsed.get("mediaType") or document.media_type or MANIFEST
                return Descriptor(str(media_type), digest_of(document.data), len(document.data)), document.data
            entries = parsed.get("manifests")
            if not isinstance(entries, list):
                raise BadImage(self.name, "is neither an image manifest nor an index of them")
            chosen = _fitting(self.name, entries, platform, seen)
            queue += [self._document(descriptor) for descriptor in chosen[: _DOCUMENT_COUNT - len(queue)]]
        have = f"it has {', '.join(sorted(set(seen)))}" if seen else "it is empty"
        raise Unresolvable(f"{self.name} has no image for {platform}; {have}.", hint="Name another image or platform.")

    def _document(self, descriptor: Descriptor) -> Document:
        _limited(self.name, descriptor)
        what = f"{self.name}: manifest {descriptor.digest}"
        stored = self._store.find(descriptor.digest) if self._store is not None else None
        chunks = FileBlob(descriptor, stored.path).chunks() if stored else self._origin.manifest(descriptor)
        data = b"".join(_proved(chunks, descriptor, what))
        if self._store is not None and stored is None:
            self._store.put([data], what=what, sha256=descriptor.digest)
        return Document(data, descriptor.media_type)


@dataclass(frozen=True)
class _SourceBlob:
    descriptor: Descriptor
    source: ImageSource

    def chunks(self) -> Iterator[bytes]:
        return self.source.read_blob(self.descriptor)


# -- origins -----------------------------------------------------------------------------------------------------------


class _LayoutOrigin:
    """An OCI layout, in a folder or a tar (image-layout.md)."""

    def __init__(self, name: str, files: LayoutFiles, tag: str | None = None, digest: str | None = None) -> None:
        self._name, self._files, self._tag, self._digest = name, files, tag, digest

    def top(self) -> Document:
        if self._digest is not None:
            data = self._files.read(_blob_path(self._digest), DOCUMENT_LIMIT)
            return Document(data, digest=self._digest)
        index = _parse(self._files.read("index.json", DOCUMENT_LIMIT), f"{self._name}: index.json")
        entries = index.get("manifests")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadImage(f"{self._name}: index.json", "has no list of manifests")
        names = sorted({name for name in map(_ref_name, entries) if name})
        if self._tag is not None:
            entries = [entry for entry in entries if _ref_name(entry) == self._tag]
            if not entries:
                have = f"it has {', '.join(names[:20])}" if names else "its images have no names"
                raise Unresolvable(f"{self._name}: there is no image {self._tag!r}; {have}.", hint="Name one of those.")
        elif len(names) > 1:
            raise UsageError(
                f"{self._name} has several images: {', '.join(names[:20])}.",
                hint="Name one of them as oci:DIR:TAG.",
            )
        return Document(canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}), INDEX)

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._files.chunks(_blob_path(descriptor.digest))

    blob = manifest


class _DockerSaveOrigin:
    """What ``docker save`` wrote before Docker 25: ``manifest.json``, a config and a tar for each layer.

    It has no OCI manifest, so one is made of it: the same archive always gives the same manifest. Specification: moby,
    image/spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
    """

    def __init__(self, name: str, files: LayoutFiles) -> None:
        self._name, self._files = name, files
        self._members: dict[str, str] = {}

    def top(self) -> Document:
        listed = _parse_any(self._files.read("manifest.json", DOCUMENT_LIMIT), f"{self._name}: manifest.json")
        if not isinstance(listed, list) or len(listed) != 1:
            raise BadImage(f"{self._name}: manifest.json", "does not list exactly one image", hint="Save one image.")
        [entry] = listed
        config_path, paths = (entry.get("Config"), entry.get("Layers")) if isinstance(entry, dict) else (None, None)
        if not isinstance(config_path, str) or not isinstance(paths, list):
            raise BadImage(f"{self._name}: manifest.json", "names no config or no layers")
        config = self._files.read(config_path, DOCUMENT_LIMIT)
        self._members[digest_of(config)] = config_path
        layers = [self._layer(str(path)) for path in paths]
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, digest_of(config), len(config)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        return Document(canonical_json(document), MANIFEST)

    def _layer(self, path: str) -> Descriptor:
        hasher = hashlib.sha256()
        size = 0
        kind = LAYER
        for chunk in self._files.chunks(path):
            if size == 0 and chunk.startswith(b"\x1f\x8b"):
                kind = LAYER_GZIP
            hasher.update(chunk)
            size += len(chunk)
        digest = "sha256:" + hasher.hexdigest()
        self._members[digest] = path
        return Descriptor(kind, digest, size)

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        raise BadImage(self._name, f"has no manifest {descriptor.digest}")

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        if descriptor.digest not in self._members:
            raise BadImage(self._name, f"has no blob {descriptor.digest}")
        return self._files.chunks(self._members[descriptor.digest])


def _open_archive(name: str, path: Path) -> Origin:
    """Either kind of archive by what is in it: both flavours are often in one file."""
    files = TarFiles(path)
    if files.has("index.json"):
        return _LayoutOrigin(name, files)
    if files.has("manifest.json"):
        return _DockerSaveOrigin(name, files)
    raise BadImage(name, "has neither index.json nor manifest.json, so it is no image", hint="Is it the right file?")


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


# -- documents ---------------------------------------------------------------------------------------------------------


def _parse_any(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadImage(what, "is not JSON") from error


def _parse(data: bytes, what: str) -> dict[str, Any]:
    document = _parse_any(data, what)
    if not isinstance(document, dict):
        raise BadImage(what, "is not a JSON object")
    return document


def _is_manifest(document: dict[str, Any], media_type: str) -> bool:
    """By its own media type, else by what its origin says, else by what it has."""
    kind = document.get("mediaType") or media_type
    if kind in _MANIFEST_TYPES or kind in _INDEX_TYPES:
        return kind in _MANIFEST_TYPES
    return "layers" in document and "manifests" not in document


def _parse_manifest(name: str, data: bytes) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """Descriptors of config and layers."""
    document = _parse(data, f"{name}: the manifest")
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise BadImage(f"{name}: the manifest", "has no list of layers")
    if any(isinstance(layer, dict) and layer.get("urls") for layer in layers):
        raise BadImage(f"{name}: the manifest", "has layers that lie elsewhere, which is not supported")
    config = _descriptor(document.get("config"), f"{name}: the manifest's config")
    return config, tuple(_descriptor(layer, f"{name}: a layer of the manifest") for layer in layers)


def _descriptor(entry: Any, what: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise BadImage(what, "is not a descriptor")
    kind, digest, size = entry.get("mediaType", ""), entry.get("digest"), entry.get("size")
    if not isinstance(kind, str) or not isinstance(digest, str) or not is_digest(digest):
        raise BadImage(what, "has no media type or no sha256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise BadImage(what, "has no size")
    annotations = entry.get("annotations")
    texts = annotations.items() if isinstance(annotations, dict) else ()
    return Descriptor(kind, digest, size, {key: value for key, value in texts if isinstance(value, str)})


def _fitting(name: str, entries: list[Any], platform: str, seen: list[str]) -> list[Descriptor]:
    """The manifests of *entries* for *platform*, best first, or else the indexes that may lead to one."""
    exact: list[tuple[bool, Descriptor]] = []
    open_ended: list[Descriptor] = []
    for entry in entries:
        descriptor = _descriptor(entry, f"{name}: an entry of the index")
        own = entry.get("platform")
        if not isinstance(own, dict):
            open_ended.append(descriptor)
            continue
        text = f"{own.get('os')}/{own.get('architecture')}"
        if text == platform:
            # amd64 has variants for newer processors; the plain one, or arm64's only one, is for every machine.
            exact.append((own.get("variant") not in (None, "", "v8"), descriptor))
        if text != "unknown/unknown":  # BuildKit's attestations
            seen.append(text)
    return [descriptor for _, descriptor in sorted(exact, key=lambda pair: pair[0])][:1] or open_ended


def _ref_name(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    value = annotations.get("org.opencontainers.image.ref.name") if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else None


def _limited(name: str, descriptor: Descriptor) -> None:
    if descriptor.size > DOCUMENT_LIMIT:
        raise BadImage(
            f"{name}: document {descriptor.digest}",
            f"has {descriptor.size} bytes, and {DOCUMENT_LIMIT} is the most that is taken",
        )


def _prove(data: bytes, digest: str, what: str) -> None:
    if digest_of(data) != digest:
        raise HashMismatch(what, expected=digest, actual=digest_of(data))


def _proved(chunks: Iterator[bytes], descriptor: Descriptor, what: str) -> Iterator[bytes]:
    """The same chunks, no more of them than announced, and an error instead of an end if they are not the right."""
    hasher = hashlib.sha256()
    count = 0
    for chunk in chunks:
        hasher.update(chunk)
        count += len(chunk)
        if count > descriptor.size:
            raise BadImage(what, f"has more than the {descriptor.size} bytes that its descriptor says")
        yield chunk
    if count != descriptor.size:
        raise BadImage(what, f"ends after {count} of {descriptor.size} bytes")
    actual = "sha256:" + hasher.hexdigest()
    if actual != descriptor.digest:
        raise HashMismatch(what, expected=descriptor.digest, actual=actual)
