"""What a build takes on trust, and what it proves."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

from cpack_build.cpack.schema import ModelEntry
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.image.budget import HEAVY
from cpack_build.image.build import build
from cpack_build.image.models import model_layer
from cpack_build.lock.models import lock_models
from cpack_build.oci.compression import ChunkReader
from cpack_build.oci.modellayer import stamp
from tests.image.golden.building import INPUTS, golden_lock, materials_from
from tests.lock.progress import Heard
from tests.making import make_wheel

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


def test_of_two_wheels_that_fight_over_a_path_the_upper_layer_s_wins_and_the_build_says_so(tmp_path: Path) -> None:
    """The heavy one has a layer of its own below the others, whatever its name."""
    light = make_wheel(tmp_path, "alpha", {"shared/a.py": b"light"})
    heavy = replace(make_wheel(tmp_path, "zeta", {"shared/a.py": b"heavy"}), size=HEAVY)
    heard, store = Heard(), Store(tmp_path / "store")
    with materials_from(INPUTS, store) as materials:
        fighting = replace(materials, wheels=(light, heavy))
        with build(golden_lock(), fighting, store=store, progress=heard) as image:
            contents = []
            for layer in image.layers:
                with tarfile.open(fileobj=ChunkReader(layer.chunks()), mode="r|") as archive:
                    for member in archive:
                        if member.name.endswith("/shared/a.py"):
                            file = archive.extractfile(member)
                            assert file is not None
                            contents.append(file.read())
    assert contents == [b"heavy", b"light"], "from the bottom"
    assert heard.notes == [
        "zeta-1.0-py3-none-any.whl and alpha-1.0-py3-none-any.whl both have shared/a.py, and they differ: the image "
        "has those of alpha-1.0-py3-none-any.whl."
    ]
