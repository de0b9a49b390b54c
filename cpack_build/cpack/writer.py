"""Documents and files → ``.cpack.zip``, the same bytes for the same content: STORED, dated 1980-01-01, sorted, 0644.

These are comfy-pack's own conventions, so it reads what is written here. The file appears under its name only when it
is whole.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from cpack_build import filesystem
from cpack_build.cpack.archive import MEMBER_LIMIT, open_archive, unsafe_name
from cpack_build.errors import BadInput, StorageError, UnsafeInput

__all__ = ["replace_entries", "write_entries", "write_pack"]

_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can hold (APPNOTE 4.4.6)."""
_UNIX = 3
_CHUNK = 1 << 20


def write_pack(
    path: Path,
    *,
    snapshot_document: Mapping[str, Any],
    workflow_api: Mapping[str, Any],
    workflow: Mapping[str, Any] | None = None,
    inputs: Mapping[str, bytes | Path] | None = None,
    settings: str | None = None,
    other: Mapping[str, bytes | Path] | None = None,
) -> None:
    """Write a pack at *path*. *snapshot_document* is ``snapshot.json`` as it shall stand, *inputs* are named relative
    to ``input/``, *settings* is the text of ``cpack.yaml``, *other* are further entries by name. Content that is a path
    is copied from that file, whatever its size, without being held in memory.

    Raises :class:`UnsafeInput` for a name that would leave its place, :class:`BadInput` for a file that cannot be read
    or is larger than a pack may hold, :class:`StorageError` when it cannot be written.
    """
    entries: dict[str, bytes | Path] = {
        "snapshot.json": _json(snapshot_document),
        "workflow_api.json": _json(workflow_api),
    }
    if workflow is not None:
        entries["workflow.json"] = _json(workflow)
    if settings is not None:
        entries["cpack.yaml"] = settings.encode()
    entries |= {f"input/{name}": data for name, data in (inputs or {}).items()} | dict(other or {})
    write_entries(path, entries)


def write_entries(path: Path, entries: Mapping[str, bytes | Path]) -> None:
    """Write a pack at *path* of *entries* that are what they shall be, byte by byte. Raises as :func:`write_pack`."""
    for name in entries:
        if problem := unsafe_name(name):
            raise UnsafeInput(f"{name!r} cannot be put into a pack: it {problem}.", hint="Rename the file.")
    with _written(path) as archive:
        for name in sorted(entries):
            _add(archive, _entry(name), entries[name])


def replace_entries(path: Path, entries: Mapping[str, bytes | Path], *, without: Collection[str] = ()) -> None:
    """Put *entries* into the pack at *path*, in place of those of the same name and of those named in *without*.

    All others keep their bytes; they are written as :func:`write_pack` does. Raises as :func:`write_pack`, and what
    reading a damaged pack does.
    """
    old = open_archive(path)
    kept = old.sizes.keys() - entries.keys() - set(without)
    with old.reading() as stream, _written(path) as archive:
        for name in sorted({*kept, *entries}):
            if name in entries:
                _add(archive, _entry(name), entries[name])
                continue
            with archive.open(_entry(name, old.sizes[name]), "w") as member:
                for chunk in stream(name):
                    member.write(chunk)


@contextmanager
def _written(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip that appears at *path* when it is whole."""
    try:
        aside = path.with_name(f".{path.name}.{token_hex(4)}")
        try:
            with open(aside, "x+b", opener=filesystem.open_file) as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    yield archive
                file.flush()
                os.fsync(file.fileno())
                if hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), 0o644)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.", hint="Free some space, or name another place."
        ) from error


def _entry(name: str, size: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = _UNIX
    info.external_attr = 0o100644 << 16
    info.file_size = size
    return info


def _add(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes | Path) -> None:
    if not isinstance(content, Path):
        archive.writestr(info, content)
        return
    try:
        source = content.open("rb")
    except OSError as error:
        raise _unreadable(content, error) from error
    with source, archive.open(info, "w") as member:
        count = 0
        while chunk := _read(source, content):
            count += len(chunk)
            if count > MEMBER_LIMIT:
                raise BadInput(
                    f"{content} is larger than the {MEMBER_LIMIT >> 30} GiB that a file in a pack may have.",
                    hint="Leave it out of the pack, and keep it as a model.",
                )
            member.write(chunk)


def _read(source: IO[bytes], path: Path) -> bytes:
    try:
        return source.read(_CHUNK)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{path} cannot be read: {(error.strerror or str(error)).lower()}.", hint="Make it readable, or leave it out."
    )


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()
