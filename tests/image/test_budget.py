"""Engines stop at a number of layers in all, the base's among them."""

from __future__ import annotations

from pathlib import Path

from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from cpack_build.image.base import Base
from cpack_build.image.budget import HEAVY, LAYER_BUDGET, allot
from cpack_build.image.build import Materials, layers_of
from cpack_build.image.wheels import StoredWheel
from cpack_build.oci import tar
from cpack_build.oci.types import LAYER, BytesBlob
from tests.image.test_gather import lock

MOBY = 125


def layers(folder: Path, *, below: int, heavy: int) -> int:
    """Of how many layers an image is, over a base of *below*, with *heavy* wheels that each would have their own."""
    wheels = tuple(
        StoredWheel(f"w{number:03}", "1", f"w{number}.whl", f"{number:064x}", folder, HEAVY) for number in range(heavy)
    )
    store = Store(folder / "store")
    materials = Materials(
        base=Base({}, (BytesBlob(LAYER, tar.trailer()),) * below) if below else None,
        system=(),
        interpreter_debs=(),
        interpreter_archive=None,
        service_wheels=(),
        service_code={},
        wheels=wheels,
        comfyui=Tree(folder, "https://code.example/x", "0" * 40, store),
        nodes=(),
        models={},
        documents={},
    )
    return below + len(layers_of(lock(), materials, store=store, compiler=None, base_layers=below))


def test_what_is_over_the_budget_shares_a_layer(tmp_path: Path) -> None:
    assert layers(tmp_path, below=0, heavy=10) == 14
    assert layers(tmp_path, below=0, heavy=200) <= LAYER_BUDGET
    assert layers(tmp_path, below=110, heavy=200) <= MOBY


def test_a_wheel_is_heavy_by_its_size_alone() -> None:
    assert allot({"a" * 64: HEAVY, "b" * 64: HEAVY - 1}, {}, nodes=0).wheels == {"a" * 64}
