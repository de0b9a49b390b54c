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
from cpack_build.lock.models import fetch_model
from cpack_build.lock.proof import is_layer_proved
from cpack_build.lock.pushed import PushedModels
from cpack_build.lock.schema import Model
from cpack_build.oci.modellayer import ModelLayer, frame, hash_model
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from tests.engines import Registry
from tests.fetch.servers import Answer, serving
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


def whole(size: int) -> bytes:
    before, after = frame(SHA256, size)
    return before + BODY + after


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(206, b"x", {"Content-Range": "bytes 0-0/5009408"}), "another range"),
        (Answer(206, b"x" * 10), "another range"),
        (Answer(206, b"x", {"Content-Range": "bytes 4096-4096/17"}), "has 17 bytes, and a layer of that model has"),
        (Answer(200, b"short"), "has 5 bytes, and a layer of that model has"),
        (Answer(404), "is not"),
        (Answer(403), "is not in the store"),
    ],
)
def test_a_registry_that_misbehaves_is_named_and_leaves_nothing(tmp_path: Path, answer: Answer, said: str) -> None:
    store = Store(tmp_path / "store", further=())
    pin = Model(path="models/x", sha256=SHA256, size=len(BODY), layer_digest=f"sha256:{'2' * 64}", sources=())
    with serving(lambda _: answer) as server, pytest.raises(Unresolvable, match=said):
        fetch_model(pin, store=store, sources=sources(server.url.removeprefix("http://") + "/team/models"))
    assert store.find(SHA256) is None


def test_a_registry_without_ranges_sends_the_whole_layer(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", further=())
    pin = Model(path="models/x", sha256=SHA256, size=len(BODY), layer_digest=f"sha256:{'2' * 64}", sources=())
    with serving(lambda _: Answer(body=whole(len(BODY)))) as server:
        file = fetch_model(pin, store=store, sources=sources(server.url.removeprefix("http://") + "/team/models"))
    assert file.path.read_bytes() == BODY
    assert not is_layer_proved(pin, file, store=store), "the lock says another digest than what came has"
