"""Two wheels that fight over one path: which of them has it, told to the user.

The rule is that of the layers (``docs/image-format.md``): what lies above wins, and within a layer the later name.
Files with the same content are no fight: the ``__init__.py`` of a namespace that several wheels ship is the usual
case."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from cpack_build.fetch.store import Store
from cpack_build.image.layer import key_of
from cpack_build.image.wheels import Environment, StoredWheel, installed_files

__all__ = ["overlaps"]

_ANYWHERE = Environment("", "3", "")
"""Which paths are the same does not depend on where the environment lies."""


def overlaps(wheels: Sequence[StoredWheel], *, own: Collection[str], store: Store) -> list[str]:
    """A sentence for each pair of *wheels* with different files at one path; found once and kept in *store*.

    *own* are the hashes of those with a layer of their own, which lie below the others.
    """
    key = key_of("overlaps", sorted((wheel.name, wheel.sha256, wheel.sha256 in own) for wheel in wheels))
    known = store.recall("overlaps", key)
    if known is not None:
        return list(json.loads(known))
    owners: dict[str, tuple[StoredWheel, str]] = {}
    lost: dict[tuple[str, str], list[str]] = {}
    for wheel in sorted(wheels, key=lambda wheel: (wheel.sha256 not in own, wheel.name)):
        for path, digest in installed_files(wheel, _ANYWHERE).items():
            before = owners.get(path)
            if before is not None and before[1] != digest:
                lost.setdefault((before[0].filename, wheel.filename), []).append(path.lstrip("/"))
            owners[path] = (wheel, digest)
        wheel.file.require_unchanged()
    told = [_sentence(loser, winner, sorted(paths)) for (loser, winner), paths in sorted(lost.items())]
    store.remember("overlaps", key, json.dumps(told))
    return told


def _sentence(loser: str, winner: str, paths: list[str]) -> str:
    name = paths[0].removeprefix("lib/python3/site-packages/")
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return f"{loser} and {winner} both have {name}{more}, and they differ: the image has those of {winner}."
