"""A build killed at random moments of its course, each time with an empty store and layout, and built again after that.

A program of its own (``python -m tests.image.killing FOLDER COUNT``), so that it can fork with all modules loaded. It
prints a JSON line for each moment: when, whether the kill came before the end, the next build's digest, and what of the
store and the layout is damaged or left over.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from shutil import rmtree

from cpack_build.fetch.housekeeping import verify
from cpack_build.fetch.store import Store
from tests.image.small import main as build_small

SEED = 5


def damaged(store: Store, layout: Path) -> list[str]:
    """What is not what it is called, and what was being written."""
    found = [str(path) for path in (store.root / "tmp").iterdir()]
    found += [f"{broken.path} is {broken.actual}" for broken in verify(store, dry_run=True)[1]]
    for path in (layout / "blobs/sha256").iterdir():
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            found.append(str(path))
    return found


def forked(parts: Path, place: Path) -> int:
    """The process id of a build."""
    child = os.fork()
    if child == 0:
        try:
            build_small(parts, place / "store", place / "layout")
        finally:
            os._exit(0)
    return child


def main(folder: Path, count: int) -> None:
    parts, place = folder / "parts", folder / "place"
    build_small(parts, folder / "first", folder / "layout")
    began = time.monotonic()
    os.waitpid(forked(parts, place), 0)
    duration = time.monotonic() - began
    moments = random.Random(SEED)
    for _ in range(count):
        rmtree(place)
        moment = moments.random()
        child = forked(parts, place)
        time.sleep(moment * duration)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        digest = build_small(parts, place / "store", place / "layout")
        told = {"moment": moment, "killed": os.WIFSIGNALED(status), "digest": digest}
        print(json.dumps({**told, "damaged": damaged(Store(place / "store"), place / "layout")}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
