"""Reading images: from OCI layouts, archives and registries, nothing believed before its hash is known.

An origin (:mod:`cpack_build.oci.origins`, :mod:`cpack_build.oci.registry`) gives bytes and need not be trusted;
:class:`ImageSource` puts the rules around any of them: documents are small, digests and sizes hold, an index leads to
the image of one platform.

Specification: OCI image-spec v1.1, image-index.md, manifest.md, descriptor.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol

from cpack_build.errors import BadImage, Unresolvable, UsageError
from cpack_build.oci.documents import (
    fitting,
    is_manifest,
    limited,
    parse_descriptor,
    parse_manifest,
    parse_object,
    prove,
    proved,
)
from cpack_build.oci.download import BlobStore, Ranged, download, stored
from cpack_build.oci.files import FolderFiles
from cpack_build.oci.origins import Document, LayoutOrigin, Origin, open_archive
from cpack_build.oci.reference import (
    ArchiveName,
    EngineName,
    ImageName,
    LayoutName,
    Reference,
    is_digest,
    parse_image_name,
    parse_reference,
)
from cpack_build.oci.types import INDEX, MANIFEST, Blob, BytesBlob, Descriptor, FileBlob, Image, ImageIndex, digest_of

if TYPE_CHECKING:
    from cpack_build.oci.transport import Access

__all__ = ["ImageSource", "Kept", "LayoutBlob", "Mirror", "SourceBlob", "open_source"]

_INDEX_COUNT = 64
"""Images of an index that is taken whole."""
_DOCUMENT_COUNT = 16
"""Indexes that one image name may lead through: enough for any real image, and no loop runs for long."""


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
        return ImageSource(str(name), LayoutOrigin(str(name), FolderFiles(name.path), name.tag, name.digest))
    if isinstance(name, ArchiveName):
        return ImageSource(str(name), open_archive(str(name), name.path))
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
    origin = RegistryOrigin(target, plain=plain, access=access)
    return ImageSource(str(name), origin, None if store is None else Kept(store, origin), reference=target)


@dataclass(frozen=True)
class Kept:
    """That the blobs of an image go through *store*, and are taken up in the middle where they broke."""

    store: BlobStore
    origin: Ranged


class ImageSource:
    """One name's images, one for each platform: what it gives is verified, or an error comes instead of its end."""

    def __init__(
        self, name: str, origin: Origin, kept: Kept | None = None, *, reference: Reference | None = None
    ) -> None:
        self.name = name
        self.reference = reference
        self.kept = kept
        self._origin = origin
        self._found: dict[str, tuple[Descriptor, bytes]] = {}
        self._top: Document | None = None

    @property
    def digest(self) -> str:
        """Of what the name itself stands for: an index, where there is one, or the manifest."""
        return digest_of(self._document_of_name().data)

    def manifest(self, platform: str) -> tuple[Descriptor, bytes]:
        """Descriptor and bytes of the manifest for *platform* (``linux/amd64``).

        Raises :class:`Unresolvable` when there is none, :class:`BadImage`, :class:`HashMismatch`, ``NetworkError``.
        """
        if platform not in self._found:
            self._found[platform] = self._walk(self._document_of_name(), platform)
        return self._found[platform]

    def config(self, platform: str) -> bytes:
        """The image config's bytes (config.md)."""
        return self._config(platform, parse_manifest(self.name, self.manifest(platform)[1])).data

    def layers(self, platform: str) -> tuple[Blob, ...]:
        """The layers from bottom to top, as they are stored; each is verified while it is read."""
        _, layers = parse_manifest(self.name, self.manifest(platform)[1])
        return self._blobs(layers)

    def as_image(self, platform: str) -> Image:
        """All of it; layers are read when asked for."""
        descriptor, data = self.manifest(platform)
        parsed = parse_manifest(self.name, data)
        config = self._config(platform, parsed)
        return Image(BytesBlob(descriptor.media_type, data), config, self.layers(platform))

    def index(self) -> ImageIndex | None:
        """All images of the index that the name stands for, with its own bytes; ``None`` where it is one image's name.

        What is in it that is no image, as BuildKit's attestations, comes with it. Raises :class:`BadImage`.
        """
        document = self._document_of_name()
        if isinstance(self._origin, LayoutOrigin) and document.digest is None:
            # The layout's own list, as far as it has this name.
            named = self._entries(document) or []
            if len(named) != 1:
                images = tuple(map(self._listed, named))
                return ImageIndex(images) if 1 < len({image.platform for image in images}) == len(images) else None
            document = self._document(named[0])
        entries = self._entries(document)
        if entries is None:
            return None
        own = BytesBlob(document.media_type or INDEX, document.data)
        return ImageIndex(tuple(map(self._listed, entries)), own)

    def _entries(self, document: Document) -> list[Descriptor] | None:
        """What an index lists; ``None`` for a manifest."""
        parsed = parse_object(document.data, f"{self.name}: the index or manifest")
        if is_manifest(self.name, parsed, document.media_type):
            return None
        entries = parsed.get("manifests")
        if not isinstance(entries, list):
            raise BadImage(self.name, "is neither an image manifest nor an index of them")
        if len(entries) > _INDEX_COUNT:
            raise BadImage(self.name, f"is an index of {len(entries)} images, and {_INDEX_COUNT} are taken at most")
        return [parse_descriptor(entry, f"{self.name}: an entry of the index") for entry in entries]

    def _listed(self, descriptor: Descriptor) -> Image:
        """The image with that manifest, for whatever platform."""
        document = self._document(descriptor)
        parsed = parse_object(document.data, f"{self.name}: a manifest")
        if not is_manifest(self.name, parsed, document.media_type):
            raise BadImage(
                self.name,
                f"has an index within its index ({descriptor.digest})",
                hint="Name one image with --platform.",
            )
        config, layers = parse_manifest(self.name, document.data)
        limited(self.name, config)
        data = b"".join(self.read_blob(config))
        parse_object(data, f"{self.name}: the config")
        own = BytesBlob(descriptor.media_type, document.data)
        return Image(own, BytesBlob(config.media_type, data), self._blobs(layers))

    def _blobs(self, layers: Iterable[Descriptor]) -> tuple[Blob, ...]:
        if isinstance(self._origin, LayoutOrigin):
            return tuple(LayoutBlob(layer, self, self._origin) for layer in layers)
        if self.kept is not None:
            return tuple(RegistryBlob(layer, self, self.kept) for layer in layers)
        return tuple(SourceBlob(layer, self) for layer in layers)

    def read_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob of this image; :class:`HashMismatch` at its end if they are not its own."""
        what = self.called(descriptor)
        if self.kept is None:
            return proved(self._origin.blob(descriptor), descriptor, what)
        return download(self.kept.origin, descriptor, self.kept.store, what=what).blob.chunks()

    def called(self, descriptor: Descriptor) -> str:
        """What errors call a blob of this image."""
        return f"{self.name}: blob {descriptor.digest}"

    def _document_of_name(self) -> Document:
        if self._top is None:
            document = self._origin.top()
            if document.digest is not None:
                prove(document.data, document.digest, f"{self.name}: the index or manifest")
            self._top = document
        return self._top

    def _config(self, platform: str, parsed: tuple[Descriptor, tuple[Descriptor, ...]]) -> BytesBlob:
        descriptor, layers = parsed
        limited(self.name, descriptor)
        data = b"".join(self.read_blob(descriptor))
        config = parse_object(data, f"{self.name}: the config")
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
            parsed = parse_object(document.data, f"{self.name}: the index or manifest")
            if is_manifest(self.name, parsed, document.media_type):
                media_type = parsed.get("mediaType") or document.media_type or MANIFEST
                return Descriptor(str(media_type), digest_of(document.data), len(document.data)), document.data
            entries = parsed.get("manifests")
            if not isinstance(entries, list):
                raise BadImage(self.name, "is neither an image manifest nor an index of them")
            chosen = fitting(self.name, entries, platform, seen)
            queue += [self._document(descriptor) for descriptor in chosen[: _DOCUMENT_COUNT - len(queue)]]
        have = f"it has {', '.join(sorted(set(seen)))}" if seen else "it is empty"
        raise Unresolvable(f"{self.name} has no image for {platform}; {have}.", hint="Name another image or platform.")

    def _document(self, descriptor: Descriptor) -> Document:
        limited(self.name, descriptor)
        what = f"{self.name}: manifest {descriptor.digest}"
        store = self.kept.store if self.kept is not None else None
        stored = store.find(descriptor.digest) if store is not None else None
        chunks = FileBlob(descriptor, stored.path).chunks() if stored else self._origin.manifest(descriptor)
        data = b"".join(proved(chunks, descriptor, what))
        if store is not None and stored is None:
            store.put([data], what=what, sha256=descriptor.digest)
        return Document(data, descriptor.media_type)


@dataclass(frozen=True)
class SourceBlob:
    """A layer of *source*'s image, read when it is asked for."""

    descriptor: Descriptor
    source: ImageSource
    proves_itself: ClassVar[bool] = True
    """Its chunks end in an error unless all of them were right, so nobody need hash them again to know."""

    def chunks(self) -> Iterator[bytes]:
        return self.source.read_blob(self.descriptor)


@dataclass(frozen=True)
class LayoutBlob(SourceBlob):
    """A layer that lies in a layout here, so that reading can begin anywhere in it."""

    origin: LayoutOrigin

    def opened(self) -> BinaryIO | None:
        """The file that it lies in, of a layout that is a folder (:class:`~cpack_build.oci.types.Filed`)."""
        return self.origin.opened(self.descriptor)

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on, which nobody has proved: whoever takes them must."""
        return self.origin.blob_from(self.descriptor, offset)


@dataclass(frozen=True)
class RegistryBlob(SourceBlob):
    """A registry's layer. Who reads it whole has it in the store then; who reads from some place on, to send it
    elsewhere, is given it past the store."""

    through: Kept

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on, from the store if it has them, else as they come; nobody has proved them: whoever
        takes them must."""
        here = stored(self.descriptor, self.through.store)
        if here is not None:
            return here.chunks_from(offset)
        return self.through.origin.blob(self.descriptor, start=offset)
