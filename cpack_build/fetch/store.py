"""The content-addressed store: wheels, debs, base layers, models and what is remembered about them.

Under one root (``CPACK_HOME``, by default ``~/.cache/cpack-build``)::

    blobs/sha256/<hex>    whole files under the name of their hash, mode 0444
    git/<hex>/            bare repositories, named by the hash of their URL
    tmp/                  what is being written, each held by a lock; renamed into place only when whole and verified
    memo.sqlite           what was computed once: file hashes by stat, digests by recipe

A file in ``blobs/`` is always whole: it was hashed while it was written, synced, and renamed. A file elsewhere (a
model in a ComfyUI folder) is *adopted*: it stays where it is, and the store remembers its hash for as long as its
device, inode, size, mtime and ctime stay the same. SQLite in WAL mode makes the memo survive a kill at any moment;
losing it costs time only."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from cpack_build.errors import HashMismatch, StorageError, Unresolvable, writing

__all__ = ["CHUNK", "Store", "StoredFile", "default_root", "stamp_of"]

CHUNK = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


def default_root() -> Path:
    """``CPACK_HOME`` if set, else ``$XDG_CACHE_HOME/cpack-build``, else ``~/.cache/cpack-build``."""
    if home := os.environ.get("CPACK_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpack-build"


@dataclass(frozen=True)
class StoredFile:
    """A file whose content is known: *sha256* in hex, *size* in bytes.

    *stamp* is what its stat was when the content was known (device, inode, size, mtime and ctime in nanoseconds)."""

    path: Path
    sha256: str
    size: int
    stamp: tuple[int, ...] | None = None

    def require_unchanged(self) -> None:
        """Raise :class:`Unresolvable` if the file is no longer the one whose content was known."""
        if self.stamp is not None and _stamp_at(self.path) != self.stamp:
            raise Unresolvable(
                f"{self.path} changed while it was read.", hint="Wait until it is written, and run it again."
            )

    def require_sound(self) -> None:
        """Read it again: raise :class:`HashMismatch` if a bit has flipped since it was written."""
        hasher = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
        if hasher.hexdigest() != self.sha256:
            raise HashMismatch(self.path, expected=self.sha256, actual=hasher.hexdigest())


class Store:
    """One root of the store. Cheap to open; safe to use from several threads and processes."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self._lock = threading.Lock()
        self._is_swept = False
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        weakref.finalize(self, _close, self._connections)

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def blob_path(self, sha256: str) -> Path:
        """Where a blob of that hash lies, or would lie."""
        sha256 = sha256.removeprefix("sha256:")
        if not _HEX.fullmatch(sha256):
            raise Unresolvable(f"{sha256!r} is not a sha256 in lowercase hex.")
        return self.root / "blobs" / "sha256" / sha256

    def find(self, sha256: str) -> StoredFile | None:
        """The file with that content: a blob, or an adopted file that has not changed since it was hashed."""
        sha256 = sha256.removeprefix("sha256:")
        blob = self.blob_path(sha256)
        with suppress(FileNotFoundError):
            status = blob.stat()
            return StoredFile(blob, sha256, status.st_size, stamp_of(status))
        rows = self._rows("SELECT path, stat FROM files WHERE sha256 = ?", sha256)
        for path, stat in rows:
            with suppress(OSError):
                status = os.stat(path)
                if _stat_key(status) == stat:
                    return StoredFile(Path(path), sha256, status.st_size, stamp_of(status))
        return None

    def find_sound(self, sha256: str) -> StoredFile | None:
        """:meth:`find` for what was made here and can be made again: read through, and removed if it is damaged."""
        found = self.find(sha256)
        if found is None:
            return None
        try:
            found.require_sound()
        except HashMismatch:
            if found.path == self.blob_path(sha256):
                found.path.unlink(missing_ok=True)
            return None
        return found

    def put(
        self, chunks: Iterable[bytes], *, what: object, sha256: str | None = None, size: int | None = None
    ) -> StoredFile:
        """Write *chunks* as a blob; nothing appears under its final name unless it is whole and as promised.

        *what* names the thing in errors. Raises :class:`HashMismatch`, :class:`StorageError`.
        """
        hasher = hashlib.sha256()
        count = 0
        with self.temporary() as file:
            for chunk in chunks:
                hasher.update(chunk)
                count += len(chunk)
                if size is not None and count > size:
                    break
                with writing(self.root):
                    file.write(chunk)
            actual = hasher.hexdigest()
            if size is not None and count != size:
                much = "more than" if count > size else f"{count} of"
                raise HashMismatch(f"{what} ({much} {size} bytes)", expected=sha256 or "?", actual=actual)
            if sha256 is not None and actual != sha256.removeprefix("sha256:"):
                raise HashMismatch(what, expected=sha256, actual=actual)
            path = self.blob_path(actual)
            with writing(self.root):
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o444)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file.name, path)
        return StoredFile(path, actual, count, _stamp_at(path))

    @contextmanager
    def temporary(self) -> Iterator[NamedTemporaryFile]:  # type: ignore[valid-type]
        """A file in ``tmp/``, removed at the end unless it was renamed away."""
        with writing(self.root):
            file = _held_file(self._swept())
        try:
            with file:
                yield file
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file.name)

    def _swept(self) -> Path:
        """``tmp/``, once cleared of what runs that were killed have left; nobody holds the lock of such a file."""
        folder = self.root / "tmp"
        with self._lock:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._is_swept:
                self._is_swept = True
                for path in folder.iterdir():
                    with suppress(OSError), path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()
        return folder

    # -- files elsewhere -----------------------------------------------------------------------------------------------

    def adopt(self, path: Path, *, on_read: object = None) -> StoredFile:
        """Hash the file at *path* (or remember its hash) and let :meth:`find` find it there; no byte is copied.

        *on_read* is called with the number of bytes of each chunk that had to be read.
        """
        path = Path(os.path.abspath(path))
        status = path.stat()
        rows = self._rows("SELECT sha256 FROM files WHERE path = ? AND stat = ?", str(path), _stat_key(status))
        if rows:
            return StoredFile(path, rows[0][0], status.st_size, stamp_of(status))
        hasher = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                size += len(chunk)
                if callable(on_read):
                    on_read(len(chunk))
        adopted = StoredFile(path, hasher.hexdigest(), size, stamp_of(status))
        adopted.require_unchanged()
        self.remember_file(adopted)
        return adopted

    def known(self, path: Path) -> str | None:
        """The hash of the file at *path*, if it was hashed and has not changed since."""
        rows = self._rows(
            "SELECT sha256 FROM files WHERE path = ? AND stat = ?", os.path.abspath(path), _stat_key(path.stat())
        )
        return rows[0][0] if rows else None

    def remember_file(self, file: StoredFile) -> None:
        """Record the hash of a file that has a stamp, for as long as its stat is that."""
        assert file.stamp is not None
        self._write(
            "INSERT OR REPLACE INTO files (path, stat, sha256) VALUES (?, ?, ?)",
            os.path.abspath(file.path),
            ":".join(map(str, file.stamp)),
            file.sha256,
        )

    # -- memo ----------------------------------------------------------------------------------------------------------

    def recall(self, kind: str, key: str) -> str | None:
        """What was remembered for *key* among things of that *kind*."""
        for (value,) in self._rows("SELECT value FROM memo WHERE kind = ? AND key = ?", kind, key):
            return str(value)
        return None

    def remember(self, kind: str, key: str, value: str) -> None:
        """Remember *value*; both are a function of their inputs, so a second writer writes the same."""
        self._write("INSERT OR REPLACE INTO memo (kind, key, value) VALUES (?, ?, ?)", kind, key, value)

    # -- SQLite --------------------------------------------------------------------------------------------------------

    def _database(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with writing(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.root / "memo.sqlite", timeout=30, isolation_level=None, check_same_thread=False
            )
            self._connections.append(connection)
            with _set_up(self.root):
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stat TEXT NOT NULL, sha256 TEXT NOT NULL)"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS files_by_hash ON files (sha256)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS memo (kind TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (kind, key))"
            )
            self._local.connection = connection
        return connection

    def _rows(self, query: str, *values: str) -> list[tuple[str, ...]]:
        try:
            return self._database().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _broken(self.root, error) from error

    def _write(self, query: str, *values: str) -> None:
        try:
            self._database().execute(query, values)
        except sqlite3.Error as error:
            raise _broken(self.root, error) from error


def _held_file(folder: Path) -> Any:
    """A new file in *folder*, locked for as long as it is open: the system lets go of it at a kill."""
    while True:
        file = NamedTemporaryFile(dir=folder, delete=False)  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # swept away by another run between the two lines above


@contextmanager
def _set_up(root: Path) -> Iterator[None]:
    """One at a time, across threads and processes: SQLite does not wait while another changes the journal's mode."""
    with writing(root):
        file = (root / "memo.lock").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _close(connections: list[sqlite3.Connection]) -> None:
    """Close what the threads of a store that is gone had opened, each its own."""
    for connection in connections:
        connection.close()


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced: device, inode, size, mtime and ctime."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamp_at(path: Path) -> tuple[int, ...] | None:
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def _stat_key(status: os.stat_result) -> str:
    return ":".join(map(str, stamp_of(status)))


def _broken(root: Path, error: sqlite3.Error) -> StorageError:
    return StorageError(
        f"The memo {root / 'memo.sqlite'} cannot be used: {error}.",
        hint="Free some space if the disk is full; otherwise delete that one file: nothing but time is lost.",
    )
