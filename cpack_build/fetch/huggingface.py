"""Hugging Face: where a file with a known hash lies, from an address, a name, or the cache on this machine.

It has no look-up by hash, so a repository is found by name and then asked for its files: one of them must be stored
(LFS) under that very sha256. The cache of ``huggingface_hub`` names its blobs by it, and needs no network.
Environment variables are those of that library: ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_TOKEN_PATH``, ``HF_HOME``. Where it
is installed (extra ``hf``), the login is its own, and bytes come from Xet storage (:mod:`.xet`). Why no more of it is
used: docs/decisions/045-hugging-face.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from cpack_build.errors import CpackError, NetworkError
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import HttpTransport, Response
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.remote import HttpFile
from cpack_build.fetch.urls import redact
from cpack_build.fetch.xet import Grant, Xet, XetFile, grant_of, hash_of, is_installed

if TYPE_CHECKING:
    from cpack_build.fetch.folders import Wanted

__all__ = [
    "HuggingFace",
    "authorization",
    "cache_folders",
    "endpoint",
    "in_cache",
    "in_repository",
    "parse_address",
    "search",
    "source",
    "token_for",
]

_SITE = "https://huggingface.co"
_ADDRESS = re.compile(r"/((?:datasets/)?[\w.-]+/[\w.-]+)/(?:resolve|blob|raw)/([\w.%-]+)/(.+)")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAMES_TRIED = 5
"""Repositories looked into for one name."""


def source(repo: str, commit: str, path: str) -> dict[str, Any]:
    """A file of a repository, as a pack says it. *repo* begins with ``datasets/`` where it is one."""
    below = f"{quote(commit, safe='')}/{quote(path)}"
    return {
        "download_url": f"{_SITE}/{repo}/resolve/{below}",
        "url": f"{_SITE}/{repo}/blob/{below}",
        "repo": repo,
        "commit": commit,
        "path": path,
        "source": "huggingface",
    }


def parse_address(url: str) -> tuple[str, str, str] | None:
    """Repository, revision and path of a file's address; ``None`` for other addresses."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    own = (*_HOSTS, urlsplit(endpoint()).hostname)
    if parts.hostname not in own:
        return None
    match = _ADDRESS.fullmatch(parts.path)
    if match is None:
        return None
    path = unquote(match[3])
    return None if ".." in path.split("/") or not path.isprintable() else (match[1], unquote(match[2]), path)


def in_repository(repo: str, revision: str, *, sha256: str, asker: Asker) -> dict[str, Any] | None:
    """The file with that hash in a repository, pinned to the commit that *revision* now is."""
    answer = _asked(asker, f"{_api(repo)}/revision/{quote(revision, safe='')}?blobs=true")
    if not isinstance(answer, Mapping):
        return None
    commit, files = answer.get("sha"), answer.get("siblings")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(files, list):
        return None
    for file in files:
        lfs = file.get("lfs") if isinstance(file, Mapping) else None
        path = file.get("rfilename") if isinstance(file, Mapping) else None
        if not isinstance(lfs, Mapping) or lfs.get("sha256") != sha256:
            continue
        if isinstance(path, str) and path.isprintable() and ".." not in path.split("/"):
            return source(repo, commit, path)
    return None


def terms_of(repo: str, *, asker: Asker) -> tuple[bool | None, str | None]:
    """Whether a repository is gated, and its licence, as far as the hub says."""
    answer = _asked(asker, _api(repo))
    if not isinstance(answer, Mapping):
        return None, None
    gated = answer.get("gated")
    tags = answer.get("tags")
    licences = (
        [tag.removeprefix("license:") for tag in tags if isinstance(tag, str) and tag.startswith("license:")]
        if isinstance(tags, list)
        else []
    )
    return (gated not in (False, None) if "gated" in answer else None), licences[0][:80] if licences else None


def search(name: str, *, sha256: str, asker: Asker) -> dict[str, Any] | None:
    """The file with that hash in a repository that is called about like the file *name*."""
    stem = Path(name).stem
    words = [
        stem,
        *(part for part in [re.split(r"[-_.](?:fp\d+|bf16|q\d|v\d|e\d+m\d+|pruned|emaonly)", stem)[0]] if part),
    ]
    tried: set[str] = set()
    for word in dict.fromkeys(words):
        question = f"{endpoint()}/api/models?search={quote(word, safe='')}&limit={_NAMES_TRIED}&sort=downloads"
        answer = _asked(asker, question)
        for item in answer if isinstance(answer, list) else ():
            repo = item.get("id") if isinstance(item, Mapping) else None
            if not isinstance(repo, str) or repo in tried or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
                continue
            if len(tried) >= _NAMES_TRIED:
                return None
            tried.add(repo)
            if (found := in_repository(repo, "main", sha256=sha256, asker=asker)) is not None:
                return found
    return None


def _api(repo: str) -> str:
    """Where the hub answers about a repository (https://huggingface.co/docs/hub/api)."""
    kind, name = ("datasets", repo.removeprefix("datasets/")) if repo.startswith("datasets/") else ("models", repo)
    return f"{endpoint()}/api/{kind}/{name}"


def _asked(asker: Asker, url: str) -> Any:
    return asker.ask(url, authorize=authorization)[1]


@dataclass(frozen=True)
class HuggingFace:
    """The place: a file by its address, and if it is there no more by its hash in the repository as it is now. Each is
    read from Xet storage if it can be."""

    mirrors: Mirrors
    http: HttpTransport
    asker: Asker
    xet: Xet = field(default_factory=Xet)

    def knows(self, url: str) -> bool:
        """Whether *url* is a file's address there."""
        return parse_address(url) is not None

    def offers(self, wanted: Wanted) -> Iterator[HttpFile | XetFile | NetworkError]:
        named = [url for url in wanted.urls if not self.mirrors.is_mirrored(url)]
        addresses = [address for address in map(parse_address, named) if address is not None]
        if addresses:
            try:
                token_for(f"{endpoint()}/", strict=True)
            except NetworkError as error:
                yield error
        for repo, revision, path in addresses:
            yield from self._ways(repo, revision, path, wanted.sha256)
        for repo in dict.fromkeys(repo for repo, _, _ in addresses):
            found = in_repository(repo, "main", sha256=wanted.sha256, asker=self.asker)
            if found is not None and (repo, found["commit"], found["path"]) not in addresses:
                yield from self._ways(repo, found["commit"], found["path"], wanted.sha256)

    def _ways(self, repo: str, revision: str, path: str, sha256: str) -> Iterator[HttpFile | XetFile]:
        if is_installed() and (file := self._in_xet(repo, revision, path, sha256)) is not None:
            yield file
        yield self._file(repo, revision, path)

    def _in_xet(self, repo: str, revision: str, path: str, sha256: str) -> XetFile | None:
        api, commit = _api(repo), quote(revision, safe="")
        answer = self.asker.post(f"{api}/paths-info/{commit}", {"paths": [path]}, authorize=authorization)
        if (known := hash_of(answer, path, sha256=sha256)) is None:
            return None

        def ask() -> Grant:
            return grant_of(_asked(self.asker, f"{api}/xet-read-token/{commit}"), what=f"{_SITE}/{repo}")

        return XetFile(self.xet, ask, *known, url=f"{endpoint()}/{repo}/resolve/{commit}/{quote(path)}")

    def _file(self, repo: str, revision: str, path: str) -> HttpFile:
        url = f"{endpoint()}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"
        headers = authorization(url)

        def explain(response: Response) -> CpackError | None:
            return _refusal(repo, response, has_token=bool(headers))

        return HttpFile(url, self.http, headers, explain)


def _refusal(repo: str, response: Response, *, has_token: bool) -> CpackError | None:
    """What the hub means by its status and ``X-Error-Code`` (huggingface_hub, ``utils/_http.py``)."""
    code = response.headers.get("x-error-code", "")
    page = f"{_SITE}/{repo}"
    login = "set HF_TOKEN to a token with read access (https://huggingface.co/settings/tokens)"
    if code == "GatedRepo":
        if has_token:
            return NetworkError(
                f"{page} is gated, and your token has no access to it.",
                hint=f"Open {page} with that account, accept its terms, and run it again when access is granted.",
            )
        return NetworkError(
            f"{page} is gated: its owner wants its terms accepted before a download.",
            hint=f"Open {page}, log in and accept its terms; then {login}, and run it again. Or name a copy that you "
            "have with --models DIR.",
        )
    if code == "RevisionNotFound":
        return NetworkError(f"{page} has no such revision any more.", hint="Name a copy with --models DIR.")
    if code == "EntryNotFound":
        return NetworkError(f"{page} has no such file any more.", hint="Name a copy with --models DIR.")
    if response.status in (401, 403) or code == "RepoNotFound":
        problem = "and your token has no access to it" if has_token else "or is private"
        return NetworkError(
            f"{page} is not there, {problem}.", hint=f"Correct the address, or {login} of an account that may read it."
        )
    return None


def endpoint() -> str:
    """``HF_ENDPOINT`` if set, else the public hub."""
    return (os.environ.get("HF_ENDPOINT") or _SITE).rstrip("/")


def token_for(url: str, *, strict: bool = False) -> str | None:
    """The user's token if *url* is on the hub's own host, and nobody listens on the way there. A login that fails
    counts as none; if *strict* it raises :class:`NetworkError`."""
    parts, own = urlsplit(url), urlsplit(endpoint())
    if parts.netloc != own.netloc or not (parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1")):
        return None
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token and os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0") in ("", "0"):
        try:
            token = _of_the_login()
        except NetworkError:  # what is public needs none
            if strict:
                raise
    token = token.strip()
    return token if token.isascii() and token.isprintable() and token else None


def _of_the_login() -> str:
    """The token of ``hf auth login``: from ``huggingface_hub`` where it is installed, which renews one that ends soon
    and can exchange that of a CI; else from its file."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "huggingface"
    )
    path = Path(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))
    if find_spec("huggingface_hub") is not None:
        from huggingface_hub import constants, get_token

        if Path(constants.HF_TOKEN_PATH) == path:  # it reads the environment once, when it is imported
            try:
                return get_token() or ""
            except Exception as error:
                raise NetworkError(
                    f"huggingface_hub cannot log in: {redact(str(error))}.", hint="Set HF_TOKEN, or log in anew."
                ) from error
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text("utf-8")
    return ""


def authorization(url: str) -> dict[str, str]:
    """The header that proves who asks for *url*, if :func:`token_for` has a token for it."""
    token = token_for(url)
    return {"Authorization": f"Bearer {token}"} if token else {}


def cache_folders() -> tuple[Path, ...]:
    """Where ``huggingface_hub`` keeps its cache on this machine, by its own environment variables."""
    places = [os.environ.get("HF_HUB_CACHE"), os.environ.get("HUGGINGFACE_HUB_CACHE")]
    places.append(os.path.join(os.environ["HF_HOME"], "hub") if os.environ.get("HF_HOME") else None)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    places.append(os.path.join(cache, "huggingface", "hub"))
    return tuple(Path(place) for place in dict.fromkeys(filter(None, places)))


def in_cache(sha256: str, folders: tuple[Path, ...]) -> dict[str, Any] | None:
    """The file with that hash, as the caches in *folders* know it: ``blobs/<sha256>``, linked from a commit's files."""
    for folder in folders:
        for repository in sorted(folder.glob("*--*--*")):
            if not (repository / "blobs" / sha256).exists():
                continue
            kind, _, name = repository.name.partition("--")
            repo = {"models": "", "datasets": "datasets/"}.get(kind)
            if repo is None:
                continue
            for commit, path in _linked(repository, sha256):
                return source(repo + name.replace("--", "/", 1), commit, path)
    return None


def _linked(repository: Path, sha256: str) -> Iterator[tuple[str, str]]:
    """Commits, and paths in them, that a blob of the cache is linked from."""
    for commit in sorted((repository / "snapshots").glob("*")):
        if not _COMMIT.fullmatch(commit.name):
            continue
        for path in sorted(commit.rglob("*")):
            if path.is_symlink() and os.path.basename(os.readlink(path)) == sha256:
                yield commit.name, path.relative_to(commit).as_posix()
