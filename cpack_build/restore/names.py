"""Whether the names of a tree can all be had on the file system that they are to lie on.

Windows reserves names and characters, and drops what it does not like from the end of a name; macOS and Windows take
two names for one where only their case differs (macOS also where only their composition does). A tree that would
lose a file that way is refused before anything is written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from cpack_build.errors import UnsafeInput, writing
from cpack_build.restore.folder import OWN

__all__ = ["Folding", "check_names", "folding_of", "is_reserved", "windows_problem"]

# learn.microsoft.com, "Naming Files, Paths, and Namespaces"
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_OURS = frozenset({OWN, ".venv"})
_LONGEST = 255
"""Units of UTF-16 in one part of a path."""
_LONGEST_PATH = 32_000
"""Units of UTF-16 in a path with the prefix ``\\\\?\\``, less what the root may take."""


@dataclass(frozen=True)
class Folding:
    """Which names a file system takes for one: such as differ in *case* alone, or in *composition* alone (``é`` as one
    character or as two; ZFS may do so without folding case)."""

    case: bool = False
    composition: bool = False

    def __call__(self, name: str) -> str:
        """What all names have in common that are one with *name*."""
        if self.composition:
            name = unicodedata.normalize("NFC", name)
        return name.casefold() if self.case else name


def windows_problem(path: str) -> str:
    """Why Windows cannot have a file at *path* (relative, with ``/``); empty when it can."""
    if len(path.encode("utf-16-le")) // 2 > _LONGEST_PATH:
        return "is too long for Windows"
    for part in path.split("/"):
        if found := _FORBIDDEN.search(part):
            return f"has the character {found[0]!r}, which Windows does not allow"
        if _RESERVED.fullmatch(part):
            return f"has the part {part!r}, which is a device on Windows"
        if part[-1:] in (".", " "):
            return f"has the part {part!r}, whose last character Windows drops"
        if len(part.encode("utf-16-le")) // 2 > _LONGEST:
            return f"has the part {part[:40]!r}…, which is too long for Windows"
    return ""


def check_names(paths: Iterable[str], *, windows: bool, folding: Folding, what: str) -> None:
    """See that every one of *paths* can be had, each beside the others; *what* names the tree.

    *windows* asks for its rules, *folding* says which names are one. What git or we would read as our own is refused
    everywhere: a ``.git/config`` names programs. Raises :class:`UnsafeInput`.
    """
    seen: dict[str, str] = {}
    folded = "upper and lower case are the same" if folding.case else "é as one character and as two are the same"
    every = set(paths)
    for path in sorted(every):
        if is_reserved(path):
            raise UnsafeInput(f"{what}: {path!r} is a name of git's or of cpack-build's own.", hint="Do not use it.")
        for end in range(1, len(parts := path.split("/"))):
            if (parent := "/".join(parts[:end])) in every:
                raise UnsafeInput(f"{what}: {parent!r} is both a file or link and a folder.", hint="Do not use it.")
        if windows and (problem := windows_problem(path)):
            raise UnsafeInput(f"{what}: {path!r} {problem}.", hint="Restore it on Linux or macOS, or in WSL.")
        if folding == Folding():
            continue
        for end in range(1, len(parts) + 1):
            name = "/".join(parts[:end])
            if (twin := seen.setdefault(folding(name), name)) != name:
                raise UnsafeInput(
                    f"{what}: {twin!r} and {name!r} would be one file here, where {folded}.",
                    hint="Restore it to a file system that tells them apart.",
                )


def is_reserved(path: str) -> bool:
    """Whether *path* is a name that git or we would read as our own."""
    parts = path.split("/")
    return _plain(parts[0]) in _OURS or any(map(_is_git_s_own, parts))


def _is_git_s_own(part: str) -> bool:
    """Whether some file system takes *part* for ``.git`` (git's own ``verify_path``: HFS+ and NTFS rules, too)."""
    plain = _plain(part)
    return plain == ".git" or plain.startswith((".git:", "git~1"))


def _plain(part: str) -> str:
    visible = "".join(character for character in part if unicodedata.category(character) != "Cf")
    return visible.casefold().rstrip(". ")


def folding_of(folder: Path) -> Folding:
    """What the file system of *folder*, which is there, takes for one name, as tried there."""
    token = token_hex(4)
    with writing(folder):
        case = _are_one(folder / f".cpack-{token}-a", folder / f".cpack-{token}-a".upper())
    try:
        composition = _are_one(folder / f".cpack-{token}-\u00e9", folder / f".cpack-{token}-e\u0301")
    except (OSError, UnicodeEncodeError):
        composition = False  # It cannot have such names at all, so no two of them either.
    return Folding(case, composition)


def _are_one(first: Path, second: Path) -> bool:
    first.touch()
    try:
        return second.exists()
    finally:
        first.unlink()
