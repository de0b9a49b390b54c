"""Models are found by their hash wherever they lie, proved by one read, and never copied."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpack_build.cpack.schema import ModelEntry
from cpack_build.errors import HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.models import fetch_model, lock_models
from cpack_build.lock.schema import Model
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.types import digest_of
from cpack_build.progress import Task
from tests.fetch.servers import serving_files
from tests.lock.progress import Heard

DATA = os.urandom(1000) * 300
SHA256 = hashlib.sha256(DATA).hexdigest()
PATH = "models/upscale_models/x.safetensors"
ENTRY = ModelEntry(filename=PATH, size=len(DATA), sha256=SHA256, urls=("https://hub.example/x.safetensors",))


def lay(folder: Path, name: str, data: bytes = DATA) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("place", ["upscale_models/x.safetensors", PATH, "x.safetensors"])
def test_a_model_is_found_in_a_folder_and_stays_there(place: str, store: Store, tmp_path: Path) -> None:
    path = lay(tmp_path / "folder", place)

    (model,), missing = lock_models([ENTRY], folders=[str(tmp_path / "folder")], store=store, sources=Sources())

    assert missing == []
    assert (model.path, model.sha256, model.size) == (PATH, SHA256, len(DATA))
    assert model.sources == ENTRY.urls
    layer = ModelLayer(path, SHA256, len(DATA), model.layer_digest)
    assert digest_of(b"".join(layer.chunks())) == model.layer_digest
    assert fetch_model(model, folders=(), store=store, sources=Sources()).path == path
    assert not (store.root / "blobs").exists()


def test_a_warm_lock_reads_no_model_byte(store: Store, tmp_path: Path) -> None:
    lay(tmp_path, "x.safetensors")
    cold, warm = Heard(), Heard()
    first = lock_models([ENTRY], folders=[str(tmp_path)], store=store, sources=Sources(), progress=cold)
    second = lock_models([ENTRY], folders=[str(tmp_path)], store=store, sources=Sources(), progress=warm)
    assert first == second
    assert sum(cold.amounts.values()) == len(DATA)
    assert warm.amounts == {}


def test_a_disabled_model_is_left_out(store: Store) -> None:
    entry = ENTRY.model_copy(update={"disabled": True})
    assert lock_models([entry], folders=(), store=store, sources=Sources()) == ([], [])


def test_a_model_is_downloaded_from_the_first_address_that_has_it(store: Store) -> None:
    with serving_files({"/x": DATA}) as server:
        entry = ENTRY.model_copy(update={"urls": (f"{server.url}/gone", f"{server.url}/x")})
        (model,), _ = lock_models([entry], folders=(), store=store, sources=Sources())
    assert model.sha256 == SHA256
    assert store.find(SHA256) is not None


def test_a_mirror_to_a_folder_is_used_in_place(store: Store, tmp_path: Path) -> None:
    path = lay(tmp_path, "x.safetensors")
    sources = Sources(Mirrors({"https://hub.example/": f"{tmp_path}/"}))
    (model,), _ = lock_models([ENTRY], folders=(), store=store, sources=sources)
    assert fetch_model(model, folders=(), store=store, sources=sources).path == path
    assert model.sources == ENTRY.urls


def test_another_file_of_that_name_does_not_stop_the_right_one(store: Store, tmp_path: Path) -> None:
    lay(tmp_path / "one", "upscale_models/x.safetensors", DATA[::-1])
    lay(tmp_path / "two", "x.safetensors")
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    (model,), _ = lock_models([ENTRY], folders=folders, store=store, sources=Sources())
    assert model.sha256 == SHA256


@pytest.mark.parametrize("wrong", [DATA[::-1], DATA[:-1]], ids=["other", "shorter"])
def test_a_file_with_another_hash_names_both(wrong: bytes, store: Store, tmp_path: Path) -> None:
    lay(tmp_path, "upscale_models/x.safetensors", wrong)
    entry = ENTRY.model_copy(update={"urls": ()})
    with pytest.raises(HashMismatch) as caught:
        lock_models([entry], folders=[str(tmp_path)], store=store, sources=Sources())
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_model_changed_after_the_lock_is_noticed(store: Store, tmp_path: Path) -> None:
    path = lay(tmp_path, "upscale_models/x.safetensors")
    (model,), _ = lock_models(
        [ENTRY.model_copy(update={"urls": ()})], folders=[str(tmp_path)], store=store, sources=Sources()
    )
    path.write_bytes(DATA[::-1])
    with pytest.raises(HashMismatch):
        fetch_model(model, folders=[str(tmp_path)], store=store, sources=Sources())


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(store: Store, tmp_path: Path) -> None:
    path = lay(tmp_path, "upscale_models/x.safetensors")
    entry = ENTRY.model_copy(update={"urls": ()})
    (model,), _ = lock_models([entry], folders=[str(tmp_path)], store=store, sources=Sources())
    before = path.stat()
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) == (
        before.st_ino, before.st_size, before.st_mtime_ns,
    )  # fmt: skip
    with pytest.raises(HashMismatch):
        fetch_model(model, folders=[str(tmp_path)], store=store, sources=Sources())


def test_a_model_that_changes_while_it_is_read_is_told_and_not_remembered(store: Store, tmp_path: Path) -> None:
    path = lay(tmp_path, "upscale_models/x.safetensors")

    class Writing(Heard):
        @contextmanager
        def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
            with super().task(title, total=total, unit=unit) as task:
                yield task
                os.utime(path, ns=(1, 1))

    entry = ENTRY.model_copy(update={"urls": ()})
    _, (error,) = lock_models([entry], folders=[str(tmp_path)], store=store, sources=Sources(), progress=Writing())
    assert "changed while it was read" in str(error)
    assert store.find(SHA256) is None


def test_a_model_of_9_gib_is_proved_by_one_read_in_little_memory(store: Store, tmp_path: Path) -> None:
    """Its size does not fit a plain tar header; on the disk it is a hole."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(9 << 30)
        file.seek(5 << 30)
        file.write(b"x")
    model = Model(
        path=PATH, size=9 << 30, sources=(),
        sha256="bd6523fa17a0e9123ab91706561185fc0dcd519bfbcd29d4b8c0a23af4c6a28d",
        layer_digest="sha256:fc7bfb04d01ed3facdb490661130f44da266d92294392612eb3b6b491e509ce1",
    )  # fmt: skip
    heard = Heard()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = fetch_model(model, folders=[str(tmp_path)], store=store, sources=Sources(), progress=heard)
    assert found.path == path
    assert sum(heard.amounts.values()) == 9 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert fetch_model(model, folders=(), store=store, sources=Sources()) == found


def test_all_missing_models_are_told_with_what_to_do(store: Store) -> None:
    entries = [
        ENTRY.model_copy(update={"filename": f"models/a/{name}", "urls": ("https://127.0.0.1:9/a?token=secret",)})
        for name in ("one", "two")
    ]
    entries[0] = entries[0].model_copy(update={"urls": ()})
    sources = Sources(Mirrors({"https://127.0.0.1:9/": "/nowhere/"}))
    _, missing = lock_models(entries, folders=(), store=store, sources=sources)
    first, second = map(str, missing)
    assert "models/a/one" in first
    assert "--models" in first
    assert "models/a/two" in second
    assert "secret" not in second
    assert all(isinstance(error, Unresolvable) for error in missing)


def test_a_model_without_hash_is_taken_from_its_own_place_only(store: Store, tmp_path: Path) -> None:
    entry = ENTRY.model_copy(update={"sha256": None})
    lay(tmp_path / "other", "x.safetensors")
    _, missing = lock_models([entry], folders=[str(tmp_path / "other")], store=store, sources=Sources())
    assert "has no sha256 in the pack" in str(missing[0])

    lay(tmp_path / "right", "upscale_models/x.safetensors")
    (model,), missing = lock_models([entry], folders=[str(tmp_path / "right")], store=store, sources=Sources())
    assert model.sha256 == SHA256
    assert missing == []


@pytest.mark.parametrize(
    "name",
    ["../x", "models/../../x", "/etc/passwd", "models//x", "models/./x", "..\\..\\x", "C:\\x", "a\nb", "", "models/",
     "a\0b"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name: str, store: Store) -> None:
    entry = ENTRY.model_copy(update={"filename": name})
    with pytest.raises(UnsafeInput) as caught:
        lock_models([entry], folders=(), store=store, sources=Sources())
    assert caught.value.exit_code == 8


def test_windows_separators_are_turned(store: Store, tmp_path: Path) -> None:
    lay(tmp_path, "x.safetensors")
    entry = ENTRY.model_copy(update={"filename": PATH.replace("/", "\\")})
    (model,), _ = lock_models([entry], folders=[str(tmp_path)], store=store, sources=Sources())
    assert model.path == PATH


def test_two_models_at_one_path_are_refused(store: Store, tmp_path: Path) -> None:
    other = os.urandom(10)
    lay(tmp_path, "x.safetensors")
    lay(tmp_path, "upscale_models/x.safetensors", other)
    entries = [
        ENTRY,
        ENTRY.model_copy(update={"sha256": hashlib.sha256(other).hexdigest(), "size": 10, "filename": PATH.upper()}),
    ]
    lay(tmp_path, PATH.upper(), other)
    with pytest.raises(UnsafeInput, match="two models"):
        lock_models(entries, folders=[str(tmp_path)], store=store, sources=Sources())
