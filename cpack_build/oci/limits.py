"""What registries are known not to take, told before any byte moves.

Figures: Amazon ECR, "Service quotas" (layer size); Azure, "Container Registry limits".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cpack_build.errors import UsageError
from cpack_build.oci.reference import Reference
from cpack_build.oci.types import Blob

__all__ = ["blob_limit", "check_blobs"]

_MIB = 1 << 20
_LARGEST = (
    (r"[0-9]{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?", 52_000 * _MIB),
    (r"public\.ecr\.aws", 10_000 * _MIB),
    (r"[a-z0-9-]+\.azurecr\.(io|cn|us)", 200 * 1024 * _MIB),
)


def blob_limit(registry: str) -> int | None:
    """Bytes of the largest blob that *registry* is known to take, or ``None``."""
    return next((limit for pattern, limit in _LARGEST if re.fullmatch(pattern, registry)), None)


def check_blobs(blobs: Iterable[Blob], reference: Reference, *, limit: int | None = None) -> None:
    """Raise :class:`UsageError` for a blob too large for the registry of *reference*.

    *limit* in bytes takes the place of what is known; 0 is none.
    """
    most = blob_limit(reference.registry) if limit is None else limit
    if not most:
        return
    for blob in blobs:
        own = blob.descriptor
        if own.size > most:
            name = own.annotations.get("io.cpack.model.path") or own.annotations.get("io.cpack.layer.name") or "blob"
            raise UsageError(
                f"{reference}: {name} ({own.digest}) has {own.size // _MIB} MiB, and {reference.registry} takes "
                f"{most // _MIB} MiB in one blob.",
                hint="Nothing was sent. Push to another registry, or set --blob-limit if that is no longer so.",
            )
