"""Git trees by commit, without a checkout and without running anything that a repository brings along.

Each URL has a bare repository in the store, into which just the wanted commit is fetched (all branches and tags where a
server refuses that). A :class:`Tree` lists the commit's files and reads their contents from git's object database: no
hook, filter or attribute ever acts, and submodules are fetched by the same rules, into the same repository. URLs come
from documents, so only http(s) and ssh are spoken; a local repository only where the user mapped a URL to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Literal

from cpack_build.errors import HashMismatch, NetworkError, ToolMissing, Unresolvable, UnsafeInput, writing
from cpack_build.fetch.mirrors import Mirrors, local_path
from cpack_build.fetch.store import CHUNK, Store
from cpack_build.fetch.urls import redact, without_credentials
from cpack_build.progress import SILENT, Progress

__all__ = ["Tree", "TreeFile", "canonical_url", "fetch_tree", "import_tree", "named_commit", "open_locked"]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_SCP = re.compile(r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^-\s:][^\s]*)")
_URL = re.compile(r"(?P<scheme>https?|ssh)://(?P<host>[^/\s-][^/\s]*)/(?P<path>[^\s\x00-\x1f]+)")
_COMFYUI = re.compile(r"https://github\.com/(comfyanonymous|Comfy-Org)/ComfyUI", re.IGNORECASE)
_COMFYUI_URL = "https://github.com/Comfy-Org/ComfyUI"
_LFS = b"version https://git-lfs.github.com/spec/"
_BIG = 16 * CHUNK
_MEMO = "git-tree-1"
_LAST_SECOND = 253_402_300_799
_DEEPEST = 8
"""Submodules within submodules."""
_MODES = ("100644", "100755", "120000")


def canonical_url(url: str) -> str:
    """*url* as a lock records it: no credentials, no final ``/`` or ``.git``; ComfyUI under its present name.

    Raises :class:`UnsafeInput` for anything but ``http(s)://``, ``ssh://`` and ``user@host:path``.
    """
    url = url.strip()
    if not (_URL.fullmatch(url) or _SCP.fullmatch(url)):
        raise UnsafeInput(
            f"The repository URL {redact(url)!r} is refused: only http(s) and ssh are fetched.",
            hint="Give the node an https URL, map it with --mirror, or leave it out with nodes.exclude in cpack.yaml.",
        )
    if url.startswith("http"):
        url = without_credentials(url)
    url = url.rstrip("/").removesuffix(".git").rstrip("/")
    return _COMFYUI_URL if _COMFYUI.fullmatch(url) else url


@dataclass(frozen=True)
class TreeFile:
    """One file of a tree: *mode* as git writes it, *size* in bytes."""

    path: str
    mode: Literal["100644", "100755", "120000"]
    oid: str
    size: int


@dataclass(frozen=True)
class Tree:
    """The files of one commit, read from the bare *repository*; *url* is canonical."""

    repository: Path
    url: str
    commit: str
    _store: Store = field(repr=False, compare=False)

    @cached_property
    def _files(self) -> tuple[TreeFile, ...]:
        return tuple(sorted(self._listed(self.commit, "", 0), key=lambda file: file.path.encode()))

    def _listed(self, commit: str, prefix: str, depth: int) -> list[TreeFile]:
        """The files of *commit* below *prefix*, and of its submodules, whose commits lie in the same repository."""
        listing = _git(self.repository, "ls-tree", "-r", "-z", "-l", "--full-tree", commit, what=self.url)
        files: list[TreeFile] = []
        for line in listing.split(b"\0")[:-1]:
            head, _, raw = line.partition(b"\t")
            mode, kind, oid, size = head.decode("ascii").split()
            path = prefix + _checked_path(raw, self.url)
            if kind == "commit":
                if depth == _DEEPEST or not _has(self.repository, oid):
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
        command = [*_command(self.repository), "cat-file", "blob", oid]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=_environment()) as process:
            assert process.stdout is not None
            while chunk := process.stdout.read(CHUNK):
                yield chunk
        if process.returncode:
            raise Unresolvable(f"{redact(self.url)}: the object {oid} cannot be read.", hint="Fetch it again.")

    @cached_property
    def committed_at(self) -> int:
        """Committer date, seconds since 1970; what lies before that or after the year 9999 becomes its limit."""
        text = _git(self.repository, "cat-file", "commit", self.commit, what=self.url)
        for line in text.split(b"\n\n", 1)[0].split(b"\n"):
            if (found := re.fullmatch(rb"committer .*> (-?[0-9]{1,30})\b.*", line)) is not None:
                return min(max(0, int(found[1])), _LAST_SECOND)
        raise Unresolvable(f"{redact(self.url)}: the commit {self.commit} has no committer date.")

    def tree_digest(self) -> str:
        """sha256 hex over ``MODE SP SHA256 SP PATH NUL`` of every file, sorted by path.

        It proves what git's own SHA-1 names do not. A commit names its content, so the store remembers it and a warm
        run reads no blob.
        Raises :class:`UnsafeInput` for a symlink that leaves the tree.
        """
        return self._inspected[0]

    def lfs_pointers(self) -> tuple[str, ...]:
        """Paths that hold a Git LFS pointer where the file itself should be."""
        return self._inspected[1]

    @cached_property
    def _inspected(self) -> tuple[str, tuple[str, ...]]:
        if (known := self._store.recall(_MEMO, self.commit)) is not None:
            digest, *pointers = json.loads(known)
            return digest, tuple(pointers)
        digest, found = self._inspect()
        self._store.remember(_MEMO, self.commit, json.dumps([digest, *found]))
        return digest, found

    def _inspect(self) -> tuple[str, tuple[str, ...]]:
        digest = hashlib.sha256()
        pointers = []
        with self.reader() as read:
            for file in self._files:
                content, start = hashlib.sha256(), b""
                for chunk in [read(file.oid)] if file.size <= _BIG else self.chunks(file.oid):
                    content.update(chunk)
                    start = start or chunk
                if file.mode == "120000":
                    _check_link(file.path, start, self.url)
                elif file.size < 1024 and start.startswith(_LFS):
                    pointers.append(file.path)
                digest.update(f"{file.mode} {content.hexdigest()} ".encode() + file.path.encode() + b"\0")
        return digest.hexdigest(), tuple(pointers)


def fetch_tree(
    url: str, commit: str, *, store: Store, mirrors: Mirrors, name: str = "", progress: Progress = SILENT
) -> Tree:
    """The tree of *commit*, fetched into the store unless it is there already.

    Raises :class:`UnsafeInput`, :class:`Unresolvable` (no such commit or repository), :class:`NetworkError`,
    :class:`ToolMissing` (no git).
    """
    canonical = canonical_url(url)
    commit = commit.strip()
    if not _COMMIT.fullmatch(commit):
        raise UnsafeInput(
            f"{commit!r} is not a commit of {redact(canonical)}.", hint="Give the whole commit hash, 40 hex digits."
        )
    repository = store.root / "git" / hashlib.sha256(canonical.encode()).hexdigest()
    with _locked(repository):
        _initialise(repository)
        if not _has(repository, commit):
            with progress.task(f"Fetching {name or redact(canonical)}", unit="commits"):
                _fetch(repository, url.strip(), canonical, commit, mirrors)
        _fetch_submodules(repository, canonical, commit, mirrors, progress=progress, name=name or redact(canonical))
    return Tree(repository, canonical, commit, store)


def open_locked(
    url: str, commit: str, *, tree_sha256: str, store: Store, mirrors: Mirrors, progress: Progress = SILENT
) -> Tree:
    """The tree that a lock names, checked against its hash. Raises :class:`HashMismatch` as well."""
    tree = fetch_tree(url, commit, store=store, mirrors=mirrors, progress=progress)
    if (actual := tree.tree_digest()) != tree_sha256:
        raise HashMismatch(f"{redact(url)} at {commit}", expected=tree_sha256, actual=actual)
    return tree


def import_tree(files: Iterable[tuple[str, bytes]], *, url: str, sha256: str, store: Store) -> Tree:
    """The files of an archive as a tree of its own: *url* names it in errors, *sha256* is the archive's.

    They are read like a commit's from then on; nothing is ever unpacked to a folder. Raises :class:`UnsafeInput` (when
    the tree is listed) for names that leave it.
    """
    repository = store.root / "git" / "archives"
    reference = f"refs/archives/{sha256}"
    with _locked(repository):
        _initialise(repository)
        check = [*_command(repository), "rev-parse", "--verify", "--quiet", reference]
        if subprocess.run(check, capture_output=True, env=_environment()).returncode:
            with writing(repository):
                _import(repository, reference, files, url)
        commit = _git(repository, "rev-parse", "--verify", reference, what=url).decode().strip()
    return Tree(repository, url, commit, store)


def _import(repository: Path, reference: str, files: Iterable[tuple[str, bytes]], url: str) -> None:
    """One commit with these files (git-fast-import(1)): the same files give the same commit everywhere."""
    command = [*_command(repository), "fast-import", "--quiet", "--done"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()
    ) as process:
        assert process.stdin is not None
        process.stdin.write(f"commit {reference}\ncommitter cpack-build <> 0 +0000\ndata 0\n".encode())
        for path, content in sorted(files):
            quoted = path.replace("\\", "\\\\").replace('"', '\\"')
            process.stdin.write(f'M 100644 inline "{quoted}"\ndata {len(content)}\n'.encode() + content + b"\n")
        process.stdin.write(b"done\n")
        process.stdin.close()
    if process.returncode:
        raise UnsafeInput(f"{redact(url)}: its files cannot be kept as a tree.", hint="Leave the node out.")


# -- fetching ----------------------------------------------------------------------------------------------------------


def named_commit(url: str, reference: str, *, mirrors: Mirrors) -> str:
    """The commit that the tag or branch *reference* of the repository names now; a tag wins over a branch.

    Raises :class:`UnsafeInput`, :class:`NetworkError` and :class:`Unresolvable`, also when there is no such reference.
    """
    canonical = canonical_url(url)
    if not _REFERENCE.fullmatch(reference) or ".." in reference:
        raise UnsafeInput(f"{reference!r:.80} is no name of a tag or branch of {redact(canonical)}.")
    wanted = (f"refs/tags/{reference}^{{}}", f"refs/tags/{reference}", f"refs/heads/{reference}")
    problems = []
    for place, mapped in _places(url, canonical, mirrors):
        allowed = ["-c", "protocol.allow=never"]
        for protocol in ("https", "http", "ssh", *(("file",) if mapped else ())):
            allowed += ["-c", f"protocol.{protocol}.allow=always"]
        result = subprocess.run(
            [_program(), *allowed, "ls-remote", "--quiet", "--", place, *wanted],
            stdin=subprocess.DEVNULL, capture_output=True, env=_environment(),
        )  # fmt: skip
        if result.returncode == 0:
            lines = (line.split("\t") for line in result.stdout.decode("utf-8", "replace").splitlines())
            found = {line[1]: line[0] for line in lines if len(line) == 2}
            for name in wanted:
                if _COMMIT.fullmatch(found.get(name, "")):
                    return found[name]
            raise Unresolvable(f"{redact(canonical)} has no tag or branch {reference}.", hint="Name a commit.")
        problems.append(result.stderr.decode("utf-8", "replace"))
    raise _explained(canonical, reference, problems)


def _places(url: str, canonical: str, mirrors: Mirrors) -> list[tuple[str, bool]]:
    """Where to fetch from, in order, and whether the user mapped it there (then it may be local)."""
    spellings = [url, canonical, canonical + ".git"]
    if canonical == _COMFYUI_URL:
        spellings += ["https://github.com/comfyanonymous/ComfyUI", "https://github.com/comfyanonymous/ComfyUI.git"]
    places: list[tuple[str, bool]] = []
    for spelling in dict.fromkeys(spellings):
        if mirrors.is_mirrored(spelling):
            target = mirrors.apply(spelling)
            path = local_path(target)
            if path is None:
                places.append((target, True))
            elif path.is_dir():
                places.append((str(path.absolute()), True))
    if mirrors.is_offline:
        places = [(place, is_mapped) for place, is_mapped in places if local_path(place) is not None]
    if places:
        return list(dict.fromkeys(places))
    if mirrors.is_offline:
        raise NetworkError(
            f"{redact(canonical)} is not in the store, and --offline forbids to fetch it.",
            hint="Run it once without --offline, or name a clone of it with --mirror URL=PATH.",
        )
    mapped = [spelling for spelling in spellings if mirrors.is_mirrored(spelling)]
    if mapped:
        raise Unresolvable(
            f"{redact(canonical)} is mapped to {mirrors.apply(mapped[0])}, where no repository is.",
            hint="Correct --mirror, or clone the repository there.",
        )
    return [(url if url.startswith("ssh") or _SCP.fullmatch(url) else without_credentials(url), False)]


def _fetch(repository: Path, url: str, canonical: str, commit: str, mirrors: Mirrors) -> None:
    problems = []
    for place, mapped in _places(url, canonical, mirrors):
        protocols = ["https", "http", "ssh", *(["file"] if mapped else [])]
        allowed = ["-c", "protocol.allow=never"]
        for protocol in protocols:
            allowed += ["-c", f"protocol.{protocol}.allow=always"]
        # the commit alone; a server that refuses unadvertised objects gets asked for all it advertises
        attempts = (
            ["--depth=1", "--", place, f"{commit}:refs/cpack/{commit}"],
            ["--", place, "+refs/heads/*:refs/mirror/heads/*", "+refs/tags/*:refs/mirror/tags/*"],
        )
        for attempt in attempts:
            with writing(repository):
                result = subprocess.run(
                    [*_command(repository), *allowed, "fetch", "--no-tags", "--quiet", "--no-write-fetch-head",
                     "--no-recurse-submodules", *attempt],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment(),
                )  # fmt: skip
            if result.returncode == 0:
                break
            if result.returncode < 0:  # Ctrl-C reaches git as well, and must not begin the next attempt
                raise Unresolvable(
                    f"git was stopped by signal {-result.returncode} while it fetched {redact(canonical)}.",
                    hint="Run it again.",
                )
            problems.append(result.stderr.decode("utf-8", "replace"))
            if _unreachable(problems[-1]) or _no_space(problems[-1]):
                break
        if not _has(repository, commit) and _is_commit(repository, commit):
            _git(repository, "update-ref", f"refs/cpack/{commit}", commit, what=canonical)
        if _has(repository, commit):
            return
    raise _explained(canonical, commit, problems)


def _fetch_submodules(
    repository: Path, url: str, commit: str, mirrors: Mirrors, *, progress: Progress, name: str, depth: int = 0
) -> None:
    """Bring the commits of the submodules of *commit* into the same *repository*, and theirs.

    Which commit it is the tree says; ``.gitmodules`` says only where (gitmodules(5)), by the same rules as for nodes.
    """
    if depth == _DEEPEST:
        raise Unresolvable(
            f"{redact(url)} has submodules nested deeper than {_DEEPEST}.",
            hint="Leave the node out with nodes.exclude in cpack.yaml.",
        )
    # one listing of the top tells whether there is anything to do
    if not _git(repository, "ls-tree", "--full-tree", commit, "--", ".gitmodules", what=url):
        return
    said = subprocess.run(
        [*_command(repository), "config", "--null", f"--blob={commit}:.gitmodules", "--get-regexp",
         r"^submodule\..*\.(path|url)$"],
        capture_output=True, env=_environment(),
    ).stdout.decode("utf-8", "replace")  # fmt: skip
    places: dict[str, dict[str, str]] = {}
    for item in said.split("\0")[:-1]:
        key, _, value = item.partition("\n")
        section, _, field_name = key.rpartition(".")
        places.setdefault(section, {})[field_name] = value
    urls = {place["path"]: place["url"] for place in places.values() if {"path", "url"} <= place.keys()}
    listing = _git(repository, "ls-tree", "-r", "-z", "--full-tree", commit, what=url)
    for line in listing.split(b"\0")[:-1]:
        head, _, raw = line.partition(b"\t")
        _, kind, oid = head.decode("ascii").split()
        path = raw.decode("utf-8", "replace")
        if kind != "commit" or path not in urls:
            continue
        inner = _absolute(urls[path], url)
        canonical = canonical_url(inner)
        if not _has(repository, oid):
            with progress.task(f"Fetching {name}/{path}", unit="commits"):
                _fetch(repository, inner, canonical, oid, mirrors)
        _fetch_submodules(
            repository, canonical, oid, mirrors, progress=progress, name=f"{name}/{path}", depth=depth + 1
        )


def _absolute(url: str, parent: str) -> str:
    """A submodule's URL; ``./`` and ``../`` are meant from that of its *parent* (git-submodule(1), "add")."""
    if not url.startswith(("./", "../")):
        return url
    base = parent.rstrip("/")
    while url.startswith(("./", "../")):
        if url.startswith("../"):
            head, slash, tail = base.rpartition("/")
            if not slash or not tail or head.endswith(("/", ":")):
                raise UnsafeInput(f"{redact(parent)}: the submodule URL {url!r} leads above its server.")
            base = head
        url = url.split("/", 1)[1]
    return f"{base}/{url}"


def _explained(url: str, commit: str, problems: Sequence[str]) -> NetworkError | Unresolvable:
    text = redact(url)
    first = next((problem for problem in problems if problem.strip()), "")
    said = "; ".join(line.split(": ", 1)[-1] for line in redact(first).strip().splitlines()[:3])
    if any(_no_space(problem) for problem in problems):
        return Unresolvable(f"{text} could not be stored: {said}.", hint="Free some space and run it again.")
    if re.search(
        r"not found|does not exist|does not appear to be|could not read Username|Authentication failed", first
    ):
        return Unresolvable(
            f"The repository {text} cannot be read: {said}.",
            hint="Check its URL and your git credentials, or name a clone of it with --mirror URL=PATH.",
        )
    if _unreachable(first):
        return NetworkError(
            f"{text} cannot be reached: {said}.", hint="Try again, or name a clone of it with --mirror URL=PATH."
        )
    if not problems or re.search(r"not our ref|unadvertised object|remote ref", first):
        return Unresolvable(
            f"{text} has no commit {commit}.",
            hint="Push the commit, or name a clone that has it with --mirror URL=PATH.",
        )
    return Unresolvable(
        f"{text} at {commit} cannot be fetched: {said}.", hint="Name a whole clone of it with --mirror URL=PATH."
    )


def _unreachable(problem: str) -> bool:
    return bool(
        re.search(r"unable to access|Could not resolve|Failed to connect|Connection (refused|reset|timed out)", problem)
    )


def _no_space(problem: str) -> bool:
    return "No space left" in problem


def _initialise(repository: Path) -> None:
    if (repository / "HEAD").exists():
        return
    with writing(repository), TemporaryDirectory(prefix="new-", dir=repository.parent) as aside:
        # no template: no hook, no exclude file, nothing of this machine
        result = subprocess.run(
            [_program(), "init", "--quiet", "--bare", "--template=", f"{aside}/git"],
            capture_output=True, env=_environment(),
        )  # fmt: skip
        if result.returncode:
            said = result.stderr.decode("utf-8", "replace").strip()
            raise Unresolvable(f"The store's repository {repository} cannot be made: {said}.")
        shutil.rmtree(repository, ignore_errors=True)  # without HEAD it is no repository
        os.rename(f"{aside}/git", repository)


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """One fetch at a time into one repository, across threads and processes."""
    with writing(repository.parent):
        repository.parent.mkdir(parents=True, exist_ok=True)
        file = (repository.parent / (repository.name + ".lock")).open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # What git calls locks, and nobody holds: a git that was killed has left them, and every later one would fail.
        for left in repository.rglob("*.lock"):
            left.unlink(missing_ok=True)
        yield


def _has(repository: Path, commit: str) -> bool:
    """Whether the commit was fetched whole: only then the reference was written."""
    check = [*_command(repository), "rev-parse", "--verify", "--quiet", f"refs/cpack/{commit}"]
    return subprocess.run(check, capture_output=True, env=_environment()).stdout.decode().strip() == commit


def _is_commit(repository: Path, commit: str) -> bool:
    check = [*_command(repository), "cat-file", "-e", commit + "^{commit}"]
    return subprocess.run(check, capture_output=True, env=_environment()).returncode == 0


# -- git itself --------------------------------------------------------------------------------------------------------


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
                    [*_command(self._repository), "cat-file", "--batch"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment(),
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


def _git(repository: Path, *arguments: str, what: str) -> bytes:
    result = subprocess.run([*_command(repository), *arguments], capture_output=True, env=_environment())
    if result.returncode:
        said = redact(result.stderr.decode("utf-8", "replace").strip())
        raise Unresolvable(f"{redact(what)}: git {arguments[0]} failed: {said}.")
    return result.stdout


def _program() -> str:
    from shutil import which

    program = which("git")
    if program is None:
        raise ToolMissing("git is not installed, and the pack's trees come from git.", hint="Install git.")
    return program


def _command(repository: Path) -> list[str]:
    return [
        _program(), f"--git-dir={repository}", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0",
        "-c", "maintenance.auto=false", "-c", "core.fsyncMethod=batch", "-c", "http.lowSpeedLimit=1000",
        "-c", "http.lowSpeedTime=60", "-c", "transfer.credentialsInUrl=allow", "-c", "advice.detachedHead=false",
    ]  # fmt: skip


def _environment() -> dict[str, str]:
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


# -- names -------------------------------------------------------------------------------------------------------------


def _checked_path(raw: bytes, url: str) -> str:
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UnsafeInput(f"{redact(url)}: the file name {raw!r} is not UTF-8.") from None
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" or "\n" in part for part in parts):
        raise UnsafeInput(f"{redact(url)}: the file name {path!r} leaves the tree or is git's own.")
    return path


def _check_link(path: str, target: bytes, url: str) -> None:
    depth = len(PurePosixPath(path).parent.parts)
    text = target.decode("utf-8", "surrogateescape")
    fine = not text.startswith("/") and "\0" not in text
    for part in PurePosixPath(text).parts:
        depth += -1 if part == ".." else 1
        fine = fine and depth >= 0
    if not fine:
        raise UnsafeInput(
            f"{redact(url)}: the link {path!r} leads out of the tree, to {text!r}.",
            hint="Leave the node out with nodes.exclude in cpack.yaml, or use a fork without the link.",
        )
