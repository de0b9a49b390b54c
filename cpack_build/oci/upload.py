"""Sending one blob to a registry, from where it lies to the socket, in one pass.

First whole: one PUT of a sized body. When that is refused, or a connection breaks on the way, the registry is asked how
much it has and the rest goes in pieces, which become smaller as long as they do not arrive. A registry that has lost
the upload (docker-registry 2.8 does, when a request is cut) gets a new one. The bytes are hashed as they leave
(:mod:`cpack_build.oci.body`).

Specification: distribution-spec v1.1, "Pushing a blob in chunks", "Mounting a blob from another repository".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from cpack_build.errors import CpackError, HashMismatch, NetworkError
from cpack_build.oci.body import Body
from cpack_build.oci.connection import PASSING, TRIES, Connection, Lost, Sized
from cpack_build.oci.reference import is_digest
from cpack_build.oci.types import Blob

if TYPE_CHECKING:
    import requests

__all__ = ["PIECE", "upload"]

PIECE = 64 << 20
"""Bytes of a piece at first, where a blob does not go whole."""
_SMALLEST = 16
"""How much smaller pieces may become."""
_SOURCES = 3
"""Repositories that are tried for a mount."""
_OCTETS = {"Content-Type": "application/octet-stream"}
_STATUS = (200, 202, 204, *(status for status in range(400, 500) if status not in PASSING))
"""Answers about an upload: how far it is, or that it is no more."""
_SPLIT_AFTER = (400, 405, 411, 413, 414, 501)
"""Refusals of a whole body that pieces may not meet: proxies have limits, some registries take no sized PUT."""


def upload(
    connection: Connection,
    blob: Blob,
    *,
    sources: Sequence[str] = (),
    piece: int = PIECE,
    moved: Callable[[int], object] = lambda count: None,
) -> str:
    """Send *blob*, or have it mounted from one of the repositories *sources* of the same registry.

    Returns ``sent``, ``mounted`` or ``present`` (it came from elsewhere meanwhile). *moved* is told of bytes that the
    registry has not been sent before. Raises :class:`HashMismatch` when the blob is not what it says,
    :class:`NetworkError`, :class:`UnsafeInput`; then the registry was asked to forget what it has of it.
    """
    with Body(blob, stop=connection.stop, moved=moved) as body:
        return _Upload(connection, body, piece).run(sources)


class _Interrupted(Exception):
    """A request did not do what it should; *error* is what to raise if it does not get better.

    *gone*: the upload must be begun again. *after*: its ``Retry-After``.
    """

    def __init__(self, error: CpackError, *, gone: bool = False, after: str | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.gone = gone
        self.after = after


class _Upload:
    """One upload: where it goes, how much of it has arrived, and in pieces of how many bytes (0: whole)."""

    def __init__(self, connection: Connection, body: Body, piece: int) -> None:
        self._connection = connection
        self._body = body
        self._digest = body.descriptor.digest
        self._what = f"blob {self._digest}"
        self._url: str | None = None
        self._arrived = 0
        self._most = piece
        self._piece = 0
        self._least = 1

    def run(self, sources: Sequence[str]) -> str:
        try:
            return self._run(sources)
        except BaseException:
            self._abandon()
            raise

    def _run(self, sources: Sequence[str]) -> str:
        failures, furthest = 0, 0
        while True:
            try:
                if self._url is None and self._begin(sources):
                    return "mounted"
                self._send()
                return "sent"
            except _Interrupted as cut:
                sources = ()
                if self._recover(cut):
                    return "present"
                failures = 1 if self._arrived > furthest else failures + 1
                furthest = max(furthest, self._arrived)
                if failures >= TRIES:
                    raise cut.error from cut
                self._connection.pause(failures - 1, cut.after)

    # -- the requests --------------------------------------------------------------------------------------------------

    def _begin(self, sources: Sequence[str]) -> bool:
        """Open an upload; ``True`` if the registry has mounted the blob instead."""
        base = f"{self._connection.base}blobs/uploads/"
        for source in sources[:_SOURCES]:
            self._abandon()  # What the source before has led to.
            url = f"{base}?{urlencode({'mount': self._digest, 'from': source})}"
            try:
                response = self._connection.ask(
                    "POST", url, what=self._what, ok=(201, 202, 400, 401, 403, 404), sources=(source,)
                )
            except NetworkError:
                continue  # No token for that repository, say; what is really wrong is told by the plain request.
            with response:
                if response.status_code == 201 and self._stored(response):
                    return True
                if response.status_code == 202:
                    self._opened(response, url)
        if self._url is None:
            with self._connection.ask("POST", base, what=self._what, ok=(202,)) as response:
                self._opened(response, base)
        return False

    def _stored(self, response: requests.Response) -> bool:
        """That the registry has this blob now and not another. Raises :class:`HashMismatch`."""
        told = response.headers.get("Docker-Content-Digest", "")
        if is_digest(told) and told != self._digest:
            raise HashMismatch(
                f"What {self._connection.reference.name} has stored for {self._what}",
                expected=self._digest,
                actual=told,
                hint="Tell the registry's owner.",
            )
        return True

    def _opened(self, response: requests.Response, url: str) -> None:
        self._arrived = 0
        self._move(response, url)
        if self._url is None:
            raise self._connection.failure(f"{self._what}: its upload got no address", "Tell the registry's owner.")
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        self._least = int(least[:12]) if least.isascii() and least.isdigit() and int(least[:12]) else 1

    def _move(self, response: requests.Response, url: str) -> None:
        """Each answer may say where the next request goes."""
        location = response.headers.get("Location")
        if location:
            self._url = self._connection.allowed(location, f"{self._what}: the registry would take it at", base=url)

    def _send(self) -> None:
        size = self._body.size
        if not self._piece and self._arrived == 0 and size:
            self._finish(self._body.piece(0, size), {"Content-Length": str(size)})
            return
        while self._arrived < size:
            self._patch()
        if size == 0:
            self._body.prove()
        self._finish(None, {})

    def _patch(self) -> None:
        start = self._arrived
        end = min(self._body.size, start + max(self._piece or self._most, self._least))
        headers = {**_OCTETS, "Content-Range": f"{start}-{end - 1}", "Content-Length": str(end - start)}
        url = self._address()
        response = self._exchange("PATCH", url, self._body.piece(start, end), headers)
        with response:
            if response.status_code not in (201, 202, 204):
                raise self._interruption(response)
            self._move(response, url)
            arrived = _arrived(response) if "Range" in response.headers else end
            if arrived is None or not start <= arrived <= end:
                told = response.headers.get("Range", "")
                raise _Interrupted(
                    self._connection.failure(
                        f"{self._what}: it says that it has {told!r} after bytes {start}-{end - 1} were sent",
                        "Tell the registry's owner.",
                    ),
                    gone=True,
                )
            self._arrived = arrived
            if arrived < end:
                raise _Interrupted(
                    self._connection.failure(
                        f"{self._what}: it took {arrived - start} of {end - start} bytes", "Run it again."
                    )
                )

    def _finish(self, body: Sized | None, headers: dict[str, str]) -> None:
        url = self._address()
        url = f"{url}{'&' if urlsplit(url).query else '?'}{urlencode({'digest': self._digest})}"
        with self._exchange("PUT", url, body, {**_OCTETS, **headers}) as response:
            if response.status_code not in (201, 204):
                raise self._interruption(response, whole=body is not None)
            self._stored(response)
        self._url = None

    def _exchange(self, method: str, url: str, body: Sized | None, headers: dict[str, str]) -> requests.Response:
        try:
            return self._connection.exchange(
                method, url, what=self._what, headers=headers, body=body if body is not None else b""
            )
        except Lost as lost:
            raise _Interrupted(self._connection.lost(lost, self._what)) from lost

    def _interruption(self, response: requests.Response, *, whole: bool = False) -> Exception:
        """What an unwanted status means: an interruption that may pass, or an error."""
        status = response.status_code
        after = response.headers.get("Retry-After")
        error = self._connection.refusal(response, self._what)
        if status in PASSING or status in (404, 416):
            return _Interrupted(error, after=after)
        if "DIGEST_INVALID" in str(error):
            return _Interrupted(error, gone=True)  # Our hash was right, so it was spoilt on the way.
        if (whole and status in _SPLIT_AFTER) or status == 413:
            return _Interrupted(error)
        return error

    # -- after an interruption -----------------------------------------------------------------------------------------

    def _recover(self, cut: _Interrupted) -> bool:
        """Find out how much has arrived; ``True`` if the registry turns out to have the whole blob."""
        self._piece = max(self._piece // 2, self._most // _SMALLEST, 1) if self._piece else self._most
        if self._url is None:
            return False
        if cut.gone:
            self._abandon()
            return False
        url = self._address()
        with self._connection.ask("GET", url, what=self._what, ok=_STATUS) as response:
            arrived = _arrived(response) if response.status_code < 300 else None
            if arrived is not None and arrived <= self._body.sent and arrived <= self._body.size:
                self._move(response, url)
                self._arrived = arrived
                return False
        # It does not know the upload (any longer): perhaps because it was finished and the answer got lost.
        if self._body.sent == self._body.size:
            blob = f"{self._connection.base}blobs/{self._digest}"
            with self._connection.ask("HEAD", blob, what=self._what, ok=(200, 404)) as response:
                if response.status_code == 200:
                    self._url = None
                    return True
        self._abandon()
        return False

    def _abandon(self) -> None:
        """Let the registry forget the upload; it does so by itself in time, so a refusal says nothing new."""
        url, self._url = self._url, None
        self._arrived = 0
        if url is not None:
            with suppress(CpackError, Lost):
                self._connection.exchange("DELETE", url, what=self._what).close()

    def _address(self) -> str:
        assert self._url is not None
        return self._url


def _arrived(response: requests.Response) -> int | None:
    """Bytes that the registry has of an upload by its ``Range: 0-END``; ``0-0`` is said for none as well as for one."""
    found = re.fullmatch(r"(?:bytes=)?0-(-?[0-9]{1,18})", response.headers.get("Range", "").strip())
    if found is None:
        return None if "Range" in response.headers else 0
    end = int(found.group(1))
    return 0 if end <= 0 else end + 1
