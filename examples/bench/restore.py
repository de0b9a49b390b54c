"""Restoring: a workspace whose models and wheels are in the store, its environment, and one from a registry.

The image has a model of 256 MB; the environment is the example's. Beside us, ``uv pip sync`` makes the same
environment from the same wheels, and ``skopeo copy`` brings the same image from the same registry to a folder.
``COMFYUI=~/ComfyUI`` (and ``FIND_LINKS``, a folder with a CPU torch) adds real ComfyUI's environment, torch and all.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.measure import BenchError, Row, cpack_build, run

_MODEL_BYTES = 256 << 20
_MAKE = f"""
import os, pathlib, sys
from tests.restore.images import make_world
make_world(pathlib.Path(sys.argv[1]), weights=os.urandom(1 << 20) * {_MODEL_BYTES >> 20})
"""


def rows(place: Path) -> Iterator[Row]:
    """Restore four ways."""
    from tests.engines import run_registry

    # In a process of its own: what a parent ever held counts as a child's memory (getrusage(2)).
    run([sys.executable, "-c", _MAKE, place / "world"], environment={"PYTHONPATH": os.pathsep.join(sys.path)})
    with run_registry() as registry:
        reference = f"{registry.host}/bench/small:1"
        cpack_build("push", f"oci:{place / 'world/small.oci'}", reference, home=place / "pusher")
        home = place / "home"
        note = f"a model of {_MODEL_BYTES / 1e6:.0f} MB"
        ours = cpack_build("restore", reference, "-d", place / "a", "--no-venv", "--offline", "-q", home=home)
        if skopeo := shutil.which("skopeo"):
            source, target = f"docker://{reference}", f"oci:{place / 'copied'}"
            peer = run([skopeo, "copy", "--quiet", "--src-tls-verify=false", source, target])
            yield Row(
                "restore", "from a registry, nothing here", ours.seconds, "skopeo copy", peer.seconds, goal=1 / 0.9,
                peak_mb=ours.peak_mb, note=note,
            )  # fmt: skip
        warm = cpack_build("restore", reference, "-d", place / "b", "--no-venv", "--offline", "-q", home=home)
        yield Row("restore", "models in the store", warm.seconds, "", goal=3.0, peak_mb=warm.peak_mb, note=note)
        again = cpack_build("restore", reference, "-d", place / "b", "--no-venv", "--offline", "-q", home=home)
        yield Row("restore", "nothing to do", again.seconds, "", goal=3.0, peak_mb=again.peak_mb, note=note)
    yield _environment(place / "environment", comfyui=False)
    if os.environ.get("COMFYUI"):
        yield _environment(place / "torch", comfyui=True)
    else:
        print("restore: the environment with torch is left out: COMFYUI names no clone of ComfyUI")


def _environment(place: Path, *, comfyui: bool) -> Row:
    """Our environment from cached wheels beside ``uv pip sync`` of the same, both with uv's cache filled."""
    import demo
    from uv import find_uv_bin

    pack, flags = demo.make_example(comfyui=comfyui)
    home, cache = place / "store", {"UV_CACHE_DIR": str(place / "uv")}
    restore = ("restore", pack, *_for_restore(flags), "-q")
    cpack_build(*restore, "-d", place / "first", home=home, environment=cache)
    without = cpack_build(*restore, "-d", place / "b", "--no-venv", home=home, environment=cache)
    ours = cpack_build(*restore, "-d", place / "b", home=home, environment=cache)
    (house,) = (home / "wheelhouse").iterdir()
    names = "".join(f"{wheel.name.split('-')[0]}=={wheel.name.split('-')[1]}\n" for wheel in sorted(house.iterdir()))
    (place / "requirements.txt").write_text(names)
    uv = find_uv_bin()
    made = run([uv, "venv", "--quiet", "--python", f"{sys.version_info[0]}.{sys.version_info[1]}", place / "peer"])
    synced = run(
        [uv, "pip", "sync", "--quiet", "--python", place / "peer/bin/python", "--no-index", "--find-links", house,
         place / "requirements.txt"],
        environment=cache,
    )  # fmt: skip
    if not (place / "b/.venv/bin/python").exists():
        raise BenchError("There is no environment to compare.")
    what = "ComfyUI's environment, with torch" if comfyui else "the environment alone"
    size = sum(wheel.stat().st_size for wheel in house.iterdir())
    return Row(
        "restore", what, max(ours.seconds - without.seconds, 0.001), "uv venv + uv pip sync",
        made.seconds + synced.seconds, goal=1.3, peak_mb=ours.peak_mb,
        note=f"{len(names.splitlines())} packages of {size / 1e6:.0f} MB from the store",
    )  # fmt: skip


def _for_restore(flags: list[str]) -> list[str]:
    """The demo's flags, whose folder of models has another name here."""
    return ["--models-dir" if flag == "--models" else flag for flag in flags]
