"""Manifests in a registry: whether one is there, putting one there, and the list of those that refer to another.

A registry of the distribution spec 1.1 keeps that list itself and says so (``OCI-Subject``); with an older one, such as
docker-registry 2.8, the client keeps it in an index under a tag that is made of the digest.

Specification: distribution-spec v1.1, "Pushing Manifests with Subject", "Listing Referrers", "Referrers Tag Schema".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from cpack_build.errors import HashMismatch
from cpack_build.oci.connection import Connection
from cpack_build.oci.documents import DOCUMENT_LIMIT, INDEX_TYPES, MANIFEST_TYPES, parse_descriptor, parse_object
from cpack_build.oci.reference import is_digest
from cpack_build.oci.types import INDEX, BytesBlob, Descriptor, canonical_json

__all__ = ["ACCEPT", "has_manifest", "list_referrers", "put_manifest", "record_referrers"]

ACCEPT = ", ".join((INDEX_TYPES[0], MANIFEST_TYPES[0], INDEX_TYPES[1], MANIFEST_TYPES[1]))
_PAGES = 16
"""Pages of a list of referrers: enough for any image, and no list runs for long."""


def has_manifest(connection: Connection, version: str, own: Descriptor) -> bool:
    """Whether *version* (a tag or digest) is the manifest *own* there."""
    url = f"{connection.base}manifests/{version}"
    with connection.ask("HEAD", url, what=f"manifest {version}", ok=(200, 404), headers={"Accept": ACCEPT}) as response:
        if response.status_code == 404:
            return False
        size = response.headers.get("Content-Length", str(own.size))
        return response.headers.get("Docker-Content-Digest") == own.digest and size == str(own.size)


def put_manifest(connection: Connection, version: str, manifest: BytesBlob) -> bool:
    """Have *version* stand for *manifest*; whether the registry has understood that it refers to another.

    Raises :class:`HashMismatch` when it says that it has stored something else, and :class:`NetworkError`.
    """
    own = manifest.descriptor
    what = f"manifest {own.digest}"
    url = f"{connection.base}manifests/{version}"
    headers = {"Content-Type": own.media_type}
    response = connection.ask("PUT", url, what=what, ok=(201,), headers=headers, body=manifest.data)
    response.close()
    told = response.headers.get("Docker-Content-Digest", "")
    if is_digest(told) and told != own.digest:
        raise HashMismatch(
            f"What {connection.reference} has stored as {what}",
            expected=own.digest,
            actual=told,
            hint="Tell the registry's owner.",
        )
    return is_digest(response.headers.get("OCI-Subject", ""))


def list_referrers(connection: Connection, subject: str) -> list[dict[str, Any]]:
    """Descriptors of the manifests that refer to the one with the digest *subject*, with their ``artifactType``.

    They are what the registry says; what they lead to is proved by whoever reads it.
    """
    listed = _from_api(connection, subject)
    return _from_tag(connection, subject) if listed is None else listed


def record_referrers(connection: Connection, subject: str, entries: Iterable[Mapping[str, Any]]) -> None:
    """See that *entries* are in the list of what refers to *subject*, where the registry does not keep it itself."""
    if _from_api(connection, subject) is not None:
        return
    before = _from_tag(connection, subject)
    digests = {entry["digest"] for entry in before}
    added = [dict(entry) for entry in entries if entry["digest"] not in digests]
    if added:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*before, *added]}
        put_manifest(connection, _fallback_tag(subject), BytesBlob(INDEX, canonical_json(document)))


def _from_api(connection: Connection, subject: str) -> list[dict[str, Any]] | None:
    """``None`` if the registry has no such list."""
    url = f"{connection.base}referrers/{subject}"
    what = f"list of what refers to {subject}"
    found: list[dict[str, Any]] = []
    for _ in range(_PAGES):
        response, data = connection.read(url, what=what, limit=DOCUMENT_LIMIT, ok=(200, 400, 404, 405))
        if response.status_code != 200 or "image.index" not in response.headers.get("Content-Type", ""):
            return None
        found += _entries(data, f"{connection.reference.name}: the {what}")
        following = response.links.get("next", {}).get("url")
        if not following:
            break
        try:
            target = urljoin(url, following)
            goes_on_here = urlsplit(target)[:2] == urlsplit(url)[:2]
        except ValueError:
            break
        if not goes_on_here:
            break  # A list that goes on at another host is not this registry's.
        url = target
    return found


def _from_tag(connection: Connection, subject: str) -> list[dict[str, Any]]:
    tag = _fallback_tag(subject)
    what = f"manifest {tag}"
    url = f"{connection.base}manifests/{tag}"
    response, data = connection.read(
        url, what=what, limit=DOCUMENT_LIMIT, ok=(200, 404), headers={"Accept": INDEX_TYPES[0]}
    )
    return _entries(data, f"{connection.reference.name}: the {what}") if response.status_code == 200 else []


def _entries(data: bytes, what: str) -> list[dict[str, Any]]:
    listed = parse_object(data, what).get("manifests")
    entries = listed if isinstance(listed, list) else []
    for entry in entries:
        parse_descriptor(entry, f"{what}: an entry")
    return entries


def _fallback_tag(subject: str) -> str:
    return subject.replace(":", "-")
