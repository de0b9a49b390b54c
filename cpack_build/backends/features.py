"""What a BuildKit can do, by its version, and what is done without where it cannot; and buildah, for what is printed.

Sources: BuildKit's release notes (the Dockerfile frontend that each release has built in), Docker Engine's release
notes (which BuildKit each Engine has), buildah's CHANGELOG."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Features", "features_named", "features_of", "version_in_engine"]

Version = tuple[int, int]

_LINK: Version = (0, 10)
_FETCHES: Version = (0, 12)
_REWRITES: Version = (0, 13)
_BUILDAH: Version = (1, 39)
"""The oldest buildah seen to take ``ADD --checksum`` (1.34 has it) and ``RUN --network`` (1.28 has not); ``--link``
came with 1.41."""
_IN_ENGINE: tuple[tuple[int, Version], ...] = (
    (28, (0, 20)), (27, (0, 14)), (26, (0, 13)), (25, (0, 12)), (24, (0, 11)), (23, (0, 10)), (0, (0, 8)),
)  # fmt: skip
"""Docker Engine, from that major version on → the BuildKit in it."""


@dataclass(frozen=True)
class Features:
    """What a builder can do."""

    version: Version
    link: bool = True
    """``COPY --link`` (Dockerfile 1.4): layers that do not depend on those below."""
    isolates: bool = True
    """``RUN --network=none`` (Dockerfile 1.3, which comes with BuildKit 0.9)."""
    fetches: bool = True
    """``ADD --checksum`` and ``ADD`` of git (Dockerfile 1.6)."""
    rewrites: bool = True
    """``rewrite-timestamp``: files no newer than ``SOURCE_DATE_EPOCH``."""

    @property
    def lacks(self) -> tuple[str, ...]:
        """What it cannot do, and what comes of that."""
        missing = {
            "ADD --checksum: every file is sent to it from here": self.fetches,
            "COPY --link: a changed layer rebuilds those above it": self.link,
            "rewrite-timestamp: the image's digest differs from build to build": self.rewrites,
        }
        return tuple(text for text, has in missing.items() if not has)


def features_of(version: Version) -> Features:
    """The features of a BuildKit."""
    has_link = version >= _LINK
    return Features(version, has_link, has_link, version >= _FETCHES, version >= _REWRITES)


def features_named(name: str) -> tuple[str, Features] | None:
    """Program and features of who builds elsewhere, by the program's name and version: ``buildkit-0.12``,
    ``buildah-1.39``. ``None`` where *name* is none of these."""
    found = re.fullmatch(r"(buildkit|buildah)-v?(\d+)\.(\d+)(?:[.+~-]\S*)?", name)
    if found is None:
        return None
    version = int(found[2]), int(found[3])
    if found[1] == "buildkit":
        return "buildkit", features_of(version)
    is_new = version >= _BUILDAH
    return "buildah", Features(version, version >= (1, 41), is_new, is_new)


def version_in_engine(text: str) -> Version:
    """The version of the BuildKit in a Docker Engine of version *text* (``20.10.24+dfsg1``)."""
    found = re.match(r"v?(\d+)\.", text)
    major = int(found[1]) if found else 0
    return next(version for since, version in _IN_ENGINE if major >= since)
