"""A file somewhere else, of which any range can be read: over HTTP, or in a bucket.

Whoever reads says what went wrong: ``ConnectionError`` (or :class:`TryLater`) when the same may succeed in a moment, a
:class:`~cpack_build.errors.CpackError` when this place will not give the file. That it gives another one, only a hash
can tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol
from urllib.parse import urlsplit

from cpack_build.errors import Cancelled, CpackError, NetworkError, ToolMissing, Unresolvable
from cpack_build.fetch.http import HttpTransport, Response
from cpack_build.fetch.urls import redact
from cpack_build.progress import waiting_for

__all__ = ["BUCKETS", "BucketFile", "HttpFile", "Piece", "Remote", "TryLater"]

BUCKETS = ("s3", "gs", "gcs", "az", "abfs", "abfss")
"""Schemes that fsspec reads: S3 and what speaks it, Google Cloud Storage, Azure Blob Storage."""
_PIECE = 8 << 20
_LOGIN = re.compile(r"/(log-?in|sign-?in|auth|oauth\w*|sso|saml)\b", re.IGNORECASE)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
"""RFC 9110, section 14.4."""


class TryLater(Exception):
    """The place is busy; *wait* is the seconds that it asks for, if it does."""

    def __init__(self, error: CpackError, wait: float | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait


@dataclass(frozen=True)
class Piece:
    """What is being read: bytes from *start* on, of a file of *total* bytes, if that is known.

    *is_range* says that the place gives ranges; otherwise it is the whole file that comes.
    """

    start: int
    total: int | None
    chunks: Iterator[bytes]
    is_range: bool = True


class Remote(Protocol):
    """A file somewhere else.

    >>> with remote.read(0, None) as piece:
    ...     data = b"".join(piece.chunks)
    """

    @property
    def shown(self) -> str:
        """What people are told that it is: never a secret."""

    def read(self, start: int, stop: int | None) -> AbstractContextManager[Piece]:
        """The bytes from *start* up to *stop* (or the end). A piece may begin earlier, and go on for longer."""


@dataclass(frozen=True)
class HttpFile:
    """A file at an http(s) URL. *headers* go to its host only; *explain* knows a site's own ways of refusing."""

    url: str
    http: HttpTransport
    headers: Mapping[str, str] = field(default_factory=dict)
    explain: Callable[[Response], CpackError | None] = lambda response: None

    @property
    def shown(self) -> str:
        return redact(self.url)

    @contextmanager
    def read(self, start: int, stop: int | None) -> Iterator[Piece]:
        headers = dict(self.headers)
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        with self.http.get(self.url, headers=headers) as response:
            if response.status not in (200, 206):
                raise self._refusal(response)
            chunks = response.chunks
            length = response.headers.get("content-length", "")
            total = int(length) if length.isdecimal() and "content-encoding" not in response.headers else None
            begin = 0
            if response.status == 206:
                match = _RANGE.fullmatch(response.headers.get("content-range", "").strip())
                if match is None or int(match[1]) != start:
                    raise NetworkError(f"{self.shown} answers with another range than it was asked for.")
                begin, total = start, int(match[3]) if match[3] != "*" else None
            if begin == 0:
                first = next(chunks, b"")
                if problem := self._is_no_file(response, first):
                    raise problem
                chunks = chain((first,), chunks)
            yield Piece(begin, total, chunks, response.status == 206)

    def _refusal(self, response: Response) -> Exception:
        status = response.status
        if (known := self.explain(response)) is not None:
            return known
        if status in (408, 425, 429) or status >= 500:
            wait = response.headers.get("retry-after", "").strip()
            error = NetworkError(
                f"{self.shown} answered HTTP {status} again and again.", hint="Try again later, or use a mirror."
            )
            return TryLater(error, float(wait) if wait.isdecimal() else None)
        if status == 416:
            return NetworkError(f"{self.shown} has fewer bytes than were promised.")
        if status in (401, 403):
            return NetworkError(
                f"{self.shown} refuses access (HTTP {status}).",
                hint="Put your credentials for that host into ~/.netrc, or download it yourself and name the copy.",
            )
        if status in (404, 410):
            return NetworkError(
                f"{self.shown} is not there (HTTP {status}).", hint="Correct the address, or mirror it."
            )
        return NetworkError(f"{self.shown} answered HTTP {status}.", hint="Try again later, or use a mirror.")

    def _is_no_file(self, response: Response, first: bytes) -> CpackError | None:
        """What was sent in place of a file, as far as its beginning tells (git-lfs, "Pointer file format")."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        head = first[:512].lstrip().lower()
        if kind == "text/html" or head.startswith((b"<!doctype html", b"<html")):
            if response.url and _LOGIN.search(urlsplit(response.url).path):
                if (known := self.explain(response)) is not None:
                    return known
                return NetworkError(
                    f"{self.shown} leads to the login page of {urlsplit(response.url).hostname}.",
                    hint="Log in there and accept its terms, or download it yourself and name the copy with --models.",
                )
            return NetworkError(
                f"{self.shown} answered with a web page instead of a file.",
                hint="Use the address of the download itself; a login or licence may be in the way.",
            )
        if first.startswith((b"version https://git-lfs.github.com/spec/", b"# xet version")):
            return NetworkError(
                f"{self.shown} answered with a Git LFS pointer instead of the file.",
                hint="Use the address of the file (on Hugging Face: …/resolve/… instead of …/raw/…).",
            )
        return None


@dataclass(frozen=True)
class BucketFile:
    """A file in a bucket, by whichever of fsspec's file systems reads its scheme; that finds its own credentials."""

    url: str

    @property
    def shown(self) -> str:
        return redact(self.url)

    @contextmanager
    def read(self, start: int, stop: int | None) -> Iterator[Piece]:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise self._missing("fsspec") from error
        try:
            files, path = waiting_for(lambda: url_to_fs(self.url))
            total = int(waiting_for(lambda: files.info(path))["size"])
        except ImportError as error:
            raise self._missing(str(error)) from error
        except Cancelled:
            raise
        except Exception as error:
            raise self._failed(error) from error
        yield Piece(start, total, self._chunks(files, path, start, total if stop is None else min(stop, total)))

    def _chunks(self, files: Any, path: str, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            try:
                end = min(start + _PIECE, stop)
                chunk: bytes = waiting_for(lambda start=start, end=end: files.cat_file(path, start=start, end=end))  # type: ignore[misc]
            except Cancelled:
                raise
            except Exception as error:
                raise self._failed(error) from error
            if not chunk:
                return
            start += len(chunk)
            yield chunk

    def _failed(self, error: Exception) -> Exception:
        """What a cloud's library raised: a connection that broke, or something of its own, of no common class, after
        it has tried again itself. azure-core's errors have a ``status_code``, gcsfs's a ``code``; gcsfs makes a plain
        ``OSError`` of HTTP 403."""
        if isinstance(error, FileNotFoundError):
            return Unresolvable(f"{self.shown} is not there.", hint="Correct --mirror, or put the file there.")
        status = getattr(error, "status_code", None) or getattr(error, "code", None)
        if isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden: "):
            return NetworkError(
                f"{self.shown} refuses access.", hint="Give the bucket's usual credentials to this user."
            )
        if isinstance(error, OSError):
            return ConnectionError(redact(str(error)))
        return NetworkError(
            f"{self.shown} cannot be read: {redact(str(error)) or type(error).__name__}.",
            hint="Check the network, and that this user has the bucket's usual credentials.",
        )

    def _missing(self, why: str) -> ToolMissing:
        return ToolMissing(
            f"{self.shown} is in a bucket, and what reads it is not installed ({why}).",
            hint="Install it with `pip install 'cpack-build[buckets]'`.",
        )
