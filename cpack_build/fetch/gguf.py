"""The header of a .gguf file (llama.cpp's format, which ComfyUI-GGUF loads): what model it is, its tensors and their
quantisation, checked before any loader is let near it.

The format (ggml, ``docs/gguf.md``), little-endian, versions 2 and 3: ``GGUF``, u32 version, u64 number of tensors, u64
number of keys; the keys, each a string, a type and a value; the tensors, each a name, its dimensions (innermost
first), a type and an offset; then, aligned, their bytes. Every number in it is a claim: each is held against the size
of the file before anything is read or made by it. Why not the ``gguf`` library: docs/decisions/047-gguf.md.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from cpack_build.errors import BadInput

__all__ = ["FILE_TYPES", "GgufHeader", "GgufTensor", "Value", "read_gguf"]

Value = int | float | bool | str | tuple["Value", ...]

_LIMIT = 64 << 20
"""Bytes of a header. The largest known, with vocabularies of languages, have some 20 MB."""
_MOST_KEYS = 1 << 16
_MOST_ELEMENTS = 4 << 20
"""Texts and arrays in all arrays: each is read by itself. A vocabulary has some 300,000 words and as many merges."""
_LONGEST_TEXT = 1 << 20
"""Bytes of a text that are read; of a longer one (a template, a licence) nothing is told."""
_LONGEST_KEY = 1 << 16
_MOST_TENSORS = 1 << 17
_DEEPEST = 4
"""Arrays within arrays."""
_KEPT = 64
"""Elements of an array that are told: a vocabulary has 100,000."""
_MOST_DIMENSIONS = 4
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip
"""ggml's types: name, numbers in a block, and bytes of a block (``ggml_type``, ``type_traits``)."""
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip
"""What ``general.file_type`` calls a mixture of types (``llama_ftype``)."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: *dtype* by ggml's name, *shape* with the outermost dimension first, and the bytes that it takes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself: *tensors* by name, *keys*; of a long array the first elements only."""

    tensors: Mapping[str, GgufTensor]
    keys: Mapping[str, Value]

    @property
    def architecture(self) -> str | None:
        """``flux``, ``sdxl``, ``t5encoder``, ``llama``, …"""
        found = self.keys.get("general.architecture")
        return found if isinstance(found, str) else None

    @property
    def quantisation(self) -> str | None:
        """The mixture of types that the file calls itself, as in its name: ``Q4_K_M``."""
        found = self.keys.get("general.file_type")
        return FILE_TYPES.get(found) if isinstance(found, int) else None

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types in use, that of the most bytes first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))


def read_gguf(path: Path, *, name: object = None) -> GgufHeader:
    """The header of the file at *path*; *name* is what errors call it. Raises :class:`BadInput` for a broken one."""
    with path.open("rb") as file:
        return _Reader(file, os.fstat(file.fileno()).st_size, name or path).header()


class _Reader:
    """Reads on in a file of *size* bytes, and never beyond what it has."""

    def __init__(self, file: BinaryIO, size: int, shown: object) -> None:
        self._file = file
        self._size = size
        self._end = min(size, _LIMIT)
        self._shown = shown
        self._at = 0
        self._elements = 0

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            self._refuse("it does not begin with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            self._refuse(
                "it is big-endian"
                if version in (2 << 24, 3 << 24)
                else f"its version is {version}, and 2 and 3 are known"
            )
        tensors, count = self._number("<Q"), self._number("<Q")
        # A key has 8 + 4 + 1 bytes at least, a tensor 8 + 4 + 8 + 4 + 8.
        if tensors > min(_MOST_TENSORS, self._size // 32) or count > min(_MOST_KEYS, self._size // 13):
            self._refuse(f"it would have {tensors} tensors and {count} keys in {self._size} bytes")
        keys: dict[str, Value] = {}
        for _ in range(count):
            key = self._text(_LONGEST_KEY)
            if key in keys:
                self._refuse(f"the key {key!r:.80} occurs twice")
            keys[key] = self._value(self._number("<I"), key, 0)
        alignment = keys.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment % 8:
            self._refuse(f"its alignment is {alignment!r:.40}")
        return GgufHeader(self._tensors(tensors, alignment), keys)

    def _tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        found: dict[str, GgufTensor] = {}
        spans = []
        for _ in range(count):
            name = self._text(_LONGEST_KEY)
            if name in found:
                self._refuse(f"tensor {name!r:.80} occurs twice")
            dimensions = self._number("<I")
            if dimensions > _MOST_DIMENSIONS:
                self._refuse(f"tensor {name!r:.80} has {dimensions} dimensions")
            shape = tuple(self._number("<Q") for _ in range(dimensions))
            kind = self._number("<I")
            if kind not in _TYPES:
                self._refuse(f"tensor {name!r:.80} has the unknown type {kind}")
            dtype, block, size = _TYPES[kind]
            if shape and shape[0] % block:
                self._refuse(f"tensor {name!r:.80} has rows of {shape[0]} numbers, where {dtype} has blocks of {block}")
            taken = math.prod(shape) // block * size
            offset = self._number("<Q")
            if offset % alignment:
                self._refuse(f"tensor {name!r:.80} begins at byte {offset}, which is not aligned to {alignment}")
            found[name] = GgufTensor(dtype, shape[::-1], taken)
            spans.append((offset, offset + taken, name))
        room = self._size - -(-self._at // alignment) * alignment
        front = 0
        for begin, end, name in sorted(spans):
            if begin < front:
                self._refuse(f"tensor {name!r:.80} begins at byte {begin}, within the one before it")
            if end > room:
                self._refuse(f"tensor {name!r:.80} ends at byte {end}, and the file has room for {max(0, room)}")
            front = end
        return found

    def _value(self, kind: int, key: str, depth: int) -> Value:
        if kind in _SCALARS:
            number = self._number(_SCALARS[kind])
            return bool(number) if kind == _BOOL else number
        if kind == _STRING:
            return self._text(_LONGEST_TEXT, skips=True)
        if kind != _ARRAY:
            self._refuse(f"the key {key!r:.80} has the unknown type {kind}")
        if depth == _DEEPEST:
            self._refuse(f"the key {key!r:.80} has arrays in arrays without end")
        inner, count = self._number("<I"), self._number("<Q")
        if count > self._end - self._at:
            self._refuse(f"the key {key!r:.80} would have {count} elements in {self._size} bytes")
        if inner in _SCALARS:
            width = struct.calcsize(_SCALARS[inner])
            kept = tuple(self._value(inner, key, depth) for _ in range(min(count, _KEPT)))
            self._skip((count - len(kept)) * width)
            return kept
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            self._refuse(f"with the key {key!r:.80} it would have more than {_MOST_ELEMENTS} texts in arrays")
        kept = ()
        for number in range(count):
            value = self._value(inner, key, depth + 1)
            if number < _KEPT:
                kept = (*kept, value)
        return kept

    def _text(self, most: int, *, skips: bool = False) -> str:
        length = self._number("<Q")
        if skips and most < length <= self._end:
            self._skip(length)
            return ""
        if length > most:
            self._refuse(f"a text at byte {self._at} would have {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            self._refuse(f"the text at byte {self._at - length} is no UTF-8")

    def _number(self, format: str) -> int:
        number: int = struct.unpack(format, self._take(struct.calcsize(format)))[0]
        return number

    def _take(self, count: int) -> bytes:
        if count > self._end - self._at:
            self._refuse(
                f"its header goes on beyond the {self._end} bytes that "
                + ("the file has" if self._end == self._size else "a header may have")
            )
        data = self._file.read(count)
        if len(data) != count:
            self._refuse("it became shorter while it was read")
        self._at += count
        return data

    def _skip(self, count: int) -> None:
        if count > self._end - self._at:
            self._take(count)
        self._file.seek(count, os.SEEK_CUR)
        self._at += count

    def _refuse(self, problem: str) -> NoReturn:
        raise BadInput(
            f"{self._shown} is no sound GGUF file: {problem}.", hint="Get it again from a source that you trust."
        )
