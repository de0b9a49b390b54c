"""Git trees by commit, without a checkout and without running anything that a repository brings along.

Each URL has a bare repository in the store, into which just the wanted commit is fetched (all branches and tags where a
server refuses that); submodules are fetched by the same rules, into the same repository. URLs come from documents, so
only http(s) and ssh are spoken; a local repository only where the user mapped a URL to it.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cpack_build.errors import HashMismatch, NetworkError, Unresolvable, UnsafeInput, writing
from cpack_build.fetch.http import Sources
from cpack_build.fetch.lfs import with_lfs
from cpack_build.fetch.mirrors import Mirrors, local_path
from cpack_build.fetch.patch import Patch, patched
from cpack_build.fetch.repository import (
    git_command,
    git_environment,
    git_output,
    git_program,
    has_commit,
    initialise,
    is_commit,
    locked,
)
from cpack_build.fetch.store import Store
from cpack_build.fetch.submodules import Submodule, submodules_of
from cpack_build.fetch.tree import SUBMODULE_DEPTH, Tree
from cpack_build.fetch.urls import redact, without_credentials
from cpack_build.progress import SILENT, Progress

__all__ = ["canonical_url", "fetch_submodule", "fetch_tree", "named_commit", "open_locked"]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_SCP = re.compile(r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^-\s:][^\s]*)")
_URL = re.compile(r"(?P<scheme>https?|ssh)://(?P<host>[^/\s-][^/\s]*)/(?P<path>[^\s\x00-\x1f]+)")
_COMFYUI = re.compile(r"https://github\.com/(comfyanonymous|Comfy-Org)/ComfyUI", re.IGNORECASE)
_COMFYUI_URL = "https://github.com/Comfy-Org/ComfyUI"


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


def fetch_tree(
    url: str,
    commit: str,
    *,
    store: Store,
    mirrors: Mirrors,
    name: str = "",
    submodules: bool = True,
    progress: Progress = SILENT,
) -> Tree:
    """The tree of *commit*, fetched into the store unless it is there already, with its *submodules* or without.

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
    with locked(repository):
        initialise(repository)
        if not has_commit(repository, commit):
            with progress.task(f"Fetching {name or redact(canonical)}", unit="commits"):
                _fetch(repository, url.strip(), canonical, commit, mirrors)
        tree = Tree(repository, canonical, commit, store)
        if submodules:
            _fetch_submodules(tree, mirrors, progress=progress, name=name or redact(canonical))
    return tree


def fetch_submodule(
    tree: Tree, submodule: Submodule, *, mirrors: Mirrors, name: str, progress: Progress = SILENT
) -> Tree:
    """The tree of *submodule* of *tree*, without its own submodules, fetched into the same repository. Raises what
    :func:`fetch_tree` raises."""
    with locked(tree.repository):
        return _fetch_submodule(tree, submodule, mirrors, progress=progress, name=name)


def open_locked(
    url: str,
    commit: str,
    *,
    tree_sha256: str,
    patch: Patch | None = None,
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> Tree:
    """The tree that a lock names, with *patch* applied and Git LFS's files in it, checked against its hash.

    Raises :class:`HashMismatch`, and what :func:`fetch_tree`, :func:`~cpack_build.fetch.patch.patched` and
    :func:`~cpack_build.fetch.lfs.with_lfs` raise.
    """
    tree = fetch_tree(url, commit, store=store, mirrors=sources.mirrors, progress=progress)
    if patch is not None:
        tree = patched(tree, patch, store=store)
    tree = with_lfs(tree, store=store, sources=sources, progress=progress)
    if (actual := tree.tree_digest()) != tree_sha256:
        raise HashMismatch(f"{redact(url)} at {commit}", expected=tree_sha256, actual=actual)
    return tree


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
            [git_program(), *allowed, "ls-remote", "--quiet", "--", place, *wanted],
            stdin=subprocess.DEVNULL, capture_output=True, env=git_environment(),
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
                    [*git_command(repository), *allowed, "fetch", "--no-tags", "--quiet", "--no-write-fetch-head",
                     "--no-recurse-submodules", *attempt],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=git_environment(),
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
        if not has_commit(repository, commit) and is_commit(repository, commit):
            git_output(repository, "update-ref", f"refs/cpack/{commit}", commit, what=canonical)
        if has_commit(repository, commit):
            return
    raise _explained(canonical, commit, problems)


def _fetch_submodules(tree: Tree, mirrors: Mirrors, *, progress: Progress, name: str, depth: int = 0) -> None:
    """Bring the commits of the submodules of *tree* into the same repository, and theirs.

    Which commit it is the tree says; ``.gitmodules`` says only where (gitmodules(5)), by the same rules as for nodes.
    """
    if depth == SUBMODULE_DEPTH:
        raise Unresolvable(
            f"{redact(tree.url)} has submodules nested deeper than {SUBMODULE_DEPTH}.",
            hint="Leave the node out with nodes.exclude in cpack.yaml.",
        )
    for submodule in submodules_of(tree.repository, tree.commit, parent=tree.url):
        below = f"{name}/{submodule.path}"
        inner = _fetch_submodule(tree, submodule, mirrors, progress=progress, name=below)
        _fetch_submodules(inner, mirrors, progress=progress, name=below, depth=depth + 1)


def _fetch_submodule(tree: Tree, submodule: Submodule, mirrors: Mirrors, *, progress: Progress, name: str) -> Tree:
    canonical = canonical_url(submodule.url)
    if not has_commit(tree.repository, submodule.commit):
        with progress.task(f"Fetching {name}", unit="commits"):
            _fetch(tree.repository, submodule.url, canonical, submodule.commit, mirrors)
    return replace(tree, url=canonical, commit=submodule.commit)


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
