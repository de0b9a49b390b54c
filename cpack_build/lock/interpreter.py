"""The Python of the image: the base's own, the system packages', or a standalone archive by URL and hash."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from cpack_build.cpack.settings import InterpreterArchive, Platform
from cpack_build.errors import BadInput, ToolMissing, Unresolvable
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.store import CHUNK, Store
from cpack_build.lock.schema import ArchiveInterpreter, BaseInterpreter, DebInterpreter, Interpreter, Lock
from cpack_build.oci.compression import ChunkReader, decompressed_chunks
from cpack_build.progress import SILENT, Progress

__all__ = ["archive_interpreter", "base_interpreter", "compiles_alike", "compiling", "is_vouched", "vouch"]

_MEMO = "interpreter-2"
_MACHINES = {62: "linux/amd64", 183: "linux/arm64"}
"""``e_machine`` of an ELF file (System V ABI, "ELF Header")."""
_PLACES = ("usr/bin", "usr/local/bin", "bin", "opt/python/bin", "opt/conda/bin")


def base_interpreter(python: str, paths: Collection[str]) -> BaseInterpreter | None:
    """Python *python* (``3.11``) among the *paths* of a base image (no first ``/``), or ``None``."""
    for place in _PLACES:
        if f"{place}/python{python}" in paths:
            return BaseInterpreter(version=python, path=f"/{place}/python{python}")
    return None


def archive_interpreter(
    archive: InterpreterArchive,
    *,
    python: str,
    platform: Platform = "linux/amd64",
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> ArchiveInterpreter:
    """Download *archive* and see that it holds ``python/bin/python3.X`` for *platform*.

    Raises :class:`NetworkError`, :class:`HashMismatch`, :class:`BadInput` (no such tar), :class:`Unresolvable` (another
    Python than the pack's, or another platform's).
    """
    file = download(
        archive.url, store=store, sources=sources, sha256=archive.sha256, what="interpreter", progress=progress
    )
    wanted = f"python/bin/python{python}"
    known = store.recall(_MEMO, f"{file.sha256}:{python}")
    if known is None:
        known = _machine(file.path, wanted, archive.url)
        if known is None:
            raise Unresolvable(
                f"{archive.url} has no {wanted}: it is not Python {python}, which the pack needs.",
                hint="Name an archive of that Python (install_only, as python-build-standalone makes them).",
            )
        store.remember(_MEMO, f"{file.sha256}:{python}", known)
    if known not in ("", platform):
        raise Unresolvable(
            f"{archive.url} is a Python for {known}, and the image is for {platform}.",
            hint=f"Name one for each platform in cpack.yaml: interpreter: {{{platform}: {{url: …, sha256: …}}}}.",
        )
    return ArchiveInterpreter(
        version=python, path=f"/opt/{wanted}", url=archive.url, sha256=file.sha256, size=file.size
    )


def _machine(path: Path, wanted: str, url: str) -> str | None:
    """The platform of the program *wanted* in the tar at *path*, whatever that is compressed with; ``None`` when it is
    not there, nothing when it says none."""

    def compressed() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    try:
        found = None
        reader = ChunkReader(decompressed_chunks(compressed(), what=url))
        with tarfile.open(fileobj=reader, mode="r|") as archive:
            for member in archive:
                if member.name.removeprefix("./") == wanted:
                    content = archive.extractfile(member) if member.isreg() else None
                    head = content.read(20) if content is not None else b""
                    is_elf = len(head) == 20 and head.startswith(b"\x7fELF\x02\x01")
                    machine = int.from_bytes(head[18:20], "little")
                    found = _MACHINES.get(machine, "another machine") if is_elf else ""
        return found
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadInput(f"{url} is no tar that can be read: {error}.", hint="Name another archive.") from error


def compiles_alike(one: Interpreter, other: Interpreter) -> bool:
    """Whether both give the same bytecode though they are for two platforms: the same Debian packages in the same
    version, so built from one source (``docs/decisions/020-several-platforms.md``)."""

    def packages(interpreter: Interpreter) -> set[tuple[str, str]]:
        debs = interpreter.packages if isinstance(interpreter, DebInterpreter) else ()
        # +b1 and so on: built again on one architecture, from the same source (Debian policy 3.2.1, "binNMU")
        return {(deb.name, re.sub(r"\+b[0-9]+$", "", deb.version)) for deb in debs}

    return bool(packages(one)) and packages(one) == packages(other)


def compiling(lock: Lock, siblings: Sequence[Lock], *, platform: str) -> Lock:
    """Whose interpreter compiles the bytecode of *lock* on a machine of *platform*: its own, or one of *siblings*'.

    Raises :class:`ToolMissing` where none of them runs here.
    """
    for one in (lock, *siblings):
        if (
            one.platform == platform
            and one.bytecode == "compiled"
            and (one is lock or compiles_alike(one.interpreter, lock.interpreter))
        ):
            return one
    raise ToolMissing(
        f"The image's Python {lock.interpreter.version} is for {lock.platform}, and does not run on this machine to "
        "compile bytecode.",
        hint=f"Build it on {lock.platform}, lock it together with {platform}, or set bytecode: none in cpack.yaml.",
    )


def vouch(lock: Lock, *, store: Store) -> None:
    """Remember that this machine itself resolved the Python of *lock*: from apt's signed lists, or as its user said."""
    store.remember("vouched-python", _program(lock), lock.interpreter.path)


def is_vouched(lock: Lock, *, store: Store) -> bool:
    """Whether the Python of *lock* was resolved here, so that a build may start it to compile bytecode."""
    return store.recall("vouched-python", _program(lock)) is not None


def _program(lock: Lock) -> str:
    """A hash over all that is started with the interpreter: itself, its libraries, the base that it lies in."""
    parts = lock.model_dump(mode="json", include={"base", "system", "interpreter"})
    parts["base"].pop("summary", None)  # The digest says which base it is.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
