"""What every backend can be asked: is it there, what of this lock can it not do, build it, write down how.

A :class:`Backend` gets a :class:`Request`, which is the same for all, and gives an image that any publisher takes. What
it cannot do is asked before anything is fetched, so that nobody waits for a build that must fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cpack_build.errors import CpackError, Occupied, writing
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.image.build import Materials
from cpack_build.image.gather import Places, gather
from cpack_build.lock.captured import Captured
from cpack_build.lock.schema import Lock
from cpack_build.oci.types import Image, ImageIndex
from cpack_build.progress import SILENT, Progress

__all__ = ["INSTALL_SECONDS", "Backend", "Farm", "Network", "Request", "require_empty"]

Network = Literal["none", "default", "host"]
"""What a step of a build is given: nothing, the builder's own network, or its machine's."""
INSTALL_SECONDS = 1800
"""How long the ``install.py`` of a node may take."""


@dataclass(frozen=True)
class Farm:
    """Where a backend that has workers elsewhere finds them, and what they share."""

    builder: str | None = None
    """As the backend's own program knows it."""
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()

    @property
    def is_default(self) -> bool:
        return self == Farm()


@dataclass(frozen=True)
class Request:
    """What is to be built, and with what."""

    locks: tuple[Lock, ...]
    """One for each platform."""
    documents: Mapping[str, bytes]
    """What the image carries below ``/app/cpack`` beside its lock."""
    pack: Captured | None
    """What nobody else has: local nodes and patches."""
    places: Mapping[str, Places]
    """Platform → where on this machine things may lie."""
    store: Store
    sources: Sources
    siblings: Sequence[Lock] = ()
    """All locks of the pack, for an interpreter that runs here."""
    trust: bool = False
    base_stays: bool = False
    """That registries alone are given the image: they get the base's layers from where they are."""
    progress: Progress = SILENT
    gathered: Callable[[Materials], object] = lambda materials: None
    """Is told what each image is made of, by a backend that has all of it as files of this machine."""

    def materials(self, lock: Lock, *, meanwhile: Callable[[Materials], object] | None = None) -> Materials:
        """All that the image of *lock*, one of these, is made of, as files of this machine; *meanwhile* as
        :func:`~cpack_build.image.gather.gather` has it. Raises what fetching raises, and :class:`UnsafeInput` for a
        Python that nobody here has vouched for."""
        return gather(
            lock, documents=self.documents, pack=self.pack, places=self.places[lock.platform], store=self.store,
            sources=self.sources, siblings=self.siblings, trust=self.trust, base_stays=self.base_stays,
            meanwhile=meanwhile, progress=self.progress,
        )  # fmt: skip


class Backend(Protocol):
    """One way to make the image of a lock."""

    def require(self) -> None:
        """See that the programs and daemons that execute are here and answer. Raises :class:`ToolMissing`."""
        ...

    def refusals(self, request: Request) -> Sequence[CpackError]:
        """What of *request* this backend cannot do, all of it; known from the locks alone, and nothing is fetched."""
        ...

    def built(self, request: Request) -> AbstractContextManager[Image | ImageIndex]:
        """The image, or for several platforms the index of images, for as long as the context lasts."""
        ...

    def require_writing(self, folder: Path) -> None:
        """See that what the backend executes can be written into *folder*, which is new or empty.

        Raises :class:`UsageError` where there is nothing to write, :class:`Occupied` for a folder with something in it,
        :class:`ToolMissing` for a builder that is to be asked what it can do and does not answer.
        """
        ...

    def written(self, request: Request, folder: Path) -> str:
        """Write what the backend executes into *folder*; the command that builds from there. Raises as the above."""
        ...


def require_empty(folder: Path) -> None:
    """See that there is nothing in *folder*, if it is there. Raises :class:`Occupied`."""
    with writing(folder):
        there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if there:
        raise Occupied(folder, there)
