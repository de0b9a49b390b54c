"""``make bench``: how long the example's image takes, as multiples of hashing its bytes once on this machine.

Seconds differ from machine to machine; the ratio to ``sha256`` of the same bytes, one thread, does so far less. Four
builds are timed as a user would start them: with an empty store (downloads included), with everything downloaded but
nothing measured, with everything remembered, and into a layout that has it all already.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import demo  # noqa: E402

PLACE = demo.DEMO / "bench"


def main() -> int:
    """Time the builds; the exit code."""
    demo.fresh(PLACE)
    PLACE.mkdir()
    try:
        pack, flags = demo.make_example(comfyui=False)
        (demo.DEMO / "upscale.cpack.lock").unlink(missing_ok=True)
        store = PLACE / "store"

        def built(name: str) -> Callable[[], None]:
            return lambda: _image(pack, flags, store, PLACE / name)

        times = {"empty store, with downloads": _timed(built("first"))}
        for path in store.glob("memo.sqlite*"):
            path.unlink()
        times["downloaded, nothing measured"] = _timed(built("cold"))
        times["all remembered"] = _timed(built("warm"))
        times["all there already"] = _timed(built("warm"))
    except demo.DemoError as error:
        print(f"The bench failed: {error}", file=sys.stderr)
        return 1
    blobs = sorted((PLACE / "warm/blobs/sha256").iterdir())
    size = sum(path.stat().st_size for path in blobs)
    unit = _timed(lambda: _hash(blobs))
    print(f"\n{size / 1e6:.0f} MB of image; hashing them once takes {unit:.2f} s ({size / unit / 1e9:.2f} GB/s)\n")
    print(f"{'build':<30} {'seconds':>8} {'x sha256':>9}")
    for name, seconds in times.items():
        print(f"{name:<30} {seconds:>8.2f} {seconds / unit:>9.1f}")
    demo.fresh(PLACE)
    return 0


def _image(pack: Path, flags: list[str], store: Path, layout: Path) -> None:
    command = [sys.executable, "-m", "cpack_build", "image", str(pack), "--output", f"oci:{layout}", "-q", *flags]
    done = subprocess.run(
        command, cwd=demo.ROOT, env=os.environ | {"CPACK_HOME": str(store)}, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise demo.DemoError(f"`cpack-build image` ended with exit code {done.returncode}")


def _timed(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _hash(paths: list[Path]) -> None:
    hasher = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)


if __name__ == "__main__":
    sys.exit(main())
