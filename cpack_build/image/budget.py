"""Which wheels and models get layers of their own where engines allow only so many layers.

While there is room each heavy wheel and each model has its own. Beyond that the largest keep theirs; smaller wheels go
into the common layer, and smaller models share sixteen layers by the first hex digit of their sha256. So one model more
changes one shared layer, or two where it takes another's place among the largest (``docs/layering.md``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cpack_build.errors import Unresolvable

__all__ = ["FIXED", "HEAVY", "LAYER_BUDGET", "Allotment", "allot"]

HEAVY = 64 * 1024 * 1024
"""Wheels of this many bytes and more get a layer of their own."""
LAYER_BUDGET = 120
"""Layers over the base's, where it leaves room for them."""
_IN_ALL = 125
"""Where moby's graph drivers stop (FACTS.md §5)."""
FIXED = 6
"""System packages, interpreter, service, common wheels, ComfyUI, app."""
_SHARED_BITS = 4


@dataclass(frozen=True)
class Allotment:
    """The hashes (hex) of what has a layer of its own, and of the models that share one, by the layer's number."""

    wheels: frozenset[str]
    models: frozenset[str]
    shared: Mapping[int, tuple[str, ...]]

    @property
    def layers(self) -> int:
        """How many layers that makes, over those that every image has."""
        return len(self.wheels) + len(self.models) + len(self.shared)


def allot(wheels: Mapping[str, int], models: Mapping[str, int], *, nodes: int, base_layers: int = 0) -> Allotment:
    """Share out the layers. *wheels* and *models* are sha256 (hex) → bytes; *nodes* have a layer each anyway.

    Raises :class:`Unresolvable` when even shared layers have no room.
    """
    heavy = {sha256: size for sha256, size in wheels.items() if size >= HEAVY}
    budget = min(LAYER_BUDGET, _IN_ALL - base_layers)
    room = budget - FIXED - nodes
    if len(heavy) + len(models) <= room:
        return Allotment(frozenset(heavy), frozenset(models), {})
    if room < bool(models):
        raise Unresolvable(
            f"{nodes} custom nodes need {FIXED + nodes + bool(models)} layers, and there is room for {budget} over a "
            f"base of {base_layers}.",
            hint="Leave some of them out of the pack; each has a layer of its own.",
        )
    bits = _SHARED_BITS
    while bits and 1 << bits > room // 2:
        bits -= 1
    own = room - (1 << bits if models else 0)
    ranked = sorted({**heavy, **models}.items(), key=lambda item: (-item[1], item[0]))
    largest = {sha256 for sha256, _ in ranked[: max(0, own)]}
    shared: dict[int, tuple[str, ...]] = {}
    for sha256 in sorted(models.keys() - largest):
        number = int(sha256[:8], 16) >> (32 - bits)
        shared[number] = (*shared.get(number, ()), sha256)
    return Allotment(frozenset(heavy.keys() & largest), frozenset(models.keys() & largest), shared)
