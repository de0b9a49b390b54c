"""The base image's part of the result: its layers as plain tars, its config, the accounts and the Python that it has.

It is taken by the digest that the lock pins: from a registry by that digest whatever its tag says now, from a local
folder or archive only if that still holds it.

Where the image goes to registries alone, the lock's summary of the base stands in for its layers: they stay where they
are until something reads them, which a push does not that mounts or streams them. The summary is held against the
layers wherever they are at hand. Diff IDs and layer digests are the base's own, proved by the digest, in either case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpack_build.errors import StaleLock, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store, stamp_at
from cpack_build.image.interpreter import is_wanted
from cpack_build.image.layer import MTIME
from cpack_build.lock.base import ACCOUNT_FILES
from cpack_build.lock.cuda import FAMILIES
from cpack_build.lock.schema import BaseImage, ScratchBase
from cpack_build.oci import tar
from cpack_build.oci.documents import parse_manifest, require_no_triggers
from cpack_build.oci.download import missing_bytes
from cpack_build.oci.filesystem import FileTree, file_tree
from cpack_build.oci.pull import bring_all, pull
from cpack_build.oci.reference import ArchiveName, ImageName, LayoutName, Reference, parse_image_name
from cpack_build.oci.sources import ImageSource, open_source
from cpack_build.oci.types import Blob, BytesBlob, Descriptor, Image, canonical_json
from cpack_build.oci.uncompressed import Uncompressed, uncompressed
from cpack_build.progress import SILENT, Progress

__all__ = ["Base", "base_of", "known_base_layers", "locked_documents", "open_locked_base", "require_quiet_base"]

_LAYER_COUNT = "base-layers"
_QUIET = "base-quiet"
_ACCOUNTS = "base-accounts"


@dataclass(frozen=True)
class Base:
    """A base image at hand: its *config* document and its uncompressed *layers*, with diff IDs as digests.

    What of its files is asked for at every build is remembered in *store*, by the diff IDs."""

    config: dict[str, object]
    layers: tuple[Blob, ...]
    store: Store | None = None
    sources: Mapping[Path, tuple[int, ...]] | None = None
    """The files that it lies in, each with its stamp of before it was read; ``None`` where that is not known."""
    pin: BaseImage | None = None
    """What the lock says of it."""
    is_here: bool = True
    """Whether all layers lie on this machine; else each comes when it is read."""

    def files(self, *, keeping: Sequence[str] = ()) -> FileTree:
        """The file system that the layers add up to; each is read once, and of the contents *keeping* are kept."""
        bring_all(layer.stored for layer in self.layers if isinstance(layer, Uncompressed))
        empty = BytesBlob("", b"")
        return file_tree(Image(empty, empty, self.layers), keeping=keeping)

    def accounts(self) -> tuple[bytes, bytes]:
        """``/etc/passwd`` and ``/etc/group``. Raises :class:`UnsafeInput` where they are not what the lock says."""
        summary = self.pin.summary if self.pin is not None else None
        told = (summary.passwd.encode(), summary.group.encode()) if summary is not None else None
        known = self._known_accounts()
        if known is None and told is not None and not self.is_here:
            return told
        found = known or self._read_accounts()
        if told is not None and found != told:
            assert self.pin is not None
            raise _lie(self.pin, f"has other accounts in {' and '.join(f'/{name}' for name in ACCOUNT_FILES)}")
        return found

    def _known_accounts(self) -> tuple[bytes, bytes] | None:
        known = self.store.recall(_ACCOUNTS, self._key) if self.store is not None else None
        if known is None:
            return None
        passwd, group = (text.encode("latin-1") for text in json.loads(known))
        return passwd, group

    def _read_accounts(self) -> tuple[bytes, bytes]:
        found = self.files(keeping=ACCOUNT_FILES).read(ACCOUNT_FILES)
        passwd, group = (found.get(name, b"") for name in ACCOUNT_FILES)
        if self.store is not None:
            self.store.remember(_ACCOUNTS, self._key, json.dumps([passwd.decode("latin-1"), group.decode("latin-1")]))
        return passwd, group

    @property
    def _key(self) -> str:
        return canonical_json([layer.descriptor.digest for layer in self.layers]).decode()

    def interpreter_files(self, python: str) -> Iterator[tar.Entry]:
        """What of the base's files its Python *python* (``3.11``) needs to start."""
        tree = self.files()
        entries = {
            path: tar.Entry(path, node.kind, node.mode, MTIME, target=node.target)
            for path, node in tree.nodes.items()
            if node.kind != "other" and is_wanted(path, node.kind, node.size, python)
        }
        contents = tree.read(path for path, entry in entries.items() if entry.kind == "file")
        for path, entry in sorted(entries.items()):
            yield replace(entry, content=tar.BytesContent(contents[path])) if entry.kind == "file" else entry


def open_locked_base(
    pin: BaseImage,
    *,
    platform: str,
    name: str,
    store: Store,
    sources: Sources,
    stays: bool = False,
    progress: Progress = SILENT,
) -> Base:
    """The base that a lock pins, as *name* (``oci:DIR``, a registry's reference, a family) has it.

    Its layers come from their registry now; but if the base *stays*, because only a registry is given the image, they
    are asked for when something reads them, and the lock's summary says the rest.

    Raises :class:`StaleLock` when a local *name* holds another image now, :class:`UnsafeInput` when the summary is not
    the base's, and what reading it raises.
    """
    image_name = _located(pin, name)
    stamps = {path: stamp_at(path) for path in _files_of(image_name, [pin.digest])}
    source = open_source(image_name, mirrors=sources.mirrors, store=store, access=sources.registries)
    image = _locked(pin, source, platform=platform, name=name)
    digests = [pin.digest, *(blob.digest for blob in _blobs_of(name, image.manifest.data))]
    stamps = {path: stamp_at(path) for path in _files_of(image_name, digests)} | stamps
    is_here = not (stays and pin.summary is not None and _is_away(source, image))
    if is_here:
        image = pull(source, platform, progress=progress).image
    if source.kept is not None:
        found = [store.find(digest) for digest in (digests if is_here else digests[:2])]
        stamps = {file.path: file.stamp for file in found if file is not None} if all(found) else {}
    known = {path: stamp for path, stamp in stamps.items() if stamp is not None}
    files = known if known and len(known) == len(stamps) else None
    return base_of(pin, image, is_here=is_here, store=store, files=files, progress=progress)


def locked_documents(
    pin: BaseImage, *, platform: str, name: str, store: Store, sources: Sources
) -> tuple[BytesBlob, BytesBlob]:
    """Manifest and config of the base that a lock pins, as *name* has it; none of its layers is asked for.

    Raises as :func:`open_locked_base`.
    """
    source = open_source(_located(pin, name), mirrors=sources.mirrors, store=store, access=sources.registries)
    image = _locked(pin, source, platform=platform, name=name)
    store.remember(_LAYER_COUNT, pin.digest, str(len(image.layers)))
    return image.manifest, image.config


def _located(pin: BaseImage, name: str) -> ImageName:
    image_name = parse_image_name(name if name not in ("scratch", *FAMILIES) else pin.reference)
    return replace(image_name, tag=None, digest=pin.digest) if isinstance(image_name, Reference) else image_name


def _locked(pin: BaseImage, source: ImageSource, *, platform: str, name: str) -> Image:
    """The image of *source*, which is the one that is pinned."""
    digest = source.manifest(platform)[0].digest
    if digest != pin.digest:
        raise StaleLock("The lock", f"it pins the base {pin.digest}, and {name} is {digest} now")
    return source.as_image(platform)


def base_of(
    pin: BaseImage,
    image: Image,
    *,
    store: Store,
    is_here: bool = True,
    files: Mapping[Path, tuple[int, ...]] | None = None,
    progress: Progress = SILENT,
) -> Base:
    """The base that *image* is, held against what the lock says of it as far as its layers are here.

    Raises :class:`UnsafeInput`, and what reading a layer raises.
    """
    config = json.loads(image.config.data)
    told: tuple[int | None, ...] = pin.summary.layers if pin.summary is not None else (None,) * len(image.layers)
    if len(told) != len(image.layers):
        raise _lie(pin, f"has {len(image.layers)} layers, not {len(told)}")
    layers = []
    with progress.task(f"Base {pin.reference}", total=len(image.layers), unit="layers") as task:
        for layer, diff_id, size in zip(image.layers, config["rootfs"]["diff_ids"], told, strict=True):
            plain = uncompressed(layer, diff_id, memo=store, told=None if is_here else size)
            if size not in (None, plain.descriptor.size):
                raise _lie(pin, f"has {plain.descriptor.size} bytes, not {size}, in layer {layer.descriptor.digest}")
            layers.append(plain)
            task.advance(1)
    store.remember(_LAYER_COUNT, pin.digest, str(len(layers)))
    return Base(config, tuple(layers), store, files, pin, is_here)


def _is_away(source: ImageSource, image: Image) -> bool:
    """Whether some layer lies in its registry only."""
    kept = source.kept
    return kept is not None and any(missing_bytes(layer.descriptor, kept.store) for layer in image.layers)


def _lie(pin: BaseImage, what: str) -> UnsafeInput:
    return UnsafeInput(
        f"The lock does not say of its base {pin.reference} what that is: {pin.digest} {what}.",
        hint="Do not use this lock; make it anew with `cpack-build lock --update all`.",
    )


def require_quiet_base(pin: BaseImage, *, platform: str, name: str, store: Store, sources: Sources) -> None:
    """See that the base that a lock pins, as *name* has it, says nothing that an engine which builds on it would do of
    its own accord. Raises :class:`UnsafeInput`, and what reading it raises; what is known of it is not asked again."""
    if store.recall(_QUIET, pin.digest) is not None:
        return
    image_name = parse_image_name(name if pin.reference == "layout" else pin.reference)
    assert isinstance(image_name, LayoutName | Reference)
    source = open_source(
        replace(image_name, tag=None, digest=pin.digest), mirrors=sources.mirrors, store=store,
        access=sources.registries,
    )  # fmt: skip
    if source.manifest(platform)[0].digest != pin.digest:
        raise UnsafeInput(
            f"The lock's base {pin.digest} is an index of images, not an image.",
            hint="Do not use this lock; make it anew with `cpack-build lock`.",
        )
    require_no_triggers(pin.reference, source.config(platform))
    store.remember(_QUIET, pin.digest, "")


def _blobs_of(name: str, manifest: bytes) -> list[Descriptor]:
    config, layers = parse_manifest(name, manifest)
    return [config, *layers]


def _files_of(name: ImageName, digests: Sequence[str]) -> list[Path]:
    """The files here, other than the store's, that hold the image *name* with the blobs *digests*."""
    if isinstance(name, ArchiveName):
        return [name.path]
    if isinstance(name, LayoutName):
        blobs = name.path / "blobs" / "sha256"
        return [name.path / "index.json", *(blobs / digest.removeprefix("sha256:") for digest in digests)]
    return []


def known_base_layers(base: ScratchBase | BaseImage, *, store: Store) -> int:
    """How many layers a locked base has, if the lock says so or this machine has seen it; else 0."""
    if isinstance(base, BaseImage) and base.summary is not None:
        return len(base.summary.layers)
    known = store.recall(_LAYER_COUNT, base.digest) if isinstance(base, BaseImage) else None
    return int(known) if known is not None else 0
