"""Leases: what running processes use of a store, so that nothing is collected from under a build.

Each process that finds or puts something writes its hash into a file of its own in ``leases/``, which it holds locked;
the system lets go of the lock when the process ends, however it ends. A file that nobody holds is no lease any more but
a record of what was used, and when. Writing and collecting exclude each other by the lock of ``leases/gate``: a hash is
either written before the collector looks, or its file is looked for after it has gone.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import IO

from cpack_build import filesystem
from cpack_build.errors import writing
from cpack_build.fetch.memo import Memo

__all__ = ["Leases", "held_file"]

_HEX = re.compile(rb"[0-9a-f]{64}")
_FOLDED_FROM = 64
"""Ended leases that may lie about before they are put into the memo."""


def held_file(folder: Path) -> BufferedRandom:
    """A new file in *folder*, locked for as long as it is open: the system lets go of it at a kill."""
    while True:
        file = open(folder / os.urandom(8).hex(), "x+b", opener=filesystem.open_file)  # noqa: SIM115
        filesystem.lock(file)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # swept away by another run between the two lines above


class Leases:
    """The leases of the store at *root*. Safe to use from several threads."""

    def __init__(self, root: Path, memo: Memo) -> None:
        self._folder = root / "leases"
        self._memo = memo
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._own: IO[bytes] | None = None
        self._gate: IO[bytes] | None = None
        self._open: list[IO[bytes]] = []
        weakref.finalize(self, _close, self._open)

    def take(self, sha256: str) -> None:
        """Hold *sha256* until this process ends. Look for its file after that."""
        with self._lock:
            if sha256 in self._held:
                return
            if self._own is None:
                with writing(self._folder):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._gate = (self._folder / "gate").open("ab")
                    self._own = held_file(self._folder)
                    self._open += [self._gate, self._own]
                if sum(1 for _ in self._folder.iterdir()) > _FOLDED_FROM:
                    with self.alone():
                        pass
            assert self._gate is not None
            assert self._own is not None
            filesystem.lock(self._gate, shared=True)
            try:
                with writing(self._folder):
                    self._own.write(sha256.encode() + b"\n")
                    self._own.flush()
            finally:
                filesystem.unlock(self._gate)
            self._held.add(sha256)

    @property
    def held(self) -> frozenset[str]:
        """What this process holds."""
        with self._lock:
            return frozenset(self._held)

    @contextmanager
    def alone(self) -> Iterator[Mapping[str, int]]:
        """Nobody takes a lease meanwhile: what is held (hash → when it was taken, seconds since 1970).

        What ended processes have used goes into the memo's table ``uses``.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            gate = (self._folder / "gate").open("ab")
        with gate:
            filesystem.lock(gate)
            held: dict[str, int] = {}
            used: dict[str, int] = {}
            ended = []
            for path in self._folder.iterdir():
                if path.name == "gate":
                    continue
                with suppress(OSError), open(path, "rb", opener=filesystem.open_file) as file:
                    into = held
                    if filesystem.lock(file, wait=False):
                        into = used
                        ended.append(path)
                    when = int(os.fstat(file.fileno()).st_mtime)
                    for word in _HEX.findall(file.read()):
                        into[word.decode()] = max(when, into.get(word.decode(), 0))
            if used:
                self._memo.write_many(
                    "INSERT INTO uses (sha256, used) VALUES (?, ?)"
                    " ON CONFLICT (sha256) DO UPDATE SET used = max(used, excluded.used)",
                    used.items(),
                )
            for path in ended:
                with suppress(OSError):
                    path.unlink()
            yield held


def _close(files: list[IO[bytes]]) -> None:
    for file in files:
        file.close()
