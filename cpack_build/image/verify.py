"""Whether an image is what its lock makes, and if not, the first thing that differs.

The image is made again from the lock and laid beside the one at hand: config, then each layer from bottom to top.
Every byte of the image at hand is read. Where a layer differs, both tars are read side by side, so the answer names
the layer, the entry and the header field, or says that the entry's content differs. What readers pass over (a field
that they do not look at, padding, the end) is found by the bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest

from cpack_build.errors import BadImage, HashMismatch
from cpack_build.oci import tar
from cpack_build.oci.compression import ChunkReader
from cpack_build.oci.files import BoundedMember
from cpack_build.oci.types import CHUNK, Blob, Descriptor, Image
from cpack_build.oci.uncompressed import decompressed
from cpack_build.progress import SILENT, Progress

__all__ = ["Difference", "Unproved", "first_difference"]

_FIELDS = ("name", "type", "mode", "uid", "gid", "uname", "gname", "mtime", "size", "linkname", "pax_headers")
_HEADER = {
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
    "typeflag": (156, 1), "linkname": (157, 100), "magic": (257, 6), "version": (263, 2), "uname": (265, 32),
    "gname": (297, 32), "devmajor": (329, 8), "devminor": (337, 8), "prefix": (345, 155), "unused": (500, 12),
    "chksum": (148, 8),
}  # fmt: skip
"""Where each field of a header begins and how long it is (POSIX.1-2017, pax, "ustar Header Block"); the checksum, which
follows from the others, is the last to be blamed."""


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


@dataclass(frozen=True)
class Unproved:
    """*blob* as it lies there, also when that is not what its digest promises."""

    blob: Blob

    @property
    def descriptor(self) -> Descriptor:
        return self.blob.descriptor

    def chunks(self) -> Iterator[bytes]:
        with suppress(HashMismatch):
            yield from self.blob.chunks()


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
    members: list[tarfile.TarInfo] = []
    try:
        for found, ours in zip_longest(found_entries, expected_entries):
            if found is None:
                return Difference(where, ours[0].name, "the entry", "missing", "there")
            if ours is None:
                return Difference(where, found[0].name, "the entry", "there", "missing")
            for field in (*_FIELDS, "content"):
                if found[1][field] != ours[1][field]:
                    return Difference(where, ours[0].name, field, _shown(found[1][field]), _shown(ours[1][field]))
            members.append(ours[0])
        return _in_bytes(layer, expected, members, where)
    except HashMismatch as error:
        return Difference(where, "", "the blob", f"damaged ({error.message})", "whole")
    except (BadImage, tarfile.TarError, EOFError) as error:
        entry, field = (members[-1].name, "what follows it") if members else ("", "the tar")
        return Difference(where, entry, field, f"unreadable ({error})", "whole")


def _in_bytes(layer: Blob, expected: Blob, members: list[tarfile.TarInfo], where: str) -> Difference:
    """Where two tars differ that have the same *members* to whoever reads them."""
    found, ours = io.BufferedReader(ChunkReader(decompressed(layer))), io.BufferedReader(ChunkReader(expected.chunks()))
    before = 0
    while own := ours.read(CHUNK):
        other = found.read(len(own))
        if other != own:
            differing = (number for number, (one, two) in enumerate(zip(other, own, strict=False)) if one != two)
            place = next(differing, len(other))
            start = place - place % tar.BLOCK
            blocks = other[start:][: tar.BLOCK], own[start:][: tar.BLOCK]
            return _at_byte(before + place, *blocks, members, where)
        before += len(own)
    if found.read(1):
        return Difference(where, "", "the size", f"more than {before} bytes", f"{before} bytes")
    return Difference(where, "", "the blob", "changed while it was read", "whole")


def _at_byte(place: int, found: bytes, ours: bytes, members: list[tarfile.TarInfo], where: str) -> Difference:
    """What byte *place* of a tar is of; *found* and *ours* are the two blocks with it."""
    start = place - place % tar.BLOCK
    for member in reversed(members):
        if member.offset <= place < member.offset_data + member.size + tar.padding(member.size):
            if start == member.offset_data - tar.BLOCK:
                for field, (first, length) in _HEADER.items():
                    one, other = found[first:][:length], ours[first:][:length]
                    if one != other:
                        return Difference(where, member.name, field, _text(one), _text(other))
            part = "the pax header" if place < member.offset_data else "the padding"
            return Difference(where, member.name, f"{part} at byte {place}", _byte(found, place), _byte(ours, place))
    return Difference(where, "", f"the end of the tar at byte {place}", _byte(found, place), _byte(ours, place))


def _text(field: bytes) -> str:
    return _shown(field.decode("latin-1"))


def _byte(block: bytes, place: int) -> str:
    byte = block[place % tar.BLOCK :][:1]
    return f"0x{byte.hex()}" if byte else "missing"


def _entries(chunks: Iterator[bytes]) -> Iterator[tuple[tarfile.TarInfo, dict[str, object]]]:
    """Each entry: its header fields, and the hash of its content."""
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
            yield member, fields
