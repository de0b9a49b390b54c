"""Asks a web service for JSON when its answer is welcome but not needed: whatever fails is an answer of ``None``.

A host that cannot be reached, or that refuses or limits us, is asked no more, so that a machine without a network loses
one attempt and no time. The mirrors apply, as everywhere.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from cpack_build.errors import Cancelled, CpackError
from cpack_build.fetch.http import HeadTransport, PostTransport, Response, Sources
from cpack_build.fetch.mirrors import local_path

__all__ = ["Asker"]

_Send = Callable[[str], AbstractContextManager[Response]]
_Authorize = Callable[[str], Mapping[str, str]]
_JSON = {"Accept": "application/json"}
_LIMIT = 32 << 20
"""Bytes of an answer: the list of files of a large repository."""


class Asker:
    """One run's questions. *offline* asks nobody. Safe to use from several threads."""

    def __init__(self, sources: Sources, *, offline: bool = False) -> None:
        self._sources = sources
        self._offline = offline
        self._lock = threading.Lock()
        self._silent: dict[str, str] = {}

    @property
    def silent(self) -> dict[str, str]:
        """Hosts that are asked no more, and why."""
        with self._lock:
            return dict(self._silent)

    def get(self, url: str) -> Any:
        """The JSON at *url*, or ``None``."""
        return self.ask(url)[1]

    def ask(self, url: str, *, authorize: _Authorize | None = None) -> tuple[int, Any]:
        """The HTTP status of *url*, 0 where nobody answered, and its JSON or ``None``.

        *authorize* gives the headers that prove who asks, for the address that is really asked: a mirror's is another.
        """
        http = self._sources.http
        own = authorize or (lambda target: {})
        return self._answer(url, lambda target: http.get(target, headers={**_JSON, **own(target)}))

    def head(self, url: str) -> tuple[int, int | None]:
        """The HTTP status of *url*, 0 where nobody answered, and how many bytes it has, if it says."""
        http = self._sources.http
        if not isinstance(http, HeadTransport):
            return 0, None
        status, headers = self._heard(url, lambda target: http.head(target, headers={}))
        if status in (405, 501):  # some give the file, but not its head; one byte tells its length, too
            ranged = {"Range": "bytes=0-0"}
            status, headers = self._heard(url, lambda target: http.get(target, headers=ranged))
        is_page = headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html"
        length = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
        told = length.isdecimal() and not is_page and "content-encoding" not in headers
        return 200 if status == 206 else status, int(length) if told else None

    def _heard(
        self, url: str, send: Callable[[str], AbstractContextManager[Response]]
    ) -> tuple[int, Mapping[str, str]]:
        """Status and headers of an answer whose body is left alone."""
        target, host = self._place(url)
        if host is None:
            return 0, {}
        try:
            with send(target) as response:
                return response.status, response.headers
        except Cancelled:
            raise
        except (ConnectionError, TimeoutError, CpackError) as error:
            self._silence(host, str(error))
            return 0, {}

    def _place(self, url: str) -> tuple[str, str | None]:
        """Where to ask for *url*, and its host: ``None`` where nobody is asked."""
        target = self._sources.mirrors.apply(url)
        parts = urlsplit(target)
        host = parts.hostname or ""
        asked = parts.scheme in ("http", "https") and not self._offline and local_path(target) is None
        return target, host if asked and host not in self.silent else None

    def post(self, url: str, document: Any, *, authorize: _Authorize | None = None) -> Any:
        """The JSON that *url* answers to *document*, or ``None``, also where the transport can only get."""
        own = authorize or (lambda target: {})
        http = self._sources.http
        if not isinstance(http, PostTransport):
            return None
        body = json.dumps(document).encode()
        headers = {**_JSON, "Content-Type": "application/json"}
        return self._answer(url, lambda target: http.post(target, body, headers={**headers, **own(target)}))[1]

    def _answer(self, url: str, send: _Send) -> tuple[int, Any]:
        target, host = self._place(url)
        if host is None:
            return 0, None
        try:
            with send(target) as response:
                if response.status in (400, 401, 403, 404, 405, 410):
                    return response.status, None
                if response.status != 200:
                    self._silence(host, f"it answered HTTP {response.status}")
                    return 0, None
                data = bytearray()
                for chunk in response.chunks:
                    data += chunk
                    if len(data) > _LIMIT:
                        return 200, None
            return 200, json.loads(bytes(data))
        except Cancelled:
            raise
        except (ConnectionError, TimeoutError, CpackError) as error:
            self._silence(host, str(error))
            return 0, None
        except (ValueError, RecursionError):
            return 200, None

    def _silence(self, host: str, why: str) -> None:
        with self._lock:
            self._silent.setdefault(host, why)
