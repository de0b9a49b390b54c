"""A blob's bytes as bodies of requests: any stretch of them, again if need be, and hashed once as they leave.

The last of them leaves only when the hash is right: a file that changed never becomes a wrong blob. The hash is kept
every 16 MiB, so that going back costs no reading from the beginning. A model that was hashed here before is not hashed
again as long as its file is the same, before the first byte and before the last; the registry hashes it in any case.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn

from cpack_build.errors import Cancelled, HashMismatch, Unresolvable
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.transport import Sized
from cpack_build.oci.types import Blob, Seekable

__all__ = ["Body"]

_CHECKPOINT = 16 << 20
"""Bytes between two places from which hashing can go on."""
_CHANGED = "Its source has changed since it was measured. Nothing wrong was pushed: build or get the image again."


class Body:
    """A blob's bytes from any place on, hashed once as they pass. *sent* is the furthest that any have been sent."""

    def __init__(
        self,
        blob: Blob,
        *,
        stop: threading.Event | None = None,
        moved: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.descriptor = blob.descriptor
        self.size = blob.descriptor.size
        self.sent = 0
        self._blob = blob
        self._stop = stop
        self._moved = moved
        self._proved = isinstance(blob, ModelLayer) and blob.is_proved()
        # hashlib lets go of the interpreter: one thread hashes what the other is sending.
        self._second = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._hasher = hashlib.sha256()
        self._marks = [(0, self._hasher.copy())]
        self._position = 0
        self._left = b""
        self._chunks: Iterator[bytes] = iter(())
        self._begin(0)

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *exception: object) -> None:
        self._settle()
        self._second.shutdown()
        self._end()

    def piece(self, start: int, end: int) -> Sized:
        """Bytes *start* to *end* as a body; it may be read again from its beginning."""
        return Sized(end - start, lambda: self._range(start, end))

    def prove(self) -> None:
        """Read what is left and see that the hash is right: for a blob of no bytes, of which none leaves."""
        for _ in self._range(self._position, self.size):
            pass
        if self.size == 0:
            self._prove()

    def _range(self, start: int, end: int) -> Iterator[bytes]:
        self._seek(start)
        while self._position < end:
            chunk = self._take(end - self._position)
            if self._position > self.sent:
                self._moved(self._position - self.sent)
                self.sent = self._position
            yield chunk

    def _seek(self, offset: int) -> None:
        if self._proved and offset != self._position:
            self._end()
            self._begin(offset)
        if offset < self._position:
            self._settle()
            at, hasher = next(mark for mark in reversed(self._marks) if mark[0] <= offset)
            self._marks = [mark for mark in self._marks if mark[0] <= at]
            self._hasher = hasher.copy()
            self._end()
            self._begin(at)
        while self._position < offset:
            self._take(offset - self._position)

    def _begin(self, offset: int) -> None:
        self._position = offset
        self._left = b""
        if isinstance(self._blob, Seekable):
            self._chunks = self._blob.chunks_from(offset)
            return
        self._chunks = self._blob.chunks()
        self._skip = offset

    _skip = 0

    def _end(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()

    def _take(self, limit: int) -> bytes:
        """The next bytes, at most *limit* of them; the last of the blob only if all of them were right."""
        if self._stop is not None and self._stop.is_set():
            raise Cancelled
        while not self._left:
            self._left = self._next()
            if self._skip:
                dropped = min(self._skip, len(self._left))
                self._skip -= dropped
                self._left = self._left[dropped:]
        chunk, self._left = self._left[:limit], self._left[limit:]
        if not self._proved:
            self._settle()
            if self._position - self._marks[-1][0] >= _CHECKPOINT:
                self._marks.append((self._position, self._hasher.copy()))
            self._pending = self._second.submit(self._hasher.update, chunk)
        self._position += len(chunk)
        if self._position == self.size:
            self._prove()
        return chunk

    def _next(self) -> bytes:
        try:
            chunk = next(self._chunks, None)
        except OSError as error:
            # As an OSError it would be taken for the network's.
            raise Unresolvable(
                f"Blob {self.descriptor.digest} cannot be read: {error.strerror or error}.",
                hint="See that its file is still there, and run it again.",
            ) from error
        if chunk is None:
            self._wrong()
        return chunk

    def _prove(self) -> None:
        self._settle()
        if self._left or next((True for chunk in self._chunks if chunk), False):
            raise HashMismatch(
                f"Blob {self.descriptor.digest} has more than its {self.size} bytes, and what was read",
                expected=self.descriptor.digest,
                actual=self._hasher.hexdigest(),
                hint=_CHANGED,
            )
        if isinstance(self._blob, ModelLayer) and self._proved:
            if not self._blob.is_proved():
                raise Unresolvable(f"Model {self._blob.path} changed while it was sent.", hint=_CHANGED)
            return
        if "sha256:" + self._hasher.hexdigest() != self.descriptor.digest:
            self._wrong()

    def _wrong(self) -> NoReturn:
        self._settle()
        raise HashMismatch(
            f"What was read for blob {self.descriptor.digest} ({self._position} of {self.size} bytes)",
            expected=self.descriptor.digest,
            actual=self._hasher.hexdigest(),
            hint=_CHANGED,
        )

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None
