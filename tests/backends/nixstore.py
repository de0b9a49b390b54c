"""A Nix store of a test's own: in its folder, single-user, without a sandbox, and with nobody to ask for anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import need

__all__ = ["NixStore", "nix_store"]


@dataclass(frozen=True)
class NixStore:
    """The store at *root*; *environment* points Nix there."""

    root: Path
    environment: dict[str, str]

    def __call__(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of Nix."""
        done = subprocess.run(
            [str(word) for word in command], env={**os.environ, **self.environment}, capture_output=True, text=True
        )
        if check:
            assert done.returncode == 0, f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def names(self) -> list[str]:
        """What lies in the store, without the hashes."""
        return sorted(name[33:] for name in self.names_with_hashes())

    def names_with_hashes(self) -> list[str]:
        """What lies in the store."""
        return [path.name for path in (self.root / "store").iterdir() if len(path.name) > 33]


@contextmanager
def nix_store(root: Path, **settings: str) -> Iterator[NixStore]:
    """An empty store below *root*, with *settings* over those of nix.conf."""
    need.tool("nix-build")
    configured = {
        "sandbox": "false",
        "substituters": "",
        "build-users-group": "",
        "experimental-features": "nix-command flakes",
        "flake-registry": "",
        **settings,
    }
    for name in ("store", "state", "conf"):
        (root / name).mkdir(parents=True)
    environment = {
        "NIX_STORE_DIR": f"{root}/store",
        "NIX_STATE_DIR": f"{root}/state",
        "NIX_LOG_DIR": f"{root}/state/log",
        "NIX_CONF_DIR": f"{root}/conf",
        "NIX_USER_CONF_FILES": "/dev/null",
        "NIX_CONFIG": "\n".join(f"{name.replace('_', '-')} = {value}" for name, value in configured.items()),
        "XDG_CACHE_HOME": f"{root}/cache",
    }
    try:
        yield NixStore(root, environment)
    finally:
        for top, folders, _ in os.walk(root):
            for folder in folders:  # Nix takes the right to write from all that is in its store
                path = Path(top, folder)
                if not path.is_symlink():
                    path.chmod(0o755)


@pytest.fixture
def nix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NixStore]:
    """A store that the test's own environment points at."""
    with nix_store(tmp_path / "nix") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store
