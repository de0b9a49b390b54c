"""Files in a registry that are no images: a pack, and what is attached to an image: its pack, lock, SBOM, provenance.

An artifact is a manifest with an ``artifactType``, the empty config, and the file as its only layer under its own name.
It is as deterministic as the file. One that is attached has the image's manifest as its ``subject``.

Specification: OCI image-spec v1.1, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.errors import BadImage, Unresolvable, UsageError
from cpack_build.oci.connection import Connection
from cpack_build.oci.documents import limited, parse_manifest, parse_object, proved
from cpack_build.oci.manifests import list_referrers, record_referrers
from cpack_build.oci.push import JOBS, Memo, Pushed, push
from cpack_build.oci.reference import Reference
from cpack_build.oci.registry import RegistryOrigin
from cpack_build.oci.transport import Access
from cpack_build.oci.types import (
    CHUNK,
    EMPTY,
    MANIFEST,
    TITLE,
    BytesBlob,
    Descriptor,
    FileBlob,
    Image,
    canonical_json,
)
from cpack_build.progress import SILENT, Progress

__all__ = ["LOCK", "PACK", "Artifact", "attach", "attached", "file_artifact", "kind_of", "read_artifact"]

PACK = "application/vnd.cpack.pack.v1+zip"
LOCK = "application/vnd.cpack.lock.v1+json"
_IN_TOTO = "application/vnd.in-toto+json"
_HEAD = 64 << 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ +-]{0,199}")
_ATTACHED = 100
"""Things attached to one image that are looked at."""


@dataclass(frozen=True)
class Artifact:
    """A file in a registry: its *kind* (``artifactType``), its *blob*, and what it calls itself."""

    kind: str
    blob: Descriptor

    @property
    def name(self) -> str:
        """The file's name if it is one that a file may have anywhere, else one made of its digest."""
        name = self.blob.annotations.get(TITLE, "")
        return name if _NAME.fullmatch(name) else self.blob.digest.replace(":", "-")


def kind_of(path: Path) -> str:
    """What the file at *path* is, by its content. Raises :class:`UsageError` for what is none of the known kinds."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Name an existing file.") from error
    if head.startswith(b"PK\x03\x04"):
        return PACK
    marks = (
        (rb'"bomFormat"\s*:\s*"CycloneDX"', "application/vnd.cyclonedx+json"),
        (rb'"spdxVersion"\s*:\s*"SPDX-', "application/spdx+json"),
        (
            rb'"(?:_type|payloadType)"\s*:\s*"(?:https://in-toto\.io/|application/vnd\.in-toto)',
            "application/vnd.in-toto+json",
        ),
        (rb'"(?:image_revision|lock_revision|format|revision)"\s*:', LOCK),
    )
    if head.lstrip().startswith(b"{"):
        for mark, kind in marks:
            if re.search(mark, head):
                return kind
    raise UsageError(
        f"{path} is neither a pack, a lock, an SBOM (CycloneDX, SPDX) nor a provenance (in-toto).",
        hint="Attach one of those.",
    )


def file_artifact(path: Path, kind: str, *, subject: Descriptor | None = None) -> Image:
    """The file at *path* as :func:`~cpack_build.oci.push.push` takes it; with *subject*, attached to that manifest."""
    hasher = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    layer = Descriptor(kind, f"sha256:{hasher.hexdigest()}", size, {TITLE: path.name})
    config = BytesBlob(EMPTY, b"{}")
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": {**config.descriptor.to_json(), "data": "e30="},
        "layers": [layer.to_json()],
    }
    if subject is not None:
        document["subject"] = {**subject.to_json()}
        document["subject"].pop("annotations", None)
    return Image(BytesBlob(MANIFEST, canonical_json(document)), config, (FileBlob(layer, path),))


def attach(
    files: Sequence[Path],
    subject: Descriptor,
    reference: Reference,
    *,
    access: Access | None = None,
    memo: Memo | None = None,
    jobs: int = JOBS,
    progress: Progress = SILENT,
) -> tuple[Pushed, ...]:
    """Push *files* as referrers of the manifest *subject*, which lies in the repository of *reference*.

    Raises what :func:`~cpack_build.oci.push.push` does, and :class:`UsageError` for a file of no known kind.
    """
    made = [file_artifact(path, kind_of(path), subject=subject) for path in files]
    done: list[Pushed] = []
    for image in made:
        target = Reference(reference.registry, reference.repository, digest=image.digest)
        done += push(image, [target], access=access, memo=memo, jobs=jobs, progress=progress)
    if not all(one.is_referrer for one in done):
        entries = [_entry(image) for image in made]
        connection = Connection(reference, verb="Pushing", actions="pull,push", access=access)
        record_referrers(connection, subject.digest, entries)
    return tuple(done)


def attached(reference: Reference, digest: str, *, access: Access | None = None) -> list[Artifact]:
    """What is attached to the manifest with that *digest*, as far as it is of one file. Raises :class:`BadImage`."""
    connection = Connection(reference, access=access)
    found = []
    for entry in list_referrers(connection, digest)[:_ATTACHED]:
        own = Descriptor(str(entry["mediaType"]), entry["digest"], entry["size"])
        name = f"{reference.name}@{own.digest}"
        limited(name, own)
        origin = RegistryOrigin(reference, access=access)
        data = b"".join(proved(origin.manifest(own), own, f"{name}: the manifest"))
        subject = parse_object(data, f"{name}: the manifest").get("subject")
        if not isinstance(subject, Mapping) or subject.get("digest") != digest:
            raise BadImage(name, f"is listed as attached to {digest}, and is not", hint="Tell the registry's owner.")
        artifact = read_artifact(name, data)
        if artifact is not None:
            found.append(artifact)
    return found


def read_artifact(name: str, manifest: bytes) -> Artifact | None:
    """The file that *manifest* holds, or ``None`` if it is an image's. Raises :class:`Unresolvable`, ``BadImage``."""
    document = parse_object(manifest, f"{name}: the manifest")
    config, layers = parse_manifest(name, manifest)
    if config.media_type != EMPTY:
        return None
    kind = document.get("artifactType")
    if not isinstance(kind, str) or len(layers) != 1:
        raise Unresolvable(
            f"{name} is an artifact of {len(layers)} files, and neither an image nor a pack.",
            hint="Name an image or a pack.",
        )
    return Artifact(kind, layers[0])


def _entry(image: Image) -> dict[str, Any]:
    kind = json.loads(image.manifest.data)["artifactType"]
    return {**image.manifest.descriptor.to_json(), "artifactType": kind}
