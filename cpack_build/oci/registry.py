"""Pulling from a registry: manifests and blobs by the distribution spec.

How a registry is spoken to is :mod:`cpack_build.oci.connection`'s. Nothing that comes back is believed here:
:class:`~cpack_build.oci.sources.ImageSource` proves it.

Specification: distribution-spec v1.1, "Pull".
"""

from __future__ import annotations

from collections.abc import Iterator

from cpack_build.oci.connection import TRIES, Access, Connection, reason_of
from cpack_build.oci.documents import DOCUMENT_LIMIT, INDEX_TYPES, MANIFEST_TYPES
from cpack_build.oci.origins import Document
from cpack_build.oci.reference import Reference, is_digest
from cpack_build.oci.types import CHUNK, Descriptor

__all__ = ["ACCEPT", "RegistryOrigin"]

ACCEPT = ", ".join((INDEX_TYPES[0], MANIFEST_TYPES[0], INDEX_TYPES[1], MANIFEST_TYPES[1]))


class RegistryOrigin:
    """One repository of one registry, and the version of it that a reference names.

    *plain* asks for HTTP without TLS, which is refused unless the host is loopback; there it is the rule anyway.
    """

    def __init__(self, reference: Reference, *, plain: bool = False, access: Access | None = None) -> None:
        self.reference = reference
        self._connection = Connection(reference, access=access, plain=plain)

    def top(self) -> Document:
        version = self.reference.version
        what = f"manifest {version}"
        connection = self._connection
        url = f"{connection.base}manifests/{version}"
        with connection.ask("GET", url, what=what, headers={"Accept": ACCEPT}) as response:
            data = connection.limited(response, DOCUMENT_LIMIT, what)
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        promised = self.reference.digest
        told = response.headers.get("Docker-Content-Digest", "")
        return Document(data, kind, promised or (told if is_digest(told) else None))

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._stream(f"manifests/{descriptor.digest}", descriptor, accept=descriptor.media_type or ACCEPT)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._stream(f"blobs/{descriptor.digest}", descriptor, accept="*/*")

    def _stream(self, path: str, descriptor: Descriptor, *, accept: str) -> Iterator[bytes]:
        """The body at *path*; a connection that breaks is taken up where it broke."""
        import requests

        connection = self._connection
        what = descriptor.digest
        done = 0
        for attempt in range(TRIES):
            headers = {"Accept": accept, **({"Range": f"bytes={done}-"} if done else {})}
            response = connection.ask("GET", connection.base + path, what=what, ok=(200, 206), headers=headers)
            skip = done if response.status_code != 206 else 0
            before = done
            try:
                with response:
                    for chunk in response.iter_content(CHUNK):
                        fresh = chunk[skip:]
                        skip -= len(chunk) - len(fresh)
                        done += len(fresh)
                        if fresh:
                            yield fresh
                if done >= descriptor.size:
                    return
                reason = "the connection ended early"
            except requests.RequestException as error:
                reason = reason_of(error)
            if attempt + 1 == TRIES:
                raise connection.failure(f"{what}: {reason} after {done} of {descriptor.size} bytes", "Run it again.")
            connection.pause(attempt if done == before else 0)
