"""A download that another run may go on with: the bytes so far, in ``pulled/<hex>`` of the store, held by a lock.

The file is named by the hash of what it will be. What lies in it is not believed: whoever goes on hashes it first, and
begins again when the whole turns out wrong. It is renamed into the store only when it is whole and right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from cpack_build import filesystem
from cpack_build.errors import writing
from cpack_build.oci.types import CHUNK

__all__ = ["Partial", "PartialStore", "held_partial"]


class PartialStore(Protocol):
    """What is needed of ``fetch.store.Store``."""

    @property
    def root(self) -> Path: ...

    def place(self, path: Path, sha256: str, *, descriptor: int, flush: Callable[[], object] | None = None) -> Path: ...


class Partial:
    """The file, open and held. *size* is how many bytes are in it."""

    def __init__(self, path: Path, file: BinaryIO, store: PartialStore) -> None:
        self.path = path
        self._file = file
        self._store = store
        self.size = os.fstat(file.fileno()).st_size

    def chunks(self) -> Iterator[bytes]:
        """What lies in it from an earlier run."""
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            yield chunk

    def append(self, chunk: bytes) -> None:
        """Write more. Raises :class:`StorageError`."""
        with writing(self._store.root):
            self._file.seek(self.size)
            self._file.write(chunk)
        self.size += len(chunk)

    def clear(self) -> None:
        """Begin again."""
        self._file.truncate(0)
        self.size = 0

    def place(self, sha256: str) -> Path:
        """Make it the store's blob of that hash, which it is known to have."""
        return self._store.place(self.path, sha256, descriptor=self._file.fileno())


@contextmanager
def held_partial(
    store: PartialStore, sha256: str, *, waiting: Callable[[], object] = lambda: None
) -> Iterator[Partial]:
    """The partial file of what will have that hash, held alone; it stays if it was neither placed nor cleared.

    *waiting* is called when another program holds it, before it is waited for.
    """
    path = store.root / "pulled" / sha256.removeprefix("sha256:")
    with writing(store.root):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with writing(store.root):
            handle = filesystem.open_file(path, os.O_RDWR | os.O_CREAT)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            if not filesystem.lock(file, wait=False):
                waiting()
                filesystem.lock(file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    partial = Partial(path, file, store)
                    try:
                        yield partial
                    finally:
                        if partial.size == 0:
                            with suppress(FileNotFoundError):
                                path.unlink()
                    return
        # Whoever held it has finished it: look again.
