"""A base image in Nix: its manifest and config stand in the folder that Nix reads, each layer is a fixed output by its
own digest, and one derivation makes of them what images over it need: the sizes of its layers, its accounts, and the
layers as links. So it is read once, however often what lies over it changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpack_build.fetch.store import Store
from cpack_build.image.base import Base, base_of
from cpack_build.lock.schema import BaseImage
from cpack_build.oci.documents import parse_manifest, prove
from cpack_build.oci.types import BytesBlob, FileBlob, Image
from cpack_build.oci.uncompressed import uncompressed

__all__ = ["CONFIG", "MANIFEST", "BaseFolder", "read_base", "write_base"]

MANIFEST, CONFIG = "manifest.json", "config.json"
_SUMMARY = "summary.json"
_LAYERS = "layers"


@dataclass(frozen=True)
class BaseFolder:
    """What the derivation has made: the *base*, and ``/etc/passwd`` and ``/etc/group`` of it."""

    base: Base
    accounts: tuple[bytes, bytes]


def write_base(pin: BaseImage, documents: Path, layers: Mapping[str, Path], out: Path, *, store: Store) -> None:
    """The base of the manifest and config in *documents* and of *layers* by sha256, each of which Nix has proved.

    Raises :class:`HashMismatch` where the documents are others than those that the lock pins, :class:`UnsafeInput`
    where it says of the base what that is not.
    """
    manifest, config = ((documents / name).read_bytes() for name in (MANIFEST, CONFIG))
    prove(manifest, pin.digest, f"The manifest of the base {pin.reference}")
    described, _ = parse_manifest(pin.reference, manifest)
    prove(config, described.digest, f"The config of the base {pin.reference}")
    image = _image(manifest, config, pin.reference, layers)
    base = base_of(pin, image, store=store)
    passwd, group = base.accounts()
    summary = {
        "sizes": [layer.descriptor.size for layer in base.layers],
        "accounts": [passwd.decode("latin-1"), group.decode("latin-1")],
    }
    (out / _LAYERS).mkdir(parents=True)
    (out / MANIFEST).write_bytes(manifest)
    (out / CONFIG).write_bytes(config)
    (out / _SUMMARY).write_text(json.dumps(summary) + "\n")
    for sha256, path in layers.items():
        (out / _LAYERS / sha256).symlink_to(path)


def read_base(folder: Path) -> BaseFolder:
    """What :func:`write_base` has left in *folder*. No layer is read."""
    manifest, config = ((folder / name).read_bytes() for name in (MANIFEST, CONFIG))
    summary = json.loads((folder / _SUMMARY).read_bytes())
    layers = {path.name: path for path in (folder / _LAYERS).iterdir()}
    image = _image(manifest, config, str(folder), layers)
    document = json.loads(config)
    plain = [
        uncompressed(layer, diff_id, told=size)
        for layer, diff_id, size in zip(image.layers, document["rootfs"]["diff_ids"], summary["sizes"], strict=True)
    ]
    passwd, group = (text.encode("latin-1") for text in summary["accounts"])
    return BaseFolder(Base(document, tuple(plain)), (passwd, group))


def _image(manifest: bytes, config: bytes, name: str, layers: Mapping[str, Path]) -> Image:
    described, descriptors = parse_manifest(name, manifest)
    files = [FileBlob(one, layers[one.digest.removeprefix("sha256:")]) for one in descriptors]
    return Image(BytesBlob("", manifest), BytesBlob(described.media_type, config), tuple(files))
