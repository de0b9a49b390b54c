"""More models than layers: the largest have their own, the others share, and nothing of them is copied or doubted."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store, StoredFile, stamp_of
from cpack_build.image.budget import LAYER_BUDGET, allot
from cpack_build.image.models import model_layer, shared_layer
from cpack_build.lock.models import fetch_model
from cpack_build.lock.proof import is_layer_proved
from cpack_build.lock.schema import Model
from cpack_build.oci import tar
from cpack_build.oci.modellayer import DATA_OFFSET, hash_model, prefix
from cpack_build.oci.types import digest_of

ROOM = LAYER_BUDGET - 6
SIZES = {hashlib.sha256(bytes([number // 256, number % 256])).hexdigest(): 1000 + number for number in range(300)}


def model(folder: Path, data: bytes, name: str = "x.bin") -> tuple[Model, StoredFile]:
    path = folder / "x" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    pin = Model(path=f"models/x/{name}", sha256=sha256, size=len(data),
                layer_digest=hash_model(path, sha256, len(data)), sources=())  # fmt: skip
    return pin, StoredFile(path, sha256, len(data), stamp_of(path.stat()))


def test_each_model_has_its_own_layer_while_there_is_room() -> None:
    few = dict(list(SIZES.items())[:ROOM])
    assert allot({}, few, nodes=0).models == frozenset(few)


def test_beyond_that_the_largest_keep_theirs_and_the_others_share_by_their_first_digit() -> None:
    found = allot({}, SIZES, nodes=0)
    assert found.layers <= ROOM
    smallest_own = min(SIZES[sha256] for sha256 in found.models)
    for number, group in found.shared.items():
        assert {sha256[0] for sha256 in group} == {f"{number:x}"}
        assert max(SIZES[sha256] for sha256 in group) < smallest_own
    assert sorted([*found.models, *(sha256 for group in found.shared.values() for sha256 in group)]) == sorted(SIZES)


def test_one_model_more_changes_one_shared_layer_or_two() -> None:
    before = allot({}, SIZES, nodes=0)
    small = allot({}, {**SIZES, "ab" * 32: 1}, nodes=0)
    assert small.models == before.models
    assert {number for number in range(16) if small.shared.get(number) != before.shared.get(number)} == {0xA}

    large = allot({}, {**SIZES, "ab" * 32: 1 << 30}, nodes=0)
    assert len(before.models - large.models) == 1
    assert len([number for number in range(16) if large.shared.get(number) != before.shared.get(number)]) == 1


def test_large_wheels_and_large_models_go_before_small_models() -> None:
    wheels = {f"{number:064x}": (64 << 20) + number for number in range(50)}
    found = allot(wheels, SIZES, nodes=10, base_layers=20)
    assert found.wheels == frozenset(wheels)
    assert found.layers + 6 + 10 + 20 <= 125


@pytest.mark.parametrize("nodes", range(100, 115))
def test_with_little_room_there_are_fewer_shared_layers(nodes: int) -> None:
    if nodes < ROOM:
        assert allot({}, SIZES, nodes=nodes).layers <= ROOM - nodes
        return
    with pytest.raises(Unresolvable, match="custom nodes need"):
        allot({}, SIZES, nodes=nodes)


def test_a_shared_layer_is_a_function_of_its_models_alone_and_aligns_each(tmp_path: Path) -> None:
    pairs = [model(tmp_path, bytes([number]) * (number * 700), f"{number}.bin") for number in range(5)]
    files = {file.sha256: file for _, file in pairs}
    models = [pin for pin, _ in pairs]
    layer = shared_layer(3, models[::-1], files).measured(Store(tmp_path / "store"))
    data = b"".join(layer.chunks())
    assert layer.digest == digest_of(data)
    assert shared_layer(3, models, files).key == layer.recipe.key
    assert layer.descriptor.annotations["io.cpack.models.sha256"].split(",") == sorted(files)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [member for member in archive if member.isreg()]
        assert [member.name for member in members] == [f"models/sha256/{sha256}" for sha256 in sorted(files)]
        for member in members:
            assert (member.mode, member.mtime, member.offset_data % DATA_OFFSET) == (0o444, 0, 0)
            content = archive.extractfile(member)
            assert content is not None
            assert hashlib.sha256(content.read()).hexdigest() == member.name.rpartition("/")[2]


def test_a_layer_of_one_model_is_the_universal_one(tmp_path: Path) -> None:
    pin, file = model(tmp_path, b"weights" * 1000)
    assert shared_layer(0, [pin], {pin.sha256: file}).measured(Store(tmp_path / "store")).digest == pin.layer_digest


def test_golden_shared_layer(tmp_path: Path) -> None:
    """Bytes are a promise. If this fails: a bug was made, fix it; or a rule was changed, which is a new revision."""
    pairs = [model(tmp_path, data, f"{len(data)}.bin") for data in (b"", b"a" * 513, b"b" * 4096)]
    layer = shared_layer(0, [pin for pin, _ in pairs], {file.sha256: file for _, file in pairs})
    digest = layer.measured(Store(tmp_path / "store")).digest
    assert digest == "sha256:58352d5ec88f3ad008528da7a2fdeb0b6cab6a7d21ad045945d67652e77d57d6"


def test_a_model_that_changes_while_its_shared_layer_is_read_is_told_and_not_remembered(tmp_path: Path) -> None:
    """Also when it has the same size and time again afterwards."""
    pin, file = model(tmp_path, b"weights" * 1000)
    before = file.path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"WEIGHTS" * 1000)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file.path)
    store = Store(tmp_path / "store")
    recipe = shared_layer(0, [pin], {pin.sha256: file})
    with pytest.raises(Unresolvable, match="changed while it was read"):
        recipe.measured(store)
    assert store.recall("layer", recipe.key) is None


def test_one_hash_proves_a_locked_model(tmp_path: Path) -> None:
    pin, file = model(tmp_path, b"weights" * 1000)
    store = Store(tmp_path / "store")
    assert fetch_model(pin, folders=[str(tmp_path)], store=store, sources=Sources()) == file
    assert is_layer_proved(pin, file, store=store)
    assert model_layer(pin, file, store=store).proof == file.stamp
    # What is proved needs neither reading nor its folder again, until it changes.
    assert fetch_model(pin, folders=(), store=store, sources=Sources()) == file
    file.path.write_bytes(b"WEIGHTS" * 1000)
    with pytest.raises(HashMismatch):
        fetch_model(pin, folders=[str(tmp_path)], store=store, sources=Sources())


def test_a_lying_lock_teaches_the_store_nothing(tmp_path: Path) -> None:
    """Its layer digest fits the file at hand, but the file's hash is not what it says."""
    honest, _ = model(tmp_path, b"good" * 100)
    _, evil = model(tmp_path, b"evil" * 100)
    layer = prefix(honest.sha256, 400) + b"evil" * 100 + bytes(tar.padding(400)) + tar.trailer()
    lying = honest.model_copy(update={"layer_digest": digest_of(layer)})
    store = Store(tmp_path / "store")
    assert fetch_model(lying, folders=[str(tmp_path)], store=store, sources=Sources()).path == evil.path
    assert store.find(honest.sha256) is None
    with pytest.raises(HashMismatch):
        fetch_model(honest, folders=[str(tmp_path)], store=store, sources=Sources())
