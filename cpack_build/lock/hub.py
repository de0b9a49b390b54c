"""What a model's sources say of it: whether they still have that very file, and whom they give it to.

Hugging Face and Civitai know the sha256 of their files; of any other address the size is asked (HEAD). Nothing is
downloaded, no token is sent, and a host that cannot be reached is asked once. What was learned is remembered, so a lock
made offline says the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from json import dumps, loads
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import Sources
from cpack_build.fetch.huggingface import parse_address
from cpack_build.fetch.store import Store
from cpack_build.fetch.urls import redact
from cpack_build.lock.schema import Access, Model
from cpack_build.progress import SILENT, Progress, working

__all__ = ["Seen", "confirmed", "look_at"]

_MEMO = "model-source-1"
_CIVITAI = re.compile(r"/api/download/models/([0-9]{1,12})/?")
_PARALLEL = 8


@dataclass(frozen=True)
class Seen:
    """What one source says. *state*: it has the ``same`` file or an ``other`` one, ``refused`` to say, the file is
    ``gone``, or it is ``unknown``. *why* is for people."""

    url: str
    state: Literal["same", "other", "refused", "gone", "unknown"]
    access: Access | None = None
    why: str = ""


def confirmed(
    models: Sequence[Model], *, store: Store, sources: Sources, progress: Progress = SILENT
) -> tuple[Model, ...]:
    """*models* with what their sources say of them: who may have them; and without sources that have another file.

    People are told of each that is gated, private, gone or another.
    """
    asker = Asker(sources, offline=sources.mirrors.is_offline)
    with working(_PARALLEL, progress) as (pool, reports), reports.task("Asking for models", unit="sources") as task:

        def look(model: Model) -> Model:
            seen = []
            for url in model.sources:
                seen.append(look_at(model, url, asker=asker, store=store))
                task.advance(1)
            for one in seen:
                if one.state in ("other", "gone", "refused") or one.access in ("gated", "private"):
                    reports.note(f"{model.path}: {redact(one.url)} {one.why}.")
            kept = tuple(one.url for one in seen if one.state != "other")
            known = [one.access for one in seen if one.state != "other" and one.access is not None]
            # as open as the most open of its sources
            access = next((level for level in ("public", "gated", "private") if level in known), None)
            return model.model_copy(update={"sources": kept, "access": access})

        return tuple(pool.map(look, models))


def look_at(model: Model, url: str, *, asker: Asker, store: Store) -> Seen:
    """What the source *url* of *model* says now; if it does not answer, what it said before."""
    key = f"{model.sha256} {url}"
    seen = _asked(model, url, asker)
    if seen.state != "unknown":
        store.remember(_MEMO, key, dumps(asdict(seen)))
    elif (known := store.recall(_MEMO, key)) is not None:
        return Seen(**loads(known))
    return seen


def _asked(model: Model, url: str, asker: Asker) -> Seen:
    ways: tuple[Callable[[Model, str, Asker], Seen | None], ...] = (_hugging_face, _civitai)
    for ask in ways:
        if (seen := ask(model, url, asker)) is not None:
            return seen
    return _plain(model, url, asker)


def _hugging_face(model: Model, url: str, asker: Asker) -> Seen | None:
    """``GET /api/models/{repo}/revision/{revision}?blobs=true`` (https://huggingface.co/docs/hub/api)."""
    if (place := parse_address(url)) is None:
        return None
    repo, revision, path = place
    kind, name = ("datasets", repo.removeprefix("datasets/")) if repo.startswith("datasets/") else ("models", repo)
    question = f"https://huggingface.co/api/{kind}/{name}/revision/{quote(revision, safe='')}?blobs=true"
    status, answer = asker.ask(question)
    if status in (401, 403):
        return Seen(url, "refused", "private", "is private, or not there: only who may read it can tell")
    if status in (404, 410):
        return Seen(url, "gone", None, f"is not there any more (HTTP {status})")
    if not isinstance(answer, Mapping):
        return Seen(url, "unknown")
    access: Access = "gated" if answer.get("gated") else "private" if answer.get("private") is True else "public"
    said = {"gated": "is gated: accept its terms there, and give your token", "private": "is private"}.get(access, "")
    for file in _list(answer.get("siblings")):
        if isinstance(file, Mapping) and file.get("rfilename") == path:
            lfs = file.get("lfs")
            told = lfs if isinstance(lfs, Mapping) else {"size": file.get("size")}
            return _compared(model, url, told.get("sha256"), told.get("size"), access, said)
    return Seen(url, "gone", access, f"is not there: the repository has no {path} at {revision}")


def _civitai(model: Model, url: str, asker: Asker) -> Seen | None:
    """``GET /api/v1/model-versions/{id}`` (https://developer.civitai.com/docs/api/public-rest)."""
    parts = urlsplit(url)
    match = _CIVITAI.fullmatch(parts.path)
    if parts.hostname not in ("civitai.com", "www.civitai.com") or match is None:
        return None
    status, answer = asker.ask(f"https://civitai.com/api/v1/model-versions/{match[1]}")
    if status in (401, 403):
        return Seen(url, "refused", "private", f"refuses to tell (HTTP {status})")
    if status in (404, 410):
        return Seen(url, "gone", None, f"is not there any more (HTTP {status})")
    if not isinstance(answer, Mapping):
        return Seen(url, "unknown")
    access: Access = "public" if answer.get("availability", "Public") == "Public" else "gated"
    said = "" if access == "public" else "is not open to everybody yet: log in there, and give your token"
    hashes = [_civitai_hash(file) for file in _list(answer.get("files"))]
    if model.sha256 in hashes:
        return Seen(url, "same", access, said)
    others = [sha256 for sha256 in hashes if sha256]
    return _compared(model, url, others[0] if others else None, None, access, said)


def _civitai_hash(file: Any) -> str:
    hashes = file.get("hashes") if isinstance(file, Mapping) else None
    value = hashes.get("SHA256") if isinstance(hashes, Mapping) else None
    return value.lower() if isinstance(value, str) else ""


def _plain(model: Model, url: str, asker: Asker) -> Seen:
    status, size = asker.head(url)
    if status in (401, 403):
        return Seen(url, "refused", "private", f"refuses access (HTTP {status}): give your credentials for that host")
    if status in (404, 410):
        return Seen(url, "gone", None, f"is not there any more (HTTP {status})")
    if status != 200:
        return Seen(url, "unknown")
    return replace(_compared(model, url, None, size, "public", ""), access="public")


def _compared(model: Model, url: str, sha256: object, size: object, access: Access, said: str) -> Seen:
    """What a source that tells *sha256* or *size* has; either may not be told."""
    if isinstance(sha256, str) and sha256 != model.sha256:
        return Seen(url, "other", access, f"has another file (sha256 {sha256}), so it is no source of this one")
    if isinstance(size, int) and size != model.size:
        return Seen(url, "other", access, f"has another file ({size} bytes, not {model.size}), so it is no source")
    return Seen(url, "same" if sha256 or isinstance(size, int) else "unknown", access, said)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
