"""Bytecode, compiled by the very interpreter that the lock pins.

Compilers of one minor version differ: CPython 3.11.2 and 3.11.7 give other bytes for one file in four hundred
(``docs/decisions/004-bytecode.md``). So the interpreter of the image itself compiles: its files are laid out in a
temporary folder and started through the dynamic loader that came with them. It never imports or runs what it compiles.

A ``.pyc`` is *unchecked hash-based* (PEP 552): it needs no timestamp and the source is never compared. It is written
with marshal version 2, whose output, unlike version 4's, does not depend on what was compiled before. Results are
kept in the store as one plain tar per wheel or tree, by the hash of what went in."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from tarfile import open as open_tar
from types import TracebackType

from cpack_build.errors import ToolMissing
from cpack_build.fetch.store import Store
from cpack_build.image.layer import MTIME, key_of
from cpack_build.image.unpacked import Slice
from cpack_build.oci import tar

__all__ = ["Compiler", "Interpreter", "Launch", "cache_path", "identity", "identity_of", "sources_of"]

_WORKER = r"""
import sys
sys.path[:] = [place for place in sys.path if place]
import importlib.util, marshal, struct, warnings
warnings.simplefilter("ignore")
sys.setrecursionlimit(3000)
read, write = sys.stdin.buffer.read, sys.stdout.buffer.write
write(struct.pack("<II", *sys.version_info[:2]))
sys.stdout.buffer.flush()
while True:
    head = read(8)
    if len(head) < 8:
        break
    name, size = struct.unpack("<II", head)
    name = read(name).decode("utf-8", "surrogateescape")
    source = read(size)
    try:
        code = compile(source, name, "exec", dont_inherit=True, optimize=0)
        data = b"".join((importlib.util.MAGIC_NUMBER, struct.pack("<I", 1), importlib.util.source_hash(source),
                         marshal.dumps(code, 2)))
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, UnicodeError):
        data = b""
    write(struct.pack("<I", len(data)))
    write(data)
    sys.stdout.buffer.flush()
"""
_LONGEST_SOURCE = 16 << 20
"""Bytes; a longer source is left without bytecode."""


def cache_path(path: str, python: str) -> str:
    """Where Python *python* (``3.11``) looks for the bytecode of the source at *path* (PEP 3147)."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}__pycache__/{name.removesuffix('.py')}.cpython-{python.replace('.', '')}.pyc"


@dataclass(frozen=True)
class Interpreter:
    """The image's interpreter, ready to be started on this machine.

    *identity* is a hash over everything its output depends on. *unpack* lays its files out and gives the command and
    the environment that start it; it is called only when something must be compiled, and its context ends with the
    build."""

    python: str
    identity: str
    unpack: Callable[[], AbstractContextManager[Launch]]


@dataclass(frozen=True)
class Launch:
    """How a laid-out interpreter is started."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Compiler:
    """Compiles sources with one interpreter, one process for each thread that asks. Use it as a context."""

    def __init__(self, interpreter: Interpreter, store: Store) -> None:
        self._interpreter = interpreter
        self._store = store
        self._lock = threading.Lock()
        self._unpacked: AbstractContextManager[Launch] | None = None
        self._launch = Launch(())
        self._processes: dict[int, _Process] = {}

    def __enter__(self) -> Compiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.close()
        if self._unpacked is not None:
            self._unpacked.__exit__(kind, error, trace)

    @property
    def identity(self) -> str:
        """What a layer's key must hold beside the sources' hash."""
        return self._interpreter.identity

    def entries_of(self, files: Sequence[tar.Entry]) -> list[tar.Entry]:
        """Bytecode for the sources among a few small *files*."""
        key = [(path, hashlib.sha256(source).hexdigest()) for path, source in sources_of(files)()]
        return self.entries(key, sources_of(files)) if key else []

    def entries(self, key: object, sources: Callable[[], Iterable[tuple[str, bytes]]]) -> list[tar.Entry]:
        """Bytecode for every source that compiles: a function of *key* alone, so it is made once.

        *sources* gives path in the image and content, in a fixed order. A file that does not compile (Python 2, a
        template) gets none.
        """
        memo = key_of("bytecode", self.identity, key)
        known = self._store.recall("bytecode", memo)
        found = self._store.find_sound(known) if known is not None else None
        if found is None:
            found = self._store.put(tar.stream(self._compiled(sources())), what="Bytecode")
            self._store.remember("bytecode", memo, found.sha256)
        with open_tar(found.path, "r:", encoding="utf-8") as archive:
            return [
                tar.Entry(member.name, "file", 0o644, MTIME, Slice(found.path, member.offset_data, member.size))
                for member in archive
            ]

    def _compiled(self, sources: Iterable[tuple[str, bytes]]) -> Iterator[tar.Entry]:
        for path, source in sources:
            data = self._process().compile("/" + path, source)
            if data:
                content = tar.BytesContent(data)
                yield tar.Entry(cache_path(path, self._interpreter.python), "file", 0o644, MTIME, content)

    def _process(self) -> _Process:
        thread = threading.get_ident()
        process = self._processes.get(thread)
        if process is None or not process.alive:
            with self._lock:
                if self._unpacked is None:
                    unpacked = self._interpreter.unpack()
                    self._launch = unpacked.__enter__()
                    self._unpacked = unpacked  # not before: what could not be laid out is not there to be started
            process = self._processes[thread] = _Process(self._launch, self._interpreter.python)
        return process


class _Process:
    """One running interpreter."""

    def __init__(self, launch: Launch, python: str) -> None:
        # Before 3.11, sets among a file's constants were written in the order of their hashes.
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", **launch.environment}
        try:
            self._process = subprocess.Popen(
                [*launch.command, "-S", "-s", "-c", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )
        except OSError as error:
            raise _not_runnable(python) from error
        try:
            version = "{}.{}".format(*struct.unpack("<II", self._read(8)))
        except EOFError as error:
            self.close()
            raise _not_runnable(python) from error
        if version != python:
            self.close()
            raise ToolMissing(f"The image's Python says it is {version}; the lock says {python}.", hint="Lock again.")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def compile(self, path: str, source: bytes) -> bytes:
        """The ``.pyc`` of *source*, or nothing if it does not compile or brings the compiler down."""
        name = path.encode("utf-8", "surrogateescape")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("<II", len(name), len(source)) + name + source)
            self._process.stdin.flush()
            (size,) = struct.unpack("<I", self._read(4))
            return self._read(size)
        except (BrokenPipeError, EOFError):
            self.close()
            return b""

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise EOFError
        return data

    def close(self) -> None:
        self._process.communicate()


def _not_runnable(python: str) -> ToolMissing:
    return ToolMissing(
        f"The image's Python {python}, which compiles its bytecode, does not run on this machine.",
        hint="Build on a Linux machine of the image's platform, or lock with `bytecode: none` in cpack.yaml.",
    )


def sources_of(entries: Sequence[tar.Entry]) -> Callable[[], Iterator[tuple[str, bytes]]]:
    """The Python sources among *entries*, each read when it is asked for."""

    def sources() -> Iterator[tuple[str, bytes]]:
        for entry in sorted(entries, key=lambda entry: entry.path):
            is_source = entry.kind == "file" and entry.path.endswith(".py") and entry.size <= _LONGEST_SOURCE
            if is_source and entry.content is not None:
                yield entry.path, b"".join(entry.content.chunks())

    return sources


def identity(compiler: Compiler | None) -> str:
    """What a layer's key says of its bytecode."""
    return compiler.identity if compiler is not None else "none"


def identity_of(*hashes: str) -> str:
    """The identity of an interpreter made of the things with those *hashes*."""
    return hashlib.sha256("\n".join(["marshal 2", *sorted(hashes)]).encode()).hexdigest()
