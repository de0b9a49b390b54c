"""A real git checkout around files that lie there already: history of one commit, its remote, a detached head.

git itself writes no file of the working tree: a checkout would run filters and hooks, and follow what lies in its
way. It only gets the commit's objects, from the store, and reads the tree into its index."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from cpack_build.errors import Unresolvable
from cpack_build.fetch.repository import git_environment, git_program
from cpack_build.fetch.tree import Tree
from cpack_build.fetch.urls import redact

__all__ = ["configure", "head_of", "make_checkout"]


def make_checkout(
    tree: Tree,
    work_tree: Path,
    git_dir: Path,
    *,
    url: str,
    exclude: tuple[str, ...] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Make *git_dir*, which becomes the ``.git`` of *work_tree*, at *tree*'s commit, with *url* as ``origin``.

    *exclude* are patterns of what git is not to show as new, *settings* further ones of its own (git-config(1)).
    """
    run = _Git(git_dir, tree.url)
    run("init", "--quiet", "--template=", "--initial-branch=main", bare=True)
    kept = f"refs/cpack/{tree.commit}"
    run("-c", "protocol.file.allow=always", "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head",
        "--", tree.repository.absolute().as_uri(), f"+{kept}:{kept}", bare=True)  # fmt: skip
    for key, value in (
        ("core.bare", "false"),
        ("remote.origin.url", url),
        ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
    ):
        run("config", key, value, bare=True)
    run("update-ref", "--no-deref", "HEAD", tree.commit, bare=True)
    run("update-ref", "-d", kept, bare=True)
    info = git_dir / "info"
    info.mkdir(exist_ok=True)
    (info / "exclude").write_text("".join(f"{pattern}\n" for pattern in exclude))
    run(f"--work-tree={work_tree}", "read-tree", tree.commit)
    # What a patch changed is shown as changed: the exit code says so, and that is no failure.
    run(f"--work-tree={work_tree}", "update-index", "-q", "--refresh", may_differ=True)
    for key, value in settings.items():
        configure(git_dir, key, value)


def configure(git_dir: Path, key: str, value: str) -> None:
    """Set *key* in the configuration of *git_dir*, if it has another value."""
    run = _Git(git_dir, str(git_dir))
    if run.output("config", "--local", "--get", key) != value:
        run("config", "--local", key, value)


def head_of(git_dir: Path) -> str | None:
    """The commit that is checked out, by *git_dir* (or the file ``.git`` that names it); ``None`` if that cannot be
    read."""
    return _Git(git_dir, str(git_dir)).output("rev-parse", "--verify", "--quiet", "HEAD^{commit}") or None


class _Git:
    def __init__(self, git_dir: Path, url: str) -> None:
        self._git_dir, self._url = git_dir, url

    def output(self, *arguments: str) -> str:
        """What git answers; empty when it has no answer."""
        return self._run(*arguments).stdout.decode("utf-8", "replace").strip()

    def __call__(self, *arguments: str, bare: bool = False, may_differ: bool = False) -> None:
        done = self._run(*(("-c", "core.bare=true") if bare else ()), *arguments)
        if done.returncode and not (may_differ and done.returncode == 1):
            said = redact(done.stderr.decode("utf-8", "replace").strip())
            raise Unresolvable(f"A checkout of {redact(self._url)} cannot be made: {said}.", hint="Restore again.")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [
            git_program(), f"--git-dir={self._git_dir}", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0",
            "-c", "core.fsmonitor=false", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=_environment())


def _environment() -> dict[str, str]:
    """Without the user's configuration, which may name filters."""
    return git_environment() | {"GIT_CONFIG_GLOBAL": os.devnull}
