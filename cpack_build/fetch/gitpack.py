"""A repository of the store as one file to be carried elsewhere: git's own pack, and which commits are whole in it.

Unlike a copied repository, a pack is data alone: no setting and no hook comes along with it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cpack_build.errors import BadInput, Unresolvable, writing
from cpack_build.fetch.repository import (
    git_command,
    git_environment,
    git_output,
    has_commit,
    initialise,
    locked,
)

__all__ = ["PackedRepository", "export_repository", "import_repository"]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class PackedRepository:
    """What stands beside a pack: *name* of the repository in the store, the *commits* that are whole, and those that
    are *shallow*, whose parents are left out."""

    name: str
    commits: tuple[str, ...]
    shallow: tuple[str, ...]


def export_repository(repository: Path, file: IO[bytes]) -> PackedRepository:
    """Write everything that *repository* has whole to *file* (git-pack-objects(1))."""
    with locked(repository):
        listed = git_output(repository, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/cpack", what="git")
        commits = tuple(sorted(filter(_COMMIT.fullmatch, listed.decode().split())))
        shallow_file = repository / "shallow"
        shallow = tuple(shallow_file.read_text().split()) if shallow_file.exists() else ()
        with writing(file.name):
            result = subprocess.run(
                [*git_command(repository), "pack-objects", "--revs", "--stdout", "--quiet", "--threads=1"],
                input="".join(f"{commit}\n" for commit in commits).encode(),
                stdout=file, stderr=subprocess.PIPE, env=git_environment(), check=False,
            )  # fmt: skip
    if result.returncode:
        said = result.stderr.decode("utf-8", "replace").strip()
        raise Unresolvable(f"The store's repository {repository} cannot be packed: {said}.")
    return PackedRepository(repository.name, commits, shallow)


def import_repository(folder: Path, packed: PackedRepository, file: IO[bytes], *, what: object) -> None:
    """Put a pack into the repository below *folder*; its commits count as there once git has found them whole.

    Raises :class:`BadInput` for a pack that is none, or that lacks something.
    """
    repository = folder / packed.name
    with locked(repository):
        initialise(repository)
        if all(has_commit(repository, commit) for commit in packed.commits):
            return
        shallow = repository / "shallow"
        known = set(shallow.read_text().split()) if shallow.exists() else set()

        def cut(commits: set[str]) -> None:
            with writing(repository):
                if commits:
                    shallow.write_text("".join(f"{commit}\n" for commit in sorted(commits)))
                else:
                    shallow.unlink(missing_ok=True)

        cut(known | set(packed.shallow))
        try:
            _take(repository, packed, file, what)
        except BadInput:
            cut(known)  # what lies about its objects is not believed about their history
            raise


def _take(repository: Path, packed: PackedRepository, file: IO[bytes], what: object) -> None:
    """Have git read the pack; each of its commits gets a name if it is whole. Raises :class:`BadInput`."""
    done = subprocess.run(
        [*git_command(repository), "index-pack", "--stdin", "--strict"],
        stdin=file, capture_output=True, env=git_environment(), check=False,
    )  # fmt: skip
    if done.returncode:
        raise _damaged(what, done.stderr)
    for commit in packed.commits:
        whole = subprocess.run(
            [*git_command(repository), "rev-list", "--objects", "--quiet", commit],
            capture_output=True, env=git_environment(), check=False,
        )  # fmt: skip
        if whole.returncode:
            raise _damaged(what, whole.stderr)
        git_output(repository, "update-ref", f"refs/cpack/{commit}", commit, what=packed.name)


def parse(document: object, *, what: object) -> PackedRepository:
    """A repository as a bundle describes it. Raises :class:`BadInput`."""
    fields = document if isinstance(document, dict) else {}
    name, commits, shallow = fields.get("name"), fields.get("commits"), fields.get("shallow")
    if not (isinstance(name, str) and re.fullmatch(r"[0-9a-f]{64}", name)):
        raise BadInput(f"{what} names a repository {name!r:.80}, which no store has.", hint="Make it again.")
    return PackedRepository(name, _commits(commits, what), _commits(shallow, what))


def _commits(value: object, what: object) -> tuple[str, ...]:
    items: Sequence[object] = value if isinstance(value, list) else ()
    if not isinstance(value, list) or not all(isinstance(item, str) and _COMMIT.fullmatch(item) for item in items):
        raise BadInput(f"{what} names commits that are none.", hint="Make it again.")
    return tuple(str(item) for item in items)


def _damaged(what: object, said: bytes) -> BadInput:
    told = said.decode("utf-8", "replace").strip().splitlines()
    return BadInput(f"{what} has a damaged pack: {told[-1] if told else 'git says no more'}.", hint="Get it again.")
