"""A model as an image of its own, made of the very layer that workflow images have it in, which is stored once.

Such an image runs nothing; it is mounted, by Kubernetes as an image volume, by podman with ``--mount type=image``. Its
tag stands for one manifest for each platform, since a runtime looks for its own, and both name the same layer, which
has ModelPack's annotation for the file in it.

Specification: OCI image-spec v1.1; CNCF ModelPack model-spec, annotations.md (``org.cncf.model.*``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cpack_build.errors import UsageError
from cpack_build.oci.limits import check_limits
from cpack_build.oci.modellayer import DATA_OFFSET, model_path
from cpack_build.oci.push import Memo, Pushed, push_index
from cpack_build.oci.reference import Reference, is_digest
from cpack_build.oci.sharedlayer import SHARED
from cpack_build.oci.tar import BLOCK, trailer
from cpack_build.oci.transport import Access
from cpack_build.oci.types import (
    CONFIG,
    LAYER,
    MANIFEST,
    TITLE,
    Blob,
    BytesBlob,
    Descriptor,
    Image,
    ImageIndex,
    Seekable,
    canonical_json,
)
from cpack_build.progress import SILENT, Progress

__all__ = ["WITHOUT", "ModelImage", "check_models", "model_images", "model_tag", "push_models", "without_models"]

WITHOUT = "io.cpack.models.elsewhere"
_PLATFORMS = ("amd64", "arm64")
_TAG = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class ModelImage:
    """One model, for every platform: its *index*, and the *tag* that stands for it."""

    sha256: str
    tag: str
    index: ImageIndex


def model_images(image: Image | ImageIndex) -> tuple[ModelImage, ...]:
    """The models of *image*, each as an image of its own, from the bottom."""
    images = image.images if isinstance(image, ImageIndex) else (image,)
    layers = {layer.descriptor.digest: layer for one in images for layer in one.layers if _model_of(layer.descriptor)}
    return tuple(_model_image(layer) for layer in layers.values())


def model_tag(path: str, sha256: str) -> str:
    """Under which the model is pushed that an image has as *path*."""
    slug = _TAG.sub("-", path.rpartition("/")[2]).strip("-.")[:100] or "model"
    return f"{slug}-{sha256[:12]}"


def without_models(image: Image) -> Image:
    """*image* less its models, for whoever mounts them; the label :data:`WITHOUT` says so. Its other layers stay.

    Raises :class:`UsageError` when it has none, or has some that share a layer and so are no image of their own.
    """
    if any(SHARED in layer.descriptor.annotations for layer in image.layers):
        raise UsageError(
            "Some models of the image share a layer, and cannot be mounted one by one.", hint="Push it with its models."
        )
    kept = [number for number, layer in enumerate(image.layers) if not _model_of(layer.descriptor)]
    if len(kept) == len(image.layers):
        raise UsageError("The image has no models.", hint="Push it as it is.")
    config = json.loads(image.config.data)
    config["rootfs"]["diff_ids"] = [config["rootfs"]["diff_ids"][number] for number in kept]
    lines = config.get("history") or []
    with_layer = [number for number, line in enumerate(lines) if not line.get("empty_layer")]
    if len(with_layer) == len(image.layers):
        dropped = {with_layer[number] for number in range(len(image.layers)) if number not in kept}
        config["history"] = [line for number, line in enumerate(lines) if number not in dropped]
    else:
        config.pop("history", None)  # it may be left out (config.md), and must not disagree with the layers
    section = config.get("config") or {}
    config["config"] = section | {"Labels": {**(section.get("Labels") or {}), WITHOUT: "1"}}
    blob = BytesBlob(image.config.media_type, canonical_json(config))
    layers = tuple(image.layers[number] for number in kept)
    manifest = json.loads(image.manifest.data) | {
        "config": blob.descriptor.to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
    }
    return Image(BytesBlob(image.manifest.media_type, canonical_json(manifest)), blob, layers)


def check_models(models: Sequence[ModelImage], place: Reference, *, blob_limit: int | None = None) -> None:
    """Raise :class:`UsageError` if *models* cannot be pushed to *place*, as far as is known before anything is sent."""
    if place.tag or place.digest:
        raise UsageError(f"{place}: each model gets a tag of its own there.", hint=f"Write {place.name}.")
    for model in models:
        check_limits(model.index.images[0], place, blob_limit=blob_limit)


def push_models(
    models: Sequence[ModelImage],
    place: Reference,
    *,
    access: Access | None = None,
    memo: Memo | None = None,
    blob_limit: int | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> tuple[Pushed, ...]:
    """Give each of *models* to the repository *place*, under its own tag, as :func:`~cpack_build.oci.push.push_index`.

    Raises what :func:`check_models` and that do.
    """
    check_models(models, place, blob_limit=blob_limit)
    given: dict[str, Any] = {"access": access, "memo": memo, "blob_limit": blob_limit, "progress": progress, **options}
    done: list[Pushed] = []
    for model in models:
        done += push_index(model.index, [replace(place, tag=model.tag)], **given)
    return tuple(done)


def _model_image(layer: Blob) -> ModelImage:
    sha256 = _model_of(layer.descriptor)
    path = layer.descriptor.annotations.get("io.cpack.model.path", "") or sha256
    name = path.rpartition("/")[2]
    annotations = {**layer.descriptor.annotations, "org.cncf.model.filepath": model_path(sha256)}
    annotated = _Annotated(replace(layer.descriptor, annotations=annotations), layer)
    images = tuple(_platform_image(annotated, sha256, name, architecture) for architecture in _PLATFORMS)
    return ModelImage(sha256, model_tag(path, sha256), ImageIndex(images))


def _platform_image(layer: _Annotated, sha256: str, name: str, architecture: str) -> Image:
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Labels": {"io.cpack.model.sha256": sha256}},
        "rootfs": {"type": "layers", "diff_ids": [layer.descriptor.digest]},
        "history": [{"created_by": f"cpack-build: model {name}"}],
    }
    blob = BytesBlob(CONFIG, canonical_json(config))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob.descriptor.to_json(),
        "layers": [layer.descriptor.to_json()],
        "annotations": {TITLE: name, "io.cpack.model.sha256": sha256},
    }
    return Image(BytesBlob(MANIFEST, canonical_json(manifest)), blob, (layer,))


@dataclass(frozen=True)
class _Annotated:
    """A layer with other annotations."""

    descriptor: Descriptor
    layer: Blob

    def chunks_from(self, offset: int) -> Iterator[bytes]:
        """The bytes from *offset* on, by going there if the layer can."""
        if isinstance(self.layer, Seekable):
            yield from self.layer.chunks_from(offset)
            return
        for chunk in self.layer.chunks():
            fresh = chunk[offset:]
            offset -= len(chunk) - len(fresh)
            if fresh:
                yield fresh

    def chunks(self) -> Iterator[bytes]:
        return self.layer.chunks()


def _model_of(own: Descriptor) -> str:
    """The model whose universal layer this says to be, or nothing."""
    sha256 = own.annotations.get("io.cpack.model.sha256", "")
    fits = own.media_type == LAYER and own.size % BLOCK == 0 and own.size >= DATA_OFFSET + len(trailer())
    return sha256 if fits and is_digest(f"sha256:{sha256}") else ""
