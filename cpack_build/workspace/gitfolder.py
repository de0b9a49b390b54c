"""A git working tree as it lies on the disk: its commit, where that can be fetched, and what was changed since.

A workspace's ``.git`` is as little to be trusted as a pack: its configuration may name programs (filters, fsmonitor,
hooks, ssh commands) that an ordinary ``git status`` would run. So its configuration is read as data only, and changes
are found with a repository of our own, made for the moment, that borrows the objects and the index. The user's own git
configuration does not matter either: the same tree gives the same patch everywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from cpack_build.workspace.address import public_url
from cpack_build.workspace.gitprogram import BrokenRepository, Git, configuration, environment, program, run

__all__ = ["BIG", "BrokenRepository", "GitFolder", "changes_from", "names_in", "observe"]

BIG = 16 << 20
"""Bytes from which a changed or new file is named instead of being put into a patch."""
_PATCH_LIMIT = 256 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\nsize (\d+)\n")
_POINTER = "^version https://git-lfs[.]github[.]com/spec/v1$"
_NEVER = re.compile(r"(^|/)(__pycache__|\.git|\.DS_Store|\.venv|node_modules)(/|$)|\.py[co]$")
_SUBMODULE_DEPTH = 4


@dataclass(frozen=True)
class GitFolder:
    """What was seen. *url* is fit to be published (no credentials, no user but ``git``), or empty when no remote can be
    reached by others; *commit* is one that the remote has, as far as can be told here.

    *patch* leads from *commit* to the files as they are (``git apply`` takes it); empty when nothing was changed.
    *changed* names the files in it. *notes* are for people; *private* says that the remote is reached by ssh only. Of
    the files *lfs* the commit holds no more than Git LFS pointers.
    """

    url: str
    commit: str
    private: bool
    patch: bytes
    changed: tuple[str, ...]
    notes: tuple[str, ...]
    lfs: tuple[str, ...] = ()


def observe(folder: Path, *, untracked: bool = True, outside: tuple[str, ...] = ()) -> GitFolder:
    """Look at the working tree *folder*. *untracked* also takes new files that git does not ignore; what begins with
    one of *outside* is not looked at.

    Raises :class:`BrokenRepository`, and :class:`ToolMissing` where there is no git.
    """
    repository = _Repository(folder)
    head = repository.head()
    notes: list[str] = []
    remote, url = repository.remote()
    others = [name for name in repository.remotes() if name != remote]
    if url and others:
        notes.append(f"has several remotes; {remote} ({url}) is taken, not {', '.join(others)}")
    commit = repository.published(head, remote) if url else head
    patch, changed = b"", list[str]()
    try:
        patch, changed = repository.changes(commit, untracked=untracked, outside=outside, prefix="", notes=notes)
        if commit != head:
            notes.append(f"has commits that {remote} does not have; they are captured as a patch over {commit[:12]}")
    except BrokenRepository as error:
        # A partial clone lacks what was never checked out; the commit is known all the same.
        notes.append(f"may have changes that cannot be captured, for its repository is not whole ({error})")
        if commit != head:
            notes.append(f"has commits that {remote} does not have: push them, or nobody else can have {head[:12]}")
            commit = head
    for below, pinned in repository.submodules(commit):
        part, names = _submodule(folder, below, pinned, untracked=untracked, depth=0, notes=notes)
        patch += part
        changed += names
    private = bool(url) and not url.startswith("http")
    return GitFolder(url, commit, private, patch, tuple(changed), tuple(notes), repository.lfs_pointers(commit))


def changes_from(
    repository: Path, commit: str, *, folder: Path, fresh: Callable[[str], bool], outside: tuple[str, ...] = ()
) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """The patch from *commit* of a bare *repository* to a *folder* that has no ``.git``, the names in it, and notes.

    New files count where *fresh* says so; a file that is missing there is no change. Raises :class:`BrokenRepository`.
    """
    notes: list[str] = []
    patch, changed = _Repository(folder, git_dir=repository).changes(
        commit, untracked=True, prefix="", notes=notes, outside=outside, fresh=fresh, deletions=False
    )
    return patch, tuple(changed), tuple(notes)


def names_in(repository: Path, commit: str) -> list[str]:
    """The names of all files of *commit* in a bare *repository*. Raises :class:`BrokenRepository`."""
    return _Repository(repository, git_dir=repository).listed(commit)


def _submodule(
    folder: Path, below: str, pinned: str, *, untracked: bool, depth: int, notes: list[str]
) -> tuple[bytes, list[str]]:
    path = folder / below
    if not (path / ".git").exists():
        notes.append(f"has the submodule {below}, which is not checked out here")
        return b"", []
    if depth >= _SUBMODULE_DEPTH:
        notes.append(f"has submodules deeper than {_SUBMODULE_DEPTH}; {below} is not looked at")
        return b"", []
    try:
        repository = _Repository(path)
        if not repository.has(pinned):
            notes.append(f"has the submodule {below} at another commit than it pins, and lacks {pinned[:12]}")
            return b"", []
        patch, changed = repository.changes(pinned, untracked=untracked, prefix=f"{below}/", notes=notes)
        for inner, commit in repository.submodules(pinned):
            part, names = _submodule(
                folder, f"{below}/{inner}", commit, untracked=untracked, depth=depth + 1, notes=notes
            )
            patch, changed = patch + part, changed + names
        return patch, changed
    except BrokenRepository as error:
        notes.append(f"has the submodule {below}, whose repository is broken ({error})")
        return b"", []


class _Repository:
    """The ``.git`` of one working tree, found by hand: no discovery upwards, no question of ownership."""

    def __init__(self, folder: Path, *, git_dir: Path | None = None) -> None:
        self.folder = folder
        self.git_dir = git_dir or self._git_dir(folder / ".git")
        common = self.git_dir / "commondir"
        self.common = self._relative(self.git_dir, common) if common.is_file() else self.git_dir
        if not (self.common / "objects").is_dir():
            raise BrokenRepository("it has no objects")
        self._config = configuration(self.common / "config")

    def _git_dir(self, path: Path) -> Path:
        if path.is_dir():
            return path
        try:
            text = path.read_text("utf-8")[:4096]
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenRepository("its .git cannot be read") from error
        if not text.startswith("gitdir:"):
            raise BrokenRepository("its .git is neither a folder nor a pointer to one")
        target = Path(os.path.normpath(path.parent / text.removeprefix("gitdir:").strip()))
        if "\0" in text or not target.is_dir():
            raise BrokenRepository("its .git points to a folder that is not there")
        return target

    @staticmethod
    def _relative(base: Path, file: Path) -> Path:
        try:
            return Path(os.path.normpath(base / file.read_text("utf-8")[:4096].strip()))
        except (OSError, ValueError) as error:
            raise BrokenRepository("its commondir cannot be read") from error

    def head(self) -> str:
        """The commit that is checked out."""
        commit = self._ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip()
        if not _COMMIT.fullmatch(commit):
            raise BrokenRepository("it has no commit")
        return commit

    def has(self, commit: str) -> bool:
        """Whether the commit's objects are here."""
        return self._ask("rev-parse", "--verify", "--quiet", commit + "^{commit}").strip() == commit

    def remotes(self) -> dict[str, str]:
        """Remote → URL fit to be published, in the order of the configuration; others are left out."""
        found = {}
        for key, value in self._config:
            match = re.fullmatch(r"remote\.(.+)\.url", key)
            if match and match[1] not in found and (url := public_url(value)):
                found[match[1]] = url
        return found

    def remote(self) -> tuple[str, str]:
        """The remote to name: that of the branch, else ``origin``, else the first; and its URL. Empty for none."""
        remotes = self.remotes()
        branch = self._branch()
        tracked = next((value for key, value in self._config if key == f"branch.{branch}.remote"), "")
        for name in (tracked, "origin", *remotes):
            if name in remotes:
                return name, remotes[name]
        return "", ""

    def _branch(self) -> str:
        """The branch that is checked out; empty for a detached head."""
        try:
            text = (self.git_dir / "HEAD").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return ""
        return text.strip().removeprefix("ref: refs/heads/") if text.startswith("ref: refs/heads/") else ""

    def published(self, head: str, remote: str) -> str:
        """*head*, or the newest commit before it that *remote* was seen to have.

        A detached head that no branch of the remote holds was fetched by its hash: it is believed to be there.
        """
        refs = f"refs/remotes/{remote}/"
        if (self.common / "shallow").exists() or not self._branch():
            return head
        seen = self._ask("for-each-ref", "--format=%(objectname)", refs).split()
        if not seen or self._ask("for-each-ref", "--contains", head, "--format=%(objectname)", refs, "refs/tags/"):
            return head
        bases = self._ask("merge-base", head, *seen[:64]).split()
        return bases[0] if bases and _COMMIT.fullmatch(bases[0]) else head

    def submodules(self, commit: str) -> list[tuple[str, str]]:
        """Path and pinned commit of each submodule."""
        found = []
        for line in self._ask("ls-tree", "-r", "-z", "--full-tree", commit).split("\0"):
            mode, _, rest = line.partition(" ")
            if mode == "160000":
                oid, _, path = rest.removeprefix("commit ").partition("\t")
                if _safe(path):
                    found.append((path, oid))
        return found

    def lfs_pointers(self, commit: str) -> tuple[str, ...]:
        """The files of *commit* that are Git LFS pointers, where its attributes say that there are some."""
        if "filter=lfs" not in self._ask("cat-file", "blob", f"{commit}:.gitattributes"):
            return ()
        found = self._ask("grep", "-l", "-z", "-I", "-e", _POINTER, commit, "--").split("\0")
        return tuple(name.removeprefix(f"{commit}:") for name in found if name)

    def listed(self, commit: str) -> list[str]:
        """The names of all files of *commit*."""
        return [
            name for name in self._ask("ls-tree", "-r", "-z", "--full-tree", "--name-only", commit).split("\0") if name
        ]

    def changes(
        self,
        commit: str,
        *,
        untracked: bool,
        prefix: str,
        notes: list[str],
        outside: tuple[str, ...] = (),
        fresh: Callable[[str], bool] = lambda name: True,
        deletions: bool = True,
    ) -> tuple[bytes, list[str]]:
        """The patch from *commit* to the files as they lie there, and the names in it, both below *prefix*."""
        with self._borrowed(commit) as git:
            changed = _names(git("diff-files", "--name-only", "-z", "--ignore-submodules=all"))
            new = _names(git("ls-files", "--others", "--exclude-standard", "-z")) if untracked else []
            take = [name for name in changed if not self._is_lfs_content(name, git)]
            take = [name for name in take if deletions or os.path.lexists(self.folder / name)]
            take += [name for name in new if not _NEVER.search(name) and fresh(name)]
            take = [name for name in take if not name.startswith(outside) and self._fits(name, prefix, notes)]
            if take:
                listed = "".join(f"{name}\0" for name in take).encode("utf-8", "surrogateescape")
                git("update-index", "--add", "--remove", "-z", "--stdin", stdin=listed)
            arguments = (
                "diff", "--cached", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--binary",
                "--full-index", "--ignore-submodules=all", "--diff-algorithm=myers", "--unified=3",
                f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}", commit,
            )  # fmt: skip
            patch = git(*arguments)
            if len(patch) > _PATCH_LIMIT:
                notes.append(f"has changes of more than {_PATCH_LIMIT >> 20} MiB, which are not captured")
                return b"", []
            names = _names(git("diff", "--cached", "--name-only", "-z", "--ignore-submodules=all", commit))
            return patch, [prefix + name for name in names]

    def _is_lfs_content(self, name: str, git: Git) -> bool:
        """Whether a changed file is what its LFS pointer stands for: then nothing was changed."""
        match = _LFS.match(git("cat-file", "blob", f":{name}", check=False)[:1024])
        path = self.folder / name
        try:
            if match is None or path.is_symlink() or path.stat().st_size != int(match[2]):
                return False
            hasher = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
            return hasher.hexdigest() == match[1].decode()
        except OSError:
            return False

    def _fits(self, name: str, prefix: str, notes: list[str]) -> bool:
        """Whether a changed file can be captured; *notes* are told why not."""
        path = self.folder / name
        shown = prefix + name
        if not _safe(name):
            notes.append(f"has a changed file whose name cannot be kept, {shown!a:.80}; it is not captured")
            return False
        try:
            info = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True  # deleted
        except OSError as error:
            notes.append(f"has a changed file that cannot be read, {shown}: {(error.strerror or '').lower()}")
            return False
        if stat.S_ISLNK(info.st_mode):
            target = os.readlink(path)
            if not target.startswith("/") and _stays(PurePosixPath(name).parent, target):
                return True
            notes.append(f"has the link {shown}, which leads out of it; it is not captured")
            return False
        if not stat.S_ISREG(info.st_mode):
            if not stat.S_ISDIR(info.st_mode):
                notes.append(f"has {shown}, which is no regular file; it is not captured")
            elif (path / ".git").exists():
                notes.append(f"has a repository within it, {shown.rstrip('/')}, which is no submodule; not captured")
            return False
        if info.st_size > BIG:
            notes.append(f"has the changed file {shown} of {info.st_size >> 20} MiB; it is not captured")
            return False
        if not os.access(path, os.R_OK):
            notes.append(f"has a changed file that cannot be read, {shown}")
            return False
        return True

    @contextmanager
    def _borrowed(self, commit: str) -> Iterator[Git]:
        """git on a repository of our own that has the working tree's objects and index, and no configuration."""
        with TemporaryDirectory(prefix="cpack-") as temporary:
            home = Path(temporary)
            form = "sha256" if len(commit) == 64 else "sha1"
            surroundings = environment(home)
            made = [
                program(),
                "init",
                "--quiet",
                "--bare",
                "--template=",
                f"--object-format={form}",
                str(home / "git"),
            ]
            run(made, surroundings)
            (home / "git/objects/info").mkdir(parents=True, exist_ok=True)
            (home / "git/objects/info/alternates").write_bytes(os.fsencode(self.common / "objects") + b"\n")
            (home / "git/info").mkdir(exist_ok=True)
            for name in ("info/exclude",):
                if (self.common / name).is_file():
                    shutil.copyfile(self.common / name, home / "git" / name)
            file_mode = next((value for key, value in self._config if key == "core.filemode"), "true")
            git = Git(
                [
                    program(), f"--git-dir={home / 'git'}", f"--work-tree={self.folder}", "-c", "core.autocrlf=input",
                    "-c", "core.safecrlf=false", "-c", f"core.fileMode={'false' if file_mode == 'false' else 'true'}",
                    "-c", "core.quotePath=true", "-c", "core.attributesFile=/dev/null",
                    "-c", "core.excludesFile=/dev/null", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
                    "-c", "core.untrackedCache=false", "-c", "core.bigFileThreshold=64m", "-c", "core.symlinks=true",
                ],
                surroundings, cwd=self.folder,
            )  # fmt: skip
            if not self._borrow_index(git, home):
                git("read-tree", commit)
            git("update-index", "-q", "--refresh", "--ignore-submodules", check=False)
            yield git

    def _borrow_index(self, git: Git, home: Path) -> bool:
        """Whether the working tree's own index can be used: it knows which files need not be read again."""
        index = self.git_dir / "index"
        try:
            data, info = index.read_bytes(), index.stat()
        except OSError:
            return False
        # A split index, one of a sparse checkout, or one that leaves answers to a file system monitor needs more.
        if any(extension in data for extension in (b"link\0", b"sdir\0", b"FSMN\0")):
            return False
        (home / "git/index").write_bytes(data)
        # By its own time git knows which entries are too young to be believed (gitformat-index, racy git).
        os.utime(home / "git/index", ns=(info.st_mtime_ns, info.st_mtime_ns))
        return git.succeeds("ls-files", "--stage") and not git("ls-files", "--unmerged")

    def _ask(self, *arguments: str) -> str:
        """Plumbing that reads nothing but references and objects; empty when git refuses."""
        with TemporaryDirectory(prefix="cpack-") as temporary:
            command = [program(), f"--git-dir={self.git_dir}", "-c", "core.fsmonitor=false", *arguments]
            try:
                done = run(command, environment(Path(temporary)), check=False)
            except BrokenRepository:
                return ""
            return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else ""


def _names(listed: bytes) -> list[str]:
    return sorted({name for name in listed.decode("utf-8", "surrogateescape").split("\0") if name})


def _safe(name: str) -> bool:
    from cpack_build.cpack.archive import unsafe_name

    return not unsafe_name(name.rstrip("/"))


def _stays(folder: PurePosixPath, target: str) -> bool:
    """Whether a link in *folder* stays within the tree."""
    depth = len(folder.parts)
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True
