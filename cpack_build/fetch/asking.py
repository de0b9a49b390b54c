"""Asks a web service for JSON when its answer is welcome but not needed: whatever fails is an answer of ``None``.

A host that cannot be reached, or that refuses or limits us, is asked no more, so that a machine without a network loses
one attempt and no time. The mirrors apply, as everywhere.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from cpack_build.errors import CpackError
from cpack_build.fetch.http import PostTransport, Response, Sources
from cpack_build.fetch.mirrors import local_path

__all__ = ["Asker"]

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
        http = self._sources.http
        return self._answer(url, lambda target: http.get(target, headers=_JSON))

    def post(self, url: str, document: Any) -> Any:
        """The JSON that *url* answers to *document*, or ``None``, also where the transport can only get."""
        http = self._sources.http
        if not isinstance(http, PostTransport):
            return None
        body = json.dumps(document).encode()
        return self._answer(
            url, lambda target: http.post(target, body, headers={**_JSON, "Content-Type": "application/json"})
        )

    def _answer(self, url: str, send: Callable[[str], AbstractContextManager[Response]]) -> Any:
        target = self._sources.mirrors.apply(url)
        host = urlsplit(target).hostname or ""
        if self._offline or local_path(target) is not None or host in self.silent:
            return None
        try:
            with send(target) as response:
                if response.status in (400, 401, 403, 404, 405, 410):
                    return None
                if response.status != 200:
                    self._silence(host, f"it answered HTTP {response.status}")
                    return None
                data = bytearray()
                for chunk in response.chunks:
                    data += chunk
                    if len(data) > _LIMIT:
                        return None
            return json.loads(bytes(data))
        except (ConnectionError, TimeoutError, CpackError) as error:
            self._silence(host, str(error))
        except (ValueError, RecursionError):
            return None
        return None

    def _silence(self, host: str, why: str) -> None:
        with self._lock:
            self._silent.setdefault(host, why)
