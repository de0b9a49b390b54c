"""Makes git repositories of the stand-in and of its custom node, and the small models that it loads.

The commits have a fixed author and date, and file modes that do not depend on the umask: the same files give the same
commit id on every machine, so a pack may pin it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
COMFYUI = HERE / "comfyui"
NODE = HERE / "node"

_WHO = {
    "GIT_AUTHOR_NAME": "stand-in",
    "GIT_AUTHOR_EMAIL": "stand-in@cpack.example",
    "GIT_AUTHOR_DATE": "2025-01-02T03:04:05+00:00",
    "GIT_COMMITTER_NAME": "stand-in",
    "GIT_COMMITTER_EMAIL": "stand-in@cpack.example",
    "GIT_COMMITTER_DATE": "2025-01-02T03:04:05+00:00",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def make_repository(folder: Path) -> str:
    """Make a git repository of the stand-in ComfyUI in *folder* (new or empty); returns the commit."""
    return _commit(COMFYUI, folder)


def make_nodes_repository(folder: Path) -> str:
    """Make a git repository of the custom node ``StandinTint`` in *folder* (new or empty); returns the commit."""
    return _commit(NODE, folder)


def _commit(source: Path, folder: Path) -> str:
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for path in sorted(folder.rglob("*")):
        if ".git" not in path.relative_to(folder).parts:
            path.chmod(0o755 if path.is_dir() else 0o644)
    _git(folder, "init", "-q", "--object-format=sha1", "--initial-branch=master")
    _git(folder, "-c", "core.autocrlf=false", "-c", "core.fileMode=true", "add", "-A", "-f", ".")
    _git(folder, "-c", "commit.gpgsign=false", "commit", "-q", "--no-verify", "-m", "The stand-in")
    return _git(folder, "rev-parse", "HEAD")


def _git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **_WHO}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_DEFAULT_HASH"):
        environment.pop(name, None)
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_model(path: Path, *, size: int = 4096, seed: int = 0, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file with one float tensor of *size* numbers that depend on *seed* only.

    *metadata* ``{"scale": "2"}`` makes the stand-in's ``ImageUpscaleWithModel`` double a picture (4 times otherwise).
    """
    state = seed & 0xFFFFFFFF
    values = []
    for _ in range(size):
        state = (1664525 * state + 1013904223) & 0xFFFFFFFF  # Numerical Recipes' generator
        values.append(state / 2**32 - 0.5)
    header: dict[str, object] = {"weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}
    if metadata:
        header["__metadata__"] = dict(metadata)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack(f"<{size}f", *values))
