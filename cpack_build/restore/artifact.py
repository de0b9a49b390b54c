"""An image, read from its small end: config, annotations and the documents that it carries, before any large layer.

Which layer is what the annotations say, or where an engine has dropped them the lines of the config's history, which
there are as many of as layers. Neither is trusted with more than the question where to look: every byte that is taken
is proved by the lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import BadImage, HashMismatch, UnsafeInput
from cpack_build.image.config import APP
from cpack_build.lock.schema import Lock, Model, read_lock
from cpack_build.oci.filesystem import file_tree
from cpack_build.oci.types import Blob, Image

__all__ = ["Artifact", "Layer", "read_artifact"]

_OURS = "cpack-build: "
_TOP = "links and config"
_SHARED = "io.cpack.models.sha256"
_ELSEWHERE = frozenset({"base", "system", "interpreter", "service", "model", "models", "app"})
_KINDS = {"system packages": "system", "BentoML service": "service", _TOP: "app"}


@dataclass(frozen=True)
class Layer:
    """A layer of ours: its *kind* (``io.cpack.layer.kind``, or empty where nothing tells) and its *diff_id*."""

    kind: str
    diff_id: str
    blob: Blob


@dataclass(frozen=True)
class Artifact:
    """What an image that cpack-build made holds: its lock (*lock_bytes* is as it lies there), the pack's *documents* by
    name, and its layers."""

    name: str
    lock: Lock
    lock_bytes: bytes
    documents: Mapping[str, bytes]
    layers: tuple[Layer, ...]
    image: Image

    def model_layers(self, model: Model) -> tuple[Layer, ...]:
        """The layers that may have *model*: its own, by the digest in the lock, else those that several share."""
        own = tuple(layer for layer in self.layers if layer.diff_id == model.layer_digest)
        shared = [layer for layer in self.layers if layer.kind in ("models", "")]
        listed = [layer for layer in shared if model.sha256 in layer.blob.descriptor.annotations.get(_SHARED, "")]
        return own or tuple(listed or shared)

    @property
    def workspace_layers(self) -> tuple[Layer, ...]:
        """The layers that may have something of ComfyUI, its nodes and its packages: all but those that surely do not,
        for how the rest share layers is the build's business."""
        return tuple(layer for layer in self.layers if layer.kind not in _ELSEWHERE)


def read_artifact(image: Image, *, name: str) -> Artifact:
    """Read config, annotations and documents of *image*; *name* is what errors call it.

    Raises :class:`BadImage` where it carries no lock (nobody's, or another program's image), or documents that are not
    those of its lock.
    """
    layers = _our_layers(image, name)
    top = next((layer for layer in reversed(layers) if layer.kind == "app"), None)
    documents: dict[str, bytes] = {}
    # A program that wrote the image again may have left neither annotation nor history: ours was the last layer.
    for blob in [top.blob] if top is not None else image.layers[-1:]:
        tree = file_tree(replace(image, layers=(blob,)))
        documents = {path.removeprefix(f"{APP}/"): data for path, data in tree.read(tree.below(APP)).items()}
    carried = documents.pop("cpack.lock", None)
    if carried is None:
        raise BadImage(
            name,
            "carries no lock, so cpack-build did not make it",
            hint="`cpack-build restore --best-effort` looks for ComfyUI, nodes and models in it.",
        )
    for path in documents:
        if problem := unsafe_name(path):
            raise UnsafeInput(f"{name}: the document {path!r} {problem}.", hint="Do not use this image.")
    lock = read_lock(carried, name=f"{name}: /{APP}/cpack.lock")
    labels = _object(_config(image, name).get("config")).get("Labels")
    told = labels.get("io.cpack.lock.sha256") if isinstance(labels, dict) else None
    # Of the bytes that are carried: a later cpack-build may write the same lock with more fields.
    if told is not None and told != (actual := hashlib.sha256(carried).hexdigest()):
        raise HashMismatch(f"{name}: /{APP}/cpack.lock", expected=str(told), actual=actual)
    return Artifact(name, lock, carried, documents, layers, image)


def _our_layers(image: Image, name: str) -> tuple[Layer, ...]:
    config = _config(image, name)
    diff_ids = [str(one) for one in _object(config.get("rootfs")).get("diff_ids") or ()]
    history = config.get("history")
    lines = [item for item in history if isinstance(item, dict)] if isinstance(history, list) else []
    titles = [str(item.get("created_by") or "") for item in lines if not item.get("empty_layer")]
    if len(titles) != len(image.layers):
        titles = [""] * len(image.layers)
    found = []
    for blob, diff_id, title in zip(image.layers, diff_ids, titles, strict=True):
        kind = blob.descriptor.annotations.get("io.cpack.layer.kind", "")
        if not kind and title.startswith(_OURS):
            kind = _kind_of(title.removeprefix(_OURS))
        elif not kind and any(title.startswith(_OURS) for title in titles):
            kind = "base"
        found.append(Layer(kind, diff_id, blob))
    return tuple(found)


def _kind_of(title: str) -> str:
    """The kind of a layer by its line in the history; empty for one that could be several."""
    return _KINDS.get(title) or ("model" if title.startswith("model ") else "")


def _config(image: Image, name: str) -> dict[str, Any]:
    try:
        document = json.loads(image.config.data)
    except ValueError as error:
        raise BadImage(f"{name}: the config", "is not JSON") from error
    return _object(document)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
