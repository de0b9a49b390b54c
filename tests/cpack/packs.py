"""Packs made by hand: a sound one whose parts a test replaces, and zips that no honest program writes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COMMIT = "a125cd84b054a57729b5eecab930ca9408719832"
SHA256 = "4c405be474d38cbab922460133f187d9f5a03a7f546e23d7a5e351cb0a58c858"

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "CPackInputImage", "inputs": {"image": "example.png"}, "_meta": {"title": "photo"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "CPackOutputImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
}


def snapshot(**changes: Any) -> dict[str, Any]:
    """A snapshot as comfy-pack 0.4 writes it, with *changes*; a change to ``...`` leaves the key out."""
    document: dict[str, Any] = {
        "comfyui": COMMIT,
        "git_custom_nodes": {"https://hub.example/someone/some-node.git": {"hash": COMMIT + "\n", "disabled": False}},
        "cnr_custom_nodes": {"some-registry-node": "1.2.3"},
        "file_custom_nodes": [{"filename": "single.py", "disabled": False}],
        "pips": {"pillow==10.0.0": "", "kornia": "git+https://hub.example/kornia.git@main"},
        "python": "3.11",
        "models": [model()],
    } | changes
    return {key: value for key, value in document.items() if value is not ...}


def model(**changes: Any) -> dict[str, Any]:
    """A model of a snapshot."""
    return {
        "filename": "models/upscale_models/tiny.safetensors",
        "size": 908276,
        "atime": 1.5,
        "ctime": 1.5,
        "disabled": False,
        "sha256": SHA256,
        "source": {},
    } | changes


def make_pack(
    path: Path,
    *,
    snapshot_document: object = None,
    workflow_api: object = None,
    files: Mapping[str, bytes] | None = None,
    without: Iterable[str] = (),
) -> Path:
    """A pack at *path*: a sound one but for what is given; *without* names entries to leave out."""
    entries: dict[str, bytes] = {
        "snapshot.json": json.dumps(snapshot() if snapshot_document is None else snapshot_document).encode(),
        "workflow_api.json": json.dumps(WORKFLOW if workflow_api is None else workflow_api).encode(),
        "workflow.json": b"{}",
        "input/example.png": b"not really a picture",
        **(files or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if name not in without:
                archive.writestr(zipfile.ZipInfo(name), data)
    return path


def add(path: Path, name: str, data: bytes = b"x", *, mode: int = 0o100644, compress: bool = False) -> Path:
    """Append an entry whose *name* is written as it stands."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    info.external_attr = mode << 16
    info.create_system = 3
    info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, data)
    return path
