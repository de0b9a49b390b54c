"""Of a layer that several models share, a pull asks only for the models that are not here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from cpack_build.errors import BadImage, HashMismatch, NetworkError
from cpack_build.fetch.store import Store
from cpack_build.oci import tar
from cpack_build.oci.modellayer import data_place, entries
from cpack_build.oci.pull import Pulled, pull
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.sharedlayer import SHARED, SharedLayer
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import LAYER, BytesBlob
from tests.engines import Registry
from tests.oci.images import image_of, machine, text_layer
from tests.oci.misbehaving import Fault, Misbehaving, Request, run_misbehaving

SIZES = (3 << 20, 5_000_001, 0, 70_000, 2_000_000, 512)
MODELS = {
    hashlib.sha256(data).hexdigest(): data
    for data in (Random(number).randbytes(size) for number, size in enumerate(SIZES))
}
LARGEST = max(MODELS, key=lambda sha256: len(MODELS[sha256]))


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def fake() -> Iterator[Misbehaving]:
    with run_misbehaving() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def shared(made: Sequence[tar.Entry] = ()) -> BytesBlob:
    """The layer of all models, or one that says so and has other entries."""
    contents = made or [*entries((sha256, tar.BytesContent(data)) for sha256, data in MODELS.items())]
    return BytesBlob(LAYER, b"".join(tar.stream(contents)), {SHARED: ",".join(sorted(MODELS))})


def held(fake: Misbehaving, layer: BytesBlob) -> None:
    fake.hold(image_of([text_layer({"a": "1"}), layer]))


def put(store: Store, *models: str) -> None:
    for sha256 in models:
        store.put([MODELS[sha256]], what="a model")


def pulled(host: str, store: Store, *, name: str = "x", dry_run: bool = False) -> Pulled:
    source = open_source(parse_reference(f"{host}/{name}:v1"), store=store)
    return pull(source, f"linux/{machine()}", dry_run=dry_run)


def ranges(fake: Misbehaving, layer: BytesBlob) -> list[str | None]:
    return [one.headers.get("range") for one in fake.seen if layer.descriptor.digest in one.path]


def is_whole(got: Pulled, layer: BytesBlob) -> bool:
    return b"".join(got.image.layers[1].chunks()) == layer.data


@pytest.mark.parametrize("missing", [{LARGEST}, set(sorted(MODELS)[1:3]), {min(MODELS)}, {max(MODELS)}])
def test_only_the_models_that_are_not_here_are_asked_for(fake: Misbehaving, store: Store, missing: set[str]) -> None:
    layer = shared()
    held(fake, layer)
    put(store, *(MODELS.keys() - missing))
    told = pulled(fake.host, store, dry_run=True).received
    got = pulled(fake.host, store)
    assert is_whole(got, layer)
    size = sum(len(MODELS[sha256]) for sha256 in missing)
    assert size <= got.received <= size + 2048 + 8192 * len(missing), "headers, and the layer of text"
    assert size <= told <= layer.descriptor.size - sum(map(len, MODELS.values())) + size + 2048
    assert all(asked and re.fullmatch(r"bytes=\d+-\d+", asked) for asked in ranges(fake, layer))
    assert isinstance(got.image.layers[1], SharedLayer)
    assert store.find(layer.descriptor.digest) is None, "no tar of what is here as models"
    assert all(store.find(sha256) for sha256 in MODELS)


def test_a_real_registry_gives_the_ranges(registry: Registry, store: Store) -> None:
    layer = shared()
    push(image_of([text_layer({"a": "1"}), layer]), [parse_reference(f"{registry.host}/sharing:v1")])
    put(store, *(MODELS.keys() - {LARGEST}))
    got = pulled(registry.host, store, name="sharing")
    assert is_whole(got, layer)
    assert got.received < len(MODELS[LARGEST]) + 10_000


def test_where_little_is_here_the_layer_comes_in_one_request(fake: Misbehaving, store: Store) -> None:
    layer = shared()
    held(fake, layer)
    put(store, *(sha256 for sha256, data in MODELS.items() if len(data) < 100_000))
    got = pulled(fake.host, store)
    assert is_whole(got, layer)
    assert ranges(fake, layer) == [None]
    assert all(store.find(sha256) for sha256 in MODELS)


def test_a_registry_without_ranges_is_asked_for_the_whole_once(fake: Misbehaving, store: Store) -> None:
    layer = shared()
    held(fake, layer)
    put(store, *(MODELS.keys() - {LARGEST}))
    fake.fault = lambda request: Fault(whole=True)
    got = pulled(fake.host, store)
    assert is_whole(got, layer)
    first, *others = ranges(fake, layer)
    assert first is not None
    assert others == [None]


@pytest.mark.parametrize("change", [{"mtime": 1}, {"path": "models/sha256/other"}, {"mode": 0o644}])
def test_a_layer_that_is_laid_out_otherwise_comes_whole(
    fake: Misbehaving, store: Store, change: dict[str, object]
) -> None:
    made = [*entries((sha256, tar.BytesContent(data)) for sha256, data in MODELS.items())]
    first = next(number for number, entry in enumerate(made) if entry.path.endswith(min(MODELS)))
    made[first] = replace(made[first], **change)  # type: ignore[arg-type]
    layer = shared(made)
    held(fake, layer)
    put(store, *(MODELS.keys() - {min(MODELS), LARGEST}))
    got = pulled(fake.host, store)
    assert is_whole(got, layer)
    assert ranges(fake, layer)[-1] is None


def test_a_model_with_a_wrong_byte_is_refused(fake: Misbehaving, store: Store) -> None:
    layer = shared()
    held(fake, layer)
    put(store, *(MODELS.keys() - {LARGEST}))
    fake.fault = lambda request: Fault(spoil=True) if _bytes_asked(request) > 4096 else None
    with pytest.raises(HashMismatch) as error:
        pulled(fake.host, store)
    assert all(part in str(error.value) for part in (fake.host, "x", layer.descriptor.digest, LARGEST))
    assert store.find(LARGEST) is None
    assert not list((store.root / "pulled").glob("*"))


def test_a_header_that_announces_more_than_the_layer_has_is_not_followed(fake: Misbehaving, store: Store) -> None:
    """Nor is one byte beyond the layer asked for."""
    layer = shared()
    made = bytearray(layer.data)
    last = max(MODELS)
    at = layer.data.index(f"models/sha256/{last}".encode(), len(made) - len(MODELS[last]) - 8192)
    header = made[at : at + 512]
    header[124:135] = b"77777777777"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    made[at : at + 512] = header
    lying = replace(layer, data=bytes(made))
    held(fake, lying)
    put(store, *(MODELS.keys() - {last}))
    with pytest.raises(BadImage, match=lying.descriptor.digest):
        pulled(fake.host, store)
    assert store.find(last) is None
    assert all(asked is None or int(asked.rpartition("-")[2]) < len(made) for asked in ranges(fake, lying))


def test_a_model_whose_download_was_cut_goes_on_where_it_was(fake: Misbehaving, store: Store) -> None:
    layer = shared()
    held(fake, layer)
    put(store, *(MODELS.keys() - {LARGEST}))
    cut = iter([Fault(send=1_000_000), *[Fault(send=0)] * 100])
    fake.fault = lambda request: next(cut) if _bytes_asked(request) > 4096 else None
    with pytest.raises(NetworkError, match=layer.descriptor.digest):
        pulled(fake.host, store)
    fake.fault = lambda request: None
    before = len(ranges(fake, layer))
    got = pulled(fake.host, store)
    assert is_whole(got, layer)
    begin = data_place(layer.data.index(f"models/sha256/{LARGEST}".encode()) // 4096 * 4096)
    asked = [int(one.removeprefix("bytes=").partition("-")[0]) for one in ranges(fake, layer)[before:] if one]
    assert max(asked) > begin, "not from the model's beginning"
    assert got.received < len(MODELS[LARGEST])


def _bytes_asked(request: Request) -> int:
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    return int(asked[2]) - int(asked[1]) + 1 if asked else 0
