"""Who we are to a registry: its challenge answered with a password or with a token from the realm that it names.

A password goes to its registry (basic) or to that realm, a token to its registry alone. A token is asked for before it
is needed once the registry's way of asking is known, and again before it runs out, so that a long upload does not meet
its end.

Specification: distribution/distribution, "Token Authentication Specification" and "OAuth2".
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from cpack_build.oci.credentials import Credentials, Found

if TYPE_CHECKING:
    import requests

    from cpack_build.oci.connection import Connection

__all__ = ["Authorization"]

_TOKEN_LIMIT = 1 << 20
_TOKEN_SECONDS = 60
"""How long a token holds when its service does not say ("Token Response Fields")."""


@dataclass(frozen=True)
class _Token:
    header: str
    until: float
    """On the monotonic clock."""


class Authorization:
    """What goes into the ``Authorization`` header of one repository's requests; *find* looks the login up, once."""

    def __init__(self, connection: Connection, find: Callable[[], Found]) -> None:
        self._connection = connection
        self._find = find
        self._lock = threading.RLock()
        self._challenge: str | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._found: Found | None = None

    @property
    def was_challenged(self) -> bool:
        """Whether the registry has asked for anything."""
        return self._challenge is not None

    @property
    def problem(self) -> str:
        """Why no login was found where one might be."""
        return self._found.problem if self._found is not None else ""

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """The header for a request that needs *scopes*; ``None`` while the registry has not asked for any."""
        with self._lock:
            if self._challenge is None:
                return None
            known = self._tokens.get(scopes)
            if known is not None and time.monotonic() < known.until:
                return known.header
            fresh = self._answer(self._challenge, scopes)
            if fresh is None:
                return None
            self._tokens[scopes] = fresh
            return fresh.header

    def refused(self, challenge: str, scopes: tuple[str, ...], used: str | None) -> None:
        """Forget what was *used*, so that the next request gets something else; another thread may have been first."""
        with self._lock:
            self._challenge = challenge
            known = self._tokens.get(scopes)
            if known is not None and known.header == used:
                del self._tokens[scopes]

    def _answer(self, challenge: str, scopes: tuple[str, ...]) -> _Token | None:
        """What *challenge* asks for ("How to authenticate")."""
        if self._found is None:
            self._found = self._find()
        credentials = self._found.credentials
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            if credentials is None or credentials.is_identity_token:
                return None
            return _Token(_basic(credentials), float("inf"))
        parameters = {key.lower(): value for key, value in re.findall(r'([a-zA-Z_]+)="([^"]*)"', rest)}
        if scheme.lower() != "bearer" or not parameters.get("realm"):
            return None
        return self._token(parameters["realm"], parameters.get("service"), scopes, credentials)

    def _token(
        self, realm: str, service: str | None, scopes: tuple[str, ...], credentials: Credentials | None
    ) -> _Token:
        connection = self._connection
        realm = connection.allowed(realm, "the registry names the token service")
        query: list[tuple[str, str]] = [("service", service)] if service is not None else []
        began = time.monotonic()
        if credentials is not None and credentials.is_identity_token:
            form = [*query, ("scope", " ".join(scopes)), ("client_id", "cpack-build"), ("grant_type", "refresh_token")]
            data = urlencode([*form, ("refresh_token", credentials.password)]).encode()
            response = self._ask("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, data)
        else:
            query += [("scope", scope) for scope in scopes]
            url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}" if query else realm
            secret = {"Authorization": _basic(credentials)} if credentials else {}
            response = self._ask("GET", url, secret, None)
        with response:
            if response.status_code != 200:
                raise connection.refusal(response, "token")
            data = connection.limited(response, _TOKEN_LIMIT, "token")
        try:
            answer: Any = json.loads(data)
            token = answer.get("token") or answer.get("access_token")
            holds = answer.get("expires_in")
        except (ValueError, AttributeError, RecursionError) as error:
            raise connection.failure("its token service gave no token", "Tell the registry's owner.") from error
        # A header of its own making is all that a token could break out of.
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise connection.failure("its token service gave no token", "Tell the registry's owner.")
        seconds = holds if isinstance(holds, int) and 0 < holds < 1 << 31 else _TOKEN_SECONDS
        return _Token(f"Bearer {token}", began + 0.7 * seconds)

    def _ask(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> requests.Response:
        """A request to the token service: no redirect is followed with a password."""
        return self._connection.again(lambda: self._connection.send(method, url, headers, body, "token"), "token")


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(":".join(credentials).encode()).decode()
