"""The example's parts, made on the spot so that nothing big lies in the repository: a model, a picture, the pack.

The model is a real ESRGAN (4 times, 8 features, one block; the layout that ComfyUI's loader knows) whose weights let
each pixel through unchanged, so the result is the picture, four times as large.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpack_build.cpack.writer import write_pack

HERE = Path(__file__).resolve().parent
MODEL = "models/upscale_models/demo_4x.safetensors"
_FEATURES = 8
_GROWTH = 32


def write_model(path: Path) -> None:
    """Write the model at *path* as .safetensors: an 8-byte length, a JSON header, the tensors."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"{name}.bias"] = (outputs,)

    convolution("model.0", _FEATURES, 3)
    for block in range(1, 4):
        for number in range(1, 6):
            outputs = _GROWTH if number < 5 else _FEATURES
            convolution(f"model.1.sub.0.RDB{block}.conv{number}.0", outputs, _FEATURES + _GROWTH * (number - 1))
    convolution("model.1.sub.1", _FEATURES, _FEATURES)
    for name in ("model.3", "model.6", "model.8"):
        convolution(name, _FEATURES, _FEATURES)
    convolution("model.10", 3, _FEATURES)
    header: dict[str, Any] = {}
    body = bytearray()
    for name, shape in sorted(shapes.items()):
        size = 1
        for side in shape:
            size *= side
        values = [0.0] * size
        if name in ("model.0.weight", "model.3.weight", "model.6.weight", "model.8.weight", "model.10.weight"):
            for channel in range(min(shape[0], shape[1], 3)):
                # The middle of the 3x3 kernel from channel to the same channel.
                values[(channel * shape[1] + channel) * 9 + 4] = 1.0
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + 4 * size]}
        body += struct.pack(f"<{size}f", *values)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def picture(width: int, height: int) -> bytes:
    """A PNG of a sun over a coloured sky (PNG specification, 5.2 and 11.2)."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            sun = (x - width * 0.7) ** 2 + (y - height * 0.35) ** 2 < (height * 0.2) ** 2
            sky = (40 + 180 * y // height, 90 + 80 * y // height, 200 - 90 * y // height)
            rows += bytes((255, 225, 120) if sun else sky)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG. Raises ``ValueError`` if it is none."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise ValueError("no PNG came back")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def make_pack(
    path: Path,
    *,
    python: str,
    commit: str,
    requirements: Sequence[str],
    model: Path,
    nodes: dict[str, str] | None = None,
) -> None:
    """Write the pack: ComfyUI at *commit*, *requirements*, custom *nodes* (URL → commit) and the model."""
    import hashlib

    data = model.read_bytes()
    snapshot = {
        "python": python,
        "comfyui": commit,
        "git_custom_nodes": {url: {"hash": pin, "disabled": False} for url, pin in (nodes or {}).items()},
        "cnr_custom_nodes": {},
        "file_custom_nodes": [],
        "pips": dict.fromkeys(requirements, ""),
        "models": [
            {
                "filename": MODEL,
                "size": len(data),
                "disabled": False,
                "sha256": hashlib.sha256(data).hexdigest(),
                "source": {},
            }
        ],
    }
    workflow = json.loads((HERE / "workflow_api.json").read_text())
    write_pack(path, snapshot_document=snapshot, workflow_api=workflow, inputs={"example.png": picture(32, 24)})
