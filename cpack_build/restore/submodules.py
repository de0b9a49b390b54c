"""The submodules of a checkout become checkouts, as ``git clone --recurse-submodules`` leaves them.

A submodule's history lies in its parent's, ``.git/modules/NAME``, and a file ``.git`` in its own folder points there.
That file comes last, so what a killed run has begun is completed by the next. Where a submodule's remote does not
answer its files are there all the same, from the artifact, and its commit is on record.

Rule: gitsubmodules(7), gitrepository-layout(5)."""

from __future__ import annotations

import posixpath
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.submodules import Submodule, submodules_of
from cpack_build.fetch.tree import SUBMODULE_DEPTH, Tree
from cpack_build.fetch.urls import redact, without_credentials
from cpack_build.restore.checkout import configure, head_of, make_checkout
from cpack_build.restore.folder import Folder
from cpack_build.restore.names import is_reserved, windows_problem

__all__ = ["CheckedOut", "Fetch", "check_out_submodules"]

Fetch = Callable[[Tree, Submodule, str], Tree | None]
"""The tree of a submodule of a tree, the name being what people are shown; ``None`` where it cannot be had."""


@dataclass(frozen=True)
class CheckedOut:
    """The submodule at *path* of the checkout; *problem* says why it is no checkout itself, empty when it is one."""

    path: str
    url: str
    commit: str
    problem: str = ""


def check_out_submodules(
    folder: Folder, prefix: str, tree: Tree, *, fetch: Fetch, git_dir: str = "", below: str = "", depth: int = 0
) -> Iterator[CheckedOut]:
    """Make checkouts of the submodules of *tree*, and of theirs; one that is there stays.

    *tree*'s own checkout is at *prefix* of *folder* (empty, or with a final ``/``) and its history at *git_dir*, by
    default the ``.git`` there; *below* is its path in the outermost. Raises :class:`UnsafeInput` for names that lead
    elsewhere, and for links in the way.
    """
    git_dir = git_dir or f"{prefix}.git"
    if depth == SUBMODULE_DEPTH:
        return
    for submodule in submodules_of(tree.repository, tree.commit, parent=tree.url):
        path, place = below + submodule.path, prefix + submodule.path
        module = f"{git_dir}/modules/{submodule.folder}"
        made = CheckedOut(path, without_credentials(submodule.url), submodule.commit)
        if is_reserved(submodule.path):
            raise UnsafeInput(f"{redact(tree.url)} has a submodule at {submodule.path!r}.", hint="Do not use it.")
        if "\\" in submodule.folder:  # a folder on one system, and two on another
            yield _not(made, f"its name {submodule.name!r} has a backslash")
            continue
        inner = fetch(tree, submodule, path)
        if inner is None:
            yield _not(made, f"{redact(made.url)} cannot be had here")
            continue
        if sys.platform == "win32" and (problem := windows_problem(submodule.folder)):
            yield _not(made, f"its name {submodule.name!r} {problem}")
            continue
        if problem := _check_out(folder, place, module, inner, made.url):
            yield _not(made, problem)
            continue
        own = module if folder.status(module) is not None else f"{place}/.git"
        configure(folder.root / git_dir, f"submodule.{submodule.name}.active", "true")
        configure(folder.root / git_dir, f"submodule.{submodule.name}.url", made.url)
        yield made
        yield from check_out_submodules(
            folder, f"{place}/", inner, fetch=fetch, git_dir=own, below=f"{path}/", depth=depth + 1
        )


def _check_out(folder: Folder, place: str, module: str, tree: Tree, url: str) -> str:
    """Make *place* a checkout whose history is at *module*; why that cannot be."""
    if folder.status(f"{place}/.git") is not None:
        return _other(folder, f"{place}/.git", tree.commit)
    if folder.status(module) is not None:
        if problem := _other(folder, module, tree.commit):
            return problem
    else:
        folder.make(place)
        with folder.aside() as aside:
            make_checkout(
                tree, folder.root / place, aside, url=url, exclude=("*.pyc",),
                settings={"core.worktree": posixpath.relpath(place, module)},
            )  # fmt: skip
            folder.move(aside.relative_to(folder.root).as_posix(), module)
    folder.write(f"{place}/.git", [f"gitdir: {posixpath.relpath(module, place)}\n".encode()])
    return ""


def _other(folder: Folder, git_dir: str, commit: str) -> str:
    """What is wrong with the *git_dir* that is there, a folder or a file."""
    status = folder.status(git_dir)
    if status is None or stat.S_ISLNK(status.st_mode):
        return f"{git_dir} is a link"
    head = head_of(folder.root / git_dir)
    return "" if head == commit else f"{git_dir} is there, at {head}; it was left alone"


def _not(made: CheckedOut, problem: str) -> CheckedOut:
    return CheckedOut(made.path, made.url, made.commit, problem)
