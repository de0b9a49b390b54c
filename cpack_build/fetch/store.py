"""The content-addressed store: wheels, debs, base layers, models and what is remembered about them.

Under one root (``CPACK_HOME``, by default ``~/.cache/cpack-build``)::

    blobs/sha256/<hex>    whole files under the name of their hash, mode 0444
    git/<hex>/            bare repositories, named by the hash of their URL
    tmp/                  what is being written, each held by a lock; renamed into place only when whole and verified
    partial/<hex>         downloads that may go on in another run (:mod:`.partial`)
    pulled/<hex>          the same from registries, named by what they will be (:mod:`cpack_build.oci.partial`)
    rejected/<hex>        what came under another hash than promised, by its real one; never used
    leases/               what running processes use (:mod:`.leases`)
    receipts/<key>        what command lines led to (:mod:`.receipts`)
    memo.sqlite           what was computed once: file hashes by stat, digests by recipe (:mod:`.memo`)

A file in ``blobs/`` is always whole: it was hashed while it was written, synced, and renamed. A file elsewhere (a
model in a ComfyUI folder) is *adopted*: it stays where it is, and the store remembers its hash for as long as its
device, inode, size, mtime and ctime stay the same. Further roots (``CPACK_STORES``, or lines of the file ``roots``) are
only read; what lies there under a hash is hashed once before it is believed, and so is a blob that has another name."""

from __future__ import annotations

import hashlib
import os
import re
import stat as modes
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Protocol

from cpack_build import filesystem
from cpack_build.errors import HashMismatch, Unresolvable, UnsafeInput, writing
from cpack_build.fetch.derived import DerivedFolders
from cpack_build.fetch.leases import Leases, held_file
from cpack_build.fetch.memo import Memo
from cpack_build.fetch.receipts import root_folder

__all__ = [
    "CHUNK", "Begun", "Store", "StoredFile", "default_root", "further_roots", "stamp_at", "stamp_of", "stat_key",
    "stored_at",
]  # fmt: skip

CHUNK = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


def default_root() -> Path:
    """``CPACK_HOME`` if set, else ``$XDG_CACHE_HOME/cpack-build``, else ``~/.cache/cpack-build``."""
    return Path(root_folder())


def further_roots(root: Path) -> tuple[Path, ...]:
    """Roots that are only read: those in ``CPACK_STORES`` (separated as in ``PATH``), and the lines of ``roots``."""
    named = os.environ.get("CPACK_STORES", "").split(os.pathsep)
    with suppress(OSError, UnicodeDecodeError):
        named += (root / "roots").read_text("utf-8").splitlines()
    return tuple(filesystem.expanded(line.strip()) for line in dict.fromkeys(named) if line.strip())


@dataclass(frozen=True)
class StoredFile:
    """A file whose content is known: *sha256* in hex, *size* in bytes.

    *stamp* is what its stat was when the content was known (device, inode, size, mtime and ctime in nanoseconds)."""

    path: Path
    sha256: str
    size: int
    stamp: tuple[int, ...] | None = None

    def require_unchanged(self) -> None:
        """Raise :class:`Unresolvable` if the file is no longer the one whose content was known.

        A blob may have been put once more meanwhile, by another thread or program: it has to be what it is called.
        """
        if self.stamp is None or stamp_at(self.path) == self.stamp:
            return
        if self.path.name == self.sha256 and self.path.exists():
            self.require_sound()
        else:
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


class Begun(Protocol):
    """A file whose hash as a layer is being computed (``lock.headstart``)."""

    def digest(self, *, on_read: Callable[[int], object]) -> str | None:
        """Wait for it; ``None`` if the file has another size by now.

        *on_read* is called with numbers of bytes that were read.
        """


class Store:
    """The store with its main root, and *further* roots that are only read.

    Cheap to open; safe to use from several threads and processes. *leased* is false for whoever only looks at it, and
    does not use what is there. *begun* are files that are being hashed already, as they are now.
    """

    def __init__(self, root: Path | None = None, *, further: Sequence[Path] | None = None, leased: bool = True) -> None:
        self.root = root or default_root()
        self.further = further_roots(self.root) if further is None else tuple(further)
        self.memo = Memo(self.root)
        self.leases = Leases(self.root, self.memo)
        self.derived = DerivedFolders(self.root)
        self.begun: Mapping[StoredFile, Begun] = {}
        self._is_leased = leased
        self._lock = threading.Lock()
        self._is_swept = False

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def blob_path(self, sha256: str) -> Path:
        """Where a blob of that hash lies, or would lie."""
        return self.root / "blobs" / "sha256" / _hex(sha256)

    def find(self, sha256: str) -> StoredFile | None:
        """The file with that content: a blob, an adopted file that has not changed since it was hashed, or one of the
        further roots'. Raises :class:`UnsafeInput` for a link or folder in a blob's place."""
        sha256 = _hex(sha256)
        if self._is_leased and os.path.lexists(self.blob_path(sha256)):
            self.leases.take(sha256)
        if (blob := self._believed(self.blob_path(sha256), sha256, own=True)) is not None:
            return blob
        rows = self.memo.rows("SELECT path, stat FROM files WHERE sha256 = ?", sha256)
        for path, stat in rows:
            with suppress(OSError):
                status = os.stat(path)
                if stat_key(status) == stat:
                    return StoredFile(Path(path), sha256, status.st_size, stamp_of(status))
        for root in self.further:
            path = root / "blobs" / "sha256" / sha256
            if (blob := self._believed(path, sha256, own=False)) is not None:
                return blob
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

    def is_blob(self, sha256: str) -> bool:
        """Whether the main root itself has a blob of that hash."""
        return self._believed(self.blob_path(sha256), _hex(sha256), own=True) is not None

    def _believed(self, path: Path, sha256: str, *, own: bool) -> StoredFile | None:
        """The file at *path* if it has the hash that its name says.

        A name alone is believed only for what nobody but this store can have put there: our own, without another name.
        """
        try:
            status = os.lstat(path)
        except OSError:
            return None
        if not modes.S_ISREG(status.st_mode):
            if not own:
                return None
            raise UnsafeInput(
                f"{path} is no file, but {'a link' if modes.S_ISLNK(status.st_mode) else 'something else'}, which the "
                "store never makes.",
                hint="Look where it leads, and remove it.",
            )
        if own and status.st_nlink == 1:
            return StoredFile(path, sha256, status.st_size, stamp_of(status))
        try:
            adopted = self.adopt(path)
        except (OSError, Unresolvable):
            return None
        return adopted if adopted.sha256 == sha256 else None

    def put(
        self,
        chunks: Iterable[bytes],
        *,
        what: object,
        sha256: str | None = None,
        size: int | None = None,
        name: str = "",
    ) -> StoredFile:
        """Write *chunks* as a blob; nothing appears under its final name unless it is whole and as promised.

        *what* names the thing in errors, *name* in listings. Raises :class:`HashMismatch`, :class:`StorageError`.
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
            path = self.place(Path(file.name), actual, descriptor=file.fileno(), name=name, flush=file.flush)
        return StoredFile(path, actual, count, stamp_at(path))

    def place(
        self, path: Path, sha256: str, *, descriptor: int, name: str = "", flush: Callable[[], object] | None = None
    ) -> Path:
        """Make the file at *path* within the root, open as *descriptor* and known to have that hash, its blob."""
        blob = self.blob_path(sha256)
        if self._is_leased:
            self.leases.take(_hex(sha256))
        with writing(self.root):
            if flush is not None:
                flush()
            os.fsync(descriptor)
            filesystem.read_only(descriptor, path)
            blob.parent.mkdir(parents=True, exist_ok=True)
            with _held_folder(blob.parent):
                if self._believed(blob, _hex(sha256), own=True) is None:
                    os.replace(path, blob)
                else:  # Put meanwhile by another, and who has the stamp of that must not think that it changed.
                    os.unlink(path)
        if name:
            self.memo.write("INSERT OR REPLACE INTO names (sha256, name) VALUES (?, ?)", _hex(sha256), name)
        return blob

    def reject(self, path: Path, sha256: str) -> Path:
        """Keep the file at *path* within the root, whose real hash is *sha256*, aside for inspection."""
        aside = self.root / "rejected" / _hex(sha256)
        with writing(self.root):
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)
            aside.chmod(0o444)
        return aside

    @contextmanager
    def temporary(self) -> Iterator[BufferedRandom]:
        """A file in ``tmp/``, removed at the end unless it was renamed away."""
        with writing(self.root):
            file = held_file(self._swept())
        try:
            with file:
                yield file
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file.name)

    @contextmanager
    def folder(self, prefix: str) -> Iterator[Path]:
        """A folder of the caller's own in the root, removed at the end."""
        from tempfile import TemporaryDirectory

        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            folder = TemporaryDirectory(prefix=prefix, dir=self.root)
        with folder as name:
            yield Path(name)

    def _swept(self) -> Path:
        """``tmp/``, once cleared of what runs that were killed have left; nobody holds the lock of such a file."""
        folder = self.root / "tmp"
        with self._lock:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._is_swept:
                self._is_swept = True
                for path in folder.iterdir():
                    with suppress(OSError), open(path, "rb", opener=filesystem.open_file) as file:
                        if filesystem.lock(file, wait=False):
                            path.unlink()
        return folder

    # -- files elsewhere -----------------------------------------------------------------------------------------------

    def adopt(self, path: Path, *, on_read: object = None) -> StoredFile:
        """Hash the file at *path* (or remember its hash) and let :meth:`find` find it there; no byte is copied.

        *on_read* is called with the number of bytes of each chunk that had to be read.
        """
        path = Path(os.path.abspath(path))
        status = path.stat()
        rows = self.memo.rows("SELECT sha256 FROM files WHERE path = ? AND stat = ?", str(path), stat_key(status))
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
        query = "SELECT sha256 FROM files WHERE path = ? AND stat = ?"
        rows = self.memo.rows(query, os.path.abspath(path), stat_key(path.stat()))
        return rows[0][0] if rows else None

    def remember_file(self, file: StoredFile) -> None:
        """Record the hash of a file that has a stamp, for as long as its stat is that."""
        assert file.stamp is not None
        self.memo.write(
            "INSERT OR REPLACE INTO files (path, stat, sha256) VALUES (?, ?, ?)",
            os.path.abspath(file.path),
            ":".join(map(str, file.stamp)),
            file.sha256,
        )

    # -- memo ----------------------------------------------------------------------------------------------------------

    def recall(self, kind: str, key: str) -> str | None:
        """What was remembered for *key* among things of that *kind*."""
        for (value,) in self.memo.rows("SELECT value FROM memo WHERE kind = ? AND key = ?", kind, key):
            return str(value)
        return None

    def remember(self, kind: str, key: str, value: str) -> None:
        """Remember *value*; both are a function of their inputs, so a second writer writes the same."""
        self.memo.write("INSERT OR REPLACE INTO memo (kind, key, value) VALUES (?, ?, ?)", kind, key, value)


def _hex(sha256: str) -> str:
    sha256 = sha256.removeprefix("sha256:")
    if not _HEX.fullmatch(sha256):
        raise Unresolvable(f"{sha256!r} is not a sha256 in lowercase hex.")
    return sha256


@contextmanager
def _held_folder(folder: Path) -> Iterator[None]:
    """*folder* against other threads and processes that hold it; the system lets go of it at a kill."""
    handle = filesystem.open_folder(folder)
    try:
        filesystem.lock(handle)
        yield
    finally:
        os.close(handle)


def stored_at(path: Path, sha256: str) -> StoredFile:
    """The file at *path*, which is known to have that hash, with its stat of now."""
    status = path.stat()
    return StoredFile(path, sha256, status.st_size, stamp_of(status))


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced: device, inode, size, mtime and ctime."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamp_at(path: Path) -> tuple[int, ...] | None:
    """The same of the file at *path*; ``None`` where there is none."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def stat_key(status: os.stat_result) -> str:
    """:func:`stamp_of` as text."""
    return ":".join(map(str, stamp_of(status)))
