"""The image that Nix has made: an OCI layout whose layers are links to those of their own derivations.

Models are not in it, unless they were asked for: an OCI layout may leave blobs to an external store (image-layout.md,
"Blobs"), which here is cpack-build's own, from which they are streamed as ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cpack_build.backends.nix.base import read_base
from cpack_build.errors import BadImage, HashMismatch, StaleLock
from cpack_build.image.app import app_layer
from cpack_build.image.build import FORMATS, history_of
from cpack_build.image.layer import Recipe, TarLayer
from cpack_build.lock.schema import Lock, Model, read_lock
from cpack_build.lock.service import service_code
from cpack_build.oci import tar
from cpack_build.oci.documents import parse_descriptor, parse_manifest
from cpack_build.oci.layout import LAYOUT_FILE, image_index, index_entry
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.types import CHUNK, Blob, BytesBlob, Descriptor, FileBlob, Image
from cpack_build.oci.uncompressed import Uncompressed

__all__ = ["LAYER", "LAYER_TAR", "check_image", "lock_in", "open_image", "write_image"]

LAYER, LAYER_TAR = "layer.json", "layer.tar"
"""What the output of a layer's derivation holds: its descriptor and history, and its bytes."""
LOCK = "cpack.lock"
"""The lock of the image, beside the layout's own files."""
BASE = "base"
"""The output of the derivation of its base image, a link."""
_BLOBS = "blobs/sha256"


def write_image(
    lock: Lock,
    layers: Sequence[Path | Model],
    out: Path,
    *,
    documents: Mapping[str, bytes],
    loader_cache: bytes | None,
    base: Path | None = None,
    is_whole: bool = False,
) -> None:
    """The layout of *lock*'s image at *out*: *layers* are outputs of layers' derivations, and models that stay outside.

    Over a *base*, the output of its derivation, whose compressed layers are left to it, unless the layout is to be
    *whole*.

    Raises :class:`StaleLock` when the lock has another cpack-build's service.
    """
    if lock.service_code != service_code():
        raise StaleLock("cpack.lock", f"it pins the service of cpack-build {lock.service_code.version}, not this one's")
    blobs = out / _BLOBS
    blobs.mkdir(parents=True)
    below = read_base(base) if base is not None else None
    descriptors: list[Blob] = []
    history: list[str] = []
    if base is not None and below is not None:
        (out / BASE).symlink_to(base)
        for plain in below.base.layers:
            _lay_base(plain, _blob_path(out, plain.descriptor), is_whole=is_whole)
            descriptors.append(plain)
    for layer in layers:
        if isinstance(layer, Model):
            outside = ModelLayer(Path(layer.path), layer.sha256, layer.size, layer.layer_digest, layer.path)
            descriptors.append(outside)
            history.append(history_of(outside))
            continue
        document = json.loads((layer / LAYER).read_bytes())
        blob = FileBlob(parse_descriptor(document["descriptor"], str(layer)), layer / LAYER_TAR)
        _blob_path(out, blob.descriptor).symlink_to(blob.path)
        descriptors.append(blob)
        history.append(document["history"])
    documents = {**documents, "cpack.lock": lock.carried.to_bytes()}
    accounts = below.accounts if below is not None else None
    top = _measured(app_layer(lock.models, documents, base_accounts=accounts, loader_cache=loader_cache))
    form = FORMATS[lock.image_revision]
    every = [*descriptors, top]
    config = form.config(
        lock,
        history=[*history, history_of(top)],
        diff_ids=[layer.descriptor.digest for layer in every],
        base=below.base.config if below is not None else None,
    )
    image = Image(form.manifest(lock, config=config, layers=every), config, tuple(every))
    for small in (top, config, image.manifest):
        with _blob_path(out, small.descriptor).open("wb") as file:
            file.writelines(small.chunks())
    (out / "oci-layout").write_bytes(LAYOUT_FILE)
    (out / "index.json").write_bytes(image_index([index_entry(image, tag="latest")]))
    (out / LOCK).write_bytes(lock.to_bytes())


def _lay_base(layer: Blob, place: Path, *, is_whole: bool) -> None:
    """A base's *layer* into a layout, as far as it belongs there; a base may have the same one several times."""
    if place.is_symlink() or place.exists():
        return
    stored = layer.stored if isinstance(layer, Uncompressed) else layer
    if isinstance(stored, FileBlob) and stored.descriptor.digest == layer.descriptor.digest:
        place.symlink_to(stored.path.resolve())
    elif is_whole:
        with place.open("wb") as file:
            file.writelines(layer.chunks())


def _measured(recipe: Recipe) -> TarLayer:
    data = b"".join(tar.stream(recipe.entries()))
    return TarLayer(recipe, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def open_image(folder: Path, models: Callable[[Model], Blob]) -> Image:
    """The image whose layout a derivation has put into *folder*; *models* gives the layers that it leaves out.

    Raises :class:`BadImage`, :class:`HashMismatch` where it is something else.
    """
    _, lock = _documents(folder)
    manifest = BytesBlob(*_manifest(folder))
    config, descriptors = parse_manifest(str(folder), manifest.data)
    by_digest = {model.layer_digest: model for model in lock.models}
    layers: list[Blob] = list(_base_layers(folder))
    for descriptor in descriptors[len(layers) :]:
        path = _blob_path(folder, descriptor)
        if path.exists():
            layers.append(FileBlob(descriptor, path))
        elif descriptor.digest in by_digest:
            layers.append(models(by_digest[descriptor.digest]))
        else:
            raise BadImage(folder, f"has no {descriptor.shown}")
    data = _blob_path(folder, config).read_bytes()
    return Image(manifest, BytesBlob(config.media_type, data), tuple(layers))


def _base_layers(folder: Path) -> Sequence[Blob]:
    """The layers of the base, as it has them: whoever pushes them need not compress them again."""
    return read_base(folder / BASE).base.layers if (folder / BASE).exists() else ()


def lock_in(folder: Path) -> Lock:
    """The lock whose image the layout in *folder* is."""
    return _documents(folder)[1]


def check_image(folder: Path) -> str:
    """Read every blob of the layout in *folder*: each is what it is called, and the config is that of the lock.

    Gives the manifest's digest. Raises :class:`HashMismatch`, :class:`BadImage`.
    """
    layers, lock = _documents(folder)
    for path in sorted((folder / _BLOBS).iterdir()):
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
        if hasher.hexdigest() != path.name:
            raise HashMismatch(f"The blob {path}", expected=path.name, actual=hasher.hexdigest())
    known = {model.layer_digest for model in lock.models}
    for plain in _base_layers(folder):
        for _ in plain.chunks():
            pass  # which proves it by its diff ID
        known.add(plain.descriptor.digest)
    for layer in layers:
        if not _blob_path(folder, layer).exists() and layer.digest not in known:
            raise BadImage(folder, f"has no {layer.shown}")
    _, data = _manifest(folder)
    config, _ = parse_manifest(str(folder), data)
    label = json.loads(_blob_path(folder, config).read_bytes())["config"]["Labels"]["io.cpack.lock.sha256"]
    if label != lock.carried.sha256:
        raise HashMismatch(f"The lock beside {folder}", expected=label, actual=lock.carried.sha256)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _documents(folder: Path) -> tuple[tuple[Descriptor, ...], Lock]:
    try:
        lock = read_lock((folder / LOCK).read_bytes(), name=folder / LOCK)
        _, data = _manifest(folder)
        return parse_manifest(str(folder), data)[1], lock
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadImage(
            folder, "is not what Nix makes of a lock", hint="Name the result of `nix build .#image`."
        ) from error


def _manifest(folder: Path) -> tuple[str, bytes]:
    entry = parse_descriptor(json.loads((folder / "index.json").read_bytes())["manifests"][0], f"{folder}: index.json")
    data = _blob_path(folder, entry).read_bytes()
    if (actual := f"sha256:{hashlib.sha256(data).hexdigest()}") != entry.digest:
        raise HashMismatch(f"The manifest in {folder}", expected=entry.digest, actual=actual)
    return entry.media_type, data


def _blob_path(folder: Path, descriptor: Descriptor) -> Path:
    return folder / _BLOBS / descriptor.digest.removeprefix("sha256:")
