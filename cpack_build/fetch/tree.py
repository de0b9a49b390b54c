"""The files of one commit, listed and read from git's object database: no checkout, no hook, filter or attribute.

What a name or a link in a tree may be is decided here, so that whoever lays a :class:`Tree` out need not ask again.
Files that come from elsewhere, an archive or a pack, become a tree too (:func:`import_tree`).
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

from cpack_build.errors import BadInput, Unresolvable, UnsafeInput, writing
from cpack_build.fetch.links import check_links
from cpack_build.fetch.repository import git_command, git_environment, git_output, has_commit, initialise, locked
from cpack_build.fetch.store import CHUNK, Store, StoredFile, stamp_at
from cpack_build.fetch.urls import redact

__all__ = ["SUBMODULE_DEPTH", "Tree", "TreeFile", "checked_path", "files_digest", "import_tree", "imported_tree"]

SUBMODULE_DEPTH = 8
"""Submodules within submodules."""
_LFS = b"version https://git-lfs.github.com/spec/"
_BIG = 16 * CHUNK
_MEMO = "git-tree-2"
_LINK_HINT = "Leave the node out with nodes.exclude in cpack.yaml, or use a fork without the link."
_LAST_SECOND = 253_402_300_799
_MODES = ("100644", "100755", "120000")


@dataclass(frozen=True)
class TreeFile:
    """One file of a tree: *mode* as git writes it, *size* in bytes."""

    path: str
    mode: Literal["100644", "100755", "120000"]
    oid: str
    size: int
    stored: StoredFile | None = None
    """The file itself, where the repository has only a pointer to it."""


@dataclass(frozen=True)
class Tree:
    """The files of one commit, read from the bare *repository*; *url* is canonical."""

    repository: Path
    url: str
    commit: str
    _store: Store = field(repr=False, compare=False)
    lfs: Mapping[str, StoredFile] = field(default_factory=dict, repr=False, compare=False)
    """The files that Git LFS keeps, by path, once they were fetched (:mod:`.lfs`)."""
    stamp: tuple[int, ...] | None = field(init=False, repr=False, compare=False)
    """Of the repository's :attr:`head`, from before anything was listed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamp", stamp_at(self.head))

    @property
    def head(self) -> Path:
        """The file that is there as long as the repository is, and that no fetch writes."""
        return self.repository / "HEAD"

    @cached_property
    def _files(self) -> tuple[TreeFile, ...]:
        files = sorted(self._listed(self.commit, "", 0), key=lambda file: file.path.encode())
        return tuple(
            replace(file, size=self.lfs[file.path].size, stored=self.lfs[file.path]) if file.path in self.lfs else file
            for file in files
        )

    def _listed(self, commit: str, prefix: str, depth: int) -> list[TreeFile]:
        """The files of *commit* below *prefix*, and of its submodules, whose commits lie in the same repository."""
        listing = git_output(self.repository, "ls-tree", "-r", "-z", "-l", "--full-tree", commit, what=self.url)
        files: list[TreeFile] = []
        for line in listing.split(b"\0")[:-1]:
            head, _, raw = line.partition(b"\t")
            mode, kind, oid, size = head.decode("ascii").split()
            path = prefix + checked_path(raw, self.url)
            if kind == "commit":
                if depth == SUBMODULE_DEPTH or not has_commit(self.repository, oid):
                    raise Unresolvable(
                        f"{redact(self.url)} has a submodule at {path!r} that its .gitmodules does not explain.",
                        hint="Leave the node out with nodes.exclude in cpack.yaml, or use a fork without it.",
                    )
                files += self._listed(oid, path + "/", depth + 1)
                continue
            if size in ("-", "BAD"):
                raise Unresolvable(
                    f"{redact(self.url)} at {self.commit} lacks the content of {path!r}.",
                    hint="The clone that it was taken from is partial; name a whole one with --mirror.",
                )
            if mode == "100664":  # written by early versions of git, which mean the same by it
                mode = "100644"
            if mode not in _MODES:
                raise UnsafeInput(f"{redact(self.url)}: {path!r} has the unknown mode {mode}.")
            files.append(TreeFile(path, mode, oid, int(size)))  # type: ignore[arg-type]
        return files

    def files(self) -> tuple[TreeFile, ...]:
        """Every file, sorted by the bytes of its path.

        Those of submodules lie at their paths. Raises :class:`Unresolvable` for a submodule of which ``.gitmodules``
        says nothing, :class:`UnsafeInput` for a name that leaves the tree.
        """
        return self._files

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """A function from object name to content, over one git process that ends with the context.

        It may be called from several threads, one at a time. Raises :class:`Unresolvable` for a missing object.
        """
        reader = _Reader(self.repository, self.url)
        try:
            yield reader.read
        finally:
            reader.close()

    def read(self, oid: str) -> bytes:
        """The content of one blob. For many, :meth:`reader` is faster."""
        with self.reader() as read:
            return read(oid)

    def chunks(self, oid: str) -> Iterator[bytes]:
        """The content of one blob in pieces, never held in memory whole."""
        command = [*git_command(self.repository), "cat-file", "blob", oid]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=git_environment()) as process:
            assert process.stdout is not None
            while chunk := process.stdout.read(CHUNK):
                yield chunk
        if process.returncode:
            raise Unresolvable(f"{redact(self.url)}: the object {oid} cannot be read.", hint="Fetch it again.")

    def content(self, file: TreeFile, read: Callable[[str], bytes]) -> Iterator[bytes]:
        """The content of *file* in pieces, a big one never whole; *read* is of a :meth:`reader`."""
        if file.stored is not None:
            with file.stored.path.open("rb") as stored:
                while chunk := stored.read(CHUNK):
                    yield chunk
        elif file.size > _BIG:
            yield from self.chunks(file.oid)
        else:
            yield read(file.oid)

    @cached_property
    def committed_at(self) -> int:
        """Committer date, seconds since 1970; what lies before that or after the year 9999 becomes its limit."""
        text = git_output(self.repository, "cat-file", "commit", self.commit, what=self.url)
        for line in text.split(b"\n\n", 1)[0].split(b"\n"):
            if (found := re.fullmatch(rb"committer .*> (-?[0-9]{1,30})\b.*", line)) is not None:
                return min(max(0, int(found[1])), _LAST_SECOND)
        raise Unresolvable(f"{redact(self.url)}: the commit {self.commit} has no committer date.")

    def tree_digest(self) -> str:
        """sha256 hex over ``MODE SP SHA256 SP PATH NUL`` of every file, sorted by path.

        It proves what git's own SHA-1 names do not. A commit names its content, so the store remembers it and a warm
        run reads no blob.
        Raises :class:`UnsafeInput` for symlinks that leave the tree, also together.
        """
        return self._inspected[0]

    def lfs_pointers(self) -> tuple[str, ...]:
        """Paths that hold a Git LFS pointer where the file itself is not known."""
        return self._inspected[1]

    @cached_property
    def _inspected(self) -> tuple[str, tuple[str, ...]]:
        key = f"{self.commit}+lfs" if self.lfs else self.commit  # a pointer names the content, as a commit does
        if (known := self._store.recall(_MEMO, key)) is not None:
            digest, *pointers = json.loads(known)
            return digest, tuple(pointers)
        digest, found = self._inspect()
        self._store.remember(_MEMO, key, json.dumps([digest, *found]))
        return digest, found

    def _inspect(self) -> tuple[str, tuple[str, ...]]:
        digest = hashlib.sha256()
        pointers = []
        links = {}
        with self.reader() as read:
            for file in self._files:
                if file.stored is not None:
                    digest.update(f"{file.mode} {file.stored.sha256} ".encode() + file.path.encode() + b"\0")
                    continue
                content, start = hashlib.sha256(), b""
                for chunk in [read(file.oid)] if file.size <= _BIG else self.chunks(file.oid):
                    content.update(chunk)
                    start = start or chunk
                if file.mode == "120000":
                    links[file.path] = start.decode("utf-8", "surrogateescape")
                elif file.size < 1024 and start.startswith(_LFS):
                    pointers.append(file.path)
                digest.update(f"{file.mode} {content.hexdigest()} ".encode() + file.path.encode() + b"\0")
        check_links(links, name=self.url, hint=_LINK_HINT)
        return digest.hexdigest(), tuple(pointers)


def import_tree(
    sizes: Mapping[str, int],
    stream: Callable[[str], Iterator[bytes]],
    *,
    name: str,
    sha256: str,
    store: Store,
    modes: Mapping[str, str] | None = None,
) -> Tree:
    """Files from elsewhere as a tree of its own: *sizes* in bytes by path, *stream* gives the content of one.

    *name* is what errors call it; *sha256* is that of what they came from, under which the tree is found again
    (:func:`imported_tree`); *modes* are git's, of those that are not plain files. They are read like a commit's from
    then on; nothing is ever unpacked to a folder. Raises :class:`UnsafeInput` for names that leave it (when the tree is
    listed, at the latest).
    """
    repository = _imports(store)
    with locked(repository):
        initialise(repository)
        if _imported(repository, sha256) is None:
            with writing(repository):
                _import(repository, _reference(sha256), sizes, stream, name, modes or {})
    tree = imported_tree(sha256, name=name, store=store)
    assert tree is not None
    return tree


def imported_tree(sha256: str, *, name: str, store: Store) -> Tree | None:
    """The tree that was imported under *sha256*, if one was."""
    repository = _imports(store)
    commit = _imported(repository, sha256) if (repository / "HEAD").exists() else None
    return None if commit is None else Tree(repository, name, commit, store)


def files_digest(hashes: Mapping[str, str]) -> str:
    """What :meth:`Tree.tree_digest` will be of plain files, from the sha256 of each by its path."""
    digest = hashlib.sha256()
    for path in sorted(hashes, key=str.encode):
        digest.update(f"100644 {hashes[path]} ".encode() + path.encode() + b"\0")
    return digest.hexdigest()


def _imports(store: Store) -> Path:
    return store.root / "git" / "archives"


def _reference(sha256: str) -> str:
    return f"refs/archives/{sha256}"


def _imported(repository: Path, sha256: str) -> str | None:
    check = [*git_command(repository), "rev-parse", "--verify", "--quiet", _reference(sha256)]
    done = subprocess.run(check, capture_output=True, env=git_environment())
    return done.stdout.decode().strip() if done.returncode == 0 else None


def _import(
    repository: Path,
    reference: str,
    sizes: Mapping[str, int],
    stream: Callable[[str], Iterator[bytes]],
    name: str,
    modes: Mapping[str, str],
) -> None:
    """One commit with these files (git-fast-import(1)): the same files give the same commit everywhere."""
    for path in sizes:
        checked_path(path.encode("utf-8", "surrogateescape"), name)
    command = [*git_command(repository), "fast-import", "--quiet", "--done"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=git_environment()
    ) as process:
        assert process.stdin is not None
        process.stdin.write(f"commit {reference}\ncommitter cpack-build <> 0 +0000\ndata 0\n".encode())
        for path in sorted(sizes):
            quoted = path.replace("\\", "\\\\").replace('"', '\\"')
            process.stdin.write(f'M {modes.get(path, "100644")} inline "{quoted}"\ndata {sizes[path]}\n'.encode())
            left = sizes[path]
            for chunk in stream(path):
                left -= len(chunk)
                if left < 0:
                    break
                process.stdin.write(chunk)
            if left:  # git would read what follows as orders, or wait for more
                process.kill()
                raise BadInput(f"{name}: {path} is not as long as was said.", hint="Make the pack or archive again.")
            process.stdin.write(b"\n")
        process.stdin.write(b"done\n")
        process.stdin.close()
    if process.returncode:
        raise UnsafeInput(f"{redact(name)}: its files cannot be kept as a tree.", hint="Leave the node out.")


class _Reader:
    """One ``git cat-file --batch``, kept open and asked by one thread at a time."""

    def __init__(self, repository: Path, url: str) -> None:
        self._repository = repository
        self._url = url
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, oid: str) -> bytes:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [*git_command(self._repository), "cat-file", "--batch"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=git_environment(),
                )  # fmt: skip
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(oid.encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().split()
            if len(answer) != 3 or answer[1] != b"blob":
                raise Unresolvable(
                    f"{redact(self._url)}: the object {oid} is missing from {self._repository}.",
                    hint="Delete that folder and run it again.",
                )
            return _exactly(self._process.stdout, int(answer[2]) + 1)[:-1]

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.communicate()
                self._process = None


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise Unresolvable("git ended while an object was read.", hint="Run it again.")
    return data


def checked_path(raw: bytes, url: str) -> str:
    """The path *raw* of a tree of *url*. Raises :class:`UnsafeInput` for one that leaves the tree or is git's own."""
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UnsafeInput(f"{redact(url)}: the file name {raw!r} is not UTF-8.") from None
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" or "\n" in part for part in parts):
        raise UnsafeInput(f"{redact(url)}: the file name {path!r} leaves the tree or is git's own.")
    return path
