"""Speaking to one repository of one registry: TLS, who we are, redirects, and trying again.

TLS everywhere but on loopback and where the user said ``--insecure-registry``. Credentials go to their registry and to
the realm that it names, a token to its registry alone, and neither follows a redirect or an upload's address to
another host. A token is asked for before it is needed once the registry's way of asking is known, and again before it
runs out, so that a long upload does not meet its end.

Specification: distribution-spec v1.1; distribution/distribution, "Token Authentication Specification" and "OAuth2".
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from secrets import SystemRandom
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin, urlsplit

from cpack_build.errors import BadImage, NetworkError, Unresolvable, UnsafeInput, UsageError
from cpack_build.oci.credentials import Credentials, Found, find_credentials
from cpack_build.oci.reference import Reference

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

__all__ = ["PASSING", "TRIES", "Access", "Connection", "Lost", "Sized", "pause"]

PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may well succeed."""
TRIES = 4
_TIMEOUT = (10, 60)
"""Seconds to connect, and between two pieces of an answer."""
_REDIRECTS = 5
_CHALLENGES = 2
_TOKEN_LIMIT = 1 << 20
_TOLD_LIMIT = 16 << 10
_TOKEN_SECONDS = 60
"""How long a token holds when its service does not say ("Token Response Fields")."""
_LONGEST_PAUSE = 60.0
_POOL = 32
_HUB = "registry-1.docker.io"
"""Where Docker Hub's registry really is."""


@dataclass(frozen=True)
class Access:
    """How the user lets registries be reached."""

    insecure: frozenset[str] = frozenset()
    """Registries whose certificate is not looked at, and that may speak without TLS."""
    ca: Path | None = None
    """A file of certificates (PEM) to trust besides the usual ones."""
    own: str | None = None
    """The registry that ``CPACK_REGISTRY_USER`` and ``CPACK_REGISTRY_PASSWORD`` are for."""


class Lost(Exception):
    """The connection broke or never was; *reason* says how, without the URL, which may hold a signature."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Sized:
    """A body of *size* bytes that is made while it is sent: ``requests`` sends it with its Content-Length."""

    def __init__(self, size: int, chunks: Callable[[], Iterable[bytes]]) -> None:
        self._size = size
        self._chunks = chunks

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterable[bytes]:
        return iter(self._chunks())


@dataclass(frozen=True)
class _Token:
    header: str
    until: float
    """On the monotonic clock."""


class Connection:
    """One repository of one registry. May be used from several threads at once.

    *verb* begins the errors (``Pulling``), *actions* are what a token is asked for (``pull`` or ``pull,push``).
    *plain* asks for HTTP without TLS, which is refused unless the host is loopback or insecure by *access*.
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
    ) -> None:
        self.reference = reference
        self.requests = 0
        self.stop = stop
        self._access = access or Access()
        self._verb = verb
        self._scope = f"repository:{reference.repository}:{actions}"
        self._host = _HUB if reference.registry == "docker.io" else reference.registry
        self._insecure = reference.registry in self._access.insecure
        self._loopback = is_loopback(self._host)
        if plain and not (self._loopback or self._insecure):
            raise UnsafeInput(
                f"{reference.registry} would be spoken to without TLS.",
                hint="Only loopback may be, and what --insecure-registry names; leave http:// out.",
            )
        self._scheme = "http" if self._loopback else "" if self._insecure else "https"
        self._lock = threading.RLock()
        self._opened: requests.Session | None = None
        self._challenge: str | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._found: Found | None = None

    @property
    def base(self) -> str:
        """The repository's address: ``https://host/v2/repository/``."""
        with self._lock:
            if not self._scheme:
                self._scheme = self._probed()
            return f"{self._scheme}://{self._host}/v2/{self.reference.repository}/"

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
        tries: int = TRIES,
    ) -> requests.Response:
        """One small request, tried again when that may help; its answer has one of the statuses *ok*.

        *what* names the thing in errors; *sources* are repositories that the token must also let us pull from.
        Raises :class:`NetworkError`, :class:`Unresolvable` (404), :class:`UnsafeInput`.
        """
        ok = tuple(ok)
        for attempt in range(tries):
            last = attempt + 1 == tries
            try:
                response = self.exchange(method, url, what=what, headers=headers, body=body, sources=sources)
            except Lost as lost:
                if last:
                    raise self.lost(lost, what) from lost
                self.pause(attempt)
                continue
            if response.status_code in ok:
                return response
            if response.status_code in PASSING and not last:
                after = response.headers.get("Retry-After")
                response.close()
                self.pause(attempt, after)
                continue
            raise self.refusal(response, what)
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
        scopes = (self._scope, *(f"repository:{name}:pull" for name in sources))
        for attempt in range(_CHALLENGES):
            authorization = self._authorization(scopes)
            response, own = self._follow(method, url, dict(headers or {}), body, authorization, what)
            if response.status_code != 401 or not own:
                return response
            challenge = response.headers.get("WWW-Authenticate", "")
            if attempt + 1 == _CHALLENGES:
                break
            response.close()
            self._refused(challenge, scopes, authorization)
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
            response = self._send(method, url, {**headers, **secret}, body, what)
            status = response.status_code
            if status not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return response, own
            if status < 304 and method not in ("GET", "HEAD"):
                return response, own  # Such a redirect would turn it into a GET.
            target = urljoin(url, response.headers["Location"])
            response.close()
            url = self.allowed(target, "redirects to")
        raise self.failure(f"{what}: more than {_REDIRECTS} redirects", "Tell the registry's owner.")

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | Sized | None, what: str
    ) -> requests.Response:
        import requests

        with self._lock:
            self.requests += 1
            session = self._session()
        unproved = self._insecure and urlsplit(url).netloc == self._host
        try:
            return session.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                data=body,  # type: ignore[arg-type]
                stream=True,
                allow_redirects=False,
                timeout=_TIMEOUT,
                auth=_no_netrc,
                verify=not unproved,
            )
        except requests.exceptions.SSLError as error:
            # A body that breaks is told as an SSL error, too, and worth another try; a certificate is not.
            if "CERTIFICATE" in str(error) or "WRONG_VERSION" in str(error):
                raise self.failure(
                    f"{what}: {reason_of(error)}",
                    "See that the registry's certificate is trusted here (--ca FILE), or name it with "
                    f"--insecure-registry {self.reference.registry}.",
                ) from error
            raise Lost(reason_of(error)) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Lost(reason_of(error)) from error
        except requests.RequestException as error:
            raise self.failure(f"{what}: {reason_of(error)}", "Check the reference.") from error

    def _session(self) -> requests.Session:
        if self._opened is None:
            from http.cookiejar import DefaultCookiePolicy

            import requests

            self._opened = requests.Session()
            self._opened.mount("https://", _adapter(self._access.ca))
            self._opened.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=_POOL))
            self._opened.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            if self._loopback:
                self._opened.trust_env = False  # No proxy stands between this machine and itself.
        return self._opened

    def _probed(self) -> str:
        """Whether an insecure registry has TLS at all: it is tried first, as Docker does."""
        import requests
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        try:
            self._session().get(f"https://{self._host}/v2/", verify=False, timeout=_TIMEOUT, auth=_no_netrc).close()
        except (requests.exceptions.SSLError, requests.ConnectionError):
            return "http"
        except requests.RequestException:
            pass  # It has TLS; what else is wrong is told by the request that is meant.
        return "https"

    def pause(self, attempt: int, after: str | None = None) -> None:
        """Wait before the try that follows the one numbered *attempt*; at once when everything is to stop."""
        pause(attempt, after, self.stop)

    # -- authorisation -------------------------------------------------------------------------------------------------

    def _authorization(self, scopes: tuple[str, ...]) -> str | None:
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

    def _refused(self, challenge: str, scopes: tuple[str, ...], used: str | None) -> None:
        """Forget what was *used*, so that the next request gets something else; another thread may have been first."""
        with self._lock:
            self._challenge = challenge
            known = self._tokens.get(scopes)
            if known is not None and known.header == used:
                del self._tokens[scopes]

    def _answer(self, challenge: str, scopes: tuple[str, ...]) -> _Token | None:
        """What *challenge* asks for ("How to authenticate")."""
        if self._found is None:
            reference = self.reference
            self._found = find_credentials(reference.registry, repository=reference.repository, own=self._access.own)
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
        realm = self.allowed(realm, "names the token service")
        query: list[tuple[str, str]] = [("service", service)] if service is not None else []
        began = time.monotonic()
        if credentials is not None and credentials.is_identity_token:
            form = [*query, ("scope", " ".join(scopes)), ("client_id", "cpack-build"), ("grant_type", "refresh_token")]
            data = urlencode([*form, ("refresh_token", credentials.password)]).encode()
            response = self._ask_realm("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, data)
        else:
            query += [("scope", scope) for scope in scopes]
            url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
            secret = {"Authorization": _basic(credentials)} if credentials else {}
            response = self._ask_realm("GET", url, secret, None)
        with response:
            if response.status_code != 200:
                raise self.refusal(response, "token")
            data = self.limited(response, _TOKEN_LIMIT, "token")
        try:
            answer: Any = json.loads(data)
            token = answer.get("token") or answer.get("access_token")
            holds = answer.get("expires_in")
        except (ValueError, AttributeError, RecursionError) as error:
            raise self.failure("its token service gave no token", "Tell the registry's owner.") from error
        # A header of its own making is all that a token could break out of.
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self.failure("its token service gave no token", "Tell the registry's owner.")
        seconds = holds if isinstance(holds, int) and 0 < holds < 1 << 31 else _TOKEN_SECONDS
        return _Token(f"Bearer {token}", began + 0.7 * seconds)

    def _ask_realm(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> requests.Response:
        """A request to the token service: no redirect is followed with a password, and busy is tried again."""
        for attempt in range(TRIES):
            last = attempt + 1 == TRIES
            try:
                response = self._send(method, url, headers, body, "token")
            except Lost as lost:
                if last:
                    raise self.lost(lost, "token") from lost
                self.pause(attempt)
                continue
            if response.status_code not in PASSING or last:
                return response
            response.close()
            self.pause(attempt, response.headers.get("Retry-After"))
        raise AssertionError("the last try returns or raises")

    def allowed(self, url: str, verb: str) -> str:
        """*url* if it may be followed from here; :class:`UnsafeInput` otherwise."""
        parts = urlsplit(url)
        plain = urlsplit(self.base).scheme == "http"
        near = (is_loopback(parts.netloc) and self._loopback) or (self._insecure and parts.netloc == self._host)
        if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and plain and near)):
            return url
        raise UnsafeInput(
            f"{self.reference.registry} {verb} {parts.scheme}://{parts.netloc}, which is not safe.",
            hint="Only https is followed.",
        )

    # -- answers and errors --------------------------------------------------------------------------------------------

    def limited(self, response: requests.Response, limit: int, what: str) -> bytes:
        """The whole body, of at most *limit* bytes. Raises :class:`BadImage`, :class:`NetworkError`."""
        import requests

        data = b""
        try:
            for chunk in response.iter_content(64 << 10):
                data += chunk
                if len(data) > limit:
                    raise BadImage(f"{self.reference}: {what}", f"has more than {limit} bytes")
        except requests.RequestException as error:
            raise self.failure(f"{what}: {reason_of(error)}", "Run it again.") from error
        return data

    def failure(self, problem: str, hint: str) -> NetworkError:
        """That *problem* occurred while this repository was spoken to."""
        return NetworkError(f"{self._verb} {self.reference}: {problem}.", hint=hint)

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
        if status in (401, 403):
            problem = self._found.problem if self._found is not None else ""
            return self.failure(
                f"{what}: the registry refuses ({told})",
                f"The repository may not exist, or needs `docker login {registry}`."
                + (f" No login was found: {problem}." if problem else ""),
            )
        if status == 429:
            return self.failure(
                f"{what}: too many requests ({told})", f"Wait, use `docker login {registry}`{self._or_mirror}."
            )
        return self.failure(f"{what}: {told}", "Try again later, or tell the registry's owner.")

    @property
    def _or_mirror(self) -> str:
        return ", or map it with --mirror" if self._verb == "Pulling" else ""


def error_codes(response: requests.Response) -> list[str]:
    """The codes of an error's JSON body ("Error Codes"); nothing else of it is repeated."""
    import requests

    data = b""
    try:
        for chunk in response.iter_content(4 << 10):
            data += chunk
            if len(data) > _TOLD_LIMIT:
                return []
        errors = json.loads(data)["errors"]
        codes = [error["code"] for error in errors[:4]]
    except (requests.RequestException, ValueError, KeyError, TypeError, RecursionError):
        return []  # Most errors need no body to be understood.
    return [code for code in codes if isinstance(code, str) and re.fullmatch(r"[A-Z][A-Z_]{1,40}", code)]


def pause(attempt: int, after: str | None, stop: threading.Event | None) -> None:
    """Wait as long as ``Retry-After`` says, else a jittered half second that doubles with each *attempt*."""
    seconds = _seconds(after)
    if seconds is None:
        seconds = 0.5 * 2**attempt * SystemRandom().uniform(0.5, 1.5)
    (stop or threading.Event()).wait(min(seconds, _LONGEST_PAUSE))


def _seconds(after: str | None) -> float | None:
    """RFC 9110, 10.2.3: a number of seconds or a date."""
    if not after:
        return None
    if after.isascii() and after.isdigit():
        return float(after[:6])
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def is_loopback(netloc: str) -> bool:
    """Whether *netloc* (``host[:port]``) is this machine by its name or address."""
    try:
        host = urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reason_of(error: Exception) -> str:
    """What went wrong, without the URL, which may hold a signature."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "TLS failed"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(":".join(credentials).encode()).decode()


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps ``requests`` from sending what a ``.netrc`` has for the host."""
    return request


def _adapter(ca: Path | None) -> HTTPAdapter:
    """Connections over TLS; with *ca* its certificates are trusted as well. Raises :class:`UsageError`."""
    import ssl

    from requests.adapters import HTTPAdapter

    if ca is None:
        return HTTPAdapter(pool_maxsize=_POOL)
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=str(ca))
    except OSError as error:
        reason = "holds no certificates (PEM)" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(f"--ca {ca}: {reason}.", hint="Name a file with the registry's CA in PEM.") from error

    class _Trusting(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, ssl_context=context, **kwargs)

        def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
            # Newer versions of requests would put their own context in its place.
            host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
            return host, {**pool, "ssl_context": context} if verify else pool

    return _Trusting(pool_maxsize=_POOL)
