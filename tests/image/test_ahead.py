"""While models are hashed, what needs none of them is measured: the build finds all of it known."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpack_build.fetch.store import Store, StoredFile
from cpack_build.image.build import Materials, build, measure_ahead
from cpack_build.lock.models import fetch_model
from tests.image.small import gathered, make_parts
from tests.lock.progress import Heard


def test_a_build_has_only_the_topmost_layer_left_to_measure(tmp_path: Path) -> None:
    lock = make_parts(tmp_path, models=[5000, 7000])
    plain, store = Store(tmp_path / "plain"), Store(tmp_path / "store")
    with build(lock, gathered(tmp_path, lock, store=plain), store=plain) as image:
        wanted = image.digest
    materials = gathered(tmp_path, lock, store=store)
    ahead, rest = Heard(), Heard()
    measure_ahead(lock, replace(materials, models={}), store=store, progress=ahead)
    assert len(ahead.titles) > 3
    with build(lock, materials, store=store, progress=rest) as image:
        assert image.digest == wanted
    assert rest.titles == ["links and config"]


def test_all_but_the_models_is_told_while_one_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = make_parts(tmp_path, models=[5000])
    told = threading.Event()

    def slow(*arguments: Any, **named: Any) -> StoredFile:
        assert told.wait(60), "it was not told"
        return fetch_model(*arguments, **named)

    def note(materials: Materials) -> None:
        assert (materials.models, len(materials.wheels)) == ({}, 2)
        told.set()

    monkeypatch.setattr("cpack_build.image.gather.fetch_model", slow)
    materials = gathered(tmp_path, lock, store=Store(tmp_path / "store"), meanwhile=note)
    assert list(materials.models) == [lock.models[0].sha256]


def test_what_fails_meanwhile_ends_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = make_parts(tmp_path, models=[5000])
    failed = threading.Event()

    def slow(*arguments: Any, **named: Any) -> StoredFile:
        assert failed.wait(60)
        return fetch_model(*arguments, **named)

    def fails(materials: Materials) -> None:
        failed.set()
        raise ValueError("of a layer")

    monkeypatch.setattr("cpack_build.image.gather.fetch_model", slow)
    with pytest.raises(ValueError, match="of a layer"):
        gathered(tmp_path, lock, store=Store(tmp_path / "store"), meanwhile=fails)
