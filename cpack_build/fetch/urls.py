"""What a URL from a document may be, and how people are shown one: never with a password, token or query value."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

from cpack_build.errors import UnsafeInput

__all__ = ["check_http", "has_credentials", "redact", "without_credentials", "without_secrets"]

_NAMES = (
    "(?:__sign|access_?token|api_?key|auth|authorization|jwt|key|key-pair-id|password|policy|private_?token|secret|sig"
    "|signature|token|x-(?:amz|goog)-[a-z-]+)="
)
_SECRET = re.compile(_NAMES, re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(rb"([?&]" + _NAMES.encode() + rb")[^&\s\"'\\<>]+", re.IGNORECASE)
_USER_IN_TEXT = re.compile(rb"(https?:(?:\\?/){2})[^\s/\"'\\<>?#]+@", re.IGNORECASE)
"""Slashes may be escaped, as JSON allows. The user of an ``ssh://`` address is nobody's secret."""
_IN_TEXT = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>[^\s'\"<>`]+)")


def without_credentials(url: str) -> str:
    """*url* less ``user:password@`` and less the query parameters that are secrets by their names (``token=…``)."""
    parts = urlsplit(url)
    query = "&".join(item for item in parts.query.split("&") if not _SECRET.match(item))
    if "@" not in parts.netloc and query == parts.query:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def without_secrets(document: bytes) -> bytes:
    """*document* with the values of secret query parameters in it, wherever they stand, replaced by ``removed``, and
    without ``user:password@`` in http(s) addresses."""
    return _USER_IN_TEXT.sub(rb"\1", _SECRET_IN_TEXT.sub(rb"\1removed", document))


def has_credentials(text: str) -> bool:
    """Whether some URL in *text* has a user, a password or a secret query parameter."""
    if without_secrets(text.encode()) != text.encode():
        return True
    return any("@" in match["rest"].split("#", 1)[0].partition("/")[0] for match in _IN_TEXT.finditer(text))


def redact(text: str) -> str:
    """*text* (one URL, or a message with URLs) with credentials dropped and each query replaced by ``?…``."""

    def shown(match: re.Match[str]) -> str:
        rest = match["rest"].split("#", 1)[0]
        host, slash, path = rest.partition("/")
        path, question, _ = path.partition("?")
        host, more, _ = host.partition("?")
        return match["scheme"] + host.rpartition("@")[2] + slash + path + ("?…" if question or more else "")

    return _IN_TEXT.sub(shown, text)


def check_http(url: str, *, what: object) -> str:
    """*url* itself if it is ``http(s)://host…``. Raises :class:`UnsafeInput` naming *what* wanted it."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"[\s\x00-\x1f\x7f]", url)
    except ValueError:
        fine = False
    if not fine:
        raise UnsafeInput(
            f"{what} names {redact(url)!r}, which is no http(s) URL.",
            hint="Map it to a local file or folder with --mirror if you trust it.",
        )
    return url
