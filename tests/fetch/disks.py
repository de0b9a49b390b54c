"""Small file systems of their own, for what a full or a read-only disk does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import need


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """A file system at *place*, by mount(8)'s *arguments*."""
    if os.geteuid():
        need.missing("root (to mount a small file system)")
    place.mkdir()
    subprocess.run(["mount", *arguments, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
