"""Receipts: a command line that led to a result need not begin again while all that it read and made is as it was.

``receipts/<key>`` of the store is what one run has kept: every file that it took something from or put somewhere, each
with its stat (device, inode, size, mtime and ctime; or that there was none), the images that Docker was given, and what
it said. The key is of the command line, the folder, the environment that matters, and this program's own files. Is all
that the same, :func:`replay` says the same again. Is anything else, however small, the whole program runs.

Looking takes less time than importing what the program itself needs, so nothing heavy is imported here
(docs/decisions/026-receipts.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

TYPE_CHECKING = False  # `typing` alone takes 2 ms
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "FOLDER", "forget", "holds", "keep", "key_of", "replay", "root_folder", "size_in", "stale", "stat_of", "stats_of",
]  # fmt: skip

FOLDER = "receipts"
_VERBS = ("image",)
_KEPT = 64
"""Receipts that a store keeps: the newest."""
_LIMIT = 8 << 20
"""Bytes of a receipt: some ten thousand files."""
_MATTERS = (
    "CPACK_DOCKER", "CPACK_HOME", "CPACK_PODMAN", "CPACK_STORES", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_HOST",
    "HOME", "XDG_CACHE_HOME",
)  # fmt: skip
"""The variables that say where things are. None of them is a secret."""
_DOCKER_SECONDS = 5


def root_folder() -> str:
    """The store's: ``CPACK_HOME`` if set, else ``$XDG_CACHE_HOME/cpack-build``, else ``~/.cache/cpack-build``."""
    if home := os.environ.get("CPACK_HOME"):
        return home
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cpack-build")


def replay(arguments: Sequence[str]) -> Mapping[str, Any] | None:
    """What was said when that command line was run, if there is a receipt of it and all of that still holds.

    It is text for ``stdout`` and ``stderr``. The store then knows that its blobs were used just now.
    """
    if not arguments or arguments[0] not in _VERBS:
        return None
    root = root_folder()
    try:
        key = key_of(arguments)
    except OSError:
        return None
    receipt = _read(os.path.join(root, FOLDER, key))
    if receipt is None or not holds(receipt):
        return None
    _use(root, key, receipt["used"])
    said: Mapping[str, Any] = receipt["said"]
    return said


def key_of(arguments: Sequence[str]) -> str:
    """The name of the receipt of that command line, run here and now by this program.

    Raises OSError where "here" is no folder any more, or the program cannot be looked at.
    """
    environment = [os.environ.get(name) for name in _MATTERS]
    parts = [list(arguments), os.getcwd(), environment, sys.version, list(_program())]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


def keep(
    root: str,
    key: str,
    *,
    files: Mapping[str, str | None],
    docker: Sequence[Mapping[str, str]],
    used: Iterable[str],
    said: Mapping[str, Any],
) -> None:
    """Keep a receipt in the store at *root*. *files* are paths with what :func:`stat_of` said of them; *docker* are a
    socket, an image's name and its ID each; *used* are hashes of blobs of the store.

    Only the newest are kept. A store that cannot be written has none.
    """
    folder = os.path.join(root, FOLDER)
    aside = os.path.join(folder, f".{key}.{os.getpid()}")
    document = {"files": dict(files), "docker": list(docker), "used": sorted(used), "said": dict(said)}
    data = json.dumps(document, ensure_ascii=True).encode()
    try:
        os.makedirs(folder, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        os.replace(aside, os.path.join(folder, key))
        for path in sorted(_all(root), key=lambda path: -os.stat(path).st_mtime_ns)[_KEPT:]:
            forget(path)
    except OSError:
        forget(aside)  # Nobody is promised one.


def holds(receipt: Mapping[str, Any]) -> bool:
    """Whether every file is as *receipt* has it, and Docker has the images."""
    files: Mapping[str, str | None] = receipt["files"]
    return all(stat_of(path) == known for path, known in files.items()) and all(map(_docker_has, receipt["docker"]))


def stale(root: str) -> Iterator[str]:
    """The receipts of the store at *root* that hold no more: their paths. Docker is not asked."""
    for path in _all(root):
        receipt = _read(path)
        if receipt is None or not holds({**receipt, "docker": ()}):
            yield path


def forget(path: str) -> None:
    """Remove one."""
    with suppress(OSError):  # It is gone, or stays: it proves itself when it is used.
        os.unlink(path)


def stat_of(path: str) -> str | None:
    """What changes when the file at *path* is written to or replaced; ``None`` where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def size_in(stat: str | None) -> int | None:
    """The file's size, as :func:`stat_of` told it."""
    return int(stat.split(":")[2]) if stat is not None else None


def stats_of(paths: Iterable[str]) -> dict[str, str | None]:
    """The same of several, by their absolute paths."""
    return {path: stat_of(path) for path in map(os.path.abspath, paths)}


def _program() -> Iterator[tuple[str, int, int]]:
    """Every file of this program: what a release or an edit changes."""
    waiting = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    if entry.name != "__pycache__":
                        waiting.append(entry.path)
                    continue
                try:
                    status = entry.stat()
                except OSError:  # A link to nothing, as editors leave them.
                    status = entry.stat(follow_symlinks=False)
                yield entry.path, status.st_size, status.st_mtime_ns


def _all(root: str) -> list[str]:
    folder = os.path.join(root, FOLDER)
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


def _read(path: str) -> dict[str, Any] | None:
    """The receipt at *path*, if it is one, and whole: not synced when it was written, it may be anything."""
    try:
        with open(path, "rb") as file:
            own, _, data = file.read(_LIMIT).partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest().encode() != own:
        return None
    receipt: dict[str, Any] = json.loads(data)
    return receipt


def _use(root: str, key: str, used: Sequence[str]) -> None:
    """Leave a record of what was used, as a process that has ended leaves its lease (:mod:`.leases`)."""
    lease = os.path.join(root, "leases", key)
    try:
        os.utime(os.path.join(root, FOLDER, key))
        try:
            os.utime(lease)
        except FileNotFoundError:
            with open(lease, "w", encoding="ascii") as file:
                file.write("".join(f"{sha256}\n" for sha256 in used))
    except OSError:
        pass  # A store that only is read is not collected from here.


def _docker_has(known: Mapping[str, str]) -> bool:
    """Whether Docker has that very image under that name (``GET /images/{name}/json``)."""
    if sys.platform == "win32":  # There Docker has no such socket.
        return False
    import socket

    name = known["name"]
    if not name.isascii() or any(character <= " " for character in name):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_DOCKER_SECONDS)
            connection.connect(known["socket"])
            # An answer to HTTP/1.0 is never in chunks, and ends with the connection.
            connection.sendall(f"GET /images/{name}/json HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
            said = b""
            while piece := connection.recv(1 << 16):
                said += piece
                if len(said) > _LIMIT:
                    return False
        head, _, body = said.partition(b"\r\n\r\n")
        return head.split(b" ", 2)[1] == b"200" and json.loads(body)["Id"] == known["id"]
    except (OSError, ValueError, LookupError, TypeError):
        return False  # It does not answer, or not as Docker does: the whole program finds out and says why.
