"""What a user names as the source of a restore: a pack's file, a pack that was pushed, or an image wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpack_build.errors import UsageError, writing
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.filesystem import expanded
from cpack_build.oci.artifact import LOCK, PACK, Artifact, attached, read_artifact
from cpack_build.oci.pull import pull_blob
from cpack_build.oci.reference import ArchiveName, EngineName, ImageName, LayoutName, parse_image_name
from cpack_build.oci.sources import ImageSource, open_source
from cpack_build.oci.storage import whole_file
from cpack_build.oci.types import Blob, FileBlob, Image
from cpack_build.progress import SILENT, Progress

if TYPE_CHECKING:
    from cpack_build.oci.transport import Access

__all__ = ["opened", "pack_path"]


def pack_path(source: str) -> Path | None:
    """The pack's file that *source* names, or ``None`` when it names an image, or a pack in a registry."""
    path = expanded(source)
    if source.endswith((".zip", ".cpack")) or (path.is_file() and ":" not in source):
        return path
    return None


@contextmanager
def opened(
    source: str,
    *,
    platform: str,
    store: Store,
    mirrors: Mirrors,
    access: Access | None = None,
    progress: Progress = SILENT,
) -> Iterator[Image | Path]:
    """The image that *source* names, readable for as long as the context lasts, or the file of the pack that it names.

    An engine's image is saved first. What a registry sends goes through the store, so what broke goes on where it was.
    A pack from there is kept in the store's folder ``packs`` under its own name, with the lock that is attached to it
    beside it, and with the one that is made of it if none is.

    Raises what the source raises: :class:`UsageError`, :class:`BadImage`, ``NetworkError``, ``ToolMissing``.
    """
    name = parse_image_name(source)
    if not isinstance(name, EngineName):
        found = open_source(name, mirrors=mirrors, store=store, access=access)
        descriptor, manifest = found.manifest(platform)
        pack = read_artifact(source, manifest)
        if pack is None:
            yield found.as_image(platform)
        elif pack.kind != PACK:
            raise UsageError(f"{source} is neither an image nor a pack, but {pack.kind}.", hint="Name one of those.")
        else:
            yield _pack(found, pack, descriptor.digest, name=_name(pack, name), store=store, access=access,
                        progress=progress)  # fmt: skip
        return
    from cpack_build.oci.engines import open_engine

    if name.reference is None:
        raise UsageError(f"{source} names no image.", hint=f"Write {name.engine}:NAME[:TAG].")
    with store.temporary() as file:
        open_engine(name).save(name.reference, file)
        archive: ImageName = ArchiveName(Path(file.name), "docker")
        yield open_source(archive).as_image(platform)


def _pack(
    source: ImageSource,
    pack: Artifact,
    digest: str,
    *,
    name: str,
    store: Store,
    access: Access | None,
    progress: Progress,
) -> Path:
    # By its repository as well: the lock that somebody else attached to the same pack is not this one's.
    place = f"{source.reference.name if source.reference is not None else source.name}@{digest}"
    folder = store.derived.take("packs", hashlib.sha256(place.encode()).hexdigest())
    path = folder / f"{name}.cpack.zip"
    _place(source, pack, path, store=store, progress=progress)
    lock_path = folder / f"{name}.cpack.lock"
    if source.reference is not None and not lock_path.exists():
        locks = [one for one in attached(source.reference, digest, access=access) if one.kind == LOCK]
        for lock in locks[:1]:  # More than one can be attached; which of them was meant is told by nobody.
            _place(source, lock, lock_path, store=store, progress=progress)
    return path


def _place(source: ImageSource, artifact: Artifact, path: Path, *, store: Store, progress: Progress) -> None:
    """The file of *artifact* at *path*, proved; one that is there already stays if it is the same."""
    sha256 = artifact.blob.digest.removeprefix("sha256:")
    if path.is_file() and not path.is_symlink() and store.adopt(path).sha256 == sha256:
        return
    blob: Blob
    if source.kept is not None:
        blob = pull_blob(source, artifact.blob, progress=progress)
    else:
        file = store.put(source.read_blob(artifact.blob), what=source.called(artifact.blob), sha256=sha256)
        blob = FileBlob(artifact.blob, file.path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as written, writing(path):
        for chunk in blob.chunks():
            written.write(chunk)


def _name(pack: Artifact, source: ImageName) -> str:
    """What the pack is called: as its file was, else as the repository or folder is."""
    stem = pack.name.removesuffix(".zip").removesuffix(".cpack")
    if pack.name.endswith(".zip") and stem:
        return stem
    if isinstance(source, (LayoutName, ArchiveName)):
        return source.path.absolute().name
    assert not isinstance(source, EngineName)
    return source.repository.rpartition("/")[2]
