"""Civitai: which model a file is, asked by its hash; one (``GET /api/v1/model-versions/by-hash/{sha256}``) or many.

https://developer.civitai.com/site/reference/model-versions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpack_build.fetch.asking import Asker

__all__ = ["by_hash", "by_hashes", "source_of_version"]

_SITE = "https://civitai.com"
_AT_ONCE = 100
"""Hashes that one POST may hold."""


def by_hash(sha256: str, *, asker: Asker) -> dict[str, Any] | None:
    """Where Civitai has the file with that hash, as a pack says it; ``None`` if it has not, or does not answer."""
    answer = asker.get(f"{_SITE}/api/v1/model-versions/by-hash/{sha256}")
    return source_of_version(answer, sha256=sha256) if isinstance(answer, Mapping) else None


def by_hashes(hashes: Sequence[str], *, asker: Asker) -> dict[str, dict[str, Any]] | None:
    """Of many hashes those that Civitai has, with where, in as few questions as it takes
    (``POST /api/v1/model-versions/by-hash``); ``None`` if it does not answer to that."""
    found: dict[str, dict[str, Any]] = {}
    wanted = list(dict.fromkeys(hashes))
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        answer = asker.post(f"{_SITE}/api/v1/model-versions/by-hash", [sha256.upper() for sha256 in some])
        if not isinstance(answer, list):
            return None
        for version in answer:
            for sha256 in some if isinstance(version, Mapping) else ():
                if sha256 not in found and (told := source_of_version(version, sha256=sha256)) is not None:
                    found[sha256] = told
    return found


def source_of_version(version: Mapping[str, Any], *, sha256: str) -> dict[str, Any] | None:
    """A model version, as Civitai and the sidecar files of its tools describe it, as a pack's ``source``.

    ``None`` unless it is whole and one of its files has that hash. A version's first file is what its plain address
    gives; others need their own.
    """
    version_id, model_id = version.get("id"), version.get("modelId")
    if not _is_id(version_id) or not _is_id(model_id):
        return None
    files = [file for file in _list(version.get("files")) if isinstance(file, Mapping)]
    matching = [file for file in files if _hash(file) == sha256]
    if not matching:
        return None
    download = f"{_SITE}/api/download/models/{version_id}"
    if matching[0].get("primary") is not True and len(files) > 1:
        named = matching[0].get("downloadUrl")
        # Only the query tells one file of a version from another; it must lead to the same place.
        if isinstance(named, str) and named.startswith(download) and named.isprintable() and "token=" not in named:
            download = named
    model = version.get("model")
    names = {
        "repo_name": model.get("name") if isinstance(model, Mapping) else None,
        "version_name": version.get("name"),
    }
    return {
        "download_url": download,
        "url": f"{_SITE}/models/{model_id}?modelVersionId={version_id}",
        "repo": model_id,
        "commit": version_id,
        "source": "civitai",
        **{key: value[:200] for key, value in names.items() if isinstance(value, str)},
    }


def _hash(file: Mapping[str, Any]) -> str:
    hashes = file.get("hashes")
    value = hashes.get("SHA256") if isinstance(hashes, Mapping) else None
    return value.lower() if isinstance(value, str) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
