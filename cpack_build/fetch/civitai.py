"""Civitai: which model a file is, asked by its hash (``GET /api/v1/model-versions/by-hash/{sha256}``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpack_build.fetch.asking import Asker

__all__ = ["by_hash", "source_of_version"]

_SITE = "https://civitai.com"


def by_hash(sha256: str, *, asker: Asker) -> dict[str, Any] | None:
    """Where Civitai has the file with that hash, as a pack says it; ``None`` if it has not, or does not answer."""
    answer = asker.get(f"{_SITE}/api/v1/model-versions/by-hash/{sha256}")
    return source_of_version(answer, sha256=sha256) if isinstance(answer, Mapping) else None


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
