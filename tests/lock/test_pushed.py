"""A model that was pushed as a layer is fetched from the registry by its layer's digest, and proved by its own hash."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.tuning import Tuning
from cpack_build.lock.models import fetch_model, is_layer_proved
from cpack_build.lock.pushed import PushedModels
from cpack_build.lock.schema import Model
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from tests.engines import Registry
from tests.oci.images import image_of

BODY = random.Random(5).randbytes(5_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def pushed(registry: Registry, tmp_path: Path, store: Store) -> tuple[Model, str]:
    """A model in a real registry, and where."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(BODY)
    digest = hash_model(path, SHA256, len(BODY))
    image = image_of([ModelLayer(path, SHA256, len(BODY), digest)])
    name = f"{registry.host}/team/models"
    push(image, [parse_reference(f"{name}:1")], memo=store)
    path.unlink()
    return Model(
        path="models/loras/x.safetensors", sha256=SHA256, size=len(BODY), layer_digest=digest, sources=()
    ), name


def sources(name: str, *, part: int = 1 << 20) -> Sources:
    return Sources(Mirrors({}, is_offline=True), tuning=Tuning(part=part), further=[PushedModels(name)])


def test_a_pushed_model_comes_back_in_parts(pushed: tuple[Model, str], tmp_path: Path) -> None:
    model, name = pushed
    store = Store(tmp_path / "other", further=())
    file = fetch_model(model, store=store, sources=sources(name))
    assert file.path.read_bytes() == BODY
    assert is_layer_proved(model, file, store=store)


def test_a_lock_that_lies_about_the_layer_poisons_nothing(pushed: tuple[Model, str], tmp_path: Path) -> None:
    """The layer of one model under the name of another: only the model's own hash counts."""
    model, name = pushed
    store = Store(tmp_path / "other", further=())
    lying = model.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(HashMismatch, match=SHA256):
        fetch_model(lying, store=store, sources=sources(name))
    assert store.find("0" * 64) is None
    assert store.find(SHA256) is None


def test_a_registry_without_it_says_so(pushed: tuple[Model, str], tmp_path: Path) -> None:
    model, name = pushed
    store = Store(tmp_path / "other", further=())
    missing = model.model_copy(update={"layer_digest": f"sha256:{'1' * 64}"})
    with pytest.raises(Unresolvable, match="is not in the store"):
        fetch_model(missing, store=store, sources=replace(sources(name)))
