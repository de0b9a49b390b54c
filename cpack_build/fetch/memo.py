"""What the store remembers, in one SQLite file: hashes of files by their stat, digests by recipe, names, last uses.

WAL mode makes it survive a kill at any moment; losing it costs time only. Each thread has a connection of its own.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpack_build import filesystem
from cpack_build.errors import StorageError, writing

__all__ = ["Memo"]

_TABLES = (
    "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stat TEXT NOT NULL, sha256 TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS files_by_hash ON files (sha256)",
    "CREATE TABLE IF NOT EXISTS memo (kind TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (kind, key))",
    "CREATE TABLE IF NOT EXISTS names (sha256 TEXT PRIMARY KEY, name TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS uses (sha256 TEXT PRIMARY KEY, used INTEGER NOT NULL)",
)


class Memo:
    """``memo.sqlite`` below *root*, made when it is first asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        weakref.finalize(self, _close, self._connections)

    def rows(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        """What *query* selects."""
        try:
            return self._database().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def write(self, query: str, *values: str | int) -> None:
        """Run *query*, which changes something."""
        try:
            self._database().execute(query, values)
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def write_many(self, query: str, rows: Iterable[tuple[str | int, ...]]) -> None:
        """Run *query* for each of *rows*, all of them or none."""
        try:
            database = self._database()
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany(query, rows)
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._broken(error) from error

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
            for table in _TABLES:
                connection.execute(table)
            self._local.connection = connection
        return connection

    def _broken(self, error: sqlite3.Error) -> StorageError:
        return StorageError(
            f"The memo {self.root / 'memo.sqlite'} cannot be used: {error}.",
            hint="Free some space if the disk is full; otherwise delete that one file: nothing but time is lost.",
        )


@contextmanager
def _set_up(root: Path) -> Iterator[None]:
    """One at a time, across threads and processes: SQLite does not wait while another changes the journal's mode."""
    with writing(root):
        file = (root / "memo.lock").open("w")
    with file:
        filesystem.lock(file)
        yield


def _close(connections: list[sqlite3.Connection]) -> None:
    """Close what the threads of a store that is gone had opened, each its own."""
    for connection in connections:
        connection.close()
