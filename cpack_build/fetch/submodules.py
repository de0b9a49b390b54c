"""Where the submodules of a tree come from: ``.gitmodules`` says it (gitmodules(5)), the tree says which commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.repository import git_command, git_environment
from cpack_build.fetch.urls import redact

__all__ = ["submodule_urls"]


def submodule_urls(repository: Path, blob: str, *, parent: str) -> dict[str, str]:
    """Path → URL, as the ``.gitmodules`` named *blob* (``COMMIT:.gitmodules`` or an object) in the tree of *parent*
    says. Raises :class:`UnsafeInput` for a URL that leads above the parent's server."""
    command = [*git_command(repository), "config", "--null", f"--blob={blob}", "--get-regexp"]
    said = subprocess.run([*command, r"^submodule\..*\.(path|url)$"], capture_output=True, env=git_environment())
    places: dict[str, dict[str, str]] = {}
    for item in said.stdout.decode("utf-8", "replace").split("\0")[:-1]:
        key, _, value = item.partition("\n")
        section, _, field_name = key.rpartition(".")
        places.setdefault(section, {})[field_name] = value
    return {
        place["path"]: _absolute(place["url"], parent) for place in places.values() if {"path", "url"} <= place.keys()
    }


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
