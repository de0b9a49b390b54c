"""One request to a host, as a registry's client sends it: TLS, no cookies, no redirects, no ``.netrc``, sized bodies.

TLS everywhere but on loopback and where the user said ``--insecure-registry``. What goes wrong on the way is told
without the URL, which may hold a signature.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from secrets import SystemRandom
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cpack_build.errors import UsageError
from cpack_build.oci.types import CHUNK
from cpack_build.progress import pause as slept
from cpack_build.progress import waiting_for

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

__all__ = [
    "Access",
    "BadCertificate",
    "BadRequest",
    "Lost",
    "Sized",
    "Transport",
    "is_loopback",
    "pause",
    "pieces",
    "reason_of",
]

_TIMEOUT = (10, 60)
"""Seconds to connect, and between two pieces of an answer."""
_PATIENCE = 60.0
"""Seconds in which :data:`_LEAST` bytes of a body must come, and the headers of an answer from its first byte on."""
_LEAST = 16 << 10
_LONGEST_PAUSE = 60.0
_POOL = 32


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


class BadCertificate(Exception):
    """The host's certificate is not to be trusted, or it speaks no TLS; trying again does not help."""


class BadRequest(Exception):
    """A request that cannot be sent at all."""


class Sized:
    """A body of *size* bytes that is made while it is sent: ``requests`` sends it with its Content-Length."""

    def __init__(self, size: int, chunks: Callable[[], Iterable[bytes]]) -> None:
        self._size = size
        self._chunks = chunks

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterable[bytes]:
        return iter(self._chunks())


class Transport:
    """Requests for one registry at *host*, counted; its connections are kept open. For several threads at once.

    *ca* is trusted besides the usual certificates; the certificate of an *insecure* host is not looked at.
    """

    def __init__(self, host: str, *, ca: Path | None = None, insecure: bool = False) -> None:
        self.requests = 0
        self._host = host
        self._ca = ca
        self._insecure = insecure
        self._lock = threading.Lock()
        self._opened: requests.Session | None = None

    def send(self, method: str, url: str, headers: dict[str, str], body: bytes | Sized | None) -> requests.Response:
        """The answer to one request, its body unread. Raises :class:`Lost`, :class:`BadCertificate`,
        :class:`BadRequest`."""
        import requests

        with self._lock:
            self.requests += 1
            session = self._session()
        unproved = self._insecure and urlsplit(url).netloc == self._host

        def ask() -> requests.Response:
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

        try:
            # A body is sent by the thread that reads it, and ends with what that is told.
            if isinstance(body, Sized):
                return ask()
            return waiting_for(ask, drop=lambda answer: answer.close(), seconds=sum(_TIMEOUT) + _PATIENCE)
        except TimeoutError as error:
            raise Lost("no answer in time") from error
        except requests.exceptions.SSLError as error:
            # A body that breaks is told as an SSL error, too, and worth another try; a certificate is not.
            if "CERTIFICATE" in str(error) or "WRONG_VERSION" in str(error):
                raise BadCertificate(reason_of(error)) from error
            raise Lost(reason_of(error)) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Lost(reason_of(error)) from error
        except requests.RequestException as error:
            raise BadRequest(reason_of(error)) from error

    def probed(self) -> str:
        """Whether an insecure registry has TLS at all: it is tried first, as Docker does."""
        import requests
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        with self._lock:
            session = self._session()
        try:
            session.get(f"https://{self._host}/v2/", verify=False, timeout=_TIMEOUT, auth=_no_netrc).close()
        except (requests.exceptions.SSLError, requests.ConnectionError):
            return "http"
        except requests.RequestException:
            pass  # It has TLS; what else is wrong is told by the request that is meant.
        return "https"

    def _session(self) -> requests.Session:
        if self._opened is None:
            from http.cookiejar import DefaultCookiePolicy

            import requests

            class _Session(requests.Session):
                def get_redirect_target(self, resp: requests.Response) -> None:
                    """Not even looked at: for a redirect that it does not follow, too, ``requests`` would read the
                    whole body and take the address apart."""

            self._opened = _Session()
            self._opened.mount("https://", _adapter(self._ca))
            self._opened.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=_POOL))
            self._opened.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            if is_loopback(self._host):
                self._opened.trust_env = False  # No proxy stands between this machine and itself.
        return self._opened


def pause(attempt: int, after: str | None, stop: threading.Event | None) -> None:
    """Wait as long as ``Retry-After`` says, else a jittered half second that doubles with each *attempt*."""
    seconds = _seconds(after)
    if seconds is None:
        seconds = 0.5 * 2**attempt * SystemRandom().uniform(0.5, 1.5)
    if stop is None:
        slept(min(seconds, _LONGEST_PAUSE))
    else:
        stop.wait(min(seconds, _LONGEST_PAUSE))


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


def pieces(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes. Raises :class:`Lost`, also for one that only drips."""
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError, ReadTimeoutError

    began, count = time.monotonic(), 0
    while True:
        try:
            chunk = response.raw.read1(CHUNK, decode_content=False)
        except ReadTimeoutError as error:
            raise Lost("no answer in time") from error
        except (HTTPError, OSError, HTTPException) as error:
            raise Lost("the connection broke") from error
        if not chunk:
            return
        yield chunk
        count += len(chunk)
        if count >= _LEAST:
            began, count = time.monotonic(), 0
        elif time.monotonic() - began > _PATIENCE:
            raise Lost(f"fewer than {_LEAST >> 10} KiB came in {_PATIENCE:.0f} seconds")


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
