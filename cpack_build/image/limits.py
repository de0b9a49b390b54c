"""What registries and engines refuse: how many layers, and how big one of them may be.

The limits are data, each with its source. A limit that the image would break stops nothing here unless it stops the
build as well: not everybody pushes everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpack_build.image.build import HEAVY, LAYER_BUDGET
from cpack_build.lock.schema import Lock
from cpack_build.lock.wheels import wheels_of
from cpack_build.oci.modellayer import layer_size

__all__ = ["ENGINE_LAYERS", "REGISTRY_LAYER_BYTES", "Limit", "layer_count", "limits_of"]

ENGINE_LAYERS = {"Docker's graph drivers": 125, "podman": 127}
"""Layers in all. Source: moby ``layer/layer.go``, ``maxLayerDepth``; containers/storage overlay, 4.3."""

REGISTRY_LAYER_BYTES = {
    "Amazon ECR Public": 10_000 << 20,
    "GitHub's container registry": 10 * 10**9,
    "Amazon ECR": 52_000 << 20,
    "Azure Container Registry": 200 << 30,
}
"""Bytes of one layer. Sources: docs.aws.amazon.com/AmazonECR/latest/public/public-service-quotas.html and
…/userguide/service-quotas.html, docs.github.com "Working with the Container registry",
learn.microsoft.com "Azure Container Registry service tiers"."""


@dataclass(frozen=True)
class Limit:
    """A limit of *whose* that the image would break; *is_fatal* if it could not even be built."""

    whose: str
    message: str
    is_fatal: bool = False


def layer_count(lock: Lock) -> int:
    """Our layers over the base, as :func:`~cpack_build.image.build.layers_of` will make them."""
    models = len({model.sha256 for model in lock.models})
    fixed = 6 + len(lock.custom_nodes)
    heavy = sum((wheel.size or 0) >= HEAVY for wheel in wheels_of(lock.python))
    return fixed + models + min(heavy, max(0, LAYER_BUDGET - fixed - models))


def limits_of(lock: Lock, *, base_layers: int = 0) -> list[Limit]:
    """The limits that the image of *lock* would break, over a base of so many layers."""
    found = []
    ours = layer_count(lock)
    if ours > LAYER_BUDGET:
        found.append(
            Limit(
                "cpack-build",
                f"{len(lock.models)} models and {len(lock.custom_nodes)} custom nodes need {ours} layers, "
                f"{LAYER_BUDGET} are allowed. Leave some of them out of the pack.",
                is_fatal=True,
            )
        )
    for whose, most in ENGINE_LAYERS.items():
        if ours + base_layers > most:
            found.append(
                Limit(whose, f"{ours} layers over a base of {base_layers} are more than {whose} can run ({most}).")
            )
    for whose, largest in REGISTRY_LAYER_BYTES.items():
        for model in lock.models:
            if layer_size(model.size) > largest:
                found.append(
                    Limit(whose, f"{model.path} has {model.size} bytes; {whose} takes layers of {largest} at most.")
                )
        for wheel in wheels_of(lock.python):
            if (wheel.size or 0) > largest:
                found.append(
                    Limit(whose, f"{wheel.filename} has {wheel.size} bytes; {whose} takes layers of {largest} at most.")
                )
    return found
