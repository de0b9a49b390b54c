"""A GGUF file tells its model and quantisation, and one whose header lies is refused by name before more is read."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpack_build.errors import BadInput
from cpack_build.fetch.gguf import read_gguf
from cpack_build.fetch.inventory import Listed, describe, inventory
from cpack_build.fetch.store import Store

Tensor = tuple[str, tuple[int, ...], int, int]
"""Name, dimensions (innermost first), ggml's type, offset."""


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


ARCHITECTURE = key("general.architecture", 8, text("flux"))
Q4_K_M = key("general.file_type", 4, struct.pack("<I", 15))
FLUX = (
    ("double_blocks.0.img_mod.weight", (256, 2), 12, 0),
    ("single_blocks.0.linear1.weight", (256,), 0, 288),
)


def gguf(
    path: Path,
    keys: tuple[bytes, ...] = (ARCHITECTURE, Q4_K_M),
    tensors: tuple[Tensor, ...] = FLUX,
    *,
    data: int = 288 + 1024,
    head: bytes = b"GGUF" + struct.pack("<I", 3),
    counts: tuple[int, int] | None = None,
) -> Path:
    header = head + struct.pack("<QQ", *(counts or (len(tensors), len(keys)))) + b"".join(keys)
    for name, shape, kind, offset in tensors:
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    path.write_bytes(header + bytes(-len(header) % 32 + data))
    return path


def test_a_sound_header_tells_the_model_its_tensors_and_their_quantisation(tmp_path: Path) -> None:
    array = key("tokens", 9, struct.pack("<IQ", 8, 1000) + b"".join(text(str(number)) for number in range(1000)))
    numbers = key("scores", 9, struct.pack("<IQ", 6, 1000) + bytes(4000))
    yes = key("flag", 7, b"\1")
    found = read_gguf(gguf(tmp_path / "x.gguf", (ARCHITECTURE, Q4_K_M, array, numbers, yes)))
    assert (found.architecture, found.quantisation) == ("flux", "Q4_K_M")
    assert found.tensors["double_blocks.0.img_mod.weight"].shape == (2, 256)
    assert found.tensors["double_blocks.0.img_mod.weight"].size == 288
    assert found.dtypes == ("F32", "Q4_K")
    assert found.parameters == 768
    assert found.keys["flag"] is True
    assert found.keys["tokens"] == tuple(str(number) for number in range(64)), "of a vocabulary the first are kept"
    assert len(found.keys["scores"]) == 64  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"head": b"GGUX" + struct.pack("<I", 3)}, "does not begin with GGUF"),
        ({"head": b"GGUF" + struct.pack("<I", 1)}, "version is 1"),
        ({"head": b"GGUF" + struct.pack(">I", 3)}, "big-endian"),
        ({"counts": (2**63, 0)}, "would have 9223372036854775808 tensors"),
        ({"counts": (0, 2**40)}, "1099511627776 keys in"),
        ({"counts": (2, 3)}, "no sound GGUF file"),
        ({"keys": (ARCHITECTURE, ARCHITECTURE)}, "'general.architecture' occurs twice"),
        ({"keys": (key("a", 99, b""),)}, "'a' has the unknown type 99"),
        ({"keys": (key("a", 8, struct.pack("<Q", 2**63)),)}, "would have 9223372036854775808 bytes"),
        ({"keys": (key("a", 8, struct.pack("<Q", 1) + b"\xff"),)}, "no UTF-8"),
        ({"keys": (key("a", 9, struct.pack("<IQ", 0, 2**40)),)}, "1099511627776 elements"),
        ({"keys": (key("a", 9, struct.pack("<IQ", 12, 1000)),)}, "goes on beyond"),
        ({"keys": (key("a", 9, struct.pack("<IQ", 9, 1) * 9),)}, "arrays in arrays without end"),
        ({"keys": (key("general.alignment", 4, struct.pack("<I", 0)),)}, "alignment is 0"),
        ({"keys": (key("general.alignment", 8, text("x")),)}, "alignment is 'x'"),
        ({"tensors": (("t", (4,), 5, 0),)}, "'t' has the unknown type 5"),
        ({"tensors": (("t", (4, 1, 1, 1, 1), 0, 0),)}, "5 dimensions"),
        ({"tensors": (("t", (100,), 12, 0),)}, "Q4_K has blocks of 256"),
        ({"tensors": (("t", (4,), 0, 8),)}, "begins at byte 8, which is not aligned to 32"),
        ({"tensors": (("t", (4,), 0, 0), ("t", (4,), 0, 32))}, "'t' occurs twice"),
        ({"tensors": (("a", (64,), 0, 0), ("b", (64,), 0, 32))}, "'b' begins at byte 32, within the one before it"),
        ({"tensors": (("t", (2**62, 2**62), 0, 0),)}, "and the file has room for 1312"),
        ({"data": 100}, "ends at byte 288, and the file has room for 100"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_breaks_a_rule_is_refused_by_name(tmp_path: Path, more: dict[str, object], said: str) -> None:
    path = gguf(tmp_path / "x.gguf", **more)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"x\.gguf is no sound GGUF file") as caught:
        read_gguf(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("cut", [0, 3, 10, 25, 60, 120])
def test_a_header_that_ends_early_is_refused(tmp_path: Path, cut: int) -> None:
    path = gguf(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadInput, match="no sound GGUF file"):
        read_gguf(path)


def test_what_a_header_claims_makes_no_memory(tmp_path: Path) -> None:
    """A sparse file of 1 TB has room for whatever it claims, and still no more than a header may have is read."""
    claims = (key("a", 9, struct.pack("<IQ", 0, 2**39)),)
    path = gguf(tmp_path / "x.gguf", claims, (), data=0)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="would have 549755813888 elements"):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("inner", [struct.pack("<IQ", 8, 5 << 20), struct.pack("<IQ", 9, 5 << 20)])
def test_an_array_of_empty_things_is_not_read_for_long(tmp_path: Path, inner: bytes) -> None:
    path = gguf(tmp_path / "x.gguf", (key("a", 9, inner),), (), data=0)
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(BadInput, match="more than 4194304 texts in arrays"):
        read_gguf(path)


def test_a_header_of_too_many_keys_is_refused_before_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 6_000_000))
        file.truncate(108 << 20)
    with pytest.raises(BadInput, match="would have 0 tensors and 6000000 keys"):
        read_gguf(path)


def test_a_very_long_text_is_passed_over(tmp_path: Path) -> None:
    long = struct.pack("<Q", 8 << 20) + b"x" * (8 << 20)
    path = gguf(tmp_path / "x.gguf", (key("general.licence", 8, long), key("z", 8, text("end"))))
    tracemalloc.start()
    try:
        keys = read_gguf(path).keys
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert (keys["general.licence"], keys["z"]) == ("", "end")


@given(st.data())
def test_no_bytes_make_it_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = gguf(tmp_path_factory.getbasetemp() / "changed.gguf")
    content = bytearray(path.read_bytes()[:200])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content + bytes(1400))
    try:
        read_gguf(path)
    except BadInput as error:
        assert "no sound GGUF file" in error.message  # noqa: PT017


def test_inspect_and_models_show_it(tmp_path: Path) -> None:
    path = gguf(tmp_path / "flux.gguf")
    found = describe(path, name="flux.gguf")
    assert (found["kind"], found["quantisation"], found["tensors"], found["parameters"]) == ("Flux", "Q4_K_M", 2, 768)
    assert found["metadata"] == {"general.architecture": "flux"}
    broken = gguf(tmp_path / "broken.gguf", data=10)
    rows = inventory(
        [Listed(f"models/unet/{one.name}", None, None, (), one) for one in (path, broken)],
        store=Store(tmp_path / "store", further=()),
    )
    assert [row.verdict for row in rows][1] == "gguf, flux, Q4_K_M"
    assert str(rows[0].verdict).startswith("broken: models/unet/broken.gguf is no sound GGUF file")
