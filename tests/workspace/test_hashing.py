"""Files are hashed once, all of them, and an interruption loses nothing that was done."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpack_build.errors import BadInput
from cpack_build.fetch.store import Store
from cpack_build.progress import Task
from cpack_build.workspace.hashing import hash_files


class Counting:
    """Counts the bytes of progress, and can interrupt like Ctrl-C."""

    def __init__(self, *, interrupt_after: int | None = None) -> None:
        self.total: int | None = None
        self.done = 0
        self._limit = interrupt_after

    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        self.total = total
        yield self

    def advance(self, amount: int) -> None:
        self.done += amount
        if self._limit is not None and self.done > self._limit:
            raise KeyboardInterrupt

    def expect(self, total: int) -> None:
        self.total = total

    def note(self, message: str) -> None:
        raise AssertionError(message)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.bin" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (number * 700_000))
    return paths


def test_hashes_are_right_and_progress_counts_every_byte(files: list[Path], tmp_path: Path) -> None:
    progress = Counting()
    hashes = hash_files(files, store=Store(tmp_path / "s"), workers=3, progress=progress)
    assert hashes == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert progress.done == progress.total == sum(path.stat().st_size for path in files)


def test_a_second_time_reads_no_byte(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "s")
    first = hash_files(files, store=store)
    opened: list[Path] = []
    original = Path.open

    def watched(path: Path, *arguments: object, **more: object) -> object:
        opened.append(path)
        return original(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", watched)
    progress = Counting()
    assert hash_files(files, store=store, progress=progress) == first
    assert [path for path in opened if path in files] == []
    assert progress.done == progress.total


def test_an_interruption_ends_all_threads_and_keeps_what_was_done(files: list[Path], tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        hash_files(files, store=store, workers=1, progress=Counting(interrupt_after=4_000_000))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    # The largest came first, and was whole.
    assert store.find(hashlib.sha256(files[-1].read_bytes()).hexdigest()) is not None


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.bin").symlink_to("/proc/self/mem")
    with pytest.raises(BadInput, match=r"x\.bin cannot be read: "):
        hash_files([tmp_path / "x.bin"], store=Store(tmp_path / "s"))
    with pytest.raises(BadInput, match=r"gone cannot be read: no such file"):
        hash_files([tmp_path / "gone"], store=Store(tmp_path / "s"))
