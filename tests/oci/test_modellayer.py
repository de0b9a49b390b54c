"""A model's layer is a function of the model's bytes alone, and its data begins where a file system can share it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, Unresolvable
from cpack_build.oci import modellayer
from cpack_build.oci.modellayer import (
    DATA_OFFSET,
    ModelLayer,
    hash_layer,
    hash_model,
    layer_size,
    mapped,
    prefix,
    read_ahead,
)  # fmt: skip

MODEL = bytes(range(256)) * 20 + b"tail"
SHA256 = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> ModelLayer:
    path = tmp_path / "any name.safetensors"
    path.write_bytes(MODEL)
    return ModelLayer(path, SHA256, len(MODEL), hash_model(path, SHA256, len(MODEL)), title="models/x")


def test_the_bytes_are_those_of_image_format_revision_1(model: ModelLayer) -> None:
    """If this fails, every model in every registry gets another blob: make a new revision (docs/image-format.md)."""
    assert (
        hashlib.sha256(prefix("0" * 64, 12345)).hexdigest()
        == "6110c17a806c46d0620acdbeffd9a97c39c5608c8f5c3124f71067c5c2b21a67"
    )
    assert (
        hashlib.sha256(prefix("f" * 64, 9 << 30)).hexdigest()
        == "e9f9a0dbbc996c1b5c2d5270b3b992be9427e99f19b72a4b5bb683184c645cb7"
    )
    assert model.digest == "sha256:f91425e906e40370c17e991f79dcf4238f85a63c5a748925e43789aaa2798721"


def test_hash_model_announces_the_digest_of_the_bytes_that_are_streamed(model: ModelLayer) -> None:
    data = b"".join(model.chunks())
    assert model.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert model.descriptor.size == len(data) == layer_size(len(MODEL))
    assert data[DATA_OFFSET : DATA_OFFSET + len(MODEL)] == MODEL


@pytest.mark.parametrize("size", [0, 1, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, 33 << 20])
def test_a_file_is_hashed_alike_however_it_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"0123456" * (size // 7) + b"x" * (size % 7))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for reader in (read_ahead, mapped):
        read: list[int] = []
        assert hash_layer(path, sha256, size, on_read=read.append, reader=reader) == hash_model(path, sha256, size)
        assert sum(read) == size
        assert hash_layer(path, sha256, size + 1, on_read=read.append, reader=reader) is None


def test_a_tar_reader_finds_the_model_under_its_hash(model: ModelLayer) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(model.chunks())), mode="r:") as archive:
        members = {member.name: member for member in archive}
        assert list(members) == ["models", "models/sha256", f"models/sha256/{SHA256}"]
        file = members[modellayer.model_path(SHA256)]
        assert (file.mode, file.mtime, file.uid, file.gid, file.uname) == (0o444, 0, 0, 0, "")
        content = archive.extractfile(file)
        assert content is not None
        assert content.read() == MODEL


@pytest.mark.parametrize("size", [0, 1, 511, 512, 8**11 - 1, 8**11, 1 << 44])
def test_the_data_of_a_model_of_any_size_begins_at_the_same_byte(size: int) -> None:
    head = prefix("a" * 64, size)
    assert len(head) == DATA_OFFSET
    with tarfile.open(fileobj=io.BytesIO(head + bytes(1024)), mode="r:") as archive:
        for _ in range(2):
            archive.next()
        member = archive.next()
        assert member is not None
        assert (member.size, member.offset_data) == (size, DATA_OFFSET)


def test_the_title_is_for_people_and_changes_no_byte(model: ModelLayer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(MODEL)
    renamed = ModelLayer(other, SHA256, len(MODEL), model.digest, title="models/another")
    assert b"".join(renamed.chunks()) == b"".join(model.chunks())
    assert renamed.descriptor.annotations["io.cpack.model.path"] == "models/another"


def test_another_content_or_size_is_refused(model: ModelLayer) -> None:
    with pytest.raises(HashMismatch) as mismatch:
        hash_model(model.path, "0" * 64, len(MODEL))
    assert SHA256 in str(mismatch.value)
    assert "0" * 64 in str(mismatch.value)
    with pytest.raises(Unresolvable, match="were announced"):
        hash_model(model.path, SHA256, len(MODEL) + 1)


def test_a_model_that_shrinks_while_it_is_streamed_is_an_error_and_not_a_short_layer(model: ModelLayer) -> None:
    model.path.write_bytes(MODEL[:100])
    with pytest.raises(Unresolvable, match="became shorter"):
        list(model.chunks())
