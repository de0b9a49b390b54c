"""The workflow in what ComfyUI saves is found, and a damaged or hostile file holds none."""

from __future__ import annotations

import json
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cpack_build.cpack.workflowfile import open_workflow
from cpack_build.errors import CpackError, WorkflowError
from cpack_build.workflow.embedded import is_medium, read_embedded

PROMPT = {"1": {"class_type": "LoadImage", "inputs": {"image": "größe.png"}}}
DRAWING = {"nodes": [], "links": [], "last_node_id": 1}
RUN = {"1": {**PROMPT["1"], "is_changed": ["abc"]}}  # as ComfyUI leaves it behind
TEXTS = {"prompt": json.dumps(RUN), "workflow": json.dumps(DRAWING)}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


def mp4() -> bytes:
    """As PyAV writes it with ``use_metadata_tags``."""
    keys = b"".join(box(b"mdta", key.encode()) for key in TEXTS)
    items = b"".join(
        box(struct.pack(">I", number), box(b"data", struct.pack(">II", 1, 0) + text.encode()))
        for number, text in enumerate(TEXTS.values(), 1)
    )
    meta = bytes(4) + box(b"hdlr", bytes(25)) + box(b"keys", struct.pack(">II", 0, len(TEXTS)) + keys)
    moov = box(b"mvhd", bytes(100)) + box(b"udta", box(b"meta", meta + box(b"ilst", items)))
    return box(b"ftyp", b"isom" + bytes(8)) + box(b"mdat", b"video") + box(b"moov", moov)


def element(identity: int, data: bytes) -> bytes:
    return identity.to_bytes((identity.bit_length() + 7) // 8, "big") + (len(data) | 1 << 28).to_bytes(4, "big") + data


def save(path: Path, kind: str) -> Path:
    """A picture as ComfyUI's own nodes save it (``nodes.py``, ``comfy_extras/nodes_images.py``)."""
    picture = Image.new("RGB", (3, 2))
    if kind in ("png", "ztxt", "itxt", "apng"):
        info = PngInfo()
        for key, text in TEXTS.items():
            if kind == "apng":
                info.add(b"comf", key.encode() + b"\0" + text.encode(), after_idat=True)
            elif kind == "itxt":
                info.add_itxt(key, json.dumps(json.loads(text), ensure_ascii=False), zip=True)
            else:
                info.add_text(key, text, zip=kind == "ztxt")
        more = {"save_all": True, "append_images": [picture]} if kind == "apng" else {}
        picture.save(path, "PNG", pnginfo=info, **more)
    elif kind == "flac":
        comments = [f"{key.upper()}={text}".encode() for key, text in TEXTS.items()]
        body = struct.pack("<I", 4) + b"test" + struct.pack("<I", len(comments))
        body += b"".join(struct.pack("<I", len(comment)) + comment for comment in comments)
        path.write_bytes(
            b"fLaC" + struct.pack(">I", 34) + bytes(34) + struct.pack(">I", 0x84 << 24 | len(body)) + body + b"sound"
        )
    elif kind == "mp4":
        path.write_bytes(mp4())
    elif kind == "webm":
        tags = [
            element(0x67C8, element(0x45A3, key.upper().encode()) + element(0x4487, text.encode()))
            for key, text in TEXTS.items()
        ]
        body = element(0x1F43B675, b"video") + element(0x1254C367, element(0x7373, b"".join(tags)))
        path.write_bytes(element(0x1A45DFA3, b"") + element(0x18538067, body))
    else:
        exif = picture.getexif()
        exif[0x0110] = "prompt:" + TEXTS["prompt"]
        exif[0x010F] = "workflow:" + TEXTS["workflow"]
        picture.save(path, kind.upper(), exif=exif)
    return path


@pytest.mark.parametrize("kind", ["png", "ztxt", "itxt", "apng", "webp", "jpeg", "flac", "mp4", "webm"])
def test_both_texts_are_found_in_every_kind(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "x", kind)
    assert is_medium(path)
    found = open_workflow(path)
    assert (found.api, found.drawing) == (PROMPT, DRAWING)
    assert found.in_api_format() == (PROMPT, ())


def test_a_picture_without_a_workflow_says_what_may_be_the_cause(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "x.png")
    with pytest.raises(WorkflowError, match="holds no workflow") as caught:
        open_workflow(tmp_path / "x.png")
    assert "--disable-metadata" in caught.value.hint
    (tmp_path / "x.json").write_text(TEXTS["prompt"])
    assert not is_medium(tmp_path / "x.json")
    assert open_workflow(tmp_path / "x.json").api == RUN


def test_a_text_that_unpacks_without_end_is_none(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(80 << 20))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"zTXt", b"prompt\0\0" + bomb) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(data)
    assert read_embedded(tmp_path / "x.png") == {}


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"a": NaN}', "[" * 200_000])
def test_a_text_that_is_no_workflow_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    info = PngInfo()
    info.add_text("prompt", text)
    Image.new("RGB", (1, 1)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(CpackError, match=r"x\.png: its prompt"):
        open_workflow(tmp_path / "x.png")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["png", "ztxt", "apng", "webp", "jpeg", "flac", "mp4", "webm"]),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    cut=st.integers(0, 600),
)
def test_any_change_of_a_picture_gives_a_workflow_or_an_error_of_ours(
    tmp_path: Path, kind: str, edits: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(save(tmp_path / "x", kind).read_bytes())
    for place, new in edits:
        place %= len(data)
        data[place : place + len(new)] = new
    (tmp_path / "y").write_bytes(bytes(data[: len(data) - cut] if cut else data))
    with suppress(CpackError):
        open_workflow(tmp_path / "y")
