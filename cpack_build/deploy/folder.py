"""A folder of generated files: written whole, the same bytes each time, and never over what somebody else wrote."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cpack_build.errors import UnsafeInput, writing
from cpack_build.oci.storage import whole_file

__all__ = ["MARK", "as_yaml", "write_folder"]

MARK = "# Made by cpack-build deploy."


def as_yaml(document: Mapping[str, Any], *, hint: str = "") -> str:
    """*document* as YAML, keys in their own order, below the line that says whose it is."""
    import yaml

    text: str = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=1000)
    return f"{MARK}{f' {hint}' if hint else ''}\n{text}"


def write_folder(folder: Path, files: Mapping[str, str], *, possible: Collection[str]) -> None:
    """Write *files* (name → text, each with :data:`MARK` in its first line) into *folder*, which is made.

    What an earlier run left there and this one does not make is removed, if its name is one of the *possible*: a file
    that somebody began from a copy has the mark, too. Raises :class:`UnsafeInput` where a file of
    that name is somebody else's, before anything is written, and :class:`StorageError`.
    """
    assert files.keys() <= set(possible)
    assert all(text.partition("\n")[0].startswith(MARK) for text in files.values())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in folder.iterdir()}
    ours = {name for name in present if _is_ours(folder / name)}
    if foreign := sorted((files.keys() & present) - ours):
        raise UnsafeInput(
            f"{folder} has {', '.join(foreign)}, which cpack-build did not write or somebody has taken over.",
            hint="Nothing was changed. Name another folder with -o, or remove them.",
        )
    for name, text in files.items():
        with whole_file(folder / name) as file:
            file.write(text.encode())
    for name in sorted((ours & set(possible)) - files.keys()):
        with writing(folder / name):
            (folder / name).unlink()


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()
