"""Where the symlinks of a tree lead, judged together.

One by one ``a → .`` and ``b → a/..`` both stay; ``b`` is outside all the same, for it goes through ``a``. So a path is
walked as a system walks it, every link on the way followed, and only what it comes to counts.

Rule: path_resolution(7)."""

from __future__ import annotations

from collections.abc import Mapping

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.urls import redact

__all__ = ["check_links", "stays"]

_FOLLOWED = 40
"""Links that one path may lead through (Linux)."""


def check_links(links: Mapping[str, str], *, name: str, hint: str) -> None:
    """See that no link of a tree leads out of it, alone or through others; *links* are targets by path in the tree.

    *name* is what the error calls the tree. Raises :class:`UnsafeInput`, also for links that lead in a circle.
    """
    for path, target in links.items():
        if not stays(path, links):
            raise UnsafeInput(
                f"{redact(name)}: the link {path!r} leads out of the tree or in a circle, to {target!r}.", hint=hint
            )


def stays(path: str, links: Mapping[str, str]) -> bool:
    """Whether the link at *path* stays in its tree, of which *links* are all links (path → target)."""
    parts = path.split("/")[::-1]
    real: list[str] = []
    followed = 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not real:
                return False
            real.pop()
            continue
        target = links.get("/".join([*real, part]))
        if target is None:
            real.append(part)
            continue
        followed += 1
        # A backslash is part of a name here, and on Windows what a slash is.
        if followed > _FOLLOWED or not target or target.startswith("/") or "\\" in target or "\0" in target:
            return False
        parts += target.split("/")[::-1]
    return True
