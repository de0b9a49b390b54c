"""What ``update-alternatives`` would have linked, read from the packages' ``postinst`` and never run.

A call is understood when all of its words stand in the script as they are, which is so in nearly all that debhelper
writes; one whose words are computed (``"$BINNAME"``) is left out, and so is one whose program is not among the files.
Of several for one name the highest priority has it, as with dpkg in its automatic mode (update-alternatives(1))."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from cpack_build.errors import UnsafeInput
from cpack_build.image.layer import safe_path

__all__ = ["Alternative", "alternatives_in", "links_of"]

_CALL = re.compile(r"(?:^|[\s;&|(])(?:/usr/bin/)?update-alternatives\s(?P<rest>.*)", re.MULTILINE)
_OPERATORS = set(";&|()<>")


@dataclass(frozen=True)
class Alternative:
    """*path* is one choice for the generic *name* that is found at *link*; *slaves* are further (link, name, path)."""

    link: str
    name: str
    path: str
    priority: int
    slaves: tuple[tuple[str, str, str], ...] = ()


def alternatives_in(script: str) -> list[Alternative]:
    """The choices that a maintainer script installs by words that stand in it as they are."""
    found = []
    for match in _CALL.finditer(script.replace("\\\n", " ")):
        words = _words(match["rest"])
        alternative = _understood(words) if words is not None else None
        if alternative is not None:
            found.append(alternative)
    return found


def links_of(alternatives: Iterable[Alternative], files: Collection[str]) -> Iterator[tuple[str, str]]:
    """(link, target) for the best choice of each name whose path is among *files*; all paths absolute.

    Each name has a link at ``/etc/alternatives/<name>``, to which the generic link leads.
    """
    best: dict[str, Alternative] = {}
    for one in sorted(alternatives, key=lambda one: (-one.priority, one.path)):
        if one.path in files:
            best.setdefault(one.name, one)
    for _, one in sorted(best.items()):
        for link, name, path in ((one.link, one.name, one.path), *one.slaves):
            if path in files and link not in files:
                yield link, f"/etc/alternatives/{name}"
                yield f"/etc/alternatives/{name}", path


def _words(text: str) -> list[str] | None:
    """The words of a simple command up to its end; ``None`` if some of them are computed."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    try:
        for word in lexer:
            if set(word) <= _OPERATORS:
                break
            words.append(word)
    except ValueError:  # a quote that ends on a later line
        return None
    return None if any(sign in word for word in words for sign in "$`*?") else words


def _understood(words: list[str]) -> Alternative | None:
    words = [word for word in words if word not in ("--quiet", "--force", "--verbose")]
    if len(words) < 5 or words[0] != "--install":
        return None
    link, name, path, priority = words[1:5]
    slaves = []
    rest = words[5:]
    while len(rest) >= 4 and rest[0] == "--slave":
        slaves.append((rest[1], rest[2], rest[3]))
        rest = rest[4:]
    if rest or not re.fullmatch(r"-?[0-9]{1,9}", priority):
        return None
    for place, title, target in ((link, name, path), *slaves):
        if not (_is_path(place) and _is_path(target)) or "/" in title or title in ("", ".", ".."):
            return None
    return Alternative(link, name, path, int(priority), tuple(slaves))


def _is_path(text: str) -> bool:
    if not text.startswith("/"):
        return False
    try:
        safe_path(text[1:])
    except UnsafeInput:
        return False
    return True
