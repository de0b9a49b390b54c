"""What a build takes on trust, and what it proves."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cpack_build.cpack.schema import ModelEntry
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.image.models import model_layer
from cpack_build.lock.models import lock_models
from cpack_build.oci.modellayer import stamp

DATA = b"weights" * 1000


def test_only_what_this_machine_hashed_itself_is_proved(tmp_path: Path) -> None:
    path = tmp_path / "models" / "x" / "y.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    store = Store(tmp_path / "store")
    entry = ModelEntry(filename="models/x/y.bin", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    (model,), _ = lock_models([entry], folders=[str(tmp_path / "models")], store=store, sources=Sources())

    file = store.find(model.sha256)
    assert file is not None
    assert model_layer(model, file, store=store).proof == stamp(path.stat())
    lying = model.model_copy(update={"layer_digest": "sha256:" + "0" * 64})
    assert model_layer(lying, file, store=store).proof is None
    other = Store(tmp_path / "other")
    assert model_layer(model, file, store=other).proof is None
    path.write_bytes(DATA[::-1])
    assert model_layer(model, file, store=store).proof is None
