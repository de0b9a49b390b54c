"""Whether an image is what its lock makes, and if not, the first thing that differs.

The image is made again from the lock and laid beside the one at hand: config, then each layer from bottom to top.
Every byte of the image at hand is read. Where a layer differs, both tars are read side by side, so the answer names
the layer, the entry and the header field, or says that the entry's content differs."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from cpack_build.errors import BadImage, HashMismatch
from cpack_build.oci.compression import ChunkReader
from cpack_build.oci.files import BoundedMember
from cpack_build.oci.types import CHUNK, Blob, Image
from cpack_build.oci.uncompressed import decompressed
from cpack_build.progress import SILENT, Progress

__all__ = ["Difference", "first_difference"]

_FIELDS = ("name", "type", "mode", "uid", "gid", "uname", "gname", "mtime", "size", "linkname", "pax_headers")


@dataclass(frozen=True)
class Difference:
    """The first difference: *where* (``config``, or a layer), perhaps an *entry* of it, the *field*, both values."""

    where: str
    entry: str
    field: str
    image: str
    lock: str

    def __str__(self) -> str:
        place = f"{self.where}, {self.entry}" if self.entry else self.where
        return f"{place}: {self.field} is {self.image} in the image, and {self.lock} by the lock"


def first_difference(found: Image, rebuilt: Image, *, progress: Progress = SILENT) -> Difference | None:
    """The first difference of *found* from *rebuilt*, whose layers are uncompressed; ``None`` if there is none.

    How the layers of *found* are compressed does not matter.
    """
    ours, theirs = json.loads(rebuilt.config.data), json.loads(found.config.data)
    layers = zip_longest(found.layers, rebuilt.layers)
    with progress.task("Reading the image", total=sum(layer.descriptor.size for layer in rebuilt.layers)) as task:
        for number, (layer, expected) in enumerate(layers, 1):
            if layer is None or expected is None:
                counts = (str(len(found.layers)), str(len(rebuilt.layers)))
                return Difference("manifest", "", "the number of layers", *counts)
            notes = expected.descriptor.annotations
            name = notes.get("io.cpack.layer.name") or notes.get("io.cpack.model.path")
            where = f"layer {number} ({name})" if name else f"layer {number}"
            if not _is_same(layer, expected.descriptor.digest):
                return _difference(layer, expected, where)
            task.advance(expected.descriptor.size)
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            return _in_documents(theirs.get(key), ours.get(key), "config", key)
    return None


def _is_same(layer: Blob, diff_id: str) -> bool:
    hasher = hashlib.sha256()
    try:
        for chunk in decompressed(layer):
            hasher.update(chunk)
    except (HashMismatch, BadImage):
        return False
    return f"sha256:{hasher.hexdigest()}" == diff_id


def _in_documents(found: object, expected: object, where: str, key: str) -> Difference:
    """The first key below which two JSON values differ."""
    while isinstance(found, dict) and isinstance(expected, dict):
        name = next(name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name))
        key, found, expected = f"{key}.{name}", found.get(name), expected.get(name)
    return Difference(where, "", key, _shown(found), _shown(expected))


def _shown(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else text[:200] + "…"


def _difference(layer: Blob, expected: Blob, where: str) -> Difference:
    found_entries, expected_entries = _entries(decompressed(layer)), _entries(expected.chunks())
    try:
        for found, ours in zip_longest(found_entries, expected_entries):
            if found is None:
                return Difference(where, str(ours["name"]), "the entry", "missing", "there")
            if ours is None:
                return Difference(where, str(found["name"]), "the entry", "there", "missing")
            for field in (*_FIELDS, "content"):
                if found[field] != ours[field]:
                    name = str(ours["name"])
                    return Difference(where, name, field, _shown(found[field]), _shown(ours[field]))
    except (HashMismatch, BadImage, tarfile.TarError, EOFError) as error:
        return Difference(where, "", "the tar", f"unreadable ({error})", "whole")
    return Difference(where, "", "the digest", layer.descriptor.digest, expected.descriptor.digest)


def _entries(chunks: Iterator[bytes]) -> Iterator[dict[str, object]]:
    """Each entry's header fields, and the hash of its content."""
    with tarfile.open(fileobj=ChunkReader(chunks), mode="r|", tarinfo=BoundedMember, encoding="utf-8") as archive:
        for member in archive:
            fields: dict[str, object] = {name: getattr(member, name) for name in _FIELDS}
            fields["type"] = member.type.decode("ascii", "replace")
            fields["mode"] = oct(member.mode)
            hasher = hashlib.sha256()
            content = archive.extractfile(member) if member.isreg() else None
            while content is not None and (chunk := content.read(CHUNK)):
                hasher.update(chunk)
            fields["content"] = f"sha256:{hasher.hexdigest()}" if member.isreg() else ""
            yield fields
