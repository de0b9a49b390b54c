"""A head start: the models that a build will have to hash are hashed while the program is still being imported.

Hashing takes longest, needs neither the interpreter's lock nor most of the program, and one large file keeps one core
busy only. So what is likely to be hashed is looked up first, in the lock's plain JSON, and hashed in threads of its
own. That is no answer to anything: the ordinary path (:func:`cpack_build.lock.proof.prove`) checks every document, asks
for the file that it wants, and takes the hash from here only where it would begin the same one now, of a file whose
stat is still what it was. A guess that was wrong costs time and nothing else (docs/decisions/028-head-start.md).

Imported before pydantic and all that needs it, so nothing here may import those.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cpack_build import filesystem
from cpack_build.errors import CpackError
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.lock.proof import candidates, proved
from cpack_build.oci.modellayer import hash_layer

__all__ = ["begin"]

_SWITCH = 0.0005
"""Seconds after which a thread that hashed gets the interpreter's lock from one that imports: Python's own 5 ms are as
long as hashing 8 MB takes."""
_LIMIT = 64 << 20
"""Bytes of a lock or of settings that are looked into."""
_LOOK = 0.1
"""Seconds between two looks at how far a hash is."""


@dataclass(frozen=True)
class _Pin:
    path: str
    sha256: str
    size: int
    layer_digest: str


class _Begun:
    """The hash of one file's layer, which one of the threads computes."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._read = 0
        self._digest: Future[str | None] = Future()

    def compute(self) -> None:
        def count(length: int) -> None:
            self._read += length

        try:
            file = self._file
            self._digest.set_result(hash_layer(file.path, file.sha256, file.size, on_read=count))
        except BaseException as error:
            self._digest.set_exception(error)  # whoever asks gets it

    def digest(self, *, on_read: Callable[[int], object]) -> str | None:
        """The digest (:func:`hash_layer`); *on_read* is told of what was read, also before it was asked for."""
        told = 0
        is_done = False
        while not is_done:
            is_done = bool(wait([self._digest], timeout=_LOOK).done)
            read = self._read
            on_read(read - told)
            told = read
        return self._digest.result()


def begin(lock: Path, settings: Path, *, folders: Sequence[str], store: Store) -> None:
    """Begin to hash the models of the lock in *lock* that lie in *folders*, or where the file *settings* says, and that
    *store* does not know. It has them as ``store.begun``.

    Whatever is wrong with any of it is passed over: the ordinary path says so.
    """
    with suppress(CpackError, OSError, ValueError, RuntimeError):  # The last of a home that nobody has.
        begun = {}
        places = [*folders, *_folders(settings)]
        for pin in sorted(_pins(lock), key=lambda pin: -pin.size):
            if store.find(pin.sha256) is None and proved(pin, store=store) is None:
                for file in candidates(pin, folders=places, store=store):
                    begun[file] = _Begun(file)
                    break
        store.begun = begun
        _start(list(begun.values()))


class _Switching:
    """Quick switching between threads, from the first that enters it until the last has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 0.0

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(_SWITCH)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                sys.setswitchinterval(self._before)


_switching = _Switching()


def _start(begun: Collection[_Begun]) -> None:
    """Compute all of *begun*, as many at once as there are cores. A process that ends does not wait for it."""
    waiting = iter(begun)
    one_at_a_time = threading.Lock()

    def work() -> None:
        try:
            while True:
                with one_at_a_time:
                    task = next(waiting, None)
                if task is None:
                    return
                task.compute()
        finally:
            _switching.leave()

    for _ in range(min(os.cpu_count() or 1, len(begun))):
        _switching.enter()
        threading.Thread(target=work, name="head start", daemon=True).start()


def _content(path: Path) -> bytes:
    """What the file has. Raises :class:`ValueError` for what is none, such as a pipe or a device, or too large."""
    with open(
        os.path.realpath(path), "rb", opener=filesystem.open_file
    ) as file:  # a pipe's other end is not waited for
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is no regular file")
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise ValueError(f"{path} has more than {_LIMIT} bytes")
    return data


def _pins(lock: Path) -> Iterator[_Pin]:
    """The models that the file says it has."""
    document = json.loads(_content(lock))
    models = document.get("models") if isinstance(document, dict) else None
    for model in models if isinstance(models, list) else ():
        if not isinstance(model, dict):
            continue
        texts = [model.get(key) for key in ("path", "sha256", "layer_digest")]
        size = model.get("size")
        if all(isinstance(text, str) for text in texts) and isinstance(size, int):
            path, sha256, layer_digest = map(str, texts)
            yield _Pin(path, sha256, size, layer_digest)


def _folders(settings: Path) -> Iterator[str]:
    """The folders with models that the file names, if it is there."""
    if not settings.is_file():
        return
    import yaml

    try:
        document = yaml.safe_load(_content(settings).decode("utf-8"))
    except (RecursionError, yaml.YAMLError, LookupError, AttributeError, OverflowError):
        return
    models = document.get("models") if isinstance(document, Mapping) else None
    for folder in models if isinstance(models, list) else ():
        if isinstance(folder, str):
            yield os.path.normpath(settings.absolute().parent / folder) if folder.startswith(".") else folder
