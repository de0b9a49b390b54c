"""git itself, and the bare repositories in the store: made without a template, so no hook or setting ever acts.

A commit counts as there only when it was fetched whole: then it has a reference of its own, ``refs/cpack/<commit>``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cpack_build import filesystem
from cpack_build.errors import ToolMissing, Unresolvable, writing
from cpack_build.fetch.urls import redact

__all__ = [
    "git_command", "git_environment", "git_output", "git_program", "has_commit", "initialise", "is_commit", "locked",
]  # fmt: skip


def initialise(repository: Path) -> None:
    if (repository / "HEAD").exists():
        return
    with writing(repository), TemporaryDirectory(prefix="new-", dir=repository.parent) as aside:
        # no template: no hook, no exclude file, nothing of this machine
        result = subprocess.run(
            [git_program(), "init", "--quiet", "--bare", "--template=", f"{aside}/git"],
            capture_output=True, env=git_environment(),
        )  # fmt: skip
        if result.returncode:
            said = result.stderr.decode("utf-8", "replace").strip()
            raise Unresolvable(f"The store's repository {repository} cannot be made: {said}.")
        shutil.rmtree(repository, ignore_errors=True)  # without HEAD it is no repository
        os.rename(f"{aside}/git", repository)


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """One fetch at a time into one repository, across threads and processes."""
    with writing(repository.parent):
        repository.parent.mkdir(parents=True, exist_ok=True)
        file = (repository.parent / (repository.name + ".lock")).open("w")
    with file:
        filesystem.lock(file)
        # What git calls locks, and nobody holds: a git that was killed has left them, and every later one would fail.
        for left in repository.rglob("*.lock"):
            left.unlink(missing_ok=True)
        yield


def has_commit(repository: Path, commit: str) -> bool:
    """Whether the commit was fetched whole: only then the reference was written."""
    check = [*git_command(repository), "rev-parse", "--verify", "--quiet", f"refs/cpack/{commit}"]
    return subprocess.run(check, capture_output=True, env=git_environment()).stdout.decode().strip() == commit


def is_commit(repository: Path, commit: str) -> bool:
    check = [*git_command(repository), "cat-file", "-e", commit + "^{commit}"]
    return subprocess.run(check, capture_output=True, env=git_environment()).returncode == 0


def git_output(repository: Path, *arguments: str, what: str) -> bytes:
    result = subprocess.run([*git_command(repository), *arguments], capture_output=True, env=git_environment())
    if result.returncode:
        said = redact(result.stderr.decode("utf-8", "replace").strip())
        raise Unresolvable(f"{redact(what)}: git {arguments[0]} failed: {said}.")
    return result.stdout


def git_program() -> str:
    from shutil import which

    program = which("git")
    if program is None:
        raise ToolMissing("git is not installed, and the pack's trees come from git.", hint="Install git.")
    return program


def git_command(repository: Path) -> list[str]:
    return [
        git_program(), f"--git-dir={repository}", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0",
        "-c", "maintenance.auto=false", "-c", "core.fsyncMethod=batch", "-c", "http.lowSpeedLimit=1000",
        "-c", "http.lowSpeedTime=60", "-c", "transfer.credentialsInUrl=allow", "-c", "advice.detachedHead=false",
    ]  # fmt: skip


def git_environment() -> dict[str, str]:
    """The user's environment, less what would point git elsewhere or make it ask."""
    kept = ("GIT_SSL", "GIT_SSH", "GIT_ASKPASS", "GIT_PROXY", "GIT_CONFIG_GLOBAL", "GIT_TRACE")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith(kept)
    }
    environment.setdefault("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
    environment |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    return environment
