"""How long the plugin holds ComfyUI's event loop while it works, and how long it takes to be loaded.

A custom node of the bench's own wants to run every millisecond in that loop and notes by how much it was late. The
same with nothing to do is the peer: what the machine itself is late by. The ComfyUI is the tests' stand-in.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests

from bench.measure import Row

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.nodes.routing import Comfyui, make_comfyui, running, workflow  # noqa: E402

_MODELS = 5_000
_IDLE = 5.0
_GOAL = 0.020
_LOADS = 10


def rows(place: Path) -> Iterator[Row]:
    """Have the plugin do each of its things while the probe looks."""
    root = make_comfyui(place / "ComfyUI")
    shutil.copy(ROOT / "tests/nodes/loopprobe.py", root / "custom_nodes")
    for number in range(_MODELS):
        (root / f"models/loras/lora {number:05} of a long name.safetensors").write_bytes(b"x")
    with (root / "models/upscale_models/large.safetensors").open("wb") as file:
        file.truncate(1 << 30)
    with running(place, install=root) as comfyui:
        comfyui.get("/probe")
        time.sleep(_IDLE)
        idle = comfyui.get("/probe").json()["longest"]
        large = workflow()
        large["2"]["_meta"] = {"title": "x" * (8 << 20)}
        chosen = ["models/upscale_models/large.safetensors"]
        for what, work in (
            ("100 times the status", lambda: [comfyui.get("/cpack/status") for _ in range(100)]),
            (f"an inventory of {_MODELS} models", lambda: comfyui.post("/cpack/inventory", {"prompt": workflow()})),
            ("a pack, hashing 1 GiB", lambda: _pack(comfyui, prompt=workflow(), models=chosen)),
            ("a pack of a workflow of 8 MiB", lambda: _pack(comfyui, prompt=large)),
            ("an upload of 256 MiB", lambda: _upload(comfyui, bytes(256 << 20))),
        ):
            yield _held(comfyui, what, work, idle)
    yield _loaded()


def _held(comfyui: Comfyui, what: str, work: Callable[[], object], idle: float) -> Row:
    comfyui.get("/probe")
    work()
    longest = comfyui.get("/probe").json()["longest"]
    note = f"{longest * 1000:.1f} ms; with nothing to do {idle * 1000:.1f} ms"
    return Row("plugin", f"longest hold: {what}", longest, "", goal=_GOAL, note=note)


def _pack(comfyui: Comfyui, **params: object) -> None:
    comfyui.done("pack", name="bench", include_local=True, **params)  # the probe is a node that only this machine has


def _upload(comfyui: Comfyui, data: bytes) -> None:
    answer = requests.post(
        f"{comfyui.url}/cpack/uploads", files={"file": ("x.cpack.zip", data)}, headers={"X-CPack": "1"}, timeout=600
    )
    answer.raise_for_status()


def _loaded() -> Row:
    """The door, opened as ComfyUI does, in a Python that has aiohttp already (as ComfyUI's has)."""
    script = f"""
import importlib.util, sys, time, asyncio, json, logging, subprocess, concurrent.futures
try:
    import aiohttp.web, numpy
except ImportError:
    pass
began = time.perf_counter()
spec = importlib.util.spec_from_file_location("cpack_door", {str(ROOT / "__init__.py")!r},
                                              submodule_search_locations=[{str(ROOT)!r}])
door = sys.modules["cpack_door"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(door)
from cpack_door.cpack_build.nodes import routes
print(time.perf_counter() - began)
"""
    seconds = [
        float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
        for _ in range(_LOADS)
    ]
    median = statistics.median(seconds)
    return Row("plugin", "loading it", median, "", goal=0.1, note=f"{median * 1000:.0f} ms, median of {_LOADS}")
