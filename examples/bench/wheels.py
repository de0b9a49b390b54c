"""Large wheels as a layer, beside installing the same wheels with ``uv`` and packing the folder with ``tar``.

The wheels are torch and the nvidia packages that it needs, from the package index that uv is set to (2.5 GB, kept in
``.demo/wheels``), or those in the folders that ``CPACK_BENCH_WHEELS`` names. Neither side compiles bytecode or
compresses; both hash the tar.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import demo
from uv import find_uv_bin

from bench.measure import BenchError, Row, run, timed
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.python import Target, lock_environment
from cpack_build.lock.wheels import fetch_wheel, wheels_of

_PYTHON = "3.11"
_LARGE = 1 << 20
_LAYER = """
import hashlib, sys
from pathlib import Path
from cpack_build.fetch.store import Store
from cpack_build.image.wheels import Environment, StoredWheel, wheel_layer
wheels = []
for path in map(Path, sys.argv[1:]):
    name, version = path.name.split("-")[:2]
    wheels.append(StoredWheel(name, version, path.name, "0" * 64, path, path.stat().st_size))
environment = Environment("opt/comfyui", "3.11", "/usr/bin/python3.11")
for wheel in wheels:
    layer = wheel_layer("wheel", wheel.name, environment, [wheel])
    hasher, size = hashlib.sha256(), 0
    for chunk in __import__("cpack_build.oci.tar", fromlist=["stream"]).stream(layer.entries()):
        hasher.update(chunk)
        size += len(chunk)
    print(size)
"""


def rows(place: Path) -> Iterator[Row]:
    """Measure one process of each side, on one core."""
    wheels = _wheels()
    root = str(Path(__file__).resolve().parents[2])
    ours = run(_on_one_core([sys.executable, "-c", _LAYER, *map(str, wheels)]), environment={"PYTHONPATH": root})
    size = sum(map(int, ours.stdout.split()))
    venv, uv = place / "venv", find_uv_bin()
    run([uv, "venv", "-q", "--python", _PYTHON, venv])
    install = [uv, "pip", "install", "-q", "--offline", "--no-deps", "--link-mode", "copy", "--cache-dir",
               str(place / "uv"), "--python", str(venv / "bin/python"), *map(str, wheels)]  # fmt: skip
    installed = run(_on_one_core(install))
    packed = timed(lambda: _tar(venv))
    shutil.rmtree(venv)
    what = f"{len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e9:.1f} GB"
    speed = size / 1e6 / ours.cpu_seconds
    yield Row("wheels", f"{what}: unpacked to layers", ours.seconds, "uv install + tar", installed.seconds + packed,
              1 / 1.5, ours.peak_mb, f"{size / 1e9:.1f} GB of layers, {speed:.0f} MB/s a core, goal 150")  # fmt: skip


def _wheels() -> list[Path]:
    """The files, the largest first."""
    found: list[Path] = []
    if folders := os.environ.get("CPACK_BENCH_WHEELS", "").split():
        found = [path for folder in folders for path in Path(folder).glob("*.whl")]
    else:
        kept = demo.DEMO / "wheels"
        kept.mkdir(parents=True, exist_ok=True)
        store = Store(kept / "store")
        environment = lock_environment(["torch"], target=Target(_PYTHON), store=store, sources=Sources())
        for wheel in wheels_of(environment):
            if (wheel.size or 0) >= _LARGE:
                path = kept / wheel.filename
                if not path.exists():
                    os.link(fetch_wheel(wheel, store=store, sources=Sources()).path, path)
                found.append(path)
    if not found:
        raise BenchError("there are no wheels to unpack")
    return sorted(found, key=lambda path: -path.stat().st_size)


def _on_one_core(command: list[str]) -> list[str]:
    taskset = shutil.which("taskset")
    return [taskset, "--cpu-list", str(min(os.sched_getaffinity(0))), *command] if taskset else command


def _tar(folder: Path) -> None:
    """As one process would send it to another that hashes it."""
    hasher = hashlib.sha256()
    with subprocess.Popen(["tar", "--create", "--sort=name", "-C", folder, "."], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(1 << 20):
            hasher.update(chunk)
    if process.returncode:
        raise BenchError("tar failed")
