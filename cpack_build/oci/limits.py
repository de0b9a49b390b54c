"""What registries are known not to take, as data with its sources, told before any byte moves.

Nobody promises that a limit stays: each can be set by hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cpack_build.errors import UsageError
from cpack_build.oci.reference import Reference
from cpack_build.oci.types import Image

__all__ = ["REGISTRIES", "RUNNABLE_LAYERS", "KnownRegistry", "check_limits", "limits_of"]

_MIB = 1 << 20
RUNNABLE_LAYERS = 125
"""Layers in all that Docker runs on its graph drivers. Source: moby ``layer/layer.go``, ``maxLayerDepth``."""


@dataclass(frozen=True)
class KnownRegistry:
    """One service, by its *hosts* (a pattern): bytes of the largest *blob* and *layers* of an image that it takes."""

    name: str
    hosts: str
    blob: int | None
    layers: int | None
    source: str


REGISTRIES = (
    KnownRegistry(
        "Amazon ECR",
        r"[0-9]{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?",
        52_000 * _MIB,
        500,
        "docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html; layers as met by spinframework/spin#1787",
    ),
    KnownRegistry(
        "Amazon ECR Public",
        r"public\.ecr\.aws",
        10_000 * _MIB,
        500,
        "docs.aws.amazon.com/AmazonECR/latest/public/public-service-quotas.html",
    ),
    KnownRegistry(
        "Azure Container Registry",
        r"[a-z0-9-]+\.azurecr\.(io|cn|us)",
        200 * 1024 * _MIB,
        None,
        "learn.microsoft.com, Azure Container Registry service tiers",
    ),
    KnownRegistry(
        "GitHub's container registry",
        r"ghcr\.io",
        10 * 10**9,
        None,
        "docs.github.com, Working with the Container registry, Troubleshooting",
    ),
    KnownRegistry(
        "Huawei SWR",
        r"swr\.[a-z0-9-]+\.myhuaweicloud\.com",
        10 * 10**9,
        None,
        "support.huaweicloud.com, SoftWare Repository for Container, Notes and Constraints",
    ),
)


def limits_of(registry: str) -> KnownRegistry | None:
    """What is known of the service at *registry*."""
    return next((known for known in REGISTRIES if re.fullmatch(known.hosts, registry)), None)


def check_limits(
    image: Image, reference: Reference, *, blob_limit: int | None = None, layer_limit: int | None = None
) -> None:
    """Raise :class:`UsageError` for an image that the registry of *reference* is known not to take.

    *blob_limit* in bytes and *layer_limit* take the place of what is known; 0 is none.
    """
    known = limits_of(reference.registry)
    largest = (known.blob if known is not None else None) if blob_limit is None else blob_limit
    most = (known.layers if known is not None else None) if layer_limit is None else layer_limit
    name = known.name if known is not None else reference.registry
    if most and len(image.layers) > most:
        raise UsageError(
            f"{reference}: the image has {len(image.layers)} layers, and {name} takes {most}.",
            hint="Nothing was sent. Push to another registry, or set --layer-limit if that is no longer so.",
        )
    for blob in (image.config, *image.layers):
        own = blob.descriptor
        if largest and own.size > largest:
            raise UsageError(
                f"{reference}: {own.title} ({own.digest}) has {own.size // _MIB} MiB, and {name} takes "
                f"{largest // _MIB} MiB in one blob.",
                hint="Nothing was sent. Push to another registry, or set --blob-limit if that is no longer so.",
            )
