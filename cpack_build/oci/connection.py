"""Speaking to one repository of one registry: redirects, authorisation, trying again, and what went wrong in words.

Credentials go to their registry and to the realm that it names, a token to its registry alone
(:mod:`cpack_build.oci.authorization`), and neither follows a redirect or an upload's address to another host.

Specification: distribution-spec v1.1.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from cpack_build.errors import BadImage, NetworkError, Unresolvable, UnsafeInput
from cpack_build.oci.authorization import Authorization
from cpack_build.oci.credentials import Credentials, Found, find_credentials
from cpack_build.oci.reference import Reference
from cpack_build.oci.transport import (
    Access,
    BadCertificate,
    BadRequest,
    Lost,
    Sized,
    Transport,
    is_loopback,
    pause,
    pieces,
    reason_of,
)

if TYPE_CHECKING:
    import requests

__all__ = ["PASSING", "TRIES", "Access", "Connection", "Lost", "Sized", "error_codes", "reason_of"]

PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may well succeed."""
TRIES = 4
_REDIRECTS = 5
_CHALLENGES = 2
_TOLD_LIMIT = 16 << 10
_HUB = "registry-1.docker.io"
"""Where Docker Hub's registry really is."""


class Connection:
    """One repository of one registry. May be used from several threads at once.

    *verb* begins the errors (``Pulling``), *actions* are what a token is asked for (``pull`` or ``pull,push``).
    *plain* asks for HTTP without TLS, which is refused unless the host is loopback or insecure by *access*.
    *credentials* take the place of those that are written down.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        verb: str = "Pulling",
        actions: str = "pull",
        access: Access | None = None,
        plain: bool = False,
        stop: threading.Event | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        access = access or Access()
        self.reference = reference
        self.stop = stop
        self._verb = verb
        self._scopes = (f"repository:{reference.repository}:{actions}",) if actions else ()
        self._host = _HUB if reference.registry == "docker.io" else reference.registry
        self._insecure = reference.registry in access.insecure
        self._loopback = is_loopback(self._host)
        if plain and not (self._loopback or self._insecure):
            raise UnsafeInput(
                f"{reference.registry} would be spoken to without TLS.",
                hint="Only loopback may be, and what --insecure-registry names; leave http:// out.",
            )
        self._scheme = "http" if self._loopback else "" if self._insecure else "https"
        self._lock = threading.Lock()
        self._transport = Transport(self._host, ca=access.ca, insecure=self._insecure)

        def find() -> Found:
            if credentials is not None:
                return Found(credentials)
            return find_credentials(reference.registry, repository=reference.repository, own=access.own)

        self._authorization = Authorization(self, find)

    @property
    def request_count(self) -> int:
        """How many were sent, those to a token service included."""
        return self._transport.requests

    @property
    def was_challenged(self) -> bool:
        """Whether the registry has asked who we are."""
        return self._authorization.was_challenged

    @property
    def root(self) -> str:
        """The registry's address: ``https://host/v2/``."""
        with self._lock:
            if not self._scheme:
                self._scheme = self._transport.probed()
            return f"{self._scheme}://{self._host}/v2/"

    @property
    def base(self) -> str:
        """The repository's address: ``https://host/v2/repository/``."""
        return f"{self.root}{self.reference.repository}/"

    # -- requests ------------------------------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        url: str,
        *,
        what: str,
        ok: Iterable[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        sources: Iterable[str] = (),
    ) -> requests.Response:
        """One small request, tried again when that may help; its answer has one of the statuses *ok*.

        *what* names the thing in errors; *sources* are repositories that the token must also let us pull from.
        Raises :class:`NetworkError`, :class:`Unresolvable` (404), :class:`UnsafeInput`.
        """
        ok = tuple(ok)
        response = self.again(
            lambda: self.exchange(method, url, what=what, headers=headers, body=body, sources=sources), what, ok
        )
        if response.status_code in ok:
            return response
        raise self.refusal(response, what)

    def again(self, attempt: Callable[[], requests.Response], what: str, ok: Iterable[int] = ()) -> requests.Response:
        """The answer to *attempt*, made again as long as it is one that may pass, or there is none, and not too often.

        Raises :class:`NetworkError` and what *attempt* raises.
        """
        for number in range(TRIES):
            last = number + 1 == TRIES
            try:
                response = attempt()
            except Lost as lost:
                if last:
                    raise self.lost(lost, what) from lost
                self.pause(number)
                continue
            if response.status_code in ok or response.status_code not in PASSING or last:
                return response
            after = response.headers.get("Retry-After")
            response.close()
            self.pause(number, after)
        raise AssertionError("the last try returns or raises")

    def exchange(
        self,
        method: str,
        url: str,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Sized | None = None,
        sources: Iterable[str] = (),
    ) -> requests.Response:
        """One request with whatever authorisation it takes, through its redirects; any status but those comes back.

        Raises :class:`Lost`, :class:`NetworkError`, :class:`UnsafeInput`.
        """
        scopes = (*self._scopes, *(f"repository:{name}:pull" for name in sources))
        for attempt in range(_CHALLENGES):
            authorization = self._authorization.header(scopes)
            response, own = self._follow(method, url, dict(headers or {}), body, authorization, what)
            if response.status_code != 401 or not own:
                return response
            challenge = response.headers.get("WWW-Authenticate", "")
            if attempt + 1 == _CHALLENGES:
                break
            response.close()
            self._authorization.refused(challenge, scopes, authorization)
        return response

    def _follow(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Sized | None,
        authorization: str | None,
        what: str,
    ) -> tuple[requests.Response, bool]:
        """The answer at the end of the redirects, and whether it is the registry's own."""
        origin = urlsplit(self.base)[:2]
        for _ in range(_REDIRECTS + 1):
            own = urlsplit(url)[:2] == origin
            secret = {"Authorization": authorization} if own and authorization else {}
            response = self.send(method, url, {**headers, **secret}, body, what)
            status = response.status_code
            if status not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return response, own
            if status < 304 and method not in ("GET", "HEAD"):
                return response, own  # Such a redirect would turn it into a GET.
            response.close()
            url = self.allowed(response.headers["Location"], f"{what}: the registry redirects to", base=url)
        raise self.failure(f"{what}: more than {_REDIRECTS} redirects", "Tell the registry's owner.")

    def send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | Sized | None, what: str
    ) -> requests.Response:
        """One request without authorisation of its own; redirects come back. Raises :class:`Lost`, ``NetworkError``."""
        try:
            return self._transport.send(method, url, headers, body)
        except BadCertificate as error:
            raise self.failure(
                f"{what}: {error}",
                "See that the registry's certificate is trusted here (--ca FILE), or name it with "
                f"--insecure-registry {self.reference.registry}.",
            ) from error
        except BadRequest as error:
            raise self.failure(f"{what}: {error}", "Check the reference.") from error

    def pause(self, attempt: int, after: str | None = None) -> None:
        """Wait before the try that follows the one numbered *attempt*; at once when everything is to stop."""
        pause(attempt, after, self.stop)

    # -- answers and errors --------------------------------------------------------------------------------------------

    def allowed(self, url: str, said: str, *, base: str = "") -> str:
        """*url*, which may be relative to *base*, if it may be followed from here; :class:`UnsafeInput` otherwise.

        *said* is what leads there.
        """
        try:
            url = urljoin(base, url)
            parts = urlsplit(url)
        except ValueError as error:
            raise UnsafeInput(
                f"{self._verb} {self._name}: {said} what is no address.", hint="Tell the registry's owner."
            ) from error
        plain = urlsplit(self.base).scheme == "http"
        near = (is_loopback(parts.netloc) and self._loopback) or (self._insecure and parts.netloc == self._host)
        if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and plain and near)):
            return url
        raise UnsafeInput(
            f"{self._verb} {self._name}: {said} {parts.scheme}://{parts.netloc.rpartition('@')[2]}, which is not safe.",
            hint="Only https is followed.",
        )

    def read(
        self,
        url: str,
        *,
        what: str,
        limit: int,
        ok: Iterable[int] = (200,),
        headers: Mapping[str, str] | None = None,
    ) -> tuple[requests.Response, bytes]:
        """The answer to a GET with its whole body of at most *limit* bytes, asked for again when that breaks off.

        Raises what :meth:`ask` does, and :class:`BadImage`.
        """
        for number in range(TRIES):
            with self.ask("GET", url, what=what, ok=ok, headers=headers) as response:
                try:
                    return response, self._body(response, limit, what)
                except Lost as lost:
                    if number + 1 == TRIES:
                        raise self.failure(f"{what}: {lost.reason}", "Run it again.") from lost
            self.pause(number)
        raise AssertionError("the last try returns or raises")

    def limited(self, response: requests.Response, limit: int, what: str) -> bytes:
        """The whole body, of at most *limit* bytes. Raises :class:`BadImage`, :class:`NetworkError`."""
        try:
            return self._body(response, limit, what)
        except Lost as lost:
            raise self.failure(f"{what}: {lost.reason}", "Run it again.") from lost

    def _body(self, response: requests.Response, limit: int, what: str) -> bytes:
        data = b""
        for chunk in pieces(response):
            data += chunk
            if len(data) > limit:
                raise BadImage(f"{self.reference}: {what}", f"has more than {limit} bytes")
        return data

    def failure(self, problem: str, hint: str) -> NetworkError:
        """That *problem* occurred while this repository was spoken to."""
        return NetworkError(f"{self._verb} {self._name}: {problem}.", hint=hint)

    @property
    def _name(self) -> str:
        """What is spoken to: a repository, or for a login a registry."""
        return str(self.reference) if self.reference.repository else self.reference.registry

    def lost(self, lost: Lost, what: str) -> NetworkError:
        """That there was no connection, or no longer one."""
        return self.failure(f"{what}: {lost.reason}", f"See that the host is right and reachable{self._or_mirror}.")

    def refusal(self, response: requests.Response, what: str) -> NetworkError | Unresolvable:
        """The error for a status that was not wanted, with the codes that the registry gave; closes *response*."""
        status = response.status_code
        codes = ", ".join(error_codes(response))
        response.close()
        registry, told = self.reference.registry, f"HTTP {status}" + (f", {codes}" if codes else "")
        if status == 404 and self._verb == "Pulling":
            return Unresolvable(
                f"Registry {registry} has no {what} in {self.reference.repository}.",
                hint="Check the name, tag and digest.",
            )
        if status in (401, 403) and not self.reference.repository:
            return self.failure(f"{what}: the registry refuses them ({told})", "Nothing was written. Check both.")
        if status in (401, 403):
            problem = self._authorization.problem
            return self.failure(
                f"{what}: the registry refuses ({told})",
                f"The repository may not exist, or needs `cpack-build login {registry}`."
                + (f" No login was found: {problem}." if problem else ""),
            )
        if status == 429:
            return self.failure(
                f"{what}: too many requests ({told})", f"Wait, use `cpack-build login {registry}`{self._or_mirror}."
            )
        return self.failure(f"{what}: {told}", "Try again later, or tell the registry's owner.")

    @property
    def _or_mirror(self) -> str:
        return ", or map it with --mirror" if self._verb == "Pulling" else ""


def error_codes(response: requests.Response) -> list[str]:
    """The codes of an error's JSON body ("Error Codes"); nothing else of it is repeated."""
    data = b""
    try:
        for chunk in pieces(response):
            data += chunk
            if len(data) > _TOLD_LIMIT:
                return []
        errors = json.loads(data)["errors"]
        codes = [error["code"] for error in errors[:4]]
    except (Lost, ValueError, KeyError, TypeError, RecursionError):
        return []  # Most errors need no body to be understood.
    return [code for code in codes if isinstance(code, str) and re.fullmatch(r"[A-Z][A-Z_]{1,40}", code)]
