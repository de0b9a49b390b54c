"""A head start: the models that a build will have to hash are hashed while the program is still being imported.

Hashing takes longest, needs hardly any of the program, and one large file keeps one core busy only. So what is likely
to be hashed is looked up first, in the lock's plain JSON, and hashed by forks of this process, which share no
interpreter's lock with what goes on here. That is no answer to anything: the ordinary path
(:func:`cpack_build.lock.proof.prove`) checks every document, asks for the file that it wants, and takes the hash from
here only where it would begin the same one now, of a file whose stat is still what it was. A guess that was wrong costs
time and nothing else (docs/decisions/028-head-start.md).

Imported before pydantic and all that needs it, so nothing here may import those.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from cpack_build import filesystem
from cpack_build.errors import CpackError
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.lock.proof import candidates, proved
from cpack_build.oci.modellayer import hash_layer, mapped, read_ahead

__all__ = ["begin"]

_LIMIT = 64 << 20
"""Bytes of a lock or of settings that are looked into."""
_LOOK = 0.1
"""Seconds between two looks at how far a hash is."""
_OFTEN = 16 << 20
"""Bytes after which a fork tells how many it has read."""
_RECORD = struct.Struct("=IQ72s")
"""What a fork tells: a file's number, how many more bytes of it were read, and at the end its digest or `_NONE`."""
_NONE = b"none"
_Reader = Callable[[FileIO], Iterator[memoryview]]


@dataclass(frozen=True)
class _Pin:
    path: str
    sha256: str
    size: int
    layer_digest: str


class _Begun:
    """The hash of one file's layer, which a fork computes."""

    def __init__(self, file: StoredFile) -> None:
        self.file = file
        self.read = 0
        self.said = b""
        """What the fork says at the end; nothing if it ended before."""
        self.is_done = threading.Event()

    def digest(self, *, on_read: Callable[[int], object]) -> str | None:
        """The digest (:func:`hash_layer`); *on_read* is told of what was read, also before it was asked for."""
        told = 0

        def tell(read: int) -> None:
            nonlocal told
            on_read(max(0, read - told))
            told = max(told, read)

        while not self.is_done.wait(_LOOK):
            tell(self.read)
        tell(self.read)
        if self.said:
            return None if self.said == _NONE else self.said.decode("ascii")
        # The fork met an error or was ended: what is wrong, if anything, is found and said here.
        count = 0

        def again(length: int) -> None:
            nonlocal count
            count += length
            tell(count)

        return hash_layer(self.file.path, self.file.sha256, self.file.size, on_read=again)


def begin(lock: Path, settings: Path, *, folders: Sequence[str], store: Store) -> None:
    """Begin to hash the models of the lock in *lock* that lie in *folders*, or where the file *settings* says, and that
    *store* does not know. It has them as ``store.begun``.

    Whatever is wrong with any of it is passed over: the ordinary path says so. It does nothing where forks are not
    cheap and safe: beside other threads, and on other systems than Linux.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return
    with suppress(CpackError, OSError, ValueError, RuntimeError):  # The last of a home that nobody has.
        begun = {}
        places = [*folders, *_folders(settings)]
        for pin in sorted(_pins(lock), key=lambda pin: -pin.size):
            if store.find(pin.sha256) is None and proved(pin, store=store) is None:
                for file in candidates(pin, folders=places, store=store):
                    begun[file] = _Begun(file)
                    break
        _start(list(begun.values()))
        store.begun = begun


def _start(begun: Sequence[_Begun]) -> None:
    """Have *begun*, the largest first, computed by as many forks as there are cores. They end with this process."""
    cores = os.cpu_count() or 1
    shares: list[list[_Begun]] = [[] for _ in range(min(cores, len(begun)))]
    for task in begun:
        min(shares, key=lambda share: sum(other.file.size for other in share)).append(task)
    forks = []
    with suppress(OSError):  # There can be no more processes: what they would do is left to whoever asks for it.
        for share in shares:
            forks.append(_fork(share, reader=read_ahead if len(shares) < cores else mapped))
    # Threads begin when all forks are made: a fork has but the thread that made it.
    for (child, pipe), share in zip(forks, shares, strict=False):
        threading.Thread(target=_hear, args=(child, pipe, share), name="head start", daemon=True).start()
    for share in shares[len(forks) :]:
        _give_up(share)


def _fork(share: Sequence[_Begun], *, reader: _Reader) -> tuple[int, int]:
    """A process that hashes *share*, and the pipe from it. What ends it ends nothing else."""
    if sys.platform != "linux":
        raise OSError("only Linux forks")
    import resource

    here, there = os.pipe()
    child = os.fork()
    if child:
        os.close(there)
        return child, here
    try:
        os.close(here)
        for end in (signal.SIGINT, signal.SIGTERM):
            signal.signal(end, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, task in enumerate(share):
            _hash(task.file, number, there, reader=reader)
    finally:  # An error, too: whoever asks for what is missing meets it (`_Begun.digest`).
        os._exit(0)


def _hash(file: StoredFile, number: int, pipe: int, *, reader: _Reader) -> None:
    """Hash *file*, and write :data:`_RECORD` after record of its *number* to *pipe*."""
    unsaid = 0

    def say(said: bytes) -> None:
        nonlocal unsaid
        # Fails once nobody hears any more, which ends the process.
        os.write(pipe, _RECORD.pack(number, unsaid, said))
        unsaid = 0

    def tell(length: int) -> None:
        nonlocal unsaid
        unsaid += length
        if unsaid >= _OFTEN:
            say(b"")

    digest = hash_layer(file.path, file.sha256, file.size, on_read=tell, reader=reader)
    say(digest.encode("ascii") if digest else _NONE)


def _hear(child: int, pipe: int, share: Sequence[_Begun]) -> None:
    """Note what *child* says of *share*, until it has ended."""
    with open(pipe, "rb", buffering=0) as file:
        while len(record := file.read(_RECORD.size)) == _RECORD.size:
            number, length, said = _RECORD.unpack(record)
            share[number].read += length
            if said := said.rstrip(b"\0"):
                share[number].said = said
                share[number].is_done.set()
    os.waitpid(child, 0)
    _give_up(share)


def _give_up(share: Sequence[_Begun]) -> None:
    for task in share:
        task.is_done.set()


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
