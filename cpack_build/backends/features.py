"""What a BuildKit can do, by its version, and what is done without where it cannot.

Sources: BuildKit's release notes (the Dockerfile frontend that each release has built in), Docker Engine's release
notes (which BuildKit each Engine has)."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Features", "features_of", "version_in_engine"]

Version = tuple[int, int]

_LINK: Version = (0, 10)
_FETCHES: Version = (0, 12)
_REWRITES: Version = (0, 13)
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
    return Features(version, version >= _LINK, version >= _FETCHES, version >= _REWRITES)


def version_in_engine(text: str) -> Version:
    """The version of the BuildKit in a Docker Engine of version *text* (``20.10.24+dfsg1``)."""
    found = re.match(r"v?(\d+)\.", text)
    major = int(found[1]) if found else 0
    return next(version for since, version in _IN_ENGINE if major >= since)
