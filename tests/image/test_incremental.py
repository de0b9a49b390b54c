"""What is known is not made again, what is made is made side by side, and nothing is held whole: counted, not timed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image import build as module
from cpack_build.image.build import Format, Materials, build
from cpack_build.image.config import image_config, image_manifest
from cpack_build.image.layer import Recipe, TarLayer, key_of, text
from cpack_build.lock.schema import Lock
from cpack_build.oci import tar
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.types import Image
from tests.fetch.repositories import make_repository
from tests.image.golden.building import INPUTS, golden_lock, materials_from


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(INPUTS, tmp_path / "inputs"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of layers that are made, in the order in which they are begun."""
    begun: list[str] = []
    stream = Recipe.measured

    def measured(self: Recipe, store: Store, **options: Any) -> TarLayer:
        def entries() -> Iterator[tar.Entry]:
            begun.append(self.kind)
            yield from self.entries()

        return replace(stream(replace(self, entries=entries), store, **options), recipe=self)

    monkeypatch.setattr(Recipe, "measured", measured)
    return begun


def built(lock: Lock, materials: Materials, store: Store) -> Image:
    with build(lock, materials, store=store) as image:
        return image


def test_a_warm_build_makes_no_layer_and_reads_neither_model_nor_wheel_nor_deb(
    inputs: Path, made: list[str], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    with materials_from(inputs, store) as materials:
        cold = built(golden_lock(), materials, store)
        kinds = ["system", "interpreter", "service", "wheel", "wheels", "comfyui", "node", "app"]
        assert sorted(made) == sorted(kinds), "each once"
        made.clear()
        shutil.rmtree(inputs)
        assert built(golden_lock(), materials, store).digest == cold.digest
    assert made == []


def test_a_cold_build_reads_no_model_whose_layer_the_lock_knows(inputs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (inputs / "tiny.safetensors").unlink()
    with materials_from(inputs, store) as materials:
        [layer] = [one for one in built(golden_lock(), materials, store).layers if isinstance(one, ModelLayer)]
    assert layer.digest == golden_lock().models[0].layer_digest


def test_a_changed_node_makes_its_layer_and_the_top_one(inputs: Path, made: list[str], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    url = "https://code.example/node"
    with materials_from(inputs, store) as materials:
        before = built(golden_lock(), materials, store)
        made.clear()
        commit = make_repository(tmp_path / "changed", {"__init__.py": "NODE_CLASS_MAPPINGS = {1: 2}\n"})
        tree = fetch_tree(url, commit, store=store, mirrors=Mirrors({url: str(tmp_path / "changed")}))
        pin = golden_lock().nodes[0].model_copy(update={"commit": commit, "tree_sha256": tree.tree_digest()})
        shutil.rmtree(inputs)
        after = built(golden_lock().model_copy(update={"nodes": (pin,)}), replace(materials, nodes=(tree,)), store)
    assert sorted(made) == ["app", "node"]
    same = [old.descriptor == new.descriptor for old, new in zip(before.layers, after.layers, strict=True)]
    assert same == [True] * (len(same) - 2) + [False, False]


def recipes(count: int, barrier: threading.Barrier) -> list[Recipe | ModelLayer]:
    def entries() -> Iterator[tar.Entry]:
        barrier.wait(30)
        yield text("a", "x")

    return [Recipe("test", str(number), key_of("test", number), entries) for number in range(count)]


def test_layers_are_made_side_by_side(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of four waits for the other three."""
    store = Store(tmp_path / "store")
    parts = recipes(4, threading.Barrier(4))
    monkeypatch.setattr(module, "FORMATS", {1: Format(lambda *args, **options: parts, image_config, image_manifest)})
    with materials_from(inputs, store) as materials, build(golden_lock(), materials, store=store, workers=4) as image:
        assert len(image.layers) == 4


_LARGE = """
import re, sys
from pathlib import Path
from cpack_build.fetch.store import Store
from cpack_build.image.layer import MTIME, Recipe, key_of
from cpack_build.image.wheels import Environment, StoredWheel, wheel_layer
from cpack_build.oci import tar
from cpack_build.oci.compressed import compressed, parse_compression

class Zeros:
    size = 256 << 20
    def chunks(self):
        for _ in range(256):
            yield bytes(1 << 20)

def entries():
    yield tar.Entry("large", "file", 0o644, MTIME, Zeros())

store = Store(Path(sys.argv[1]))
wheel = StoredWheel("tool", "1.0", Path(sys.argv[2]).name, sys.argv[3], Path(sys.argv[2]), 1)
for recipe in (Recipe("test", "large", key_of("large"), entries),
               wheel_layer("wheel", "tool", Environment("opt/x", "3.11", "/usr/bin/python3"), [wheel])):
    layer = recipe.measured(store)
    assert layer.size > 128 << 20
    compressed(layer, parse_compression("zstd"), store=store)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_size_of_a_layer(tmp_path: Path) -> None:
    from tests.making import make_wheel

    wheel = make_wheel(tmp_path, "tool", {"tool/large.bin": bytes(160 << 20)})
    command = [sys.executable, "-c", _LARGE, str(tmp_path / "store"), str(wheel.path), wheel.sha256]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 150 << 10, "KiB: what Python itself and its libraries need, and no file of 160 MiB"
