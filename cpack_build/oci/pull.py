"""Pulling an image whole: every blob of it into the store, several at once, and nothing that is here already.

The image that comes back is read from the store: files, and recipes over the models that it has. How one blob comes is
:mod:`cpack_build.oci.download`'s.

Specification: distribution-spec v1.1, "Pull".
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, replace

from cpack_build.errors import StorageError
from cpack_build.oci.download import BlobStore, Received, download, missing_bytes
from cpack_build.oci.sources import ImageSource, Kept, SourceBlob
from cpack_build.oci.types import Blob, Descriptor, FileBlob, Image, ImageIndex
from cpack_build.progress import SILENT, Progress, working

__all__ = ["JOBS", "Pulled", "PulledIndex", "bring", "bring_all", "pull", "pull_blob", "pull_index"]

JOBS = 4
"""Blobs under way at once."""
_MARGIN = 64 << 20
"""Bytes that the disk is to keep free."""


@dataclass(frozen=True)
class Pulled:
    """An image that lies on this machine now. *received* are bytes of blobs from the registry, *present* those of blobs
    that were here or are streamed from models that were."""

    image: Image
    received: int = 0
    present: int = 0


@dataclass(frozen=True)
class PulledIndex:
    """The same of all images of an index."""

    image: ImageIndex
    received: int
    present: int


def pull(
    source: ImageSource, platform: str, *, jobs: int = JOBS, dry_run: bool = False, progress: Progress = SILENT
) -> Pulled:
    """The image of *source* for *platform*, with every blob here; that of a folder or file as it lies there.

    With *dry_run* no layer is asked for, and *received* is what would come. Raises :class:`Unresolvable`,
    :class:`BadImage`, :class:`HashMismatch`, :class:`NetworkError`, :class:`StorageError`; what came whole by then, and
    the beginnings of the rest, are not asked for again.
    """
    return _pulled(source, source.as_image(platform), jobs=jobs, dry_run=dry_run, progress=progress)


def pull_index(
    source: ImageSource, index: ImageIndex, *, jobs: int = JOBS, dry_run: bool = False, progress: Progress = SILENT
) -> PulledIndex:
    """All images of the *index* that *source* has, as :func:`pull`; a blob that several have comes once."""
    parts: list[Pulled] = []
    for image in index.images:
        parts.append(_pulled(source, image, jobs=jobs, dry_run=dry_run, progress=progress))
    here = ImageIndex(tuple(part.image for part in parts), index.manifest)
    return PulledIndex(here, sum(part.received for part in parts), sum(part.present for part in parts))


def _pulled(source: ImageSource, image: Image, *, jobs: int, dry_run: bool, progress: Progress) -> Pulled:
    kept = source.kept
    if kept is None:
        return Pulled(image, present=image.size)
    layers = {layer.descriptor.digest: layer.descriptor for layer in image.layers}
    needed = sum(missing_bytes(own, kept.store) for own in layers.values())
    if dry_run:
        return Pulled(image, needed, max(0, image.size - needed))
    _check_space(kept.store, needed)
    got: dict[str, Received] = {}
    total = sum(own.size for own in layers.values())
    if layers:
        with progress.task(f"Pulling {source.name}", total=total) as task, working(jobs, progress) as (pool, reports):
            lock = threading.Lock()

            def advance(count: int) -> None:
                with lock:
                    task.advance(count)

            largest = sorted(layers.values(), key=lambda own: (-own.size, own.digest))
            futures = {
                own.digest: pool.submit(_one, source, kept, own, advance=advance, progress=reports) for own in largest
            }
            try:
                # The first failure is told at once, not when all that were begun before it have ended.
                ended, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
                for future in ended:
                    future.result()
            except BaseException:
                kept.origin.hang_up()  # Nobody waits for what a slow registry may still send.
                raise
            got = {digest: future.result() for digest, future in futures.items()}
    received = sum(one.count for one in got.values())
    here = replace(image, layers=tuple(got[layer.descriptor.digest].blob for layer in image.layers))
    return Pulled(here, received, max(0, image.size - received))


def pull_blob(source: ImageSource, descriptor: Descriptor, *, progress: Progress = SILENT) -> FileBlob:
    """One blob of *source*, a registry's, as a file of the store. Raises what :func:`pull` does."""
    assert source.kept is not None
    _check_space(source.kept.store, missing_bytes(descriptor, source.kept.store))
    blob = _one(source, source.kept, descriptor, advance=lambda count: None, progress=progress).blob
    assert isinstance(blob, FileBlob)
    return blob


def bring(blob: Blob, *, progress: Progress = SILENT) -> Blob:
    """*blob* as it lies on this machine: a registry's that is read through a store comes now, or the rest of it.

    Raises what :func:`pull` does.
    """
    if not isinstance(blob, SourceBlob) or (kept := blob.source.kept) is None:
        return blob
    _check_space(kept.store, missing_bytes(blob.descriptor, kept.store))
    return _one(blob.source, kept, blob.descriptor, advance=lambda count: None, progress=progress).blob


def bring_all(blobs: Iterable[Blob], *, jobs: int = JOBS, progress: Progress = SILENT) -> None:
    """:func:`bring` for several at once; one that is here, or lies in no registry, is left as it is."""
    missing = {
        blob.descriptor.digest: blob
        for blob in blobs
        if isinstance(blob, SourceBlob)
        and blob.source.kept is not None
        and missing_bytes(blob.descriptor, blob.source.kept.store)
    }
    if not missing:
        return
    with working(jobs, progress) as (pool, reports):
        largest = sorted(missing.values(), key=lambda blob: (-blob.descriptor.size, blob.descriptor.digest))
        futures = [pool.submit(bring, blob, progress=reports) for blob in largest]
        try:
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()
        except BaseException:
            for blob in largest:
                assert blob.source.kept is not None
                blob.source.kept.origin.hang_up()
            raise


def _one(
    source: ImageSource, kept: Kept, own: Descriptor, *, advance: Callable[[int], object], progress: Progress
) -> Received:
    with progress.task(own.title, total=own.size) as task:
        left = own.size

        def moved(count: int) -> None:
            nonlocal left
            count = min(count, left)  # What is read a second time, to be proved, is told once.
            left -= count
            task.advance(count)
            advance(count)

        result = download(
            kept.origin,
            own,
            kept.store,
            what=source.called(own),
            moved=moved,
            waiting=lambda: progress.note(f"Waiting for another program that receives {own.shown.lower()}."),
        )
        moved(left)  # What was here already was not counted.
        return result


def _check_space(store: BlobStore, needed: int) -> None:
    """Better told now than after hours."""
    place = store.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed and needed + _MARGIN > free:
        raise StorageError(
            f"{store.root} has room for {free >> 20} MiB, and {needed >> 20} MiB are to come.",
            hint="Free some space, or name another disk with CPACK_HOME, and run it again.",
        )
