"""The image that Nix has made: an OCI layout whose layers are links to those of their own derivations.

Models are not in it, unless they were asked for: an OCI layout may leave blobs to an external store (image-layout.md,
"Blobs"), which here is cpack-build's own, from which they are streamed as ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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

__all__ = ["LAYER", "LAYER_TAR", "check_image", "lock_in", "open_image", "write_image"]

LAYER, LAYER_TAR = "layer.json", "layer.tar"
"""What the output of a layer's derivation holds: its descriptor and history, and its bytes."""
LOCK = "cpack.lock"
"""The lock of the image, beside the layout's own files."""
_BLOBS = "blobs/sha256"


def write_image(
    lock: Lock,
    layers: Sequence[Path | Model],
    out: Path,
    *,
    documents: Mapping[str, bytes],
    loader_cache: bytes | None,
) -> None:
    """The layout of *lock*'s image at *out*: *layers* are outputs of layers' derivations, and models that stay outside.

    Raises :class:`StaleLock` when the lock has another cpack-build's service.
    """
    if lock.service_code != service_code():
        raise StaleLock("cpack.lock", f"it pins the service of cpack-build {lock.service_code.version}, not this one's")
    blobs = out / _BLOBS
    blobs.mkdir(parents=True)
    descriptors: list[Blob] = []
    history: list[str] = []
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
    top = _measured(app_layer(lock.models, documents, base_accounts=None, loader_cache=loader_cache))
    form = FORMATS[lock.image_revision]
    every = [*descriptors, top]
    config = form.config(
        lock,
        history=[*history, history_of(top)],
        diff_ids=[layer.descriptor.digest for layer in every],
        base=None,
    )
    image = Image(form.manifest(lock, config=config, layers=every), config, tuple(every))
    for small in (top, config, image.manifest):
        with _blob_path(out, small.descriptor).open("wb") as file:
            file.writelines(small.chunks())
    (out / "oci-layout").write_bytes(LAYOUT_FILE)
    (out / "index.json").write_bytes(image_index([index_entry(image, tag="latest")]))
    (out / LOCK).write_bytes(lock.to_bytes())


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
    layers: list[Blob] = []
    for descriptor in descriptors:
        path = _blob_path(folder, descriptor)
        if path.exists():
            layers.append(FileBlob(descriptor, path))
        elif descriptor.digest in by_digest:
            layers.append(models(by_digest[descriptor.digest]))
        else:
            raise BadImage(folder, f"has no {descriptor.shown}")
    data = _blob_path(folder, config).read_bytes()
    return Image(manifest, BytesBlob(config.media_type, data), tuple(layers))


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
