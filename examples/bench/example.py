"""The example's image as a user would build it, as multiples of hashing its bytes once, one thread.

Four builds: with an empty store (downloads included), with everything downloaded but nothing measured, with everything
remembered, and into a layout that has it all already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import demo

from bench.measure import Row, Run, cpack_build, timed


def rows(place: Path) -> Iterator[Row]:
    """Build the example four times."""
    pack, flags = demo.make_example(comfyui=False)
    (demo.DEMO / "upscale.cpack.lock").unlink(missing_ok=True)
    store = place / "store"

    def build(name: str) -> Run:
        return cpack_build("image", pack, "--output", f"oci:{place / name}", "-q", "--trust", *flags, home=store)

    runs = {"empty store, with downloads": build("first")}
    for path in store.glob("memo.sqlite*"):
        path.unlink()
    runs["downloaded, nothing measured"] = build("cold")
    runs["all remembered"] = build("warm")
    runs["all there already"] = build("warm")
    blobs = sorted((place / "warm/blobs/sha256").iterdir())
    unit = timed(lambda: _hash(blobs))
    note = f"{sum(path.stat().st_size for path in blobs) / 1e6:.0f} MB"
    for what, done in runs.items():
        yield Row("example", what, done.seconds, "sha256", unit, peak_mb=done.peak_mb, note=note)


def _hash(paths: list[Path]) -> None:
    hasher = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
