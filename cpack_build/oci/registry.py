"""Pulling from a registry: manifests and blobs by the distribution spec, with the token dance that registries ask for.

TLS everywhere but on loopback. Credentials are those of ``docker login`` (the ``auths`` of
``~/.docker/config.json``); they go to their registry and to the realm that it names, a token to its registry alone,
and neither follows a redirect to another host. Nothing that comes back is believed here:
:class:`~cpack_build.oci.sources.ImageSource` proves it.

Specification: distribution-spec v1.1, "Pull"; distribution/distribution, "Token Authentication Specification".
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from cpack_build.errors import BadImage, NetworkError, Unresolvable, UnsafeInput
from cpack_build.oci.reference import Reference, is_digest
from cpack_build.oci.types import CHUNK, INDEX, MANIFEST, Descriptor

if TYPE_CHECKING:
    import requests

    from cpack_build.oci.sources import Document

__all__ = ["RegistryOrigin", "credentials_for"]

_ACCEPT = ", ".join(
    (
        INDEX,
        MANIFEST,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_DOCUMENT_LIMIT = 4 << 20
_TOKEN_LIMIT = 1 << 20
_TIMEOUT = (10, 60)
"""Seconds to connect, and between two pieces of an answer."""
_TRIES = 4
_REDIRECTS = 5
_PASSING = (429, 500, 502, 503, 504)
_HUB = "registry-1.docker.io"
"""Where Docker Hub's registry really is."""


class RegistryOrigin:
    """One repository of one registry, and the version of it that a reference names.

    *plain* asks for HTTP without TLS, which is refused unless the host is loopback; there it is the rule anyway.
    """

    def __init__(self, reference: Reference, *, plain: bool = False) -> None:
        host = _HUB if reference.registry == "docker.io" else reference.registry
        loopback = _is_loopback(host)
        if plain and not loopback:
            raise UnsafeInput(
                f"{reference.registry} would be spoken to without TLS.", hint="Only loopback may be; leave http:// out."
            )
        self._reference = reference
        self._base = f"{'http' if loopback else 'https'}://{host}/v2/{reference.repository}/"
        self._authorization: str | None = None
        self._opened: requests.Session | None = None

    def top(self) -> Document:
        from cpack_build.oci.sources import Document

        version = self._reference.version
        response = self._get(f"manifests/{version}", accept=_ACCEPT, what=f"manifest {version}")
        with response:
            data = self._limited(response, _DOCUMENT_LIMIT, f"manifest {version}")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        promised = self._reference.digest
        told = response.headers.get("Docker-Content-Digest", "")
        return Document(data, kind, promised or (told if is_digest(told) else None))

    def manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._stream(f"manifests/{descriptor.digest}", descriptor, accept=descriptor.media_type or _ACCEPT)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._stream(f"blobs/{descriptor.digest}", descriptor, accept="*/*")

    # -- bodies --------------------------------------------------------------------------------------------------------

    def _stream(self, path: str, descriptor: Descriptor, *, accept: str) -> Iterator[bytes]:
        """The body at *path*; a connection that breaks is taken up where it broke."""
        import requests

        what = descriptor.digest
        done = 0
        for attempt in range(_TRIES):
            response = self._get(path, accept=accept, what=what, start=done)
            skip = done if response.status_code != 206 else 0
            before = done
            try:
                with response:
                    for chunk in response.iter_content(CHUNK):
                        fresh = chunk[skip:]
                        skip -= len(chunk) - len(fresh)
                        done += len(fresh)
                        if fresh:
                            yield fresh
                if done >= descriptor.size:
                    return
                reason = "the connection ended early"
            except requests.RequestException as error:
                reason = _reason(error)
            if attempt + 1 == _TRIES:
                raise self._failure(f"{what}: {reason} after {done} of {descriptor.size} bytes", "Run it again.")
            _pause(attempt if done == before else 0, None)

    def _limited(self, response: requests.Response, limit: int, what: str) -> bytes:
        import requests

        data = b""
        try:
            for chunk in response.iter_content(64 << 10):
                data += chunk
                if len(data) > limit:
                    raise BadImage(f"{self._reference}: {what}", f"has more than {limit} bytes")
        except requests.RequestException as error:
            raise self._failure(f"{what}: {_reason(error)}", "Run it again.") from error
        return data

    # -- requests ------------------------------------------------------------------------------------------------------

    def _get(self, path: str, *, accept: str, what: str, start: int = 0) -> requests.Response:
        """GET below the repository, authorised when asked to be, tried again when that may help."""
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        asked = False
        attempt = 0
        while True:
            response = self._follow(self._base + path, headers, what)
            status = response.status_code
            if status in (200, 206):
                return response
            challenge = response.headers.get("WWW-Authenticate", "")
            after = response.headers.get("Retry-After")
            response.close()
            if status == 401 and not asked:
                asked = True
                self._authorization = self._answer(challenge)
                continue
            if status in _PASSING and attempt + 1 < _TRIES:
                _pause(attempt, after)
                attempt += 1
                continue
            raise self._refusal(status, what)

    def _follow(self, url: str, headers: dict[str, str], what: str) -> requests.Response:
        """One GET through its redirects; the token stays with the host that it is for."""
        origin = urlsplit(url)[:2]
        for _ in range(_REDIRECTS + 1):
            own = urlsplit(url)[:2] == origin
            secret = {"Authorization": self._authorization} if own and self._authorization else {}
            response = self._send(url, {**headers, **secret}, what)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            target = urljoin(url, response.headers.get("Location", ""))
            response.close()
            url = self._allowed(target, "redirects to")
        raise self._failure(f"{what}: more than {_REDIRECTS} redirects", "Tell the registry's owner.")

    def _send(self, url: str, headers: dict[str, str], what: str) -> requests.Response:
        import requests

        for attempt in range(_TRIES):
            try:
                return self._session().get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=_TIMEOUT, auth=_no_netrc
                )
            except requests.exceptions.SSLError as error:
                raise self._failure(
                    f"{what}: {_reason(error)}", "See that the registry's certificate is trusted here."
                ) from error
            except (requests.ConnectionError, requests.Timeout) as error:
                if attempt + 1 == _TRIES:
                    raise self._failure(
                        f"{what}: {_reason(error)}",
                        "See that the host is right and reachable, or map it with --mirror.",
                    ) from error
                _pause(attempt, None)
            except requests.RequestException as error:
                raise self._failure(f"{what}: {_reason(error)}", "Check the reference.") from error
        raise AssertionError("the last try returns or raises")

    def _session(self) -> requests.Session:
        if self._opened is None:
            import requests

            self._opened = requests.Session()
            if self._base.startswith("http:"):
                self._opened.trust_env = False  # No proxy stands between this machine and itself.
        return self._opened

    # -- authorisation -------------------------------------------------------------------------------------------------

    def _answer(self, challenge: str) -> str | None:
        """The ``Authorization`` that *challenge* asks for ("How to authenticate")."""
        credentials = credentials_for(self._reference.registry)
        basic = "Basic " + base64.b64encode(":".join(credentials).encode()).decode() if credentials else None
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return basic
        parameters = dict(re.findall(r'([a-zA-Z_]+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or not parameters.get("realm"):
            return None
        realm = self._allowed(parameters["realm"], "names the token service")
        query = {key: parameters[key] for key in ("service",) if key in parameters}
        query["scope"] = f"repository:{self._reference.repository}:pull"
        request_url = _with_query(realm, query)
        response = self._send(request_url, {"Authorization": basic} if basic else {}, "token")
        with response:
            if response.status_code != 200:
                raise self._refusal(response.status_code, "token")
            data = self._limited(response, _TOKEN_LIMIT, "token")
        try:
            answer: Any = json.loads(data)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError, RecursionError) as error:
            raise self._failure("its token service gave no token", "Tell the registry's owner.") from error
        # A header of its own making is all that a token could break out of.
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self._failure("its token service gave no token", "Tell the registry's owner.")
        return f"Bearer {token}"

    def _allowed(self, url: str, verb: str) -> str:
        parts = urlsplit(url)
        loopback = _is_loopback(parts.netloc)
        here = urlsplit(self._base).scheme == "http"
        if parts.scheme == "https" or (parts.scheme == "http" and loopback and here):
            return url
        raise UnsafeInput(
            f"{self._reference.registry} {verb} {parts.scheme}://{parts.netloc}, which is not safe.",
            hint="Only https is followed.",
        )

    # -- errors --------------------------------------------------------------------------------------------------------

    def _failure(self, problem: str, hint: str) -> NetworkError:
        return NetworkError(f"Pulling {self._reference}: {problem}.", hint=hint)

    def _refusal(self, status: int, what: str) -> NetworkError | Unresolvable:
        registry = self._reference.registry
        if status == 404:
            return Unresolvable(
                f"Registry {registry} has no {what} in {self._reference.repository}.",
                hint="Check the name, tag and digest.",
            )
        if status in (401, 403):
            return self._failure(
                f"{what}: the registry refuses (HTTP {status})",
                f"The repository may not exist, or needs `docker login {registry}`.",
            )
        if status == 429:
            return self._failure(
                f"{what}: too many requests (HTTP 429)",
                f"Wait, use `docker login {registry}`, or map it with --mirror.",
            )
        return self._failure(f"{what}: HTTP {status}", "Try again later, or tell the registry's owner.")


def credentials_for(registry: str) -> tuple[str, str] | None:
    """User and password that ``docker login`` stored for *registry* in ``config.json``, or ``None``.

    Only ``auths`` is read; credential helpers are programs and are not run here.
    """
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    keys = [registry, f"https://{registry}"]
    if registry == "docker.io":
        keys = ["https://index.docker.io/v1/", "docker.io", "index.docker.io"]
    try:
        auths = json.loads(path.read_bytes())["auths"]
        entry = next(auths[key] for key in keys if key in auths)
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError, binascii.Error):
        return None
    return (user, password) if colon and user else None


def _is_loopback(netloc: str) -> bool:
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


def _with_query(url: str, query: dict[str, str]) -> str:
    from urllib.parse import urlencode

    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps ``requests`` from sending what a ``.netrc`` has for the host."""
    return request


def _reason(error: Exception) -> str:
    """The innermost words of *error*, without the URL, which may hold a signature."""
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


def _pause(attempt: int, after: str | None) -> None:
    seconds = float(after) if after and after.isascii() and after.isdigit() else 0.5 * 2**attempt
    time.sleep(min(seconds, 20.0))
