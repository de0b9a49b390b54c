"""The JSON documents of an image, taken apart with suspicion: small, what the spec says, and of the right hash.

Specification: OCI image-spec v1.1, image-index.md, manifest.md, descriptor.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from cpack_build.errors import BadImage, HashMismatch, UnsafeInput
from cpack_build.oci.reference import is_digest
from cpack_build.oci.types import INDEX, MANIFEST, Descriptor, digest_of

__all__ = [
    "DOCUMENT_LIMIT",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "fitting",
    "is_manifest",
    "limited",
    "parse_descriptor",
    "parse_json",
    "parse_manifest",
    "parse_object",
    "prove",
    "proved",
    "ref_name",
    "require_no_triggers",
]

DOCUMENT_LIMIT = 4 << 20
"""Bytes of an index, manifest or config; registries take no larger ones ("Pushing Manifests")."""
INDEX_TYPES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")


def parse_json(data: bytes, what: str) -> Any:
    """What JSON *data* says. Raises :class:`BadImage`, which names *what*."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadImage(what, "is not JSON") from error


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The same, if it is an object."""
    document = parse_json(data, what)
    if not isinstance(document, dict):
        raise BadImage(what, "is not a JSON object")
    return document


def is_manifest(name: str, document: dict[str, Any], media_type: str) -> bool:
    """By its own media type and what its origin says, else by what it has.

    Raises :class:`BadImage` for one that is manifest and index at once: one digest, and each program reads another
    image from it (CVE-2021-41190; image-spec 1.0.2, manifest.md, "mediaType"). Programs in Go know no case of keys.
    """
    said = {kind in MANIFEST_TYPES for kind in (document.get("mediaType"), media_type) if _is_known(kind)}
    keys = {key.lower() for key in document}
    if len(said) > 1 or ("manifests" in keys and keys & {"config", "layers"}):
        raise BadImage(
            f"{name}: a document", "is image manifest and index at once", hint="Do not use it: programs differ on it."
        )
    return said.pop() if said else "layers" in document


def _is_known(media_type: Any) -> bool:
    return media_type in MANIFEST_TYPES or media_type in INDEX_TYPES


def parse_manifest(name: str, data: bytes) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """Descriptors of config and layers."""
    document = parse_object(data, f"{name}: the manifest")
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise BadImage(f"{name}: the manifest", "has no list of layers")
    if any(isinstance(layer, dict) and layer.get("urls") for layer in layers):
        raise BadImage(f"{name}: the manifest", "has layers that lie elsewhere, which is not supported")
    config = parse_descriptor(document.get("config"), f"{name}: the manifest's config")
    return config, tuple(parse_descriptor(layer, f"{name}: a layer of the manifest") for layer in layers)


def require_no_triggers(name: str, config: bytes) -> None:
    """See that the image *name* with that *config* does nothing by itself when somebody builds on it (``ONBUILD``;
    Docker image spec 1.2, "OnBuild"). Raises :class:`UnsafeInput`.

    Engines are written in Go, whose JSON knows no case and adds up keys that come twice: so wherever it stands.
    """
    found: list[str] = []

    def looked_through(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(key for key, value in pairs if key.lower() == "onbuild" and isinstance(value, list) and value)
        return dict(pairs)

    try:
        json.loads(config, object_pairs_hook=looked_through)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"{name}: the config", "is not JSON") from error
    if found:
        raise UnsafeInput(
            f"The base image {name} has ONBUILD instructions, which the builder would run with a network.",
            hint="Name a base without them, or use --backend embedded, which runs none.",
        )


def parse_descriptor(entry: Any, what: str) -> Descriptor:
    """A descriptor with a sha256 digest and a size (descriptor.md). Raises :class:`BadImage`."""
    if not isinstance(entry, dict):
        raise BadImage(what, "is not a descriptor")
    kind, digest, size = entry.get("mediaType", ""), entry.get("digest"), entry.get("size")
    if not isinstance(kind, str) or not isinstance(digest, str) or not is_digest(digest):
        raise BadImage(what, "has no media type or no sha256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise BadImage(what, "has no size")
    annotations = entry.get("annotations")
    texts = annotations.items() if isinstance(annotations, dict) else ()
    return Descriptor(kind, digest, size, {key: value for key, value in texts if isinstance(value, str)})


def fitting(name: str, entries: list[Any], platform: str, seen: list[str]) -> list[Descriptor]:
    """The manifests of *entries* for *platform*, best first, or else the indexes that may lead to one."""
    exact: list[tuple[bool, Descriptor]] = []
    open_ended: list[Descriptor] = []
    for entry in entries:
        descriptor = parse_descriptor(entry, f"{name}: an entry of the index")
        own = entry.get("platform")
        if not isinstance(own, dict):
            open_ended.append(descriptor)
            continue
        text = f"{own.get('os')}/{own.get('architecture')}"
        if text == platform:
            # amd64 has variants for newer processors; the plain one, or arm64's only one, is for every machine.
            exact.append((own.get("variant") not in (None, "", "v8"), descriptor))
        if text != "unknown/unknown":  # BuildKit's attestations
            seen.append(text)
    return [descriptor for _, descriptor in sorted(exact, key=lambda pair: pair[0])][:1] or open_ended


def ref_name(entry: dict[str, Any]) -> str | None:
    """The tag that an entry of ``index.json`` gives its image (annotations.md)."""
    annotations = entry.get("annotations")
    value = annotations.get("org.opencontainers.image.ref.name") if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else None


def limited(name: str, descriptor: Descriptor) -> None:
    """Raise :class:`BadImage` for a document that says that it is larger than any may be."""
    if descriptor.size > DOCUMENT_LIMIT:
        raise BadImage(
            f"{name}: document {descriptor.digest}",
            f"has {descriptor.size} bytes, and {DOCUMENT_LIMIT} is the most that is taken",
        )


def prove(data: bytes, digest: str, what: str) -> None:
    """Raise :class:`HashMismatch` unless *data* has that *digest*."""
    if digest_of(data) != digest:
        raise HashMismatch(what, expected=digest, actual=digest_of(data))


def proved(chunks: Iterator[bytes], descriptor: Descriptor, what: str) -> Iterator[bytes]:
    """The same chunks, no more of them than announced, and an error instead of an end if they are not the right."""
    hasher = hashlib.sha256()
    count = 0
    for chunk in chunks:
        hasher.update(chunk)
        count += len(chunk)
        if count > descriptor.size:
            raise BadImage(what, f"has more than the {descriptor.size} bytes that its descriptor says")
        yield chunk
    if count != descriptor.size:
        raise BadImage(what, f"ends after {count} of {descriptor.size} bytes")
    actual = "sha256:" + hasher.hexdigest()
    if actual != descriptor.digest:
        raise HashMismatch(what, expected=descriptor.digest, actual=actual)
