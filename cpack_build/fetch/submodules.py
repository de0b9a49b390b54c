"""The submodules of a commit: the tree says where and which commit, ``.gitmodules`` what each is called and whence it
comes (gitmodules(5)).

A name becomes a folder of git's, ``.git/modules/NAME``, for whoever makes a checkout: so one that would leave it, or
lie in another's, is refused here, as git refuses it (CVE-2018-11235, CVE-2019-1387). Others that git takes are
taken, also ``./lib``, ``a//b`` and ``/lib``: as for git, their folders are ``lib`` and ``a/b``."""

from __future__ import annotations

import subprocess
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.repository import git_command, git_environment, git_output
from cpack_build.fetch.tree import checked_path
from cpack_build.fetch.urls import redact

__all__ = ["Submodule", "submodule_urls", "submodules_of"]

_HINT = "Leave the node out with nodes.exclude in cpack.yaml, or use a fork without it."


@dataclass(frozen=True)
class Submodule:
    """The *commit* of the repository *url* at *path* of the tree; git calls it *name*."""

    path: str
    name: str
    url: str
    commit: str

    @property
    def folder(self) -> str:
        """Where its history lies below ``modules/`` of its parent's."""
        return "/".join(_parts(self.name))


def submodules_of(repository: Path, commit: str, *, parent: str) -> tuple[Submodule, ...]:
    """The submodules of *commit* (not theirs) that its ``.gitmodules`` explains; *parent* is the URL that it has.

    Raises :class:`UnsafeInput` for a name, path or URL that leads elsewhere.
    """
    # one listing of the top tells whether there is anything to do
    if not git_output(repository, "ls-tree", "--full-tree", commit, "--", ".gitmodules", what=parent):
        return ()
    said = _said(repository, f"{commit}:.gitmodules")
    listing = git_output(repository, "ls-tree", "-r", "-z", "--full-tree", commit, what=parent)
    found = []
    for line in listing.split(b"\0")[:-1]:
        head, _, raw = line.partition(b"\t")
        _, kind, oid = head.decode("ascii").split()
        if kind == "commit" and (path := checked_path(raw, parent)) in said:
            name, url = said[path]
            found.append(Submodule(path, name, _absolute(url, parent), oid))
    _check_names([submodule.name for submodule in found], parent)
    return tuple(found)


def submodule_urls(repository: Path, blob: str, *, parent: str) -> dict[str, str]:
    """Path → URL, as the ``.gitmodules`` named *blob* (``COMMIT:.gitmodules`` or an object) in the tree of *parent*
    says. Raises :class:`UnsafeInput` for a URL that leads above the parent's server."""
    return {path: _absolute(url, parent) for path, (_, url) in _said(repository, blob).items()}


def _said(repository: Path, blob: str) -> dict[str, tuple[str, str]]:
    """Path → name and URL."""
    command = [*git_command(repository), "config", "--null", f"--blob={blob}", "--get-regexp"]
    said = subprocess.run([*command, r"^submodule\..*\.(path|url)$"], capture_output=True, env=git_environment())
    places: dict[str, dict[str, str]] = {}
    for item in said.stdout.decode("utf-8", "replace").split("\0")[:-1]:
        key, _, value = item.partition("\n")
        section, _, field_name = key.rpartition(".")
        places.setdefault(section.removeprefix("submodule."), {})[field_name] = value
    return {place["path"]: (name, place["url"]) for name, place in places.items() if {"path", "url"} <= place.keys()}


def _parts(name: str) -> list[str]:
    """The folders that *name* leads through: for a system ``//`` is ``/``, and ``.`` is nothing."""
    return [part for part in name.split("/") if part not in ("", ".")]


def _check_names(names: Iterable[str], parent: str) -> None:
    """Raise :class:`UnsafeInput` for one that leads elsewhere on any system: a backslash may part folders (git's
    ``check_submodule_name`` takes it for one that does), and case may make no difference."""
    seen = set[str]()
    folders = {name: _parts(name.replace("\\", "/").casefold()) for name in names}
    for name, parts in sorted(folders.items(), key=lambda item: item[1]):
        if not parts or ".." in parts or any(unicodedata.category(character) == "Cc" for character in name):
            raise UnsafeInput(f"{redact(parent)} has a submodule with the name {name!r}, which is no name.", hint=_HINT)
        if any("/".join(parts[:end]) in seen for end in range(1, len(parts) + 1)):
            raise UnsafeInput(
                f"{redact(parent)} has a submodule with the name {name!r}, whose folder is another's.", hint=_HINT
            )
        seen.add("/".join(parts))


def _absolute(url: str, parent: str) -> str:
    """A submodule's URL; ``./`` and ``../`` are meant from that of its *parent* (git-submodule(1), "add")."""
    if not url.startswith(("./", "../")):
        return url
    base = parent.rstrip("/")
    while url.startswith(("./", "../")):
        if url.startswith("../"):
            head, slash, tail = base.rpartition("/")
            if not slash or not tail or head.endswith(("/", ":")):
                raise UnsafeInput(f"{redact(parent)}: the submodule URL {url!r} leads above its server.")
            base = head
        url = url.split("/", 1)[1]
    return f"{base}/{url}"
