"""What a lock was resolved from, as a hash: the contents of a pack, whatever zip they lie in.

The order, dates and compression of a zip mean nothing, so a pack that was written again from an image
(``cpack-build export``) is the same input as the one that the image was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from cpack_build.fetch.urls import without_secrets
from cpack_build.oci.types import canonical_json

__all__ = ["Contents", "pack_digest"]


class Contents(Protocol):
    """What is needed of :class:`cpack_build.cpack.reader.Pack`."""

    def contents(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Every file that a lock or an image may depend on: its name and its bytes in chunks."""


def pack_digest(pack: Contents) -> str:
    """sha256 hex over the canonical JSON of ``[[name, sha256], …]``, sorted by name.

    Secret query values in ``snapshot.json`` count as removed: no image carries them.
    """
    found = []
    for name, chunks in pack.contents():
        hasher = hashlib.sha256()
        for chunk in [without_secrets(b"".join(chunks))] if name == "snapshot.json" else chunks:
            hasher.update(chunk)
        found.append([name, hasher.hexdigest()])
    return hashlib.sha256(canonical_json(sorted(found))).hexdigest()
