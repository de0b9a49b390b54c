"""Hashes of many files at once: as many threads as cores, largest first, remembered by the store.

A file whose stat the store knows is not read. Ctrl-C stops within one chunk of each thread; what was hashed until then
is remembered, so the next run goes on from there. Memory is one chunk a thread, however large the files are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cpack_build.errors import BadInput
from cpack_build.fetch.store import Store
from cpack_build.progress import SILENT, Progress

__all__ = ["hash_files"]


class _Stopped(Exception):
    """Raised within a thread that is asked to stop."""


def hash_files(
    files: Iterable[Path], *, store: Store, workers: int | None = None, progress: Progress = SILENT
) -> Mapping[Path, str]:
    """The sha256 (hex) of each of *files*.

    Raises :class:`BadInput` naming a file that cannot be read, :class:`~cpack_build.errors.Unresolvable` for one that
    changes meanwhile.
    """
    sizes = {}
    for path in files:
        with _reading(path):
            sizes[path] = path.stat().st_size
    queue = sorted(sizes, key=lambda path: (-sizes[path], str(path)))
    if not queue:
        return {}
    stop, lock = threading.Event(), threading.Lock()
    total = sum(sizes.values())
    with progress.task("Hashing models", total=total) as task:

        def advance(amount: int) -> None:
            with lock:
                task.advance(amount)

        def hashed(path: Path) -> str:
            count = 0

            def read(amount: int) -> None:
                nonlocal count
                count += amount
                advance(amount)
                if stop.is_set():
                    raise _Stopped

            if stop.is_set():
                raise _Stopped
            with _reading(path):
                known = store.adopt(path, on_read=read)
            # What was remembered is done as well, or the bar would stop short of its end.
            advance(sizes[path] - count)
            return known.sha256

        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            futures = {path: pool.submit(hashed, path) for path in queue}
            try:
                for future in futures.values():
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return {path: futures[path].result() for path in sizes}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read *path* into :class:`BadInput`."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"The model {path} cannot be read: {(error.strerror or str(error)).lower()}.",
            hint="Make it readable, or remove it from the workflow.",
        ) from error
