"""What a run of ``image`` looked at, made and said, kept as a receipt when all of it can be told.

Which is not so where something was fetched from a bundle, resolved, or pushed to a registry: the next run asks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
    tags: dict[Path, dict[str, str]] = field(default_factory=dict)
    """Of each layout that was written, with the digests that they stand for."""
    images: int = 0
    """Of how many it is known what they are made of."""

    @classmethod
    def of_run(cls, store: Store, files: Iterable[Path]) -> Recorder:
        """The one for the command line that is being run, which depends on *files* whether they are there or not."""
        arguments: Sequence[str] = click.get_current_context().find_root().obj or ()
        names = [*map(str, files), str(store.root / "roots")]
        try:
            return cls(store, receipts.key_of(arguments), receipts.stats_of(names), is_whole=bool(arguments))
        except OSError:  # The folder that it runs in was removed, for one.
            return cls(store, "", {}, is_whole=False)

    def noting(self, progress: Progress) -> Progress:
        """*progress*, whose notes the receipt repeats."""
        return _Noted(progress, self.notes)

    def made_of(self, materials: Materials) -> None:
        """An image is made of *materials*."""
        self.images += 1
        files = materials.files() if self.is_whole else None
        if files is None:
            self.is_whole = False
            return
        for path, stamp in files.items():
            self._read(path, ":".join(map(str, stamp)))

    def delivered(self, built: Image | ImageIndex, destination: Destination) -> None:
        """It lies where *destination* says."""
        if not self.is_whole:
            return
        place = destination.place
        if isinstance(place, LayoutName):
            self._in_layout(built, place.path.absolute(), place.tag or destination.reference.tag or "latest")
        elif isinstance(place, ArchiveName):
            self._made(receipts.stats_of([str(place.path)]))
        elif isinstance(place, EngineName):
            self._in_docker(built, place, destination.reference.tagged)
        else:
            self.is_whole = False

    def _read(self, path: Path, stat: str | None) -> None:
        if self.files.setdefault(str(path.absolute()), stat) != stat:  # It changed between one reading and the next.
            self.is_whole = False

    def _made(self, stats: Mapping[str, str | None]) -> None:
        self.files |= stats
        if None in stats.values():  # Somebody has removed it again.
            self.is_whole = False

    def _in_layout(self, built: Image | ImageIndex, folder: Path, tag: str) -> None:
        """The layout was let go of before it is looked at here: another program may have written there since."""
        tags = self.tags.setdefault(folder, {})
        tags[tag] = built.digest
        blobs = {blob.descriptor.digest.removeprefix("sha256:"): blob.descriptor.size for blob in built.blobs()}
        for name, size in blobs.items():
            stats = receipts.stats_of([str(folder / "blobs/sha256" / name)])
            self._made(stats)
            self.is_whole = self.is_whole and set(map(receipts.size_in, stats.values())) == {size}
        self._made(receipts.stats_of(str(folder / name) for name in ("oci-layout", "index.json")))
        if not all(_names(folder, tag, digest) for tag, digest in tags.items()):
            self.is_whole = False

    def _in_docker(self, built: Image | ImageIndex, place: EngineName, name: str) -> None:
        """If Docker can be asked for it at its socket, and is known to have every layer of what it shows."""
        from cpack_build.cli.delivery import own_image
        from cpack_build.oci.daemon import docker_socket
        from cpack_build.oci.engines import DockerEngine, open_engine

        socket = docker_socket(reads=lambda path: self._read(path, receipts.stat_of(str(path))))
        engine, id = open_engine(place), own_image(built).id
        shown = isinstance(engine, DockerEngine) and engine.socket == socket and engine.image_id(name) == id
        if socket is None or not shown:
            self.is_whole = False
            return
        self.docker.append({"socket": socket, "name": name, "id": id})

    def keep(self, terminal: Terminal, *, images: int) -> None:
        """Keep the receipt, if one can be given, of what *terminal* has shown, and so many *images*."""
        if not self.is_whole or self.images != images or terminal.mode == "json":  # whose events tell of work
            return
        said = {"stdout": "".join(terminal.printed), "stderr": "" if terminal.quiet else "".join(self.notes)}
        used = self.store.leases.held
        receipts.keep(str(self.store.root), self.key, files=self.files, docker=self.docker, used=used, said=said)


def _names(folder: Path, tag: str, digest: str) -> bool:
    """Whether the layout has that image, and no other, under *tag*."""
    from cpack_build.errors import CpackError
    from cpack_build.oci.files import FolderFiles
    from cpack_build.oci.origins import LayoutOrigin

    try:
        found = json.loads(LayoutOrigin(str(folder), FolderFiles(folder), tag).top().data)["manifests"]
    except (CpackError, OSError):
        return False
    return [entry.get("digest") for entry in found] == [digest]


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
