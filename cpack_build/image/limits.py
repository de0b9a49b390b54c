"""What registries and engines refuse: how many layers, and how big one of them may be.

The limits are data, each with its source. A limit that the image would break stops nothing here unless it stops the
build as well: not everybody pushes everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpack_build.errors import Unresolvable
from cpack_build.image.budget import FIXED, Allotment, allot
from cpack_build.lock.schema import Lock
from cpack_build.lock.wheels import wheels_of
from cpack_build.oci.limits import REGISTRIES, RUNNABLE_LAYERS
from cpack_build.oci.modellayer import layer_size

__all__ = ["ENGINE_LAYERS", "REGISTRY_LAYER_BYTES", "Limit", "layer_count", "limits_of"]

ENGINE_LAYERS = {"Docker's graph drivers": RUNNABLE_LAYERS, "podman": 127}
"""Layers in all. Source of the second: containers/storage overlay, podman 4.3."""

REGISTRY_LAYER_BYTES = {known.name: known.blob for known in REGISTRIES if known.blob is not None}
"""Bytes of one layer, by the registry's name; the sources are there."""


@dataclass(frozen=True)
class Limit:
    """A limit of *whose* that the image would break; *is_fatal* if it could not even be built."""

    whose: str
    message: str
    is_fatal: bool = False


def layer_count(lock: Lock, *, base_layers: int = 0) -> int:
    """Our layers over the base, as :func:`~cpack_build.image.build.layers_of` will make them.

    Raises :class:`Unresolvable` where they cannot be made.
    """
    return FIXED + len(lock.custom_nodes) + _allotted(lock, base_layers).layers


def _allotted(lock: Lock, base_layers: int) -> Allotment:
    wheels = {wheel.sha256: wheel.size or 0 for wheel in wheels_of(lock.python)}
    models = {model.sha256: model.size for model in lock.models}
    return allot(wheels, models, nodes=len(lock.custom_nodes), base_layers=base_layers)


def limits_of(lock: Lock, *, base_layers: int = 0) -> list[Limit]:
    """The limits that the image of *lock* would break, over a base of so many layers."""
    try:
        allotted = _allotted(lock, base_layers)
    except Unresolvable as error:
        return [Limit("cpack-build", str(error), is_fatal=True)]
    found = []
    ours = FIXED + len(lock.custom_nodes) + allotted.layers
    for whose, most in ENGINE_LAYERS.items():
        if ours + base_layers > most:
            found.append(
                Limit(whose, f"{ours} layers over a base of {base_layers} are more than {whose} can run ({most}).")
            )
    models = {model.sha256: model for model in lock.models}
    layers = [(models[sha256].path, layer_size(models[sha256].size)) for sha256 in sorted(allotted.models)]
    for number, group in sorted(allotted.shared.items()):
        size = sum(layer_size(models[sha256].size) for sha256 in group)  # a little more than they have together
        layers.append((f"The layer of {len(group)} smaller models (group {number:x})", size))
    for whose, largest in REGISTRY_LAYER_BYTES.items():
        for name, size in layers:
            if size > largest:
                found.append(Limit(whose, f"{name} has {size} bytes; {whose} takes layers of {largest} at most."))
        for wheel in wheels_of(lock.python):
            if (wheel.size or 0) > largest:
                found.append(
                    Limit(whose, f"{wheel.filename} has {wheel.size} bytes; {whose} takes layers of {largest} at most.")
                )
    return found
