"""A file with a known hash, from the store or from the first place that really has it.

What lies on this machine already is proved where it lies; only then is anything downloaded. A place that gives
something else is told and the next one asked: one wrong copy does not hide a right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from cpack_build.errors import CpackError, HashMismatch
from cpack_build.fetch.folders import LocalFile, Wanted
from cpack_build.fetch.http import adopt_verified
from cpack_build.fetch.places import Place
from cpack_build.fetch.remote import Remote
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.transfer import Frame, transfer
from cpack_build.fetch.tuning import Tuning
from cpack_build.progress import SILENT, Progress

__all__ = ["Obtained", "obtain"]

Prove = Callable[[Path, int], StoredFile]
"""Proves a local file of a size to have the hash that is wanted, or raises :class:`HashMismatch`."""


@dataclass(frozen=True)
class Obtained:
    """The *file*, if it was had; *framed* is the hash of its frame if it was downloaded; and why places did not have
    it."""

    file: StoredFile | None
    framed: str | None = None
    problems: tuple[CpackError, ...] = ()


def obtain(
    wanted: Wanted,
    places: Sequence[Place],
    *,
    store: Store,
    tuning: Tuning,
    frame: Frame | None = None,
    prove: Prove | None = None,
    progress: Progress = SILENT,
) -> Obtained:
    """The file that is *wanted*. Raises :class:`StorageError`, :class:`UnsafeInput`."""
    if (known := store.find(wanted.sha256)) is not None:
        return Obtained(known)
    problems: list[CpackError] = []
    local = _Local(wanted, store, prove, progress, problems)

    def remotes() -> Iterator[Remote]:
        """What is somewhere else; a local file among the offers ends the search."""
        for place in places:
            for offer in place.offers(wanted):
                if isinstance(offer, CpackError):
                    problems.append(offer)
                elif isinstance(offer, LocalFile):
                    if local.tried(offer):
                        return
                else:
                    yield offer

    waiting = remotes()
    first = next(waiting, None)
    if local.found is not None:
        return Obtained(local.found)
    if first is not None:
        done = transfer(
            chain((first,), waiting),
            sha256=wanted.sha256,
            size=wanted.size,
            name=wanted.name,
            store=store,
            tuning=tuning,
            frame=frame,
            problems=problems,
            progress=progress,
        )
        if done is not None:
            return Obtained(done.file, done.framed)
        if local.found is not None:
            return Obtained(local.found)
    if local.other is not None and not any(isinstance(problem, HashMismatch) for problem in problems):
        actual = adopt_verified(local.other, store=store, sha256=None, progress=progress).sha256
        problems.insert(0, HashMismatch(f"Model {local.other}", expected=wanted.sha256, actual=actual))
    return Obtained(None, None, tuple(problems))


class _Local:
    """The files of this machine that were offered."""

    def __init__(
        self, wanted: Wanted, store: Store, prove: Prove | None, progress: Progress, problems: list[CpackError]
    ) -> None:
        self._wanted = wanted
        self._store = store
        self._prove = prove
        self._progress = progress
        self._problems = problems
        self.found: StoredFile | None = None
        self.other: Path | None = None
        """Another file, just where this one should be."""

    def tried(self, offer: LocalFile) -> bool:
        """Whether *offer* is the file."""
        try:
            size = offer.path.stat().st_size
            if self._wanted.size in (None, size):
                self.found = self._proved(offer.path, size)
                return True
        except HashMismatch as error:
            if offer.is_exact:
                self._problems.append(error)
            return False
        except OSError:
            return False
        if offer.is_exact:
            self.other = offer.path
        return False

    def _proved(self, path: Path, size: int) -> StoredFile:
        if self._prove is not None:
            return self._prove(path, size)
        return adopt_verified(path, store=self._store, sha256=self._wanted.sha256, progress=self._progress)
