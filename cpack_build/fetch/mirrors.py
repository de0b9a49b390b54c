"""Mirrors: any source (git, models, base images, archives) may be taken from another place.

A mirror maps a URL prefix to another prefix or to a local path. The longest prefix that fits wins. A prefix fits whole
parts of a URL only: ``https://hub.example/a`` fits ``https://hub.example/a/b`` and ``…/a.git`` but not
``https://hub.example/abc``. A lock always records the original URL: where the bytes came from on one machine is nobody
else's business, and their hash proves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cpack_build.errors import UsageError
from cpack_build.filesystem import expanded

__all__ = ["Mirrors", "local_path"]

_BOUNDARY = "/.?#:@"
"""What may follow a prefix that ends within a part: a path, ``.git``, a query, a tag, a digest."""


@dataclass(frozen=True)
class Mirrors:
    """``PREFIX=PREFIX`` pairs, as the user gave them.

    >>> Mirrors.parse(["https://hub.example/=/srv/hub/"]).apply("https://hub.example/a/b")
    '/srv/hub/a/b'
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    is_offline: bool = False
    """Whether nothing but local paths may be asked."""

    @classmethod
    def parse(cls, pairs: list[str] | tuple[str, ...], more: Mapping[str, str] | None = None) -> Mirrors:
        """From ``PREFIX=PREFIX`` strings (the first ``=`` separates), over *more*."""
        prefixes = dict(more or {})
        for pair in pairs:
            source, separator, target = pair.partition("=")
            if not (source and separator and target):
                raise UsageError(
                    f"--mirror {pair!r} is not PREFIX=PREFIX.", hint="Write for example URL/=/srv/mirror/."
                )
            prefixes[source] = target
        return cls(prefixes)

    def apply(self, url: str) -> str:
        """Where *url* is to be taken from: the longest fitting prefix replaced, or *url* itself."""
        fitting = [prefix for prefix in self.prefixes if _fits(prefix, url)]
        if not fitting:
            return url
        prefix = max(fitting, key=len)
        return self.prefixes[prefix] + url[len(prefix) :]

    def original(self, url: str) -> str:
        """What :meth:`apply` made *url* of, where that was a remote prefix; else *url* itself."""
        fitting = {target: prefix for prefix, target in self.prefixes.items() if "://" in target and _fits(target, url)}
        if not fitting:
            return url
        target = max(fitting, key=len)
        return fitting[target] + url[len(target) :]

    def is_mirrored(self, url: str) -> bool:
        """Whether some prefix fits; what the user mapped may be local, what a document says may not."""
        return any(_fits(prefix, url) for prefix in self.prefixes)


def _fits(prefix: str, url: str) -> bool:
    if not url.startswith(prefix):
        return False
    return len(url) == len(prefix) or prefix.endswith("/") or url[len(prefix)] in _BOUNDARY


def local_path(target: str) -> Path | None:
    """The path that a mirror's *target* names (``file://`` URL or plain path), or ``None`` when it is a remote URL."""
    if target.startswith("file://"):
        return Path(unquote(urlsplit(target).path))
    if "://" in target:
        return None
    path = expanded(target)
    # scp-like `git@host:path` is remote; a path has no colon before its first slash
    return None if ":" in target.split("/", 1)[0] else path
