"""Xet, the chunk store behind Hugging Face's large files: their bytes straight from it, read by ``hf_xet``.

The hub says under which Xet hash a file lies (``paths-info``) and gives a token of some minutes for its store
(``xet-read-token``; Xet Protocol Specification, "Authentication"); ``hf_xet`` then streams any range of the file, which
makes it a :class:`~.remote.Remote` like any other: hashed while it comes, taken up where another source left off. It is
used where the extra ``hf`` is installed; whatever it cannot do, the file's resolve address can. What was weighed:
docs/decisions/045-hugging-face.md.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from cpack_build.errors import Cancelled, NetworkError, UnsafeInput
from cpack_build.fetch.remote import Piece
from cpack_build.fetch.urls import check_http, redact
from cpack_build.progress import check, waiting_for

__all__ = ["Grant", "Xet", "XetFile", "grant_of", "hash_of", "is_installed"]

T = TypeVar("T")
_WINDOW = 4 << 20
"""Bytes that one stream is asked for. It holds some five times as much, whatever its own limits say."""
_STREAMS = 4
"""Streams under way, of all files together."""
_FOREVER = 1 << 62
"""When ``hf_xet`` shall think that a token ends. The store's answer tells, and not the clock of this machine."""
_SETTINGS = {
    "telemetry.enabled": False,
    "chunk_cache.size_bytes": 0,
    "reconstruction.download_buffer_size": _WINDOW * _STREAMS,
    "reconstruction.download_buffer_perfile_size": 0,
    "reconstruction.download_buffer_limit": _WINDOW * _STREAMS,
    "reconstruction.min_prefetch_buffer": 0,
    "client.connect_timeout": "15s",
    "client.read_timeout": "60s",
    "client.retry_max_attempts": 2,
    "client.retry_base_delay": "500ms",
    "client.retry_max_duration": "60s",
}
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Grant:
    """Leave to read from the store at *url* for a while; *token* is good for that store and nothing else."""

    url: str
    token: str


def is_installed() -> bool:
    """Whether ``hf_xet`` is here, and not switched off as ``huggingface_hub`` lets one (``HF_HUB_DISABLE_XET``)."""
    off = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
    return not off and find_spec("hf_xet") is not None


def hash_of(answer: Any, path: str, *, sha256: str) -> tuple[str, int] | None:
    """The Xet hash and size of *path* in the hub's answer to ``paths-info``, if the file there is that of *sha256*."""
    for file in answer if isinstance(answer, list) else ():
        if not isinstance(file, Mapping) or file.get("path") != path:
            continue
        lfs, xet, size = file.get("lfs"), file.get("xetHash"), file.get("size")
        same = isinstance(lfs, Mapping) and lfs.get("oid") == sha256
        if same and isinstance(xet, str) and _HASH.fullmatch(xet) and type(size) is int and 0 <= size < 1 << 62:
            return xet, size
    return None


def grant_of(answer: Any, *, what: str) -> Grant:
    """The hub's answer to ``xet-read-token``. Raises :class:`NetworkError` for another one."""
    fields = answer if isinstance(answer, Mapping) else {}
    url, token = fields.get("casUrl"), fields.get("accessToken")
    if not isinstance(url, str) or not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise NetworkError(f"{what} gives no token for its Xet storage.")
    try:
        return Grant(check_http(url, what=what), token)
    except UnsafeInput as error:
        raise NetworkError(error.message) from error


class Xet:
    """One run's way into Xet storage. Nothing is imported or started before the first byte is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: Any = None
        self._turns = threading.Semaphore(_STREAMS)

    def group(self, grant: Grant) -> Any:
        """``hf_xet``'s streams with that grant. Raises :class:`XetFailed`."""
        with self._lock:
            if self._session is None:
                # It would keep a log of its own in the user's cache; no other way to say so is heeded.
                os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)
                import hf_xet

                self._session = _native(lambda: hf_xet.XetSession(hf_xet.XetConfig().with_config(_SETTINGS)))
        return _native(
            lambda: self._session.new_download_stream_group(
                endpoint=grant.url, token=grant.token, token_expiry_unix_secs=_FOREVER
            )
        )

    def take(self, group: Any, xet_hash: str, size: int, start: int, stop: int) -> bytes:
        """What comes of those bytes: fewer if the stream breaks off, which it may do without a word.

        Raises :class:`XetFailed`, :class:`Cancelled`.
        """
        import hf_xet

        def read() -> bytes:
            return _native(lambda: b"".join(group.download_stream(hf_xet.XetFileInfo(xet_hash, size), start, stop)))

        while not self._turns.acquire(timeout=0.1):
            check()
        try:
            return waiting_for(read)
        finally:
            self._turns.release()


class XetFailed(Exception):
    """``hf_xet`` did not do what it was asked."""


def _native(call: Callable[[], T]) -> T:
    """What *call* of ``hf_xet`` returns. Whatever it raises is its failure, a panic of its Rust code as well, which is
    no ``Exception`` (pyo3, ``PanicException``)."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise XetFailed(redact(str(error)) or type(error).__name__) from error


class XetFile:
    """A file in Xet storage. *ask* gets a :class:`Grant` from the hub; it is asked again when one is refused."""

    def __init__(self, xet: Xet, ask: Callable[[], Grant], xet_hash: str, size: int, *, url: str) -> None:
        self._xet = xet
        self._ask = ask
        self._hash = xet_hash
        self._size = size
        self._url = url
        self._lock = threading.Lock()
        self._group: Any = None
        self._is_over = False

    @property
    def shown(self) -> str:
        return f"{redact(self._url)} (Xet)"

    def read(self, start: int, stop: int | None) -> AbstractContextManager[Piece]:
        return self._reading(start, self._size if stop is None else min(stop, self._size))

    @contextmanager
    def _reading(self, start: int, stop: int) -> Iterator[Piece]:
        try:
            yield Piece(start, self._size, self._chunks(start, stop))
        except (KeyboardInterrupt, Cancelled):
            self._end()
            raise

    def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            end = min(start + _WINDOW, stop)
            yield self._window(start, end)
            start = end

    def _window(self, start: int, stop: int) -> bytes:
        group, problem = None, ""
        for _ in range(2):
            try:
                group = self._granted(instead_of=group)
                data = self._xet.take(group, self._hash, self._size, start, stop)
                if len(data) == stop - start:
                    return data
                problem = f"{len(data)} bytes came of {stop - start}"
            except XetFailed as error:
                check()
                problem = str(error)
        raise NetworkError(
            f"{self.shown} cannot be read from Xet storage: {problem}.",
            hint="Run it again, or without it: HF_HUB_DISABLE_XET=1.",
        )

    def _granted(self, *, instead_of: Any) -> Any:
        """The streams in use, or new ones with a new grant where those failed."""
        with self._lock:
            if self._group is None or self._group is instead_of:
                self._check()
                self._group = self._xet.group(self._ask())
            self._check()
            return self._group

    def _check(self) -> None:
        if self._is_over:
            raise Cancelled

    def _end(self) -> None:
        """Wake whoever waits for a stream, for good. It does not wait for one who waits for a grant, who will see."""
        self._is_over = True
        if (group := self._group) is not None:
            with suppress(XetFailed):
                _native(group.abort)
