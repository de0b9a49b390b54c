"""``snapshot.json`` of every era → :class:`~cpack_build.cpack.schema.Snapshot`.

Eras are told by what is there (``docs/`` and FACTS.md §1): ``pips`` since comfy-pack 0.4, where the document is
ComfyUI-Manager's snapshot; ``custom_nodes`` as a list, with ``requirements.txt`` beside it, in 0.1 to 0.3. Values of
the wrong type are errors that name the field; names that leave their place are refused; what cannot be carried over but
stops nothing becomes a note.
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
from cpack_build.cpack.schema import COMFYUI_URL, FileNode, GitPin, ModelEntry, NodePin, Snapshot
from cpack_build.errors import UnsafeInput

__all__ = ["read_snapshot"]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYTHON = re.compile(r"(3\.[0-9]{1,2})(\.[0-9A-Za-z.+-]*)?")
_REPO = re.compile(r"(datasets/)?[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_SCP_LIKE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:(?!//)[^\s:]+")
_EGG = re.compile(r"-e\s+(\S+?)#egg=([A-Za-z0-9._-]+)(\S*)")
_VERSION_OF_WHEEL = re.compile(r"/[^/]+?-([0-9][^-/]*)-[^/]+\.whl$")
_SECRET_PARAMETERS = frozenset({"token", "api_key", "apikey", "key", "access_token", "signature"})


def read_snapshot(document: object, *, requirements: str | None = None) -> Snapshot:
    """Normalise a snapshot. *requirements* is the text of ``requirements.txt``, which eras before 0.4 have beside it.

    Raises :class:`BadField` for a value of the wrong type, :class:`UnsafeInput` for a name or URL not to be used.
    """
    root = Field(document, "snapshot.json")
    if not isinstance(document, dict):
        root.wrong("an object")
    notes: list[str] = []
    if "pips" in document:
        nodes = _manager_nodes(root)
        lines = _manager_requirements(root)
    elif requirements is not None or "custom_nodes" in document:
        nodes = _listed_nodes(root)
        lines = [
            (Field(line, "requirements.txt", f"line {number}"), line) for number, line in _lines(requirements or "")
        ]
    else:
        root.refuse("has neither pips nor custom_nodes, so it is no snapshot of any known comfy-pack")
    return Snapshot(
        python=_python(root.get("python")),
        comfyui=_comfyui(root.get("comfyui")),
        nodes=_named_apart(nodes, notes),
        registry_nodes={_node_name(key, field): field.text() for key, field in root.get("cnr_custom_nodes").members()},
        file_nodes=tuple(
            FileNode(filename=_node_name(item.get("filename").text(), item), disabled=item.get("disabled").boolean())
            for item in root.get("file_custom_nodes").items()
        ),
        requirements=_requirements(lines, notes),
        models=tuple(_models(root.get("models").items(), notes)),
        notes=tuple(notes),
    )


# -- Python and git ----------------------------------------------------------------------------------------------------


def _python(field: Field) -> str:
    match = _PYTHON.fullmatch(field.text().strip())
    if match is None:
        field.wrong('a Python version such as "3.11"')
    return match[1]


def _comfyui(field: Field) -> GitPin | None:
    if field.value is None or (isinstance(field.value, str) and not field.value.strip()):
        return None
    return GitPin(url=COMFYUI_URL, commit=_commit(field))


def _commit(field: Field) -> str:
    commit = field.text().strip().lower()
    if not _COMMIT.fullmatch(commit):
        field.wrong("a commit of 40 hex digits")
    return commit


def _git_url(url: str, field: Field) -> str:
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
            f"snapshot.json: {field.path}: {url!r:.80} is not a git address over https or ssh.",
            hint="Give the node a remote that others can reach, and make the pack again.",
        )
    # A password or token in a remote's address belongs to the person who made the pack.
    user = f"{parts.username}@" if parts.scheme.endswith("ssh") and parts.username else ""
    netloc = user + _host_and_port(host, port)
    return urlunsplit((parts.scheme.removeprefix("git+"), netloc, parts.path, "", ""))


def _host_and_port(host: str, port: int | None) -> str:
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")


def _manager_nodes(root: Field) -> list[tuple[str, NodePin | None]]:
    found: list[tuple[str, NodePin | None]] = []
    for url, item in root.get("git_custom_nodes").members():
        disabled = item.get("disabled").boolean()
        found.append(_node(url if url != "null" else "", item, item.get("hash"), disabled, ""))
    return found


def _listed_nodes(root: Field) -> list[tuple[str, NodePin | None]]:
    found: list[tuple[str, NodePin | None]] = []
    for item in root.get("custom_nodes").items():
        disabled = item.get("disabled").boolean()
        folder = item.get("path").text("").replace("\\", "/").removeprefix(".disabled/").removesuffix(".disabled")
        found.append(_node(item.get("url").text(""), item, item.get("commit_hash"), disabled, folder))
    return found


def _node(url: str, item: Field, commit: Field, disabled: bool, folder: str) -> tuple[str, NodePin | None]:
    """The pin, or ``None`` for a node without remote, and what to call it."""
    if not url.strip():
        return folder or item.path, None
    url = _git_url(url, item)
    name = _node_name(folder or re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git"), item)
    return name, NodePin(name=name, url=url, commit=_commit(commit), disabled=disabled)


def _node_name(name: str, field: Field) -> str:
    if problem := unsafe_name(name) or ("holds a '/'" if "/" in name else ""):
        raise UnsafeInput(
            f"snapshot.json: {field.path}: the node name {name!r:.80} {problem}.",
            hint="It would be written outside custom_nodes. Do not use this pack.",
        )
    return name


def _named_apart(nodes: Iterable[tuple[str, NodePin | None]], notes: list[str]) -> tuple[NodePin, ...]:
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


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.splitlines(), 1)]


def _manager_requirements(root: Field) -> list[tuple[Field, str]]:
    """``pip freeze`` as Manager keeps it: ``{"pkg==1.0": ""}``, or ``{"pkg": "git+https://…"}``."""
    lines = []
    for key, field in root.get("pips").members():
        url = field.text("").strip()
        lines.append((field, f"{key.strip()} @ {url}" if url else key))
    return lines


def _requirements(lines: Iterable[tuple[Field, str]], notes: list[str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for field, line in lines:
        text = line.strip()
        if match := _EGG.match(text):
            text = f"{match[2]} @ {match[1]}"
        if not text or text.startswith("#"):
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
    requirement.url = _without_secrets(requirement.url)
    return requirement


# -- models ------------------------------------------------------------------------------------------------------------


def _models(items: Iterable[Field], notes: list[str]) -> Iterable[ModelEntry]:
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
        yield ModelEntry(
            filename=name,
            size=item.get("size").integer(),
            sha256=_sha256(item.get("sha256")),
            disabled=disabled,
            urls=_urls(item.get("source")),
        )


def _refuse_model(item: Field, name: str, problem: str) -> NoReturn:
    raise UnsafeInput(
        f"snapshot.json: {item.path}.filename: the model name {name!r:.80} {problem}.",
        hint="Models must lie inside ComfyUI's folder. Move the model there and make the pack again.",
    )


def _sha256(field: Field) -> str | None:
    text = field.text("").strip().lower()
    if not text:
        return None
    if not _SHA256.fullmatch(text):
        field.wrong("a sha256 of 64 hex digits")
    return text


def _urls(source: Field) -> tuple[str, ...]:
    """Where a model may be downloaded: as the pack says, then as its repository's own rules say."""
    values = source.object()
    candidates = [source.get("download_url").text(""), source.get("url").text("").replace("/blob/", "/resolve/")]
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
    usable = (_download_url(candidate) for candidate in candidates)
    return tuple(dict.fromkeys(url for url in usable if url))


def _download_url(text: str) -> str:
    """*text* as a clean http(s) URL, or nothing: old packs hold a scraped path here."""
    try:
        parts = urlsplit(text.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname or any(ord(char) < 32 for char in text):
            return ""
    except ValueError:
        return ""
    return _without_secrets(urlunsplit(parts._replace(path=quote(parts.path, safe="/%:@!$&'()*+,;=~"))))


def _without_secrets(url: str) -> str:
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
