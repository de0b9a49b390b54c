"""A plan tells from the lock and the store's memory what a build would do, what a registry would hold, and what a
change would make anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store
from cpack_build.image.build import Materials, build, layers_of
from cpack_build.image.bytecode import Compiler
from cpack_build.image.layer import Recipe
from cpack_build.image.plan import PlannedLayer, plan
from cpack_build.lock.form import in_form
from cpack_build.lock.schema import Lock
from cpack_build.oci.compressed import compressed_image, parse_compression
from cpack_build.oci.types import Image
from tests.image.golden.building import DOCUMENTS, INPUTS, STANDIN, golden_lock, materials_from


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def built(store: Store) -> Image:
    with materials_from(INPUTS, store) as materials, build(golden_lock(), materials, store=store) as image:
        return image


def planned(lock: Lock, store: Store) -> dict[str, PlannedLayer]:
    return {layer.kind: layer for layer in plan(lock, documents=DOCUMENTS, store=store)}


def test_nothing_but_models_is_known_before_the_first_build(store: Store) -> None:
    layers = plan(golden_lock(), documents=DOCUMENTS, store=store)
    assert [layer.kind for layer in layers if layer.is_known] == ["model"]
    assert [layer.kind for layer in layers if layer.compressed is not None] == ["model"]
    assert not [path for path in store.root.iterdir() if not path.name.startswith("memo")], "and nothing was fetched"


def test_sizes_in_a_registry_are_told_once_they_are_known_and_by_the_lock_s_compression(
    built: Image, store: Store
) -> None:
    lock = in_form(golden_lock(), compression="gzip")
    before = planned(lock, store)
    assert before["wheels"].is_known
    assert before["wheels"].compressed is None
    packed = compressed_image(built, parse_compression("gzip"), store=store)
    sizes = {layer.descriptor.annotations["io.cpack.layer.kind"]: layer.descriptor.size for layer in packed.layers}
    after = planned(lock, store)
    assert {kind: layer.compressed for kind, layer in after.items() if kind != "service"} == {
        kind: size for kind, size in sizes.items() if kind != "service"
    }, "cpack-build's own service is not the golden's"
    assert planned(in_form(lock, compression="zstd"), store)["wheels"].compressed is None
    plain = planned(in_form(lock, compression="none"), store)["wheels"]
    assert plain.compressed == plain.size


def test_a_change_costs_what_follows_it_and_the_layers_above(built: Image, store: Store) -> None:
    layers = plan(golden_lock(), documents=DOCUMENTS, store=store)
    by_kind = {layer.kind: layer for layer in layers}
    app = by_kind["app"]
    assert (app.changed, app.pushed, app.above) == (1, app.size, app.size)
    node = by_kind["node"]
    assert node.size is not None
    assert app.size is not None
    assert (node.changed, node.pushed, node.above) == (2, node.size + app.size, node.size + app.size)
    model = by_kind["model"]
    assert model.changed == 2
    assert model.above == sum(layer.size or 0 for layer in layers[layers.index(model) :])
    assert by_kind["interpreter"].changed == 2, "without bytecode nothing else follows it"


def test_another_interpreter_makes_every_layer_with_bytecode_anew(store: Store) -> None:
    """As the plan says, so the layers' keys do."""
    lock = golden_lock().model_copy(update={"bytecode": "compiled"})
    layers = planned(lock, store)

    def keys(materials: Materials, identity: str) -> dict[str, str]:
        with Compiler(replace(STANDIN, identity=identity), store) as compiler:
            parts = layers_of(lock, materials, store=store, compiler=compiler)
            return {part.kind: part.key for part in parts if isinstance(part, Recipe)}

    with materials_from(INPUTS, store) as materials:
        old, new = keys(materials, "3.11.2"), keys(materials, "3.11.7")
    follow = {kind for kind in old if old[kind] != new[kind]} | {"app"}
    assert follow == {"interpreter", "service", "wheel", "wheels", "comfyui", "node", "app"}
    assert layers["interpreter"].changed == len(follow)
    assert layers["system"].changed == layers["wheel"].changed == 2
