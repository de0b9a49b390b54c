"""Whether the names of a tree can all be had on the file system that they are to lie on.

Windows reserves names and characters, and drops what it does not like from the end of a name; macOS and Windows take
two names for one where only their case differs (macOS also where only their composition does). A tree that would
lose a file that way is refused before anything is written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex

from cpack_build.errors import UnsafeInput, writing
from cpack_build.restore.folder import OWN

__all__ = ["check_names", "folds_case", "is_reserved", "windows_problem"]

# learn.microsoft.com, "Naming Files, Paths, and Namespaces"
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_OURS = frozenset({OWN, ".venv"})
_LONGEST = 255
"""Units of UTF-16 in one part of a path."""
_LONGEST_PATH = 32_000
"""Units of UTF-16 in a path with the prefix ``\\\\?\\``, less what the root may take."""


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


def check_names(paths: Iterable[str], *, windows: bool, folding: bool, what: str) -> None:
    """See that every one of *paths* can be had, each beside the others; *what* names the tree.

    *windows* asks for its rules, *folding* says that names which differ in case alone are one. What git or we would
    read as our own is refused everywhere: a ``.git/config`` names programs. Raises :class:`UnsafeInput`.
    """
    seen: dict[str, str] = {}
    every = set(paths)
    for path in sorted(every):
        if is_reserved(path):
            raise UnsafeInput(f"{what}: {path!r} is a name of git's or of cpack-build's own.", hint="Do not use it.")
        for end in range(1, len(parts := path.split("/"))):
            if (parent := "/".join(parts[:end])) in every:
                raise UnsafeInput(f"{what}: {parent!r} is both a file or link and a folder.", hint="Do not use it.")
        if windows and (problem := windows_problem(path)):
            raise UnsafeInput(f"{what}: {path!r} {problem}.", hint="Restore it on Linux or macOS, or in WSL.")
        if not folding:
            continue
        for end in range(1, len(parts) + 1):
            name = "/".join(parts[:end])
            if (twin := seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)) != name:
                raise UnsafeInput(
                    f"{what}: {twin!r} and {name!r} would be one file here, where upper and lower case are the same.",
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


def folds_case(folder: Path) -> bool:
    """Whether *folder*, which is there, lies on a file system for which upper and lower case are the same."""
    probe = folder / f".cpack-{token_hex(4)}-a"
    with writing(folder):
        probe.touch()
        try:
            return probe.with_name(probe.name.upper()).exists()
        finally:
            probe.unlink()
