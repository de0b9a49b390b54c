"""Civitai: a model by its address or version, and which model a file is, asked by its hash; one
(``GET /api/v1/model-versions/by-hash/{sha256}``) or many (``POST``). ``CIVITAI_API_TOKEN`` (or ``CIVITAI_TOKEN``,
``CIVITAI_API_KEY``) is sent to civitai.com alone.

https://developer.civitai.com/site/reference/model-versions
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from cpack_build.errors import CpackError, NetworkError
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import HttpTransport, Response
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.remote import HttpFile

if TYPE_CHECKING:
    from cpack_build.fetch.folders import Wanted

__all__ = ["Civitai", "authorization", "by_hash", "by_hashes", "source_of_version"]

_SITE = "https://civitai.com"
_TOKENS = ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN", "CIVITAI_API_KEY")
_AT_ONCE = 100
"""Hashes that one POST may hold."""


@dataclass(frozen=True)
class Civitai:
    """The place: a file by its address, or the page of its version; then by its hash, whatever the address was."""

    mirrors: Mirrors
    http: HttpTransport
    asker: Asker
    site: str = _SITE

    def knows(self, url: str) -> bool:
        """Whether *url* is one of its own."""
        return _is_own(url, self.site)

    def offers(self, wanted: Wanted) -> Iterator[HttpFile]:
        own = [self._download(url) for url in wanted.urls if self.knows(url) and not self.mirrors.is_mirrored(url)]
        for url in own:
            yield self._file(url)
        found = by_hash(wanted.sha256, asker=self.asker, site=self.site)
        if found is not None and found["download_url"] not in own:
            yield self._file(found["download_url"])

    def _download(self, url: str) -> str:
        """The address of the file itself, where *url* is the page of a version."""
        parts = urlsplit(url)
        version = parse_qs(parts.query).get("modelVersionId", [""])[0]
        if re.match(r"/models/\d+", parts.path) and version.isdecimal():
            return f"{self.site}/api/download/models/{version}"
        return url

    def _file(self, url: str) -> HttpFile:
        headers = authorization(url, site=self.site)

        def explain(response: Response) -> CpackError | None:
            is_login = response.status == 200 and "/login" in urlsplit(response.url).path
            if response.status not in (401, 403) and not is_login:
                return None
            if headers:
                return NetworkError(
                    "Civitai refuses this model to your API key.",
                    hint="Its creator may sell early access to it. Open its page with that account, or name a copy "
                    "with --models DIR.",
                )
            return NetworkError(
                "Civitai wants a login for this model.",
                hint="Make an API key at https://civitai.com/user/account, set CIVITAI_API_TOKEN to it, and run it "
                "again. Or name a copy that you have with --models DIR.",
            )

        return HttpFile(url, self.http, headers, explain)


def authorization(url: str, *, site: str = _SITE) -> dict[str, str]:
    """The header that proves who asks for *url*: the user's key, if that is Civitai's own and nobody listens."""
    token = next(filter(None, (os.environ.get(name, "").strip() for name in _TOKENS)), "")
    is_safe = url.startswith("https://") or urlsplit(url).hostname in ("localhost", "127.0.0.1")
    fits = token.isascii() and token.isprintable() and token
    return {"Authorization": f"Bearer {token}"} if fits and is_safe and _is_own(url, site) else {}


def _is_own(url: str, site: str) -> bool:
    try:
        return urlsplit(url).netloc in (urlsplit(site).netloc, "www." + urlsplit(site).netloc)
    except ValueError:
        return False


def by_hash(sha256: str, *, asker: Asker, site: str = _SITE) -> dict[str, Any] | None:
    """Where Civitai has the file with that hash, as a pack says it; ``None`` if it has not, or does not answer."""
    answer = asker.get(f"{site}/api/v1/model-versions/by-hash/{sha256}")
    return source_of_version(answer, sha256=sha256, site=site) if isinstance(answer, Mapping) else None


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


def source_of_version(version: Mapping[str, Any], *, sha256: str, site: str = _SITE) -> dict[str, Any] | None:
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
    download = f"{site}/api/download/models/{version_id}"
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
        "url": f"{site}/models/{model_id}?modelVersionId={version_id}",
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
