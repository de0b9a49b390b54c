"""Packing a workspace's models: hashing many files beside one ``sha256sum``, cold; again with nothing changed; listing
ten thousand files; and what a large file costs in memory.

Cold means that the kernel was told to forget the files before, for us and for the peer alike.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.measure import Row, Run, cpack_build, run, timed
from cpack_build.fetch.store import Store
from cpack_build.workspace.hashing import hash_files
from cpack_build.workspace.models import list_models
from cpack_build.workspace.place import find_comfyui

_FILES, _SIZE = 24, 64 << 20
_SPARSE = 4 << 30
_LISTED = 10_000
_WORKFLOW = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
_HASH = """
import sys
from pathlib import Path
from cpack_build.fetch.store import Store
from cpack_build.workspace.hashing import hash_files
hash_files([Path(name) for name in sys.argv[2:]], store=Store(Path(sys.argv[1])))
"""


def rows(place: Path) -> Iterator[Row]:
    """Hash, pack twice, list, and hash one large file."""
    workspace = _workspace(place / "ComfyUI")
    files = sorted((workspace / "models/loras").iterdir())
    program = shutil.which("sha256sum")
    _forget(files)
    peer = timed(lambda: subprocess.run([program, *files], check=True, capture_output=True)) if program else None
    _forget(files)
    ours = timed(lambda: hash_files(files, store=Store(place / "cold")))
    note = f"{_FILES} files, {_FILES * _SIZE / 1e9:.1f} GB, {os.cpu_count()} cores"
    yield Row("hashing", "many files, cold", ours, "sha256sum", peer, goal=1 / 1.7, note=note)
    # A distribution's sha256sum may not know the processor's SHA instructions; hashlib does.
    _forget(files)
    peer = timed(lambda: hash_files(files, store=Store(place / "one"), workers=1))
    yield Row("hashing", "many files, cold, against one thread", ours, "ourselves", peer)

    (place / "workflow.json").write_text(json.dumps(_WORKFLOW))
    packed = [_pack(workspace, place, files) for _ in range(2)]
    yield Row(
        "hashing", "pack again, nothing changed", packed[1].seconds, "the first pack", packed[0].seconds,
        peak_mb=packed[1].peak_mb, note="reads no model",
    )  # fmt: skip

    for number in range(_LISTED):
        folder = workspace / f"models/checkpoints/{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.safetensors").touch()
    seconds = timed(lambda: list_models(find_comfyui(workspace)))
    yield Row("hashing", f"list {_LISTED} model files", seconds, "", goal=2.0)

    large, small = place / "large.safetensors", place / "small.safetensors"
    for path, size in ((large, _SPARSE), (small, 1)):
        with path.open("wb") as file:
            file.truncate(size)
    peer = timed(lambda: subprocess.run([program, large], check=True, capture_output=True)) if program else None
    least, most = (run([sys.executable, "-c", _HASH, place / path.name.split(".")[0], path]) for path in (small, large))
    note = f"a file of one byte: {least.peak_mb:.0f} MB"
    yield Row(
        "hashing", f"one sparse file of {_SPARSE >> 30} GiB", most.seconds, "sha256sum", peer,
        peak_mb=most.peak_mb, note=note,
    )  # fmt: skip


def _pack(workspace: Path, place: Path, files: Sequence[Path]) -> Run:
    _forget(files)
    return cpack_build(
        "pack", workspace, "-w", place / "workflow.json", "-o", place / "made.cpack.zip", "--all-models", "--offline",
        "--include-local", "--python", sys.prefix, "-q", home=place / "store",
    )  # fmt: skip


def _workspace(root: Path) -> Path:
    """As much of a ComfyUI as makes it one, and models of random bytes."""
    (root / "models/loras").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "folder_paths.py"):
        (root / name).touch()
    for number in range(_FILES):
        with (root / f"models/loras/{number:02}.safetensors").open("wb") as file:
            for _ in range(_SIZE >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
    return root


def _forget(files: Sequence[Path]) -> None:
    """Have the kernel read *files* from the disk when they are read next."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
