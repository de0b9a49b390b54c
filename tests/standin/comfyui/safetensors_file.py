"""Reads a .safetensors file: an 8-byte length, a JSON header, and the tensors' bytes, as its format's page says."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


def read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors by name, in the order of their bytes, and the metadata. Raises ValueError for any other file."""
    data = Path(path).read_bytes()
    if len(data) < 8:
        raise ValueError(f"{Path(path).name} is no safetensors file: it is too short")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        raise ValueError(f"{Path(path).name} is no safetensors file: its header is longer than the file")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = memoryview(data)[8 + length :]
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if entry["dtype"] in _TYPES:
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(body[begin:end], dtype=_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata
