"""What lies in the store is whole and as promised, also after a kill, a full disk or a file that changed."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, StorageError, writing
from cpack_build.fetch.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_blob_appears_under_its_hash_and_cannot_be_written(store: Store) -> None:
    file = store.put([b"ab", b"c"], what="x")

    assert file.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert file.path.name == file.sha256
    assert file.path.stat().st_mode & 0o777 == 0o444
    assert store.find(file.sha256) == file


def test_what_breaks_off_leaves_nothing(store: Store) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.put(broken(), what="x")
    with pytest.raises(HashMismatch):
        store.put([b"other"], what="x", sha256="0" * 64)
    assert [path for folder in ("tmp", "blobs") for path in (store.root / folder).rglob("*") if path.is_file()] == []


def test_what_comes_twice_stays_the_file_that_somebody_may_be_reading(store: Store) -> None:
    first = store.put([b"same"], what="x")
    second = store.put([b"same"], what="x")
    assert second == first
    first.require_unchanged()


def test_an_adopted_file_is_found_until_it_changes(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"one")
    file = store.adopt(path)
    assert store.find(file.sha256) == file

    os.utime(path, ns=(1, 1))
    assert store.find(file.sha256) is None


def test_an_adopted_file_is_read_once(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"one")
    reads: list[int] = []
    store.adopt(path, on_read=reads.append)
    Store(store.root).adopt(path, on_read=reads.append)
    assert reads == [3]


def test_a_full_disk_is_told_with_what_to_do() -> None:
    with pytest.raises(StorageError, match="No space left while writing here") as caught, writing("here"):
        raise OSError(errno.ENOSPC, "no space")
    assert caught.value.exit_code == 9


def test_what_is_remembered_survives(store: Store) -> None:
    store.remember("kind", "key", "value")
    assert Store(store.root).recall("kind", "key") == "value"
    assert store.recall("kind", "other") is None


def test_what_a_killed_run_was_writing_is_swept_away_and_what_another_writes_is_not(store: Store) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from cpack_build.fetch.store import Store
with Store(Path(sys.argv[1])).temporary() as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script, str(store.root)], env=environment)
    (left,) = (store.root / "tmp").iterdir()
    with Store(store.root).temporary() as other:
        assert not left.exists()
        Store(store.root).put([b"x"], what="x")
        assert [path.name for path in (store.root / "tmp").iterdir()] == [Path(other.name).name]
    assert list((store.root / "tmp").iterdir()) == []


def test_many_threads_open_a_new_memo_at_once(tmp_path: Path) -> None:
    """SQLite does not wait while the journal's mode is changed; it answers that the database is locked."""
    for number in range(40):
        store = Store(tmp_path / str(number))
        barrier = threading.Barrier(8)

        def use(key: int, store: Store = store, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            store.remember("kind", str(key), "value")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(use, range(8)))


def test_a_blob_that_is_brought_twice_stays_the_file_that_others_read(store: Store) -> None:
    first = store.put([b"the same"], what="x")
    again = store.put([b"the ", b"same"], what="x")
    assert (first.path, first.stamp) == (again.path, again.stamp)


def test_a_blob_that_is_put_again_while_it_is_read_is_unchanged(store: Store) -> None:
    file = store.put([b"abc"], what="x")
    store.put([b"abc"], what="x")
    file.require_unchanged()
    file.path.chmod(0o644)
    file.path.write_bytes(b"abd")
    with pytest.raises(HashMismatch):
        file.require_unchanged()


def test_what_was_made_and_is_damaged_is_no_longer_found(store: Store) -> None:
    file = store.put([b"abc"], what="x")
    assert store.find_sound(file.sha256) == file
    file.path.chmod(0o644)
    file.path.write_bytes(b"abd")
    assert store.find_sound(file.sha256) is None
    assert not file.path.exists()


def test_a_blob_that_several_put_at_once_stays_the_one_that_it_was(tmp_path: Path) -> None:
    """What both environments of an image need may be downloaded for both at once."""
    store, together = Store(tmp_path), threading.Barrier(8)

    def chunks() -> Iterator[bytes]:
        yield b"content"
        together.wait(30)

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: store.put(chunks(), what="x"), range(8)))
    assert len({file.stamp for file in stored}) == 1
    for file in stored:
        file.require_unchanged()
