"""This program itself: no daemon, no privilege, no code of a package run (:mod:`cpack_build.image`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

from cpack_build.backends.protocol import Request
from cpack_build.errors import CpackError, UsageError
from cpack_build.image.build import build, measure_ahead
from cpack_build.oci.types import Image, ImageIndex

__all__ = ["Embedded"]


class Embedded:
    """The default :class:`~cpack_build.backends.protocol.Backend`."""

    def require(self) -> None:
        """Nothing is needed."""

    def refusals(self, request: Request) -> Sequence[CpackError]:
        """None: what cannot be unpacked was refused when it was locked."""
        return ()

    @contextmanager
    def built(self, request: Request) -> Iterator[Image | ImageIndex]:
        with ExitStack() as stack:
            images = []
            for lock in request.locks:
                ahead = partial(measure_ahead, lock, store=request.store, progress=request.progress)
                materials = request.materials(lock, meanwhile=ahead)
                request.gathered(materials)
                made = build(lock, materials, store=request.store, progress=request.progress)
                images.append(stack.enter_context(made))
            yield images[0] if len(images) == 1 else ImageIndex(tuple(images))

    def require_writing(self, folder: Path) -> NoReturn:
        raise UsageError(
            "The embedded backend executes the lock itself; there is nothing else to print.",
            hint="Add --backend buildkit or nix, or give the lock to whoever builds.",
        )

    def written(self, request: Request, folder: Path) -> str:
        self.require_writing(folder)
