"""Where each chosen model can be had again: what lies beside it, what the workflow says, then who can be asked.

Every answer is confirmed by the model's hash, but for a plain address that the workflow or ComfyUI-Manager's list
gives, which nobody can confirm without downloading it. The order is from the surest to the dearest: caches and sidecar
files, addresses that were told, Civitai by hash (many at once), Hugging Face by name. Nothing here is ever an error: a
model without an answer is one whose source is unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cpack_build.fetch import civitai, huggingface
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.store import Store
from cpack_build.progress import SILENT, Progress
from cpack_build.workspace.hints import Hint, fitting
from cpack_build.workspace.models import ModelFile

__all__ = ["find_origins"]

_MEMO = "model-source-1"
_SIDECAR_LIMIT = 8 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_THREADS = 4
_HINTS_ASKED = 8


def find_origins(
    files: Mapping[str, tuple[ModelFile, str]],
    *,
    hints: Sequence[Hint],
    asker: Asker,
    store: Store,
    caches: tuple[Path, ...] | None = None,
    progress: Progress = SILENT,
) -> dict[str, dict[str, Any]]:
    """The pack's ``source`` of each model of *files* (name → file and sha256); ``{}`` where it is unknown.

    What was found once is remembered by the store: the same model has the same source in the next pack, also offline.
    """
    folders = huggingface.cache_folders() if caches is None else caches

    def at_hand(name: str) -> dict[str, Any] | None:
        file, sha256 = files[name]
        # What the workspace itself says comes before what was remembered, so that a pack depends on no past run.
        if (found := _at_hand(file, sha256, hints, folders)) is not None:
            return found
        known = store.recall(_MEMO, sha256)
        remembered = json.loads(known) if known is not None else None
        return remembered if isinstance(remembered, dict) else None

    def ask(name: str) -> dict[str, Any]:
        file, sha256 = files[name]
        found = _asked(file, sha256, hints, asker, listed)
        if found is not None:
            store.remember(_MEMO, sha256, json.dumps(found, sort_keys=True))
            return found
        return _unconfirmed(file, sha256, hints)

    answers: dict[str, dict[str, Any]] = {}
    title = "Looking for the models' sources"
    with progress.task(title, total=len(files), unit="models") as task, ThreadPoolExecutor(_THREADS) as pool:
        for name, found in zip(files, pool.map(at_hand, files), strict=True):
            if found is not None:
                answers[name] = found
                task.advance(1)
        unknown = [name for name in files if name not in answers]
        listed = civitai.by_hashes([files[name][1] for name in unknown], asker=asker)
        for name, answer in zip(unknown, pool.map(ask, unknown), strict=True):
            answers[name] = answer
            task.advance(1)
    return {name: answers[name] for name in files}


def _at_hand(file: ModelFile, sha256: str, hints: Sequence[Hint], caches: tuple[Path, ...]) -> dict[str, Any] | None:
    """What this machine knows: sidecar files, Hugging Face's cache and download records, hints that name the hash."""
    return (
        _sidecar(file.path, sha256)
        or huggingface.in_cache(sha256, caches)
        or next((_plain(hint.url) for hint in fitting(file, hints) if hint.sha256 == sha256), None)
        or _downloaded(file, sha256, hints)
    )


def _asked(
    file: ModelFile,
    sha256: str,
    hints: Sequence[Hint],
    asker: Asker,
    listed: Mapping[str, dict[str, Any]] | None,
) -> dict[str, Any] | None:
    """*listed* is what Civitai said of all models at once; ``None`` if it said nothing."""
    # many models of a list are called `diffusion_pytorch_model.safetensors`
    for hint in [hint for hint in fitting(file, hints) if hint.may_be(file)][:_HINTS_ASKED]:
        if (address := huggingface.parse_address(hint.url)) is not None:
            found = huggingface.in_repository(address[0], address[1], sha256=sha256, asker=asker)
            if found is not None:
                return found
    found = listed.get(sha256) if listed is not None else civitai.by_hash(sha256, asker=asker)
    return found or huggingface.search(file.name.rsplit("/", 1)[-1], sha256=sha256, asker=asker)


def _unconfirmed(file: ModelFile, sha256: str, hints: Sequence[Hint]) -> dict[str, Any]:
    """What the workflow or a list says, when nobody could confirm it: whoever downloads checks the hash anyway."""
    told = (hint for hint in fitting(file, hints) if hint.sha256 in ("", sha256) and hint.is_likely(file))
    hint = next(told, None)
    return _plain(hint.url) if hint is not None else {}


def _plain(url: str) -> dict[str, Any]:
    """A pack's ``source`` for an address: Hugging Face's own form where it is one of theirs."""
    if (address := huggingface.parse_address(url)) is not None:
        return huggingface.source(*address)
    parts = urlsplit(url)
    query = "&".join(item for item in parts.query.split("&") if item and not _is_secret(item))
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()
    return {"download_url": clean, "url": clean, "source": "url"}


def _is_secret(parameter: str) -> bool:
    key = parameter.partition("=")[0].lower()
    return bool(re.search(r"token|key|secret|sig|credential|password|auth|expires|policy", key))


# -- beside the model --------------------------------------------------------------------------------------------------


def _sidecar(path: Path, sha256: str) -> dict[str, Any] | None:
    """``.civitai.info`` (Civitai Helper), ``.metadata.json`` (LoRA Manager), ``.cm-info.json`` (Stability Matrix)."""
    stem = path.with_suffix("")
    for ending in (".civitai.info", ".metadata.json", ".cm-info.json", ".json"):
        document = _json(stem.with_name(stem.name + ending))
        for version in (document, document.get("civitai")):
            if isinstance(version, Mapping) and (found := civitai.source_of_version(version, sha256=sha256)):
                return found
        if (found := _stability_matrix(document, sha256)) is not None:
            return found
    return None


def _stability_matrix(document: Mapping[str, Any], sha256: str) -> dict[str, Any] | None:
    hashes = document.get("Hashes")
    given = hashes.get("SHA256") if isinstance(hashes, Mapping) else None
    if not isinstance(given, str) or given.lower() != sha256:
        return None
    version = {
        "id": document.get("VersionId"),
        "modelId": document.get("ModelId"),
        "name": document.get("VersionName"),
        "model": {"name": document.get("ModelName")},
        "files": [{"hashes": {"SHA256": sha256}, "primary": True}],
    }
    return civitai.source_of_version(version, sha256=sha256)


def _downloaded(file: ModelFile, sha256: str, hints: Sequence[Hint]) -> dict[str, Any] | None:
    """``huggingface-cli download --local-dir`` records commit and hash (its etag) of each file, not the repository;
    the workflow's own address names that."""
    folder = file.path.parent
    for above in (folder, *folder.parents[:4]):
        below = file.path.relative_to(above).as_posix()
        record = above / ".cache/huggingface/download" / f"{below}.metadata"
        try:
            lines = record.read_text("utf-8")[:4096].splitlines() if record.is_file() else []
        except (OSError, UnicodeDecodeError):
            continue
        if len(lines) >= 2 and _COMMIT.fullmatch(lines[0].strip()) and lines[1].strip().strip('"') == sha256:
            for hint in fitting(file, hints):
                if (address := huggingface.parse_address(hint.url)) is not None:
                    return huggingface.source(address[0], lines[0].strip(), below)
    return None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _SIDECAR_LIMIT:
            return {}
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}
