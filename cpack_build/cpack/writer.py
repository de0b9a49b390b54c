"""Documents and files → ``.cpack.zip``, the same bytes for the same content: STORED, dated 1980-01-01, sorted, 0644.

These are comfy-pack's own conventions, so it reads what is written here. The file appears under its name only when it
is whole.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import StorageError, UnsafeInput

__all__ = ["write_pack"]

_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can hold (APPNOTE 4.4.6)."""
_UNIX = 3


def write_pack(
    path: Path,
    *,
    snapshot_document: Mapping[str, Any],
    workflow_api: Mapping[str, Any],
    workflow: Mapping[str, Any] | None = None,
    inputs: Mapping[str, bytes] | None = None,
    settings: str | None = None,
    other: Mapping[str, bytes] | None = None,
) -> None:
    """Write a pack at *path*. *snapshot_document* is ``snapshot.json`` as it shall stand, *inputs* are named relative
    to ``input/``, *settings* is the text of ``cpack.yaml``, *other* are further entries by name.

    Raises :class:`UnsafeInput` for a name that would leave its place, :class:`StorageError` when it cannot be written.
    """
    entries = {"snapshot.json": _json(snapshot_document), "workflow_api.json": _json(workflow_api)}
    if workflow is not None:
        entries["workflow.json"] = _json(workflow)
    if settings is not None:
        entries["cpack.yaml"] = settings.encode()
    entries |= {f"input/{name}": data for name, data in (inputs or {}).items()} | dict(other or {})
    for name in entries:
        if problem := unsafe_name(name):
            raise UnsafeInput(f"{name!r} cannot be put into a pack: it {problem}.", hint="Rename the file.")
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    for name in sorted(entries):
                        info = zipfile.ZipInfo(name, _DATE)
                        info.create_system = _UNIX
                        info.external_attr = 0o100644 << 16
                        archive.writestr(info, entries[name])
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink()
                raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.", hint="Free some space, or name another place."
        ) from error


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()
