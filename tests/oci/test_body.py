"""A blob's bytes on their way out: proved before the last of them leaves, or known and still the same."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, Unresolvable
from cpack_build.oci.body import Body
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import ModelLayer, hash_model, stamp
from cpack_build.oci.reference import LayoutName
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Seekable
from tests.oci.images import image_of, machine

SIZE = 5 << 20


@pytest.fixture
def model(tmp_path: Path) -> ModelLayer:
    path = tmp_path / "model"
    path.write_bytes(os.urandom(SIZE))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelLayer(path, sha256, SIZE, hash_model(path, sha256, SIZE), proof=stamp(path.stat()))


def sent(body: Body, start: int = 0) -> bytes:
    return b"".join(body.piece(start, body.size))


def test_a_model_that_was_hashed_here_is_sent_from_anywhere_and_not_hashed_again(model: ModelLayer) -> None:
    whole = b"".join(model.chunks())
    # Nobody here would notice another digest: the registry does, as it does for every blob.
    unknown = replace(model, digest="sha256:" + "0" * 64)
    with Body(unknown) as body:
        assert sent(body) == whole
        assert sent(body, SIZE - 7) == whole[SIZE - 7 :]
        assert sent(body, 3) == whole[3:]
    with Body(replace(unknown, proof=None)) as body, pytest.raises(HashMismatch):
        sent(body)


@pytest.mark.parametrize("change", ["before", "meanwhile", "shorter"])
def test_a_model_that_changed_is_no_longer_known(model: ModelLayer, change: str) -> None:
    if change == "before":
        model.path.write_bytes(os.urandom(SIZE))
        with Body(model) as body, pytest.raises(HashMismatch):
            sent(body)
        return
    with Body(model) as body:
        pieces = iter(body.piece(0, body.size))
        count = len(next(pieces))
        if change == "shorter":
            os.truncate(model.path, SIZE // 2)
        else:
            with model.path.open("r+b") as file:
                file.write(b"another")
        with pytest.raises(Unresolvable, match=r"changed while it was sent|became shorter"):
            count += sum(map(len, pieces))
        assert count < body.size


def test_a_layout_s_blob_is_read_from_any_place_and_hashed_once_by_whoever_sends_it(
    model: ModelLayer, tmp_path: Path
) -> None:
    write_layout(image_of([model]), tmp_path / "x.oci")
    [layer] = open_source(LayoutName(tmp_path / "x.oci")).as_image(f"linux/{machine()}").layers
    assert isinstance(layer, Seekable)
    whole = b"".join(model.chunks())
    assert b"".join(layer.chunks_from(SIZE)) == whole[SIZE:]
    path = tmp_path / "x.oci/blobs/sha256" / layer.descriptor.digest.removeprefix("sha256:")
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"another")
    with Body(layer) as body, pytest.raises(HashMismatch):
        sent(body)
    with pytest.raises(HashMismatch):
        b"".join(layer.chunks())
