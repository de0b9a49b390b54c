"""What a run of ``image`` looked at, made and said, kept as a receipt when all of it can be told.

Which is not so where something was fetched from a bundle, resolved, or pushed to a registry: the next run asks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.terminal import Terminal, printable
from cpack_build.fetch import receipts
from cpack_build.oci.reference import ArchiveName, EngineName, LayoutName

if TYPE_CHECKING:
    from cpack_build.cli.delivery import Destination
    from cpack_build.fetch.store import Store
    from cpack_build.image.build import Materials
    from cpack_build.oci.types import Image, ImageIndex
    from cpack_build.progress import Progress, Task

__all__ = ["Recorder"]


@dataclass
class Recorder:
    """One run, from before it reads its first file."""

    store: Store
    key: str
    files: dict[str, str | None]
    is_whole: bool
    """That nothing is known that a later run would have to look at, and that no receipt can name."""
    docker: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    """Of how many it is known what they are made of."""

    @classmethod
    def of_run(cls, store: Store, files: Iterable[Path]) -> Recorder:
        """The one for the command line that is being run, which depends on *files* whether they are there or not."""
        arguments: Sequence[str] = click.get_current_context().find_root().obj or ()
        names = [*map(str, files), str(store.root / "roots")]
        return cls(store, receipts.key_of(arguments), receipts.stats_of(names), is_whole=bool(arguments))

    def noting(self, progress: Progress) -> Progress:
        """*progress*, whose notes the receipt repeats."""
        return _Noted(progress, self.notes)

    def made_of(self, materials: Materials) -> None:
        """An image is made of *materials*."""
        self.images += 1
        files = materials.files()
        if files is None:
            self.is_whole = False
            return
        for path, stamp in files.items():
            found = receipts.stat_of(str(path)) if stamp is None else ":".join(map(str, stamp))
            self.files[str(path.absolute())] = found

    def delivered(self, built: Image | ImageIndex, destination: Destination) -> None:
        """It lies where *destination* says."""
        place = destination.place
        if isinstance(place, LayoutName):
            folder = place.path.absolute()
            blobs = {blob.descriptor.digest.removeprefix("sha256:") for blob in built.blobs()}
            names = ["oci-layout", "index.json", *(f"blobs/sha256/{blob}" for blob in blobs)]
            self.files |= receipts.stats_of(str(folder / name) for name in names)
        elif isinstance(place, ArchiveName):
            self.files |= receipts.stats_of([str(place.path)])
        elif isinstance(place, EngineName) and (known := _in_docker(place, destination)) is not None:
            self.docker.append(known)
            from cpack_build.oci.daemon import docker_folder

            self.files |= receipts.stats_of([str(docker_folder() / "config.json")])
        else:
            self.is_whole = False

    def keep(self, terminal: Terminal, *, images: int) -> None:
        """Keep the receipt, if one can be given, of what *terminal* has shown, and so many *images*."""
        if not self.is_whole or self.images != images or terminal.mode == "json":  # whose events tell of work
            return
        said = {"stdout": "".join(terminal.printed), "stderr": "" if terminal.quiet else "".join(self.notes)}
        used = self.store.leases.held
        receipts.keep(str(self.store.root), self.key, files=self.files, docker=self.docker, used=used, said=said)


def _in_docker(place: EngineName, destination: Destination) -> dict[str, str] | None:
    """What Docker has to have, if it can be asked for it at its socket and is known to have every layer then."""
    from cpack_build.oci.engines import DockerEngine, open_engine

    engine = open_engine(place)
    socket = engine.socket if isinstance(engine, DockerEngine) else None
    id = engine.image_id(destination.reference)
    if socket is None or id is None:
        return None
    return {"socket": socket, "name": destination.reference.tagged, "id": id}


@dataclass(frozen=True)
class _Noted:
    """A progress whose notes are also written down, as they are shown."""

    progress: Progress
    notes: list[str]

    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> AbstractContextManager[Task]:
        return self.progress.task(title, total=total, unit=unit)

    def note(self, message: str) -> None:
        self.progress.note(message)
        self.notes.append(f"Note: {printable(message)}\n")
