"""Pulling from a registry: manifests and blobs by the distribution spec.

How a registry is spoken to is :mod:`cpack_build.oci.connection`'s. Nothing that comes back is believed here:
:class:`~cpack_build.oci.sources.ImageSource` proves it.

Specification: distribution-spec v1.1, "Pull".
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from cpack_build.errors import Cancelled
from cpack_build.oci.connection import TRIES, Access, Connection
from cpack_build.oci.documents import DOCUMENT_LIMIT
from cpack_build.oci.download import Unranged
from cpack_build.oci.manifests import ACCEPT
from cpack_build.oci.origins import Document
from cpack_build.oci.reference import Reference, is_digest
from cpack_build.oci.transport import Lost, pieces
from cpack_build.oci.types import Descriptor

if TYPE_CHECKING:
    import requests

__all__ = ["RegistryOrigin"]

_GAIN = 64 << 10
"""Bytes that a connection must have brought for its break to be no failure in a row."""


class RegistryOrigin:
    """One repository of one registry, and the version of it that a reference names.

    *plain* asks for HTTP without TLS, which is refused unless the host is loopback; there it is the rule anyway.
    """

    def __init__(self, reference: Reference, *, plain: bool = False, access: Access | None = None) -> None:
        self.reference = reference
        self._stop = threading.Event()
        self._connection = Connection(reference, access=access, plain=plain, stop=self._stop)
        self._answers: set[requests.Response] = set()

    def top(self) -> Document:
        version = self.reference.version
        what = f"manifest {version}"
        connection = self._connection
        url = f"{connection.base}manifests/{version}"
        response, data = connection.read(url, what=what, limit=DOCUMENT_LIMIT, headers={"Accept": ACCEPT})
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        promised = self.reference.digest
        told = response.headers.get("Docker-Content-Digest", "")
        return Document(data, kind, promised or (told if is_digest(told) else None))

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        path = f"manifests/{descriptor.digest}"
        return self._stream(path, descriptor, 0, descriptor.size, accept=descriptor.media_type or ACCEPT)

    def blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None, strict: bool = False
    ) -> Iterator[bytes]:
        end = descriptor.size if stop is None else min(stop, descriptor.size)
        return self._stream(f"blobs/{descriptor.digest}", descriptor, start, end, accept="*/*", strict=strict)

    def hang_up(self) -> None:
        """End every answer that is under way, from another thread: who reads one gets :class:`Cancelled`."""
        self._stop.set()
        for response in list(self._answers):
            with suppress(ValueError, RuntimeError, OSError):  # It may just have ended by itself.
                response.raw.shutdown()

    def _stream(
        self, path: str, descriptor: Descriptor, start: int, end: int, *, accept: str, strict: bool = False
    ) -> Iterator[bytes]:
        """Bytes *start* to *end* of the body at *path*; a connection that breaks is taken up where it broke.

        What is sent beyond the end of the whole comes, too, for whoever wants to see that there is more.
        """
        connection = self._connection
        what = descriptor.digest
        done, since, failures = start, start, 0
        ranges = True
        while True:
            asked = {"Accept": accept}
            if ranges and (done or end < descriptor.size):
                asked["Range"] = f"bytes={done}-{end - 1 if end < descriptor.size else ''}"
            with connection.ask(
                "GET", connection.base + path, what=what, ok=(200, 206, 416), headers=asked
            ) as response:
                skip = _unwanted(response, done)
                if strict and skip != 0:
                    raise Unranged
                reason = "it answers with another range than the one asked for"
                if skip is None:
                    ranges = False
                else:
                    reason = "the connection ended early"
                    self._answers.add(response)
                    try:
                        for chunk in pieces(response):
                            fresh = chunk[skip:]
                            skip -= len(chunk) - len(fresh)
                            if end < descriptor.size:
                                fresh = fresh[: end - done]
                            done += len(fresh)
                            if fresh:
                                yield fresh
                            if done >= end < descriptor.size:
                                return
                    except Lost as lost:
                        reason = lost.reason
                    finally:
                        self._answers.discard(response)
            if self._stop.is_set():
                raise Cancelled
            if done >= end:
                return
            failures = 1 if done - since >= _GAIN else failures + 1
            since = done if failures == 1 else since
            if failures >= TRIES:
                raise connection.failure(f"{what}: {reason} after {done} of {descriptor.size} bytes", "Run it again.")
            connection.pause(failures - 1)


def _unwanted(response: requests.Response, start: int) -> int | None:
    """How many bytes of the answer come before *start*; ``None`` if it has another part of the whole."""
    if response.status_code == 200:
        return start
    told = re.match(r"bytes ([0-9]{1,19})-", response.headers.get("Content-Range", ""))
    # Without a Content-Range the hash will tell.
    return 0 if response.status_code == 206 and (told is None or int(told.group(1)) == start) else None
