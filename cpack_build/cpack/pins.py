"""Values of a snapshot, whoever wrote it, checked one by one: versions, commits, git addresses, folder names, Python
requirements, models and where they may be had.

What has a wrong type or value is an error that names the field of its document; a name or address that leaves its place
is refused; what cannot be carried over but stops nothing becomes a note for people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NoReturn
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cpack_build.cpack.archive import unsafe_name
from cpack_build.cpack.documents import Field
from cpack_build.cpack.schema import COMFYUI_URL, GitPin, ModelEntry, NodePin
from cpack_build.errors import UnsafeInput

__all__ = [
    "comfyui_pin",
    "commit_of",
    "download_url",
    "git_url",
    "models_of",
    "named_apart",
    "node_name",
    "node_pin",
    "python_version",
    "requirements_of",
    "sha256_of",
    "without_secrets",
]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYTHON = re.compile(r"(3\.[0-9]{1,2})(\.[0-9A-Za-z.+-]*)?")
_REPO = re.compile(r"(datasets/)?[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_SCP_LIKE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:(?!//)[^\s:]+")
_EGG = re.compile(r"-e\s+(\S+?)#egg=([A-Za-z0-9._-]+)(\S*)")
_VERSION_OF_WHEEL = re.compile(r"/[^/]+?-([0-9][^-/]*)-[^/]+\.whl$")
_SECRET_PARAMETERS = frozenset({"token", "api_key", "apikey", "key", "access_token", "signature"})


# -- Python and git ----------------------------------------------------------------------------------------------------


def python_version(field: Field) -> str:
    """``3.11`` of ``3.11`` or ``3.11.9``."""
    match = _PYTHON.fullmatch(field.text().strip())
    if match is None:
        field.wrong('a Python version such as "3.11"')
    return match[1]


def comfyui_pin(field: Field) -> GitPin | None:
    """ComfyUI at the commit in *field*; ``None`` for null or empty, as from a ComfyUI without git."""
    if field.value is None or (isinstance(field.value, str) and not field.value.strip()):
        return None
    return GitPin(url=COMFYUI_URL, commit=commit_of(field))


def commit_of(field: Field) -> str:
    """A whole commit; ComfyUI-Manager's may end in a newline."""
    commit = field.text().strip().lower()
    if not _COMMIT.fullmatch(commit):
        field.wrong("a commit of 40 hex digits")
    return commit


def git_url(url: str, field: Field) -> str:
    """*url* without credentials, query and fragment. Raises :class:`UnsafeInput` unless it is http(s) or ssh."""
    url = url.strip()
    if _SCP_LIKE.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        field.refuse(f"{url!r:.80} is not a URL")
    if parts.scheme not in ("https", "http", "ssh", "git+https", "git+ssh") or not host or re.search(r"\s", url):
        raise UnsafeInput(
            f"{field.document}: {field.path}: {url!r:.80} is not a git address over https or ssh.",
            hint="Give the node a remote that others can reach, and make the pack again.",
        )
    # A password or token in a remote's address belongs to the person who made the pack.
    user = f"{parts.username}@" if parts.scheme.endswith("ssh") and parts.username else ""
    netloc = user + _host_and_port(host, port)
    return urlunsplit((parts.scheme.removeprefix("git+"), netloc, parts.path, "", ""))


def _host_and_port(host: str, port: int | None) -> str:
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")


def node_pin(url: str, item: Field, commit: Field, disabled: bool, folder: str) -> tuple[str, NodePin | None]:
    """The pin, or ``None`` for a node without remote, and what to call it."""
    if not url.strip():
        return folder or item.path, None
    url = git_url(url, item)
    name = node_name(folder or re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git"), item)
    return name, NodePin(name=name, url=url, commit=commit_of(commit), disabled=disabled)


def node_name(name: str, field: Field) -> str:
    """*name* as one safe path component. Raises :class:`UnsafeInput`."""
    if problem := unsafe_name(name) or ("holds a '/'" if "/" in name else ""):
        raise UnsafeInput(
            f"{field.document}: {field.path}: the node name {name!r:.80} {problem}.",
            hint="It would be written outside custom_nodes. Do not use this pack.",
        )
    return name


def named_apart(nodes: Iterable[tuple[str, NodePin | None]], notes: list[str]) -> tuple[NodePin, ...]:
    """Give the second of two enabled nodes of one name another folder, as the workspace must have had."""
    pins: list[NodePin] = []
    taken: set[str] = set()
    for name, pin in nodes:
        if pin is None:
            notes.append(f"Custom node {name} has no git remote, so its code is not in the pack; it is left out.")
            continue
        if not pin.disabled:
            number = 2
            while pin.name.casefold() in taken:
                pin = pin.model_copy(update={"name": f"{name}-{number}"})
                number += 1
            taken.add(pin.name.casefold())
            if pin.name != name:
                notes.append(f"Two custom nodes are called {name}; the one from {pin.url} becomes {pin.name}.")
        pins.append(pin)
    return tuple(sorted(pins, key=lambda pin: (pin.name, pin.url)))


# -- Python packages ---------------------------------------------------------------------------------------------------


def requirements_of(lines: Iterable[tuple[Field, str]], notes: list[str]) -> tuple[str, ...]:
    """The lines of a ``requirements.txt`` as PEP 508, sorted by name; the first of each name counts."""
    found: dict[str, str] = {}
    for field, line in lines:
        # pip's own rules for its files: a comment begins after a space, options may follow a requirement.
        text = re.split(r"\s#|\s--hash\b", line.strip())[0].rstrip("\\ ")
        if match := _EGG.match(text):
            text = f"{match[2]} @ {match[1]}"
        if not text or text.startswith(("#", "--hash")):
            continue
        if text.startswith("-"):
            notes.append(f"{text!r:.80} among the Python packages is an option of pip, not a package; it is left out.")
            continue
        requirement = _requirement(text, field, notes)
        found.setdefault(canonicalize_name(requirement.name), str(requirement))
    return tuple(found[name] for name in sorted(found))


def _requirement(text: str, field: Field, notes: list[str]) -> Requirement:
    try:
        requirement = Requirement(text)
    except (InvalidRequirement, RecursionError) as error:
        field.refuse(f"{text!r:.80} is not a Python requirement ({str(error).splitlines()[0]:.80})")
    if requirement.url is None:
        return requirement
    scheme = requirement.url.partition(":")[0].lower()
    if scheme in ("file", "git+file"):
        version = _VERSION_OF_WHEEL.search(requirement.url)
        pinned = f"{requirement.name}=={version[1]}" if version else requirement.name
        notes.append(f"{requirement.name} was installed from a file that is not in the pack; {pinned} is used instead.")
        try:
            return Requirement(pinned)
        except InvalidRequirement:
            return Requirement(requirement.name)
    if scheme not in ("https", "http", "git+https", "git+ssh"):
        raise UnsafeInput(
            f"{requirement.name} comes from {requirement.url!r:.80}, which is neither https nor git over https or ssh.",
            hint="Install it from an index or an https address in the workspace, and make the pack again.",
        )
    requirement.url = without_secrets(requirement.url)
    return requirement


# -- models ------------------------------------------------------------------------------------------------------------


def models_of(items: Iterable[Field], notes: list[str]) -> Iterable[ModelEntry]:
    """Models as packs list them. One with a bad name is refused, or left out with a note if it was not chosen."""
    seen: set[str] = set()
    for item in items:
        disabled = item.get("disabled").boolean()
        written = item.get("filename").text()
        # Windows packs write \; PurePosixPath folds a/./b and a//b, and keeps the .. that unsafe_name then sees.
        name = str(PurePosixPath(written.replace("\\", "/"))) if written else ""
        if problem := unsafe_name(name) or ("is no path of a file" if name == "." else ""):
            if disabled:
                notes.append(f"Model {written!r:.80} {problem}; it is not chosen, and left out.")
                continue
            _refuse_model(item, written, problem)
        if name in seen:
            item.get("filename").refuse(f"{name!r} is listed twice")
        seen.add(name)
        for key in ("atime", "ctime"):
            item.get(key).number()
        yield ModelEntry(
            filename=name,
            size=item.get("size").integer(),
            sha256=sha256_of(item.get("sha256")),
            disabled=disabled,
            urls=_urls(item.get("source")),
        )


def _refuse_model(item: Field, name: str, problem: str) -> NoReturn:
    raise UnsafeInput(
        f"{item.document}: {item.path}.filename: the model name {name!r:.80} {problem}.",
        hint="Models must lie inside ComfyUI's folder. Move the model there and make the pack again.",
    )


def sha256_of(field: Field) -> str | None:
    """A sha256 in lower case; ``None`` for null or empty."""
    text = field.text("").strip().lower()
    if not text:
        return None
    if not _SHA256.fullmatch(text):
        field.wrong("a sha256 of 64 hex digits")
    return text


def _urls(source: Field) -> tuple[str, ...]:
    """Where a model may be downloaded: as the pack says, then as its repository's own rules say."""
    values = source.object()
    listed = [item.text() for item in source.get("urls").items()]
    candidates = [source.get("download_url").text(""), source.get("url").text("").replace("/blob/", "/resolve/")]
    if listed:
        return tuple(dict.fromkeys(url for url in map(download_url, listed) if url))
    kind, repo, commit, path = (values.get(key) for key in ("source", "repo", "commit", "path"))
    if kind == "huggingface" and isinstance(repo, str) and isinstance(path, str) and _REPO.fullmatch(repo):
        revision = commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else "main"
        if not unsafe_name(path):
            candidates.append(f"https://huggingface.co/{repo}/resolve/{revision}/{quote(path)}")
    if kind == "civitai":
        # The page is no file; its version number is what the download address takes.
        candidates[1] = ""
        if isinstance(commit, int) and not isinstance(commit, bool) and commit > 0:
            candidates.append(f"https://civitai.com/api/download/models/{commit}")
    usable = (download_url(candidate) for candidate in candidates)
    return tuple(dict.fromkeys(url for url in usable if url))


def download_url(text: str) -> str:
    """*text* as a clean http(s) URL, or nothing: old packs hold a scraped path here."""
    try:
        parts = urlsplit(text.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname or any(ord(char) < 32 for char in text):
            return ""
    except ValueError:
        return ""
    return without_secrets(urlunsplit(parts._replace(path=quote(parts.path, safe="/%:@!$&'()*+,;=~"))))


def without_secrets(url: str) -> str:
    """*url* without user, password and the parameters that carry tokens: they belong to whoever made the pack."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        port = parts.port
    except ValueError:
        return ""
    if any(key.lower() in _SECRET_PARAMETERS for key, _ in query):
        parts = parts._replace(query=urlencode([(k, v) for k, v in query if k.lower() not in _SECRET_PARAMETERS]))
    if "@" in parts.netloc and not parts.scheme.endswith("ssh"):
        parts = parts._replace(netloc=_host_and_port(parts.hostname or "", port))
    return urlunsplit(parts)
