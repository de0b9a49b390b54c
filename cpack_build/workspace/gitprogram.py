"""git as a program that is asked about a stranger's repository: no configuration but ours, no network, no question."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from cpack_build.errors import ToolMissing

__all__ = ["BrokenRepository", "Git", "configuration", "environment", "program", "run"]

_TIMEOUT = 300.0


class BrokenRepository(Exception):
    """The folder has a ``.git`` that cannot be used; the message says why."""


class Git:
    """git with fixed arguments and environment."""

    def __init__(self, command: list[str], environment: Mapping[str, str], *, cwd: Path) -> None:
        self._command, self._environment, self._cwd = command, environment, cwd

    def __call__(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> bytes:
        return run([*self._command, *arguments], self._environment, stdin=stdin, check=check, cwd=self._cwd).stdout

    def succeeds(self, *arguments: str) -> bool:
        return run([*self._command, *arguments], self._environment, check=False, cwd=self._cwd).returncode == 0


def run(
    command: list[str],
    environment: Mapping[str, str],
    *,
    stdin: bytes = b"",
    check: bool = True,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(
            command, env=dict(environment), input=stdin, capture_output=True, cwd=cwd, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenRepository(f"git needs more than {_TIMEOUT:.0f} s for it") from error
    except (OSError, ValueError) as error:
        raise BrokenRepository(f"git cannot look at it: {error}") from error
    if check and done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["git failed"]
        raise BrokenRepository(re.sub(r"^(fatal|error): ", "", said[0])[:200])
    return done


def environment(home: Path) -> dict[str, str]:
    """An environment without anybody's configuration, in which git reaches no network and asks nothing."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_PAGER": "cat",
        "LC_ALL": "C",
        "SYSTEMROOT": os.environ.get("SYSTEMROOT", ""),
    }


def program() -> str:
    program = shutil.which("git")
    if program is None:
        raise ToolMissing("git is not installed, and the workspace has git repositories.", hint="Install git.")
    return program


def configuration(path: Path) -> list[tuple[str, str]]:
    """Keys and values of a git configuration file, without what it includes, in order."""
    if not path.is_file():
        return []
    with TemporaryDirectory(prefix="cpack-") as temporary:
        command = [program(), "config", "--file", str(path), "--no-includes", "--list", "-z"]
        listed = run(command, environment(Path(temporary)), cwd=Path(temporary)).stdout
    pairs = (item.partition("\n") for item in listed.decode("utf-8", "replace").split("\0") if item)
    return [(key, value if separator else "true") for key, separator, value in pairs]
