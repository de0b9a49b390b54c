"""What is on this machine already is found by its bytes, whatever its name says, and is not copied without need."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cpack_build.errors import Unresolvable
from cpack_build.fetch.adoption import add, by_hash, found_below, other_stores
from cpack_build.fetch.store import Store

DATA = b"model" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


def test_a_folder_gives_its_models_and_files_named_by_hash(tmp_path: Path) -> None:
    for name in ("a.safetensors", "deep/b.ckpt", "notes.txt", f"hub/{SHA256}"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(DATA)
    (tmp_path / "folder/z.safetensors").symlink_to(tmp_path / "folder/a.safetensors")
    (tmp_path / "folder/gone.safetensors").symlink_to("/nowhere")
    names = [path.name for path in found_below(tmp_path / "folder")]
    assert sorted(names) == sorted(["a.safetensors", "b.ckpt", SHA256])
    with pytest.raises(Unresolvable, match="neither a file nor a folder"):
        found_below(tmp_path / "none")


def test_added_by_reference_it_stays_where_it_is(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(DATA)
    (added,) = add([path], store=store)
    assert added.how == "reference"
    found = store.find(SHA256)
    assert found is not None
    assert found.path == path
    assert not (store.root / "blobs").exists()


def test_kept_it_survives_its_first_name_and_a_change_by_it_is_noticed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(DATA)
    (added,) = add([path], store=store, keep=True)
    assert added.how in ("hardlink", "reflink")
    if added.how == "hardlink":
        with path.open("r+b") as file:
            file.write(b"other")
        assert store.find(SHA256) is None
        with path.open("r+b") as file:
            file.write(DATA[:5])
    path.unlink()
    found = store.find(SHA256)
    assert found is not None
    assert found.path == store.blob_path(SHA256)
    assert found.path.read_bytes() == DATA


def test_kept_from_another_disk_it_is_copied_and_a_lying_name_is_not_believed(store: Store) -> None:
    import tempfile

    if os.stat("/dev/shm").st_dev == store.root.parent.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        path = Path(other, "0" * 64)
        path.write_bytes(DATA)
        (added,) = add([path], store=store, keep=True)
    assert (added.how, added.file.sha256) == ("copy", SHA256)
    assert added.file.path.read_bytes() == DATA
    assert store.find("0" * 64) is None


def test_other_stores_are_looked_into_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    places = [tmp_path / ".comfypack/models" / SHA256, tmp_path / "hf/hub/models--o--n/blobs" / SHA256]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(DATA)
    assert list(by_hash(SHA256, other_stores())) == places
