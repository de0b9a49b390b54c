"""Pushing an image straight from its recipes: nothing is stored on the way, and nothing is sent that is there already.

If the name already stands for this image that is all that is asked: one request. Else each blob is looked for, mounted
from a repository of the same registry that has it, or sent (:mod:`cpack_build.oci.upload`), several at once and the
largest first; the manifest comes last, so that no name ever stands for half an image.

Specification: distribution-spec v1.1, "Push".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cpack_build.errors import Cancelled, UsageError
from cpack_build.oci.connection import Access, Connection
from cpack_build.oci.limits import RUNNABLE_LAYERS, check_limits
from cpack_build.oci.manifests import has_manifest, put_manifest
from cpack_build.oci.reference import Reference
from cpack_build.oci.types import Blob, BytesBlob, Image, ImageIndex
from cpack_build.oci.upload import PIECE, upload
from cpack_build.progress import SILENT, Progress, Task

__all__ = ["JOBS", "Memo", "Pushed", "push", "push_index"]

JOBS = 4
"""Blobs under way at once."""
_MEMO = "pushed"


class Memo(Protocol):
    """What is needed of ``fetch.store.Store``: where blobs were pushed to, to mount them from there."""

    def recall(self, kind: str, key: str) -> str | None: ...

    def remember(self, kind: str, key: str, value: str) -> None: ...


@dataclass(frozen=True)
class Pushed:
    """What a push to one name did. *sent*, *mounted* and *present* are bytes of blobs."""

    reference: Reference
    """With the digest."""
    sent: int = 0
    mounted: int = 0
    present: int = 0
    requests: int = 0
    changed: bool = True
    """``False`` when the name stood for this image already."""
    is_referrer: bool = False
    """That the registry has understood that it refers to another (its ``subject``)."""


def push(
    image: Image,
    references: Sequence[Reference],
    *,
    jobs: int = JOBS,
    access: Access | None = None,
    mount_from: Sequence[Reference] = (),
    memo: Memo | None = None,
    piece: int = PIECE,
    blob_limit: int | None = None,
    layer_limit: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> tuple[Pushed, ...]:
    """Give *image* to each of *references*, one after the other.

    *mount_from* are repositories that may have its blobs; those of *references* are looked in as well. With *dry_run*
    the registries are only asked what they have, and ``sent`` is what would be. *blob_limit* in bytes and *layer_limit*
    take the place of what is known of a registry (0: none). Raises :class:`UsageError`, :class:`HashMismatch`,
    :class:`NetworkError`, :class:`UnsafeInput`; the names then stand for what they stood for.
    """
    for reference in references:
        if reference.digest not in (None, image.digest):
            raise UsageError(
                f"{reference}: the image is {image.digest}, so that it cannot be pushed under another digest.",
                hint="Leave the @… out.",
            )
        check_limits(image, reference, blob_limit=blob_limit, layer_limit=layer_limit)
    if references and len(image.layers) > RUNNABLE_LAYERS:
        progress.note(f"The image has {len(image.layers)} layers; Docker runs {RUNNABLE_LAYERS} on its graph drivers.")
    done: list[Pushed] = []
    known = list(mount_from)
    for reference in references:
        sources = [one.repository for one in known if one.registry == reference.registry]
        done.append(
            _Push(image.manifest, (image.config, *image.layers), reference, sources, access, memo, piece, progress).run(
                jobs=max(1, jobs), dry_run=dry_run
            )
        )
        known.insert(0, reference)
    return tuple(done)


def push_index(
    index: ImageIndex,
    references: Sequence[Reference],
    *,
    access: Access | None = None,
    memo: Memo | None = None,
    blob_limit: int | None = None,
    layer_limit: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> tuple[Pushed, ...]:
    """Give each image of *index* to each of *references* by its digest, then the index by the name, as :func:`push`.

    Blobs that the images share are sent once: the second image finds them there.
    """
    for reference in references:
        if reference.digest not in (None, index.digest):
            raise UsageError(
                f"{reference}: the index is {index.digest}, so that it cannot be pushed under another digest.",
                hint="Leave the @… out.",
            )
        for image in index.images:
            check_limits(image, reference, blob_limit=blob_limit, layer_limit=layer_limit)
    options |= {"blob_limit": blob_limit, "layer_limit": layer_limit}
    done = []
    for reference in references:
        whole = _Push(index.manifest, (), reference, (), access, memo, PIECE, progress)
        if whole.is_there():
            named = replace(reference, digest=index.digest)
            done.append(Pushed(named, present=index.size, requests=whole.requests, changed=False))
            continue
        parts: list[Pushed] = []
        for image in index.images:
            place = replace(reference, tag=None, digest=image.digest)
            parts += push(image, [place], access=access, memo=memo, dry_run=dry_run, progress=progress, **options)
        end = whole.run(jobs=1, dry_run=dry_run)
        sent, mounted, present = (sum(getattr(part, kind) for part in parts) for kind in ("sent", "mounted", "present"))
        done.append(Pushed(end.reference, sent, mounted, present, end.requests + sum(part.requests for part in parts)))
    return tuple(done)


class _Push:
    """One manifest, or an index, on its way to one name, after its own *blobs*."""

    def __init__(
        self,
        manifest: BytesBlob,
        blobs: Sequence[Blob],
        reference: Reference,
        sources: Sequence[str],
        access: Access | None,
        memo: Memo | None,
        piece: int,
        progress: Progress,
    ) -> None:
        self._manifest = manifest
        self._blobs = blobs
        self._reference = reference
        self._sources = sources
        self._memo = memo
        self._piece = piece
        self._progress = progress
        self._stop = threading.Event()
        self._connection = Connection(reference, verb="Pushing", actions="pull,push", access=access, stop=self._stop)
        self._version = reference.tag or (manifest.descriptor.digest if reference.digest else "latest")

    @property
    def requests(self) -> int:
        """Requests made so far."""
        return self._connection.request_count

    def is_there(self) -> bool:
        """Whether the name stands for this manifest already."""
        return has_manifest(self._connection, self._version, self._manifest.descriptor)

    def run(self, *, jobs: int, dry_run: bool) -> Pushed:
        digest = self._manifest.descriptor.digest
        blobs = {blob.descriptor.digest: blob for blob in self._blobs}
        total = sum(blob.descriptor.size for blob in blobs.values())
        named = replace(self._reference, digest=digest)
        if self.is_there():
            return Pushed(named, present=total, requests=self.requests, changed=False)
        counts = {"sent": 0, "mounted": 0, "present": 0}
        if self._version != digest and has_manifest(self._connection, digest, self._manifest.descriptor):
            counts["present"] = total
        else:
            with self._progress.task(f"Pushing {self._reference}", total=total) as task:
                counts |= self._send(list(blobs.values()), task, jobs=jobs, dry_run=dry_run)
        is_referrer = not dry_run and put_manifest(self._connection, self._version, self._manifest)
        return Pushed(
            named,
            counts["sent"],
            counts["mounted"],
            counts["present"],
            requests=self.requests,
            is_referrer=is_referrer,
        )

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def _send(self, blobs: list[Blob], task: Task, *, jobs: int, dry_run: bool) -> Mapping[str, int]:
        """Every blob, the largest first; bytes by what was done. The first failure stops the others."""
        counts = {"sent": 0, "mounted": 0, "present": 0}
        lock = threading.Lock()

        def advance(count: int) -> None:
            with lock:
                task.advance(count)

        def one(blob: Blob) -> None:
            if self._stop.is_set():
                raise Cancelled
            how = self._blob(blob, advance, dry_run=dry_run)
            with lock:
                counts[how] += blob.descriptor.size

        blobs.sort(key=lambda blob: (-blob.descriptor.size, blob.descriptor.digest))
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(one, blob) for blob in blobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._end(futures)
        failures = [error for future in futures if not future.cancelled() and (error := future.exception())]
        for failure in sorted(failures, key=lambda error: isinstance(error, Cancelled)):
            raise failure
        return counts

    def _end(self, futures: list[Future[None]]) -> None:
        """Unless all is done, have all stop: each upload under way is given up."""
        if not all(future.done() and future.exception() is None for future in futures if not future.cancelled()):
            self._stop.set()
            for future in futures:
                future.cancel()

    def _blob(self, blob: Blob, advance: Callable[[int], None], *, dry_run: bool) -> str:
        """See that the registry has *blob*; how. It is a task of its own, which ends whole however that was."""
        own = blob.descriptor
        with self._progress.task(own.title, total=own.size) as task:
            left = own.size

            def moved(count: int) -> None:
                nonlocal left
                left -= count
                task.advance(count)
                advance(count)

            how = self._give(blob, moved, dry_run=dry_run)
            moved(left)  # What was there or was mounted did not move.
        return how

    def _give(self, blob: Blob, moved: Callable[[int], None], *, dry_run: bool) -> str:
        own = blob.descriptor
        url = f"{self._connection.base}blobs/{own.digest}"
        with self._connection.ask("HEAD", url, what=f"blob {own.digest}", ok=(200, 404)) as response:
            size = response.headers.get("Content-Length", str(own.size))
            is_there = response.status_code == 200 and size == str(own.size)
        how = "present" if is_there else "sent"
        if not is_there and not dry_run:
            how = upload(self._connection, blob, sources=self._mountable(own.digest), piece=self._piece, moved=moved)
        if is_there or not dry_run:
            self._remember(own.digest)
        return how

    def _mountable(self, digest: str) -> list[str]:
        """Repositories of this registry that may have the blob, the likeliest first."""
        known = self._memo.recall(_MEMO, f"{self._reference.registry} {digest}") if self._memo is not None else None
        names = [*self._sources, *([known] if known else [])]
        return [name for name in dict.fromkeys(names) if name != self._reference.repository]

    def _remember(self, digest: str) -> None:
        if self._memo is not None:
            self._memo.remember(_MEMO, f"{self._reference.registry} {digest}", self._reference.repository)
