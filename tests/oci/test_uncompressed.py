"""A compressed layer's uncompressed form is proved by its diff ID each time, and its size is found once."""

from __future__ import annotations

import gzip
import lzma
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cpack_build.errors import BadImage, HashMismatch
from cpack_build.oci.compression import decompressed_chunks
from cpack_build.oci.types import LAYER, LAYER_GZIP, LAYER_ZSTD, BytesBlob, Descriptor
from cpack_build.oci.uncompressed import decompressed, uncompressed
from tests.oci.images import BrokenBlob, text_layer

PLAIN = text_layer({"a": "b" * 5_000_000})
DIFF_ID = PLAIN.descriptor.digest
PARTS = [PLAIN.data[start : start + 999_999] for start in range(0, len(PLAIN.data), 999_999)]
GZIP = gzip.compress(PLAIN.data, mtime=0)
PACKED = {
    "gzip": BytesBlob(LAYER_GZIP, GZIP),
    "gzip members": BytesBlob(LAYER_GZIP, b"".join(gzip.compress(part, mtime=0) for part in PARTS)),
    "gzip padded": BytesBlob(LAYER_GZIP, GZIP + bytes(100)),
    "zstd": BytesBlob(LAYER_ZSTD, zstandard.ZstdCompressor().compress(PLAIN.data)),
    "zstd frames": BytesBlob(LAYER_ZSTD, b"".join(zstandard.ZstdCompressor().compress(part) for part in PARTS)),
    "wrong media type": BytesBlob(LAYER, GZIP),
    "none": PLAIN,
}


class Memory(dict[tuple[str, str], str]):
    def recall(self, kind: str, key: str) -> str | None:
        return self.get((kind, key))

    def remember(self, kind: str, key: str, value: str) -> None:
        self[kind, key] = value


@pytest.mark.parametrize("kind", PACKED)
def test_every_compression_is_undone(kind: str) -> None:
    blob = uncompressed(PACKED[kind], DIFF_ID)
    assert blob.descriptor == Descriptor(LAYER, DIFF_ID, len(PLAIN.data))
    assert b"".join(blob.chunks()) == PLAIN.data
    assert b"".join(blob.chunks()) == PLAIN.data, "a second time"


def test_the_size_is_found_once() -> None:
    memory = Memory()
    first = uncompressed(PACKED["gzip"], DIFF_ID, memo=memory)
    unreadable = BrokenBlob(PACKED["gzip"].descriptor, b"", AssertionError("read again"))
    assert uncompressed(unreadable, DIFF_ID, memo=memory).descriptor == first.descriptor


def test_another_diff_id_is_refused_even_when_its_size_is_remembered() -> None:
    other = text_layer({"other": "x"}).descriptor
    memory = Memory()
    with pytest.raises(HashMismatch):
        uncompressed(PACKED["gzip"], other.digest, memo=memory)
    assert not memory
    memory.remember("uncompressed-size", other.digest, str(other.size))
    with pytest.raises(HashMismatch):
        list(uncompressed(PACKED["gzip"], other.digest, memo=memory).chunks())


@pytest.mark.parametrize("kind", ["gzip", "zstd", "gzip members", "zstd frames"])
def test_truncated_or_broken_data_is_an_error(kind: str) -> None:
    data = PACKED[kind].data
    for broken in (data[:-1], data[: len(data) // 2], data[:20], data[:50] + b"\xff" * 50 + data[100:]):
        with pytest.raises((BadImage, HashMismatch)):
            list(uncompressed(BytesBlob(LAYER, broken), DIFF_ID).chunks())


def _gzip_bomb() -> bytes:
    engine = zlib.compressobj(wbits=31)
    return b"".join(engine.compress(bytes(1 << 20)) for _ in range(64)) + engine.flush()


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz"])
def test_a_bomb_is_stopped_and_comes_in_small_pieces(kind: str) -> None:
    pack = {"gzip": _gzip_bomb, "zstd": lambda: zstandard.compress(bytes(64 << 20)), "xz": _xz_bomb}[kind]
    bomb = pack()
    assert len(bomb) < 100_000
    sizes: list[int] = []
    with pytest.raises(BadImage, match="decompresses to more than"):
        sizes.extend(map(len, decompressed_chunks(iter([bomb]), what="a bomb", limit=20 << 20)))
    assert max(sizes) <= 1 << 20


def _xz_bomb() -> bytes:
    return lzma.compress(bytes(64 << 20), preset=0)


def test_a_zstd_frame_that_wants_a_gigabyte_of_memory_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=30)
    engine = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    frame = engine.compress(b"small") + engine.flush()
    with pytest.raises(BadImage, match="broken zstd"):
        list(decompressed_chunks(iter([frame]), what="a frame"))


@given(st.lists(st.binary(max_size=3000), max_size=5), st.integers(1, 50))
def test_chunks_of_any_size_give_the_same(parts: list[bytes], step: int) -> None:
    packed = b"".join(gzip.compress(part, mtime=0) for part in parts)

    class Pieces:
        descriptor = BytesBlob(LAYER_GZIP, packed).descriptor

        def chunks(self):  # type: ignore[no-untyped-def]
            for start in range(0, len(packed), step):
                yield packed[start : start + step]

    assert b"".join(decompressed(Pieces())) == b"".join(parts)
