"""Uncommitted changes laid over a commit: a git patch applied to a tree, in git's object database alone.

There is no working tree: the patch changes an index of its own, from which a new commit is written into the same
repository. So no hook, filter or setting acts, nothing can be written beside the tree, and the same commit and patch
give the same tree everywhere.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cpack_build.errors import BadInput, HashMismatch, Unresolvable, UnsafeInput, writing
from cpack_build.fetch.repository import git_command, git_environment, has_commit, locked
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from cpack_build.fetch.urls import redact

__all__ = ["Patch", "patched"]

_MEMO = "git-patched-1"
_BINARY = re.compile(rb"^(?:literal|delta) 0*([0-9]+)\r?$", re.MULTILINE)
_LARGEST = 1 << 30
"""Bytes that the binary parts of a patch may unpack to."""
_MEMORY = 8 << 30
"""Bytes of address space for git: a binary delta does not say what it unpacks to."""
_UNSAFE = re.compile(r"invalid path|beyond a symbolic link|unable to write file|invalid mode")


@dataclass(frozen=True)
class Patch:
    """A patch (as ``git diff --binary`` writes it): *name* is what errors call it, *sha256* that of its bytes (hex),
    and *read* gives them where the outcome is not in the store yet."""

    name: str
    sha256: str
    read: Callable[[], bytes]


def patched(tree: Tree, patch: Patch, *, store: Store) -> Tree:
    """*tree* with *patch* applied. Files of submodules are files like any others; the new tree has the old one's date.

    Raises :class:`UnsafeInput` for a patch that reaches out of the tree, :class:`Unresolvable` for one that does not
    fit, :class:`HashMismatch` for one with other bytes than promised.
    """
    name, key = patch.name, f"{tree.commit}+{patch.sha256}"
    with locked(tree.repository):
        commit = store.recall(_MEMO, key)
        if commit is None or not has_commit(tree.repository, commit):
            commit = _apply(tree, _checked(patch), name)
    result = Tree(tree.repository, tree.url, commit, store)
    try:
        result.tree_digest()
    except UnsafeInput as error:
        raise UnsafeInput(f"{name}: {error.message}", hint="Do not use this pack.") from error
    store.remember(_MEMO, key, commit)
    return result


def _checked(patch: Patch) -> bytes:
    data = patch.read()
    if (actual := hashlib.sha256(data).hexdigest()) != patch.sha256:
        raise HashMismatch(patch.name, expected=patch.sha256, actual=actual)
    if not data.strip():
        raise BadInput(f"{patch.name} is empty.", hint="Make the pack again.")
    if sum(int(size[:12]) for size in _BINARY.findall(data)) > _LARGEST:
        raise UnsafeInput(f"{patch.name} unpacks to more than {_LARGEST >> 30} GiB.", hint="Do not use this pack.")
    return data


def _apply(tree: Tree, patch: bytes, name: str) -> str:
    listed = b"".join(f"{file.mode} {file.oid}\t".encode() + file.path.encode() + b"\0" for file in tree.files())
    dated = f"{tree.committed_at} +0000"
    with TemporaryDirectory(prefix="cpack-") as folder, writing(tree.repository):
        environment = git_environment() | {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_INDEX_FILE": str(Path(folder) / "index"),
            "GIT_AUTHOR_NAME": "cpack-build", "GIT_AUTHOR_EMAIL": "", "GIT_AUTHOR_DATE": dated,
            "GIT_COMMITTER_NAME": "cpack-build", "GIT_COMMITTER_EMAIL": "", "GIT_COMMITTER_DATE": dated,
        }  # fmt: skip

        def git(*arguments: str, stdin: bytes = b"") -> bytes:
            settings = ("apply.whitespace=nowarn", "apply.ignoreWhitespace=no", "core.protectHFS", "core.protectNTFS")
            chosen = [word for setting in settings for word in ("-c", setting)]
            command = [*git_command(tree.repository), *chosen, *arguments]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            ) as process:
                _limit_memory(process.pid)
                out, said = process.communicate(stdin)
            if process.returncode:
                raise _refused(tree, name, redact(said.decode("utf-8", "replace")))
            return out

        git("update-index", "-z", "--index-info", stdin=listed)
        git("apply", "--cached", "--whitespace=nowarn", "-", stdin=patch)
        if any(line.startswith(b"160000 ") for line in git("ls-files", "--stage", "-z").split(b"\0")):
            raise UnsafeInput(f"{name} adds a submodule, whose files it cannot hold.", hint="Do not use this pack.")
        root = git("write-tree").decode().strip()
        commit = git("commit-tree", root).decode().strip()
        git("update-ref", f"refs/cpack/{commit}", commit)
    return commit


def _refused(tree: Tree, name: str, said: str) -> UnsafeInput | Unresolvable:
    lines = [line.removeprefix("error: ").removeprefix("fatal: ") for line in said.splitlines() if line.strip()]
    told = "; ".join(lines[:3]) or "git gave no reason"
    if _UNSAFE.search(said):
        return UnsafeInput(f"{name} reaches out of its tree: {told}.", hint="Do not use this pack.")
    return Unresolvable(
        f"{name} does not fit {redact(tree.url)} at {tree.commit}: {told}.",
        hint="Make the pack again, or commit and push the changes.",
    )


def _limit_memory(pid: int) -> None:
    if sys.platform == "linux":
        import resource

        try:
            resource.prlimit(pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        except (OSError, ValueError):
            return  # it has ended, or has a lower limit already
