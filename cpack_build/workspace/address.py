"""The address of a repository as it may be published: nobody's name, password or token, and no path of this machine."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

__all__ = ["public_url"]

_SCP = re.compile(r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9][\w.-]*):(?P<path>(?!//)[^\s:]+)")


def public_url(url: str) -> str:
    """*url* as it may stand in a pack: http(s) without credentials, or ssh without a person's name; empty for others.

    >>> public_url("https://someone:secret@hub.example/a/b.git"), public_url("/srv/repositories/b.git")
    ('https://hub.example/a/b.git', '')
    """
    url = url.strip()
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        return ""
    if "://" not in url:
        match = _SCP.fullmatch(url)
        # `c:/x` is a drive, `host:path` without a user is a host of somebody's ssh configuration
        if match is None or match["user"] is None:
            return ""
        return url if match["user"] == "git" else f"ssh://{match['host']}/{match['path'].lstrip('/')}"
    try:
        parts = urlsplit(url.removeprefix("git+"))
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if not host or parts.path in ("", "/") or parts.scheme not in ("http", "https", "ssh", "git"):
        return ""
    scheme = "https" if parts.scheme == "git" else parts.scheme
    user = "git@" if scheme == "ssh" and parts.username == "git" else ""
    netloc = user + (f"[{host}]" if ":" in host else host) + (f":{port}" if port and parts.scheme != "git" else "")
    return urlunsplit((scheme, netloc, parts.path, "", ""))
