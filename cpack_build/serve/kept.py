"""Results that outlive their request: those of tasks and links, for a limited time and in limited space.

A result is a folder ``<id>/<number>/<file>`` of files that were the request's own (linked, else copied). When a new
one does not fit, the oldest are removed; one that is larger than the whole place is refused. :func:`sweep` holds
ComfyUI's own output folder to a ceiling in the same way, as ordinary nodes write there and nobody removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cpack_build.errors import RunError
from cpack_build.serve.exchange import Produced

__all__ = ["Keeper", "Kept", "Result", "sweep"]

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Result:
    """The *files* of a finished request, under the *names* that a caller sees. *size* is bytes.

    *links* tell where the files are when that is not this server.
    """

    id: str
    files: tuple[Produced, ...]
    names: tuple[str, ...]
    size: int
    until: float
    links: tuple[str, ...] = ()

    def url(self, name: str) -> str:
        """Where the file *name* is: a URL, or a path on this server."""
        from urllib.parse import quote

        if self.links:
            return self.links[self.names.index(name)]
        return f"/outputs/{self.id}/{quote(name, safe='')}"


class Keeper(Protocol):
    """A place for results."""

    async def put(self, files: Sequence[Produced], names: Sequence[str]) -> Result:
        """Keep *files* under *names*. Raises :class:`RunError` when it cannot."""


class Kept:
    """The place for results: *folder*, each for *seconds*, all together at most *most* bytes."""

    def __init__(self, folder: Path, *, seconds: float, most: int) -> None:
        self._folder = folder
        self._seconds = seconds
        self._most = most
        self._results: dict[str, Result] = {}  # the oldest first

    async def put(self, files: Sequence[Produced], names: Sequence[str]) -> Result:
        """Keep *files*. Raises :class:`RunError` (507) when they alone are larger than the place."""
        size = sum(file.path.stat().st_size for file in files)
        if size > self._most:
            raise RunError(
                f"The result is {size >> 20} MiB, and only {self._most >> 20} MiB can be kept.",
                hint="Ask for it without links, or set CPACK_KEEP_MIB.",
                status=507,
            )
        self.expire()
        while self._results and sum(result.size for result in self._results.values()) + size > self._most:
            self.remove(next(iter(self._results)))
        key = uuid.uuid4().hex
        try:
            moved = await asyncio.to_thread(_link, files, self._folder / key)
        except OSError as error:
            shutil.rmtree(self._folder / key, ignore_errors=True)
            raise RunError(f"The result could not be kept: {error.strerror}.", status=507) from None
        result = Result(key, tuple(moved), tuple(names), size, time.monotonic() + self._seconds)
        self._results[key] = result
        return result

    def get(self, key: str) -> Result | None:
        """The result *key*, or None when there is none any more."""
        self.expire()
        return self._results.get(key) if _ID.fullmatch(key) else None

    def remove(self, key: str) -> None:
        """Forget the result *key*; one that is gone is none."""
        if self._results.pop(key, None) is not None:
            shutil.rmtree(self._folder / key, ignore_errors=True)

    def expire(self) -> None:
        """Remove what has been kept long enough."""
        now = time.monotonic()
        for key in [key for key, result in self._results.items() if result.until <= now]:
            self.remove(key)


def _link(files: Sequence[Produced], folder: Path) -> list[Produced]:
    moved = []
    for number, file in enumerate(files):
        target = folder / str(number) / file.path.name
        target.parent.mkdir(parents=True)
        try:
            os.link(file.path, target)
        except OSError:
            shutil.copyfile(file.path, target)
        moved.append(Produced(file.output, target))
    return moved


def sweep(folder: Path, *, most: int, older_than: float = 600) -> int:
    """Remove the oldest files under *folder* until they are at most *most* bytes; returns the bytes removed.

    Files younger than *older_than* seconds stay (a request may be about to read them), as does ``folder/cpack``, whose
    files each request removes itself.
    """
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink() and path.relative_to(folder).parts[0] != "cpack":
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
    excess = sum(size for _, size, _ in found) - most
    removed = 0
    for when, size, path in sorted(found):
        if removed >= excess or when > time.time() - older_than:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            removed += size
    return removed
