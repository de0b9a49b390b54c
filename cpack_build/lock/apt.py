"""Who runs apt: this machine, or where it has none somebody else, over a folder that holds apt's whole state.

That state (:mod:`.debs` lays it out) names its own paths, so it says where it will be seen: :meth:`Apt.seen_at`."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import which
from typing import Protocol

__all__ = ["Apt", "HostApt", "has_apt"]


class Apt(Protocol):
    """Runs apt's programs on a state."""

    reads_files: bool
    """Whether it can read an archive in a folder of this machine."""

    def seen_at(self, root: Path) -> Path:
        """Where the programs see the folder *root*."""
        ...

    def network(self) -> Iterator[str]:
        """Lines of apt's configuration about how it reaches its sources."""
        ...

    def run(self, root: Path, *command: str, fetches: bool = False) -> subprocess.CompletedProcess[str]:
        """Run *command* with the state in *root*; what *fetches* new lists may use a network, and they lie there
        afterwards."""
        ...


def has_apt() -> bool:
    """Whether this machine has apt."""
    return which("apt-get") is not None and which("apt-cache") is not None


class HostApt:
    """This machine's own: no locks, no hooks, any user."""

    reads_files = True

    def seen_at(self, root: Path) -> Path:
        return root

    def network(self) -> Iterator[str]:
        """The host's own proxies, certificates and clock rules; nothing that waives a signature or runs a hook."""
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, env=_environment(None)).stdout
        for line in dump.splitlines():
            key = line.partition(" ")[0]
            if not re.match(r"Acquire::(http|https|ForceIPv4|ForceIPv6|Check-|Max-|Min-|Retries|Queue)", key):
                continue
            if not re.search(r"Allow|Weak|Insecure", key) and re.fullmatch(r'[A-Za-z0-9:_.-]+ "[^"]*";', line):
                yield line

    def run(self, root: Path, *command: str, fetches: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=root,
            encoding="utf-8", errors="replace", env=_environment(root / "apt.conf"),
        )  # fmt: skip


def _environment(configuration: Path | None) -> Mapping[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("APT_", "DEB"))}
    environment |= {"LC_ALL": "C", "TZ": "UTC", "DEBIAN_FRONTEND": "noninteractive"}
    if configuration is not None:
        environment["APT_CONFIG"] = str(configuration)
    return environment
