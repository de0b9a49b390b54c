"""The first difference of an image from what its lock makes is named, also where readers of tars do not look."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from cpack_build.errors import HashMismatch
from cpack_build.image.verify import first_difference
from cpack_build.oci import tar
from cpack_build.oci.types import LAYER, LAYER_GZIP, BytesBlob, Descriptor, Image, canonical_json
from tests.oci.images import BrokenBlob, image_of, layer, text_layer

LONG = "x" * 120
"""A name that needs a pax header."""
ENTRIES = (
    tar.Entry("opt", "directory", 0o755),
    tar.Entry("opt/a", "file", 0o644, content=tar.BytesContent(b"first")),
    tar.Entry(f"opt/{LONG}", "file", 0o644, content=tar.BytesContent(b"second")),
    tar.Entry("opt/link", "symlink", 0o777, target="a"),
)
DATA = layer(ENTRIES).data
A = 512
"""Where the header of ``opt/a`` begins."""
PAX = A + 1024
END = len(DATA) - 1024


def named(data: bytes) -> BytesBlob:
    return BytesBlob(LAYER, data, {"io.cpack.layer.name": "tools"})


def told(data: bytes) -> tuple[str, str, str, str]:
    """Of the layer *data* in the middle of an image: entry, field and both values."""
    below, above = text_layer({"below": "1"}), text_layer({"above": "1"})
    rebuilt, found = (image_of([below, named(one), above]) for one in (DATA, data))
    difference = first_difference(found, rebuilt)
    assert difference is not None
    assert difference.where == "layer 2 (tools)"
    return difference.entry, difference.field, difference.image, difference.lock


def with_bytes(place: int, new: bytes, *, header: int | None = None) -> bytes:
    """The layer with *new* at *place*, and the checksum of the *header* there put right."""
    data = bytearray(DATA)
    data[place : place + len(new)] = new
    if header is not None:
        block = data[header : header + 512]
        block[148:156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(block)
    return bytes(data)


def changed(number: int, entry: tar.Entry | None) -> bytes:
    return layer([*ENTRIES[:number], *([entry] if entry else []), *ENTRIES[number + 1 :]]).data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (changed(1, replace(ENTRIES[1], mode=0o755)), ("opt/a", "mode", '"0o755"', '"0o644"')),
        (changed(1, replace(ENTRIES[1], mtime=5)), ("opt/a", "mtime", "5", "0")),
        (changed(3, replace(ENTRIES[3], target="/etc")), ("opt/link", "linkname", '"/etc"', '"a"')),
        (changed(1, replace(ENTRIES[1], path="opt/b")), ("opt/a", "name", '"opt/b"', '"opt/a"')),
        (changed(3, None), ("opt/link", "the entry", "missing", "there")),
        (layer([*ENTRIES, replace(ENTRIES[1], path="z")]).data, ("z", "the entry", "there", "missing")),
        (with_bytes(A + 108, b"0000007\0", header=A), ("opt/a", "uid", "7", "0")),
        (with_bytes(A + 265, b"root", header=A), ("opt/a", "uname", '"root"', '""')),
        (with_bytes(A + 329, b"0000001", header=A), ("opt/a", "devmajor", r'"0000001\u0000"', r'"0000000\u0000"')),
        (with_bytes(A + 263, b"  ", header=A), ("opt/a", "version", '"  "', '"00"')),
        (with_bytes(A + 505, b"x", header=A), ("opt/a", "unused", None, None)),
        (with_bytes(A + 155, b"\0"), ("opt/a", "chksum", None, None)),
        (with_bytes(A + 512 + 7, b"x"), ("opt/a", f"the padding at byte {A + 519}", "0x78", "0x00")),
        (with_bytes(PAX + 136, b"00000000005\0", header=PAX), (f"opt/{LONG}", f"the pax header at byte {PAX + 146}",
                                                               "0x35", "0x30")),
        (with_bytes(END + 600, b"x"), ("", f"the end of the tar at byte {END + 600}", "0x78", "0x00")),
        (DATA[:-512], ("", f"the end of the tar at byte {END + 512}", "missing", "0x00")),
        (DATA + bytes(512), ("", "the size", f"more than {len(DATA)} bytes", f"{len(DATA)} bytes")),
    ],
)  # fmt: skip
def test_what_differs_in_a_layer_is_named_by_entry_and_field(
    data: bytes, expected: tuple[str, str, str | None, str | None]
) -> None:
    found = told(data)
    assert found[:2] == expected[:2]
    assert found[2] != found[3]
    if expected[2] is not None:
        assert found[2:] == expected[2:]


def test_the_same_content_is_no_difference_whatever_it_is_compressed_with() -> None:
    plain = image_of([named(DATA)])
    packed = replace(plain, layers=(BytesBlob(LAYER_GZIP, gzip.compress(DATA)),))
    assert first_difference(plain, plain) is None
    assert first_difference(packed, plain) is None


@pytest.mark.parametrize("cut", [A + 300, A + 512 + 3, 3])
def test_a_layer_that_breaks_off_is_told_with_the_last_entry_that_is_whole(cut: int) -> None:
    entry, field, image, lock = told(DATA[:cut])
    assert (entry, field) == (("opt", "what follows it") if cut > A else ("", "the tar"))
    assert image.startswith("unreadable (")
    assert lock == "whole"


def test_a_blob_that_is_damaged_only_where_it_is_compressed_is_told_as_that() -> None:
    """Its tar is what the lock makes: one byte of gzip's own header, the time, is not."""
    data = bytearray(gzip.compress(DATA, mtime=0))
    promised = BytesBlob(LAYER_GZIP, bytes(data)).descriptor
    data[4] ^= 1
    actual = BytesBlob(LAYER_GZIP, bytes(data)).descriptor.digest
    error = HashMismatch("The blob", expected=promised.digest, actual=actual)
    plain = image_of([named(DATA)])
    difference = first_difference(replace(plain, layers=(BrokenBlob(promised, bytes(data), error),)), plain)
    assert difference is not None
    assert (difference.where, difference.field) == ("layer 1 (tools)", "the blob")
    assert actual.removeprefix("sha256:") in difference.image


def test_a_layer_more_or_less_is_told() -> None:
    one, two = image_of([named(DATA)]), image_of([named(DATA), text_layer({"a": "1"})])
    for found, rebuilt, counts in ((one, two, ("1", "2")), (two, one, ("2", "1"))):
        difference = first_difference(found, rebuilt)
        assert difference is not None
        assert (difference.where, difference.field) == ("manifest", "the number of layers")
        assert (difference.image, difference.lock) == counts


def with_config(image: Image, **changes: object) -> Image:
    document = json.loads(image.config.data)
    document["config"] |= changes
    return replace(image, config=BytesBlob(image.config.media_type, canonical_json(document)))


def test_a_change_of_the_config_is_told_by_its_key() -> None:
    rebuilt = with_config(image_of([named(DATA)]), User="1000:1000", Labels={"a": "1", "b": "2"})
    found = with_config(rebuilt, Labels={"a": "1", "b": "3"})
    assert str(first_difference(found, rebuilt)) == 'config: config.Labels.b is "3" in the image, and "2" by the lock'
    root = first_difference(with_config(rebuilt, User="0"), rebuilt)
    assert root is not None
    assert (root.field, root.image) == ("config.User", '"0"')


def test_descriptors_say_nothing_that_is_believed() -> None:
    """A layer's bytes are read, whatever its descriptor claims."""
    rebuilt = image_of([named(DATA)])
    lying = BrokenBlob(Descriptor(LAYER, rebuilt.layers[0].descriptor.digest, len(DATA)), with_bytes(A + 512, b"F"))
    difference = first_difference(replace(rebuilt, layers=(lying,)), rebuilt)
    assert difference is not None
    assert (difference.entry, difference.field) == ("opt/a", "content")
