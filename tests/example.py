"""The example pack of the end-to-end tests and of ``make demo``: a picture is tinted, scaled and inverted.

ComfyUI is the stand-in, in a git repository made on the spot, with one custom node from a second repository and one
model. Both commits are the same on every machine, so the pack pins them as a real one does; a ``cpack.yaml`` beside
the pack maps their made-up URLs to the local clones."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.cpack.writer import write_pack
from tests.standin.repository import make_model, make_nodes_repository, make_repository

__all__ = ["PICTURE_IN", "PICTURE_OUT", "WORKFLOW", "Example", "make_example", "system_python"]

_COMFYUI = "https://github.com/Comfy-Org/ComfyUI"
_NODE = "https://nodes.example/standin-tint"
_MODEL = "models/upscale_models/tiny.safetensors"
PICTURE_IN, PICTURE_OUT = "1", "7"
"""Node ids of the interface nodes."""

WORKFLOW: dict[str, Any] = {
    PICTURE_IN: {"class_type": "CPackInputImage", "inputs": {"image": "sample.png"}, "_meta": {"title": "photo"}},
    "2": {"class_type": "CPackInputInt", "inputs": {"value": 64, "min": 8, "max": 512}, "_meta": {"title": "size"}},
    "3": {
        "class_type": "StandinTint",
        "inputs": {"image": [PICTURE_IN, 0], "red": 1.0, "green": 0.5, "blue": 0.25},
        "_meta": {"title": "Tint"},
    },
    "4": {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["3", 0],
            "upscale_method": "nearest-exact",
            "width": ["2", 0],
            "height": ["2", 0],
            "crop": "disabled",
        },
        "_meta": {"title": "Scale"},
    },
    "5": {
        "class_type": "UpscaleModelLoader",
        "inputs": {"model_name": "tiny.safetensors"},
        "_meta": {"title": "Load model"},
    },
    "6": {
        "class_type": "ImageUpscaleWithModel",
        "inputs": {"upscale_model": ["5", 0], "image": ["4", 0]},
        "_meta": {"title": "Upscale"},
    },
    PICTURE_OUT: {
        "class_type": "CPackOutputImage",
        "inputs": {"images": ["6", 0], "filename_prefix": "cpack_output_"},
        "_meta": {"title": "picture"},
    },
}


@dataclass(frozen=True)
class Example:
    """The *pack* and the *settings* file beside it, which cpack-build finds by itself."""

    pack: Path
    settings: Path


def system_python() -> str:
    """Minor version of the system's Python (``3.11``), for which the system's packages have an interpreter."""
    code = "import sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')"
    done = subprocess.run(["/usr/bin/python3", "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_example(folder: Path, *, sample: bytes) -> Example:
    """Make the repositories, the model and the pack in *folder*; *sample* is the picture that the pack ships."""
    commit = make_repository(folder / "ComfyUI")
    node_commit = make_nodes_repository(folder / "standin-tint")
    model = folder / _MODEL
    make_model(model, metadata={"scale": "2"})
    snapshot = {
        "comfyui": commit,
        "git_custom_nodes": {_NODE + ".git": {"hash": node_commit, "disabled": False}},
        "cnr_custom_nodes": {},
        "file_custom_nodes": [],
        "pips": {"aiohttp>=3.9": "", "numpy>=1.26": "", "pillow>=10": ""},
        "python": system_python(),
        "models": [
            {
                "filename": _MODEL,
                "size": model.stat().st_size,
                "atime": 0,
                "ctime": 0,
                "disabled": False,
                "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
                "source": {},
            }
        ],
    }
    pack = folder / "example.cpack.zip"
    write_pack(pack, snapshot_document=snapshot, workflow_api=WORKFLOW, workflow={}, inputs={"sample.png": sample})
    settings = folder / "example.cpack.yaml"
    document = {
        "system": {"defaults": "none"},
        "models": [str(folder)],
        "mirrors": {_COMFYUI: str(folder / "ComfyUI"), _NODE: str(folder / "standin-tint")},
    }
    settings.write_text(json.dumps(document, indent=2))
    return Example(pack, settings)
