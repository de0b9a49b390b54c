"""The header of a .safetensors file: what tensors it holds, checked before any loader is let near it.

The format (huggingface/safetensors, "Format"): 8 bytes, the header's length as little-endian u64; the header, JSON
padded with spaces; the tensors' bytes, each tensor at its ``data_offsets``, without holes. Loaders believe these
numbers, so a file that breaks one of the rules is refused by name.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cpack_build.errors import BadInput

__all__ = ["Header", "Tensor", "read_header"]

_LIMIT = 100_000_000
"""Bytes of a header, as the reference implementation has it."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor: *dtype* by the format's name, *shape*, and the bytes that it takes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself: *tensors* by name, and free *metadata* (text to text)."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

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


def read_header(path: Path, *, name: object = None) -> Header:
    """The header of the file at *path*; *name* is what errors call it. Raises :class:`BadInput` for a broken one."""
    shown = name or path
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LIMIT, size - 8):
            _refuse(shown, f"its header would have {length} bytes, and the file has {size}")
        data = file.read(length)
    if not data.startswith(b"{"):
        _refuse(shown, "its header is no JSON object")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(shown, f"its header is damaged ({error})")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(shown, "its metadata is not text")
    tensors = {}
    spans = []
    for key, entry in document.items():
        tensors[key], begin = _tensor(shown, key, entry)
        spans.append((begin, begin + tensors[key].size, key))
    front = 0
    for begin, end, key in sorted(spans):
        if begin != front:
            _refuse(shown, f"tensor {key!r:.80} begins at byte {begin}, not at {front}, where the one before it ends")
        front = end
    if front != size - 8 - length:
        _refuse(shown, f"its tensors have {front} bytes, and the file has room for {size - 8 - length}")
    return Header(tensors, metadata)


def _tensor(shown: object, key: str, entry: Any) -> tuple[Tensor, int]:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        _refuse(shown, f"tensor {key!r:.80} has the unknown type {dtype!r:.40}")
    if not isinstance(shape, list) or not all(type(number) is int and 0 <= number < 2**63 for number in shape):
        _refuse(shown, f"tensor {key!r:.80} has no shape")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(number) is int and 0 <= number < 2**63 for number in offsets)
    ):
        _refuse(shown, f"tensor {key!r:.80} has no place")
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        _refuse(shown, f"tensor {key!r:.80} takes {end - begin} bytes, where its shape needs {bits / 8:g}")
    return Tensor(dtype, tuple(shape), end - begin), begin


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse(shown: object, problem: str) -> NoReturn:
    raise BadInput(
        f"{shown} is no sound safetensors file: {problem}.", hint="Get it again from a source that you trust."
    )
