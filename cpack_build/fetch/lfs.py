"""Git LFS: files that a repository has only pointers to, by hash from the store, a clone here, or the remote's server.

The server is asked as Git LFS does (the batch API, https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md):
over HTTP beside the repository, wherever its own configuration would lead. A pointer names the sha256 and the size of
the file, so what comes is proved by them, and the content hash of a tree needs no byte of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from cpack_build.errors import CpackError, NetworkError, Unresolvable, together
from cpack_build.fetch.http import PostTransport, Sources, adopt_verified, download
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.submodules import submodule_urls
from cpack_build.fetch.tree import Tree
from cpack_build.fetch.urls import check_http, redact
from cpack_build.progress import SILENT, Progress

__all__ = ["Pointer", "read_pointer", "with_lfs"]

_TYPE = "application/vnd.git-lfs+json"
_AT_ONCE = 100
"""Objects in one question."""
_ANSWER_LIMIT = 8 << 20
_SCP = re.compile(r"[^@/:]+@(?P<host>[^:/]+):(?P<path>.+)")
_OID = re.compile(r"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(r"^size ([0-9]{1,18})$", re.MULTILINE)


@dataclass(frozen=True)
class Pointer:
    """What a repository holds in place of a file: its *sha256* (hex), and its *size* in bytes."""

    sha256: str
    size: int


def read_pointer(data: bytes) -> Pointer | None:
    """The pointer that *data* is (git-lfs, docs/spec.md), or ``None``; those with extensions are not read."""
    text = data.decode("utf-8", "replace")
    oid, size = _OID.search(text), _SIZE.search(text)
    if oid is None or size is None or re.search(r"^ext-", text, re.MULTILINE):
        return None
    return Pointer(oid[1], int(size[1]))


def with_lfs(tree: Tree, *, name: str = "", store: Store, sources: Sources, progress: Progress = SILENT) -> Tree:
    """*tree* with the files that its Git LFS pointers stand for; *name* is what people are told that it is.

    Raises :class:`Unresolvable` naming every file that no one has, :class:`NetworkError`, :class:`HashMismatch`.
    """
    paths = tree.lfs_pointers()
    if not paths:
        return tree
    name = name or redact(tree.url)
    pointers, by_remote = _pointers(tree, paths, name)
    found: dict[str, StoredFile] = {}
    errors: list[CpackError] = []
    for remote, wanted in by_remote.items():
        for pointer in wanted.values():
            here = store.find(pointer.sha256) or _in_clone(pointer, remote, store, sources)
            if here is not None:
                found[pointer.sha256] = here
        left = {path: pointer for path, pointer in wanted.items() if pointer.sha256 not in found}
        try:
            found |= _fetched(left, remote, name, store, sources, progress, errors)
        except (NetworkError, Unresolvable) as error:
            errors.append(error)
    if errors:
        raise together(errors)
    return replace(tree, lfs={path: found[pointer.sha256] for path, pointer in pointers.items()})


def _pointers(tree: Tree, paths: Sequence[str], name: str) -> tuple[dict[str, Pointer], dict[str, dict[str, Pointer]]]:
    """The pointers by path, and again by the remote that should have their files: a submodule has its own."""
    files = {file.path: file for file in tree.files()}
    remotes = {"": tree.url}
    for path in sorted((path for path in files if path.rpartition("/")[2] == ".gitmodules"), key=len):
        folder = path.removesuffix(".gitmodules")
        if folder in remotes:
            inner = submodule_urls(tree.repository, files[path].oid, parent=remotes[folder])
            remotes |= {f"{folder}{below}/": url for below, url in inner.items()}
    pointers, by_remote = {}, dict[str, dict[str, Pointer]]()
    with tree.reader() as read:
        for path in paths:
            if (pointer := read_pointer(read(files[path].oid))) is None:
                raise Unresolvable(
                    f"{name}: {path} is a Git LFS pointer of a kind that is not known.",
                    hint="Leave the node out with nodes.exclude in cpack.yaml.",
                )
            pointers[path] = pointer
            remote = remotes[max((prefix for prefix in remotes if path.startswith(prefix)), key=len)]
            by_remote.setdefault(remote, {})[path] = pointer
    return pointers, by_remote


def _in_clone(pointer: Pointer, remote: str, store: Store, sources: Sources) -> StoredFile | None:
    """The file in a clone on this machine that the user mapped *remote* to."""
    for spelling in (remote, f"{remote}.git"):
        folder = local_path(sources.mirrors.apply(spelling)) if sources.mirrors.is_mirrored(spelling) else None
        for inside in (".git/lfs/objects", "lfs/objects"):
            if folder is None:
                continue
            path = folder / inside / pointer.sha256[:2] / pointer.sha256[2:4] / pointer.sha256
            if path.is_file():
                return adopt_verified(path, store=store, sha256=pointer.sha256, what=f"The Git LFS file {path}")
    return None


def _fetched(
    wanted: Mapping[str, Pointer], remote: str, name: str, store: Store, sources: Sources, progress: Progress,
    errors: list[CpackError],
) -> dict[str, StoredFile]:  # fmt: skip
    """The files of *wanted* from the server of *remote*, by hash; what it has not is added to *errors*."""
    found: dict[str, StoredFile] = {}
    objects = {pointer.sha256: (path, pointer) for path, pointer in wanted.items()}
    if not objects:
        return found
    listed = list(objects.values())
    for start in range(0, len(listed), _AT_ONCE):
        some = listed[start : start + _AT_ONCE]
        for sha256, answer in _asked([pointer for _, pointer in some], _server(remote), name, sources):
            if sha256 not in objects:
                continue
            path, pointer = objects.pop(sha256)
            try:
                url, headers = _download(answer, f"{name}/{path}")
                found[sha256] = download(
                    url, store=store, sources=sources, sha256=sha256, size=pointer.size, what=f"{name}/{path}",
                    headers=headers, progress=progress,
                )  # fmt: skip
            except (NetworkError, Unresolvable) as error:
                errors.append(error)
    errors += [_not_there(f"{name}/{path}", "it says nothing of it") for path, _ in objects.values()]
    return found


def _server(remote: str) -> str:
    """Where the batch API of *remote* lies (docs/api/server-discovery.md)."""
    match = _SCP.fullmatch(remote)
    if match is not None:
        remote = f"https://{match['host']}/{match['path']}"
    elif remote.startswith("ssh://"):
        parts = urlsplit(remote)
        remote = f"https://{parts.hostname}{parts.path}"
    return f"{remote.removesuffix('.git')}.git/info/lfs"


def _asked(
    pointers: Sequence[Pointer], server: str, name: str, sources: Sources
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the server says of each object, by hash."""
    target = sources.mirrors.apply(f"{server}/objects/batch")
    if sources.mirrors.is_offline or not isinstance(sources.http, PostTransport):
        raise NetworkError(
            f"Files of {name} that Git LFS keeps are not in the store, and --offline forbids to ask for them.",
            hint="Run it once without --offline, or map the repository to a clone that has them with --mirror.",
        )
    if local_path(target) is not None:
        raise Unresolvable(
            f"The clone that {name} is mapped to lacks files that Git LFS keeps.",
            hint="Run `git lfs fetch` in that clone, or drop --mirror.",
        )
    check_http(target, what=name)
    body = {
        "operation": "download",
        "transfers": ["basic"],
        "hash_algo": "sha256",
        "objects": [{"oid": pointer.sha256, "size": pointer.size} for pointer in pointers],
    }
    headers = {"Accept": _TYPE, "Content-Type": _TYPE}
    try:
        with sources.http.post(target, json.dumps(body).encode(), headers=headers) as response:
            if response.status != 200:
                raise _refused(server, name, response.status)
            data = bytearray()
            for chunk in response.chunks:
                data += chunk
                if len(data) > _ANSWER_LIMIT:
                    raise Unresolvable(f"The Git LFS server {redact(server)} answers without end.")
    except (ConnectionError, TimeoutError) as error:
        raise NetworkError(
            f"The Git LFS server of {name}, {redact(server)}, does not answer: {error}.",
            hint="Try again, or map the repository to a clone that has its files with --mirror.",
        ) from error
    try:
        document = json.loads(bytes(data))
    except (ValueError, RecursionError):
        document = None
    objects = document.get("objects") if isinstance(document, dict) else None
    if not isinstance(objects, list):
        raise Unresolvable(
            f"{redact(server)} is no Git LFS server.", hint="Map the repository to a clone that has its files."
        )
    for item in objects:
        if isinstance(item, dict) and isinstance(item.get("oid"), str):
            yield item["oid"], item


def _download(answer: Mapping[str, Any], what: str) -> tuple[str, dict[str, str]]:
    """Address and headers of an object's download."""
    error = answer.get("error")
    if isinstance(error, dict):
        raise _not_there(what, f"{redact(str(error.get('message', '')))[:200]} ({error.get('code')!s:.10})")
    actions = answer.get("actions")
    action = actions.get("download") if isinstance(actions, dict) else None
    href = action.get("href") if isinstance(action, dict) else None
    if not isinstance(action, dict) or not isinstance(href, str):
        raise _not_there(what, "it names no address")
    headers = action.get("header")
    sent = {
        key: value
        for key, value in (headers.items() if isinstance(headers, dict) else ())
        if isinstance(key, str) and isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]{1,60}", key)
        and value.isprintable()
    }  # fmt: skip
    return check_http(href, what=what), sent


def _not_there(what: str, said: str) -> Unresolvable:
    return Unresolvable(
        f"The Git LFS file {what} is not on the repository's server: {said}.",
        hint="Push it with `git lfs push`, map the repository to a clone that has it with --mirror, or leave the node "
        "out with nodes.exclude in cpack.yaml.",
    )


def _refused(server: str, name: str, status: int) -> NetworkError | Unresolvable:
    if status in (401, 403):
        return NetworkError(
            f"The Git LFS server of {name}, {redact(server)}, refuses access (HTTP {status}).",
            hint="Put your credentials for that host into ~/.netrc, or map the repository to a clone with --mirror.",
        )
    if status in (404, 405, 410, 501):
        return Unresolvable(
            f"{name} has files that Git LFS keeps, and there is no Git LFS server at {redact(server)} (HTTP {status}).",
            hint="Map the repository to a clone that has them with --mirror.",
        )
    return NetworkError(f"The Git LFS server {redact(server)} answered HTTP {status}.", hint="Try again later.")
