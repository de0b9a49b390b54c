"""A store can be looked at, checked and emptied, and nothing goes from under whoever uses it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpack_build.errors import StorageError, UnsafeInput
from cpack_build.fetch.housekeeping import collect, holdings, verify
from cpack_build.fetch.store import Store, further_roots
from tests.fetch.disks import mounted

DAY = 86_400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


def looking(store: Store) -> Store:
    """Another process's view, which uses nothing."""
    return Store(store.root, further=store.further, leased=False)


def ended(root: Path, *contents: bytes) -> list[str]:
    """Hashes of what a process that has ended put into the store at *root*."""
    store = Store(root, further=())
    hashes = [
        store.put([content], what="x", name=f"{index}.safetensors").sha256 for index, content in enumerate(contents)
    ]
    del store
    return hashes


def test_what_is_held_is_told_with_names_and_sizes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"adopted")
    store.put([b"12345"], what="x", name="big.safetensors")
    store.put([b"1"], what="y", name="a.whl")
    store.adopt(tmp_path / "model.ckpt")

    held = holdings(looking(store))

    assert [(entry.name, entry.size, entry.place, entry.kind, entry.in_use) for entry in held.entries] == [
        ("model.ckpt", 7, "adopted", "model", False),
        ("big.safetensors", 5, "store", "model", True),
        ("a.whl", 1, "store", "wheel", True),
    ]
    assert held.size == 6


def test_what_a_build_uses_is_not_collected(store: Store) -> None:
    (old,) = ended(store.root, b"of an ended run")
    new = store.put([b"of this run"], what="x")

    done = collect(looking(store), max_size=0)

    assert [removal.path.name for removal in done.removals] == [old]
    assert done.in_use == 1
    assert new.path.exists()
    assert store.find(old) is None


def test_what_is_found_is_in_use_from_then_on(store: Store) -> None:
    (old,) = ended(store.root, b"old")
    found = store.find(old)
    assert found is not None
    assert collect(looking(store), max_size=0).removals == ()


def test_a_killed_build_holds_nothing_any_more(store: Store) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from cpack_build.fetch.store import Store
store = Store(Path(sys.argv[1]))
store.put([b"x"], what="x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script, str(store.root)], env=environment)
    assert len(collect(looking(store), max_size=0).removals) == 1


def test_what_a_lock_keeps_stays(store: Store) -> None:
    kept, gone = ended(store.root, b"kept", b"gone")
    done = collect(store, max_size=0, keep={kept})
    assert [removal.path.name for removal in done.removals] == [gone]


def test_the_longest_unused_go_first(store: Store) -> None:
    hashes = ended(store.root, b"1111", b"2222", b"3333")
    now = time.time()
    (lease,) = [path for path in (store.root / "leases").iterdir() if path.name != "gate"]
    os.utime(lease, (now - 10 * DAY, now - 10 * DAY))
    reader = Store(store.root, further=())
    reader.find(hashes[0])
    reader.leases._own.close()  # type: ignore[union-attr]

    done = collect(looking(store), max_size=8)
    assert [removal.path.name for removal in done.removals] == [sorted(hashes[1:])[0]]
    assert [removal.path.name for removal in collect(looking(store), unused_days=5).removals] == [sorted(hashes[1:])[1]]


@pytest.mark.parametrize("jump", [-1000 * DAY, 1000 * DAY])
def test_a_clock_that_jumped_removes_nothing_that_is_in_use(store: Store, jump: int) -> None:
    store.put([b"x"], what="x")
    assert collect(looking(store), unused_days=30, now=lambda: time.time() + jump).removals == ()


def test_a_clock_that_jumped_back_removes_nothing_at_all(store: Store) -> None:
    ended(store.root, b"x")
    assert collect(store, unused_days=1, now=lambda: 0.0).removals == ()


def test_a_dry_run_removes_nothing(store: Store) -> None:
    (sha256,) = ended(store.root, b"x")
    assert collect(store, max_size=0, dry_run=True).freed == 1
    assert store.find(sha256) is not None


def test_leftovers_go_but_not_what_somebody_works_on(store: Store) -> None:
    for folder in ("partial", "pulled", "rejected", "tmp"):
        (store.root / folder).mkdir(parents=True)
    for name in ("partial/a", "partial/b", "rejected/c", "tmp/d", "pulled/e", "pulled/f"):
        (store.root / name).write_bytes(b"x" * 5000)
    with (store.root / "partial/b.lock").open("wb") as busy, (store.root / "pulled/f").open("rb") as held:
        fcntl.flock(busy, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_EX)
        done = collect(store)
        assert sorted(removal.path.name for removal in done.removals) == ["a", "c", "d", "e"]
        assert (store.root / "partial/b").exists()
    collect(store)
    assert not (store.root / "partial/b").exists()
    assert not (store.root / "pulled/f").exists()


def test_folders_that_were_made_of_blobs_go_first_and_not_while_they_are_used(store: Store) -> None:
    (blob,) = ended(store.root, b"of an ended run")
    old = Store(store.root, further=())
    for name in ("old", "new"):
        (old.derived.take("workspaces", name) / "big").write_bytes(b"x" * 5000)
    os.link(store.blob_path(blob), store.root / "workspaces" / "old" / "shared")  # costs nothing, and frees nothing
    del old
    used = store.derived.take("workspaces", "new") / "big"

    found = {folder.path.name: folder for folder in holdings(looking(store)).derived}
    assert [(one.kind, one.in_use) for one in found.values()] == [("workspaces", True), ("workspaces", False)]
    assert found["old"].size == found["new"].size >= 5000

    would = collect(looking(store), max_size=0, dry_run=True)
    done = collect(looking(store), max_size=0)

    assert would == done
    assert done.removals[0].name == "workspaces/old"
    assert done.in_use == 1
    assert used.exists()
    assert sorted(path.name for path in (store.root / "workspaces").iterdir()) == ["new"]


def test_a_folder_is_made_anew_for_who_wants_it_after_it_went(store: Store) -> None:
    other = Store(store.root, further=())
    place = other.derived.take("wheelhouse", "x")
    del other
    collect(looking(store), unused_days=0)
    assert not place.exists()
    assert store.derived.take("wheelhouse", "x") == place
    assert place.is_dir()


def test_a_flipped_bit_is_found_and_put_aside(store: Store) -> None:
    file = store.put([b"right"], what="x")
    file.path.chmod(0o644)
    file.path.write_bytes(b"wrong")
    (told,) = verify(store, dry_run=True)[1]
    assert file.path.exists()

    count, (broken,) = verify(store)

    wrong = hashlib.sha256(b"wrong").hexdigest()
    assert (count, broken.expected, broken.actual) == (1, file.sha256, wrong)
    assert told.actual == wrong
    assert store.find(file.sha256) is None
    assert broken.aside is not None
    assert broken.aside.read_bytes() == b"wrong"


def test_a_planted_link_is_refused_and_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    sha256 = hashlib.sha256(b"secret").hexdigest()
    blob = store.blob_path(sha256)
    blob.parent.mkdir(parents=True)
    blob.symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeInput, match="is no file, but a link"):
        store.find(sha256)
    (broken,) = verify(store)[1]
    assert broken.path == blob


def test_a_file_planted_in_a_shared_root_is_believed_only_for_its_bytes(tmp_path: Path) -> None:
    shared = Store(tmp_path / "shared", further=())
    real = shared.put([b"real"], what="x")
    planted = shared.blob_path(hashlib.sha256(b"other").hexdigest())
    planted.write_bytes(b"planted")
    linked = shared.blob_path(hashlib.sha256(b"linked").hexdigest())
    linked.symlink_to(real.path)
    store = Store(tmp_path / "own", further=[shared.root])

    assert store.find(real.sha256) == real
    assert store.find(planted.name) is None
    assert store.find(linked.name) is None
    assert not (store.root / "blobs").exists()


def test_further_roots_come_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roots").write_text("/three\n\n")
    monkeypatch.setenv("CPACK_STORES", "/one:/two")
    assert further_roots(tmp_path) == (Path("/one"), Path("/two"), Path("/three"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        Store(tmp_path / "file").put([b"x"], what="x")


def test_a_store_on_a_read_only_disk_is_named_and_may_be_a_further_root(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "none") as disk:
        real = Store(disk / "store", further=()).put([b"shared"], what="x")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match=str(disk)):
            Store(disk / "store", further=()).put([b"x"], what="x")
        own = Store(tmp_path / "own", further=[disk / "store"])
        found = own.find(real.sha256)
        assert found is not None
        assert found.path == real.path


def test_a_store_of_ten_thousand_is_listed_and_collected_without_reading(store: Store) -> None:
    folder = store.root / "blobs" / "sha256"
    folder.mkdir(parents=True)
    for number in range(10_000):
        (folder / hashlib.sha256(str(number).encode()).hexdigest()).touch()
    assert len(holdings(store).entries) == 10_000
    assert len(collect(store, max_size=0, unused_days=0).removals) == 10_000
