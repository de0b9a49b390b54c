"""Downloads into the store: streamed, hashed on the way, retried where that can help, kept only when they are right.

A transport is one method, given to :func:`download`; tests give another. What a document names is http(s) only; a local
file is read only where the user mapped a URL to it, and is then adopted where it lies. No credential is sent but what
the user's own ``~/.netrc`` holds for that very host, and none is ever shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import unquote

from cpack_build.errors import CpackError, HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.mirrors import Mirrors, local_path
from cpack_build.fetch.store import CHUNK, Store, StoredFile
from cpack_build.fetch.tuning import Tuning
from cpack_build.fetch.urls import check_http, redact
from cpack_build.progress import SILENT, Progress, check, on_stop, pause, waiting_for

if TYPE_CHECKING:
    import requests

    from cpack_build.fetch.places import Place

__all__ = [
    "HeadTransport",
    "HttpTransport",
    "Offline",
    "PostTransport",
    "RequestsTransport",
    "Response",
    "Sources",
    "adopt_verified",
    "download",
    "local_file",
    "probe",
]

_TRIES = 5
_LARGE = 64 << 20
"""Bytes from which on a file is worth several connections and a journal."""
_LONGEST_WAIT = 60.0
"""Seconds that a ``Retry-After`` may ask for before giving up is the kinder answer."""
_ROUNDS = 4
"""How many times as long as one answer may take all of them may, redirects and headers that drip among them."""
_REDIRECT_BODY = 64 << 10
"""Bytes of a redirect's body that are read, so that its connection stays open."""


@dataclass(frozen=True)
class Response:
    """An answer under way: *headers* with lower-case names; *chunks* raises ``ConnectionError`` when it breaks off.

    *url* is where the redirects ended, if there were any.
    """

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    url: str = ""


class HttpTransport(Protocol):
    """Sends one GET. ``ConnectionError`` (or ``TimeoutError``) says that trying again may help.

    >>> with transport.get("https://hub.example/x", headers={}) as response:
    ...     response.status
    200
    """

    def get(self, url: str, *, headers: Mapping[str, str]) -> AbstractContextManager[Response]: ...


@runtime_checkable
class PostTransport(HttpTransport, Protocol):
    """One that can also send a document, as few questions need it."""

    def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> AbstractContextManager[Response]: ...


@runtime_checkable
class HeadTransport(HttpTransport, Protocol):
    """One that can also ask for the headers alone."""

    def head(self, url: str, *, headers: Mapping[str, str]) -> AbstractContextManager[Response]: ...


class RequestsTransport:
    """The real one. Redirects lead to http(s) only; *timeouts* are seconds to connect and between bytes.

    Each thread keeps its connections open: hundreds of small files come from a few hosts.
    """

    def __init__(self, *, timeouts: tuple[float, float] = (15.0, 60.0)) -> None:
        self._timeouts = timeouts
        self._local = threading.local()

    def _session(self) -> requests.Session:
        from http.cookiejar import DefaultCookiePolicy

        import requests

        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            session.hooks["response"].append(_without_long_body)
        return session

    def get(self, url: str, *, headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        return self._send("GET", url, None, headers)

    def head(self, url: str, *, headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        return self._send("HEAD", url, None, headers)

    def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        return self._send("POST", url, body, headers)

    @contextmanager
    def _send(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Iterator[Response]:
        import requests
        from urllib3.exceptions import HTTPError

        session = self._session()

        def ask() -> requests.Response:
            asked = {"User-Agent": "cpack-build", "Accept-Encoding": "identity", **headers}
            return session.request(method, url, data=body, headers=asked, stream=True, timeout=self._timeouts)

        try:
            answer = waiting_for(ask, drop=lambda answer: answer.close(), seconds=_ROUNDS * sum(self._timeouts))
        except TimeoutError as error:
            raise ConnectionError("no answer in time") from error
        except requests.exceptions.InvalidSchema:
            raise UnsafeInput(f"{redact(url)} leads to something that is no http(s) URL.") from None
        except requests.exceptions.TooManyRedirects:
            raise NetworkError(f"{redact(url)} redirects without end.") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise ConnectionError(_reason(error)) from error
        except requests.exceptions.RequestException as error:
            raise NetworkError(f"{redact(url)} cannot be asked for: {redact(str(error))}.") from error
        except ValueError:  # ``requests`` lets urllib's own through for the address of a redirect.
            raise UnsafeInput(f"{redact(url)} leads to something that is no http(s) URL.") from None

        def chunks() -> Iterator[bytes]:
            try:
                # What has come, without waiting for a whole chunk: a connection that breaks then loses nothing.
                while chunk := answer.raw.read1(CHUNK, decode_content=True):
                    yield chunk
                check()
            except (HTTPError, OSError) as error:
                check()
                raise ConnectionError(_reason(error)) from error

        with answer, on_stop(answer.raw.shutdown):
            headers = {name.lower(): value for name, value in answer.headers.items()}
            yield Response(answer.status_code, headers, chunks(), answer.url if answer.history else "")


def _without_long_body(answer: requests.Response, **_: object) -> None:
    """Hang up on a redirect with more to say: ``requests`` reads it to its end, and it may have none."""
    length = answer.headers.get("Content-Length", "")
    if answer.is_redirect and not (length.isdigit() and int(length[:12]) <= _REDIRECT_BODY):
        answer.close()


class Offline:
    """A transport that asks nobody."""

    def get(self, url: str, *, headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        raise NetworkError(
            f"{redact(url)} is not in the store, and --offline forbids to ask for it.",
            hint="Run it once without --offline, or map it to a local copy with --mirror.",
        )


@dataclass(frozen=True)
class Sources:
    """Where bytes come from: the user's mirrors, the transports and how they are used, and *further* places that may
    have files (registries), asked before the addresses that a document names."""

    mirrors: Mirrors = field(default_factory=Mirrors)
    http: HttpTransport = field(default_factory=RequestsTransport)
    tuning: Tuning = field(default_factory=Tuning)
    further: Sequence[Place] = ()
    registries: Any = None
    """How container registries are reached: an ``oci.transport.Access``, of which this room knows nothing."""


def download(
    url: str,
    *,
    store: Store,
    sources: Sources,
    sha256: str | None = None,
    size: int | None = None,
    what: str = "",
    headers: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
    sleep: Callable[[float], object] = pause,
) -> StoredFile:
    """The file at *url*, through the mirrors, in the store; at once if a file with that hash is known already.

    *what* names it for people. Raises :class:`NetworkError`, :class:`HashMismatch` (nothing is kept),
    :class:`UnsafeInput` (no http URL, and not mapped), :class:`Unresolvable` (a mapped file that is not there).
    """
    if sha256 is not None and (known := store.find(sha256)) is not None:
        return known
    name = what or redact(url)
    target = sources.mirrors.apply(url)
    if target != url and local_path(target) is not None:
        path = local_file(target)
        if path is None:
            raise Unresolvable(
                f"{redact(url)} is mapped to {redact(target.partition('?')[0])}, where no file is.",
                hint="Correct --mirror, or put the file there.",
            )
        return adopt_verified(path, store=store, sha256=sha256, what=f"{name} ({path})", progress=progress)
    check_http(target, what=name)
    if sha256 is not None and size is not None and size >= _LARGE:
        return _transferred(target, sha256, size, name, store, sources, headers or {}, progress)
    with progress.task(name, total=size) as task:
        body = _body(target, sources.http, headers=headers or {}, resumable=sha256 is not None, sleep=sleep)
        expected = next(body)
        if size is None and isinstance(expected, int):
            task.expect(expected)

        def chunks() -> Iterator[bytes]:
            for chunk in body:
                assert isinstance(chunk, bytes)
                task.advance(len(chunk))
                yield chunk

        return store.put(chunks(), what=f"{name} from {redact(target)}", sha256=sha256, size=size, name=what)


def _transferred(
    target: str,
    sha256: str,
    size: int,
    name: str,
    store: Store,
    sources: Sources,
    headers: Mapping[str, str],
    progress: Progress,
) -> StoredFile:
    """A large file with a known hash: in parallel ranges, and taken up in another run where this one ends."""
    from cpack_build.fetch.remote import HttpFile
    from cpack_build.fetch.transfer import transfer

    problems: list[CpackError] = []
    done = transfer(
        [HttpFile(target, sources.http, headers)],
        sha256=sha256,
        size=size,
        name=name,
        store=store,
        tuning=sources.tuning,
        problems=problems,
        progress=progress,
    )
    if done is None:
        raise problems[0]
    return done.file


def probe(url: str, *, sources: Sources, what: str = "") -> None:
    """See that *url* answers, through the mirrors, without taking its bytes.

    Raises :class:`NetworkError`, :class:`UnsafeInput` (no http URL, and not mapped), :class:`Unresolvable` (a mapped
    file that is not there).
    """
    target = sources.mirrors.apply(url)
    if target != url and local_path(target) is not None:
        if local_file(target) is None:
            raise Unresolvable(
                f"{redact(url)} is mapped to {redact(target.partition('?')[0])}, where no file is.",
                hint="Correct --mirror, or put the file there.",
            )
        return
    check_http(target, what=what or redact(url))
    try:
        with sources.http.get(target, headers={"Range": "bytes=0-0"}) as response:
            if response.status not in (200, 206, 416):  # 416: an empty file has no first byte
                raise _refused(target, response.status)
    except (ConnectionError, TimeoutError) as error:
        raise NetworkError(
            f"{redact(target)} does not answer: {error}.",
            hint="Check the network and try again, or map it to a local copy with --mirror.",
        ) from error


def local_file(target: str) -> Path | None:
    """The file that a mapped URL leads to: as written, or as a server would read it (no query, ``%2b`` as ``+``)."""
    for spelling in (target, target.partition("?")[0], unquote(target.partition("?")[0].partition("#")[0])):
        path = local_path(spelling)
        if path is not None and path.is_file():
            return path
    return None


def adopt_verified(
    path: Path, *, store: Store, sha256: str | None, what: str = "", progress: Progress = SILENT
) -> StoredFile:
    """The local file at *path* as it lies, hashed (or its hash remembered). Raises :class:`HashMismatch`."""
    with progress.task(f"Hashing {path.name}", total=path.stat().st_size) as task:
        file = store.adopt(path, on_read=task.advance)
    if sha256 is not None and file.sha256 != sha256:
        raise HashMismatch(what or path, expected=sha256, actual=file.sha256)
    return file


def _body(
    url: str,
    http: HttpTransport,
    *,
    headers: Mapping[str, str],
    resumable: bool,
    sleep: Callable[[float], object],
) -> Iterator[bytes | int | None]:
    """First the announced length (or ``None``), then the bytes; a broken connection is taken up where it broke.

    Taking up is safe only where a hash proves the whole (*resumable*).
    """
    count, announced = 0, False
    for attempt in range(1, _TRIES + 1):
        wait = float(2 ** (attempt - 1))
        asked = dict(headers)
        if count:
            asked["Range"] = f"bytes={count}-"  # RFC 9110, section 14.2
        try:
            with http.get(url, headers=asked) as response:
                if response.status in (408, 425, 429) or response.status >= 500:
                    wait = _retry_after(response.headers.get("retry-after", ""), wait)
                    if attempt == _TRIES or wait > _LONGEST_WAIT:
                        raise _refused(url, response.status)
                elif response.status not in (200, 206) or (response.status == 206 and not count):
                    raise _refused(url, response.status)
                elif response.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html":
                    raise NetworkError(
                        f"{redact(url)} answered with a web page instead of a file.",
                        hint="Use the address of the download itself; a login or licence may be in the way.",
                    )
                else:
                    length = response.headers.get("content-length", "")
                    if not announced:
                        announced = True
                        yield int(length) if length.isdecimal() else None
                    skip = count if response.status == 200 else 0
                    got = 0
                    for chunk in response.chunks:
                        got += len(chunk)
                        fresh = chunk[max(0, skip - (got - len(chunk))) :] if got > skip else b""
                        if fresh:
                            count += len(fresh)
                            yield fresh
                    if not (length.isdecimal() and "content-encoding" not in response.headers and got < int(length)):
                        return
                    raise ConnectionError("the answer ended early")
        except (ConnectionError, TimeoutError) as error:
            if attempt == _TRIES or (count and not resumable):
                raise NetworkError(
                    f"{redact(url)} cannot be downloaded: {error}.",
                    hint="Check the network and try again, or map it to a local copy with --mirror.",
                ) from error
        sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _refused(url: str, status: int) -> NetworkError:
    if status in (401, 403):
        return NetworkError(
            f"{redact(url)} refuses access (HTTP {status}).",
            hint="Put your credentials for that host into ~/.netrc, or download it yourself and name the copy.",
        )
    if status in (404, 410):
        return NetworkError(f"{redact(url)} is not there (HTTP {status}).", hint="Correct the address, or mirror it.")
    return NetworkError(f"{redact(url)} answered HTTP {status}.", hint="Try again later, or use a mirror.")


def _retry_after(value: str, otherwise: float) -> float:
    """Seconds to wait (RFC 9110, section 10.2.3); a date is answered by our own pace."""
    return float(value) if value.strip().isdecimal() else otherwise


def _reason(error: BaseException) -> str:
    """The innermost cause, which is the sentence that a person can use."""
    seen: BaseException = error
    while True:
        inner = next((part for part in seen.args if isinstance(part, BaseException)), None)
        inner = inner or getattr(seen, "reason", None) or seen.__cause__
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    text = str(seen).rsplit(">: ", 1)[-1]
    return redact(text.rsplit(": ", 1)[-1] if "object at 0x" in text else text) or type(seen).__name__
