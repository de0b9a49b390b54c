"""Who may call the plugin's routes: pages that this ComfyUI itself served, and programs of the person who runs it.

A web page from elsewhere is told apart by what its browser says and no script can change (``Sec-Fetch-Site``,
``Origin``), by a header that another site's form cannot send, and by ``Host``: a name that is not known to mean this
machine may be one that its owner has just pointed here (DNS rebinding), for which the page then counts as our own.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from .errors import Refused

__all__ = ["HEADER", "check_origin"]

HEADER = "X-CPack"
_HOSTS = "CPACK_HOSTS"
_PORTS = {"http": 80, "https": 443}


def check_origin(method: str, headers: Mapping[str, str]) -> None:
    """Raise :class:`Refused` (403) for a request that a page from elsewhere could have made.

    *headers* are looked up by their usual names in any case, as aiohttp's are.
    """
    host = headers.get("Host", "")
    name = _name_of(host)
    if not _is_ours(name):
        raise _refused(
            "unknown_host",
            f"The address {name or host!r:.200} is not known to be this ComfyUI.",
            f"Open it as localhost or by its IP address, or start ComfyUI with {_HOSTS}={name or 'NAME'}.",
        )
    site = headers.get("Sec-Fetch-Site", "none")
    if site not in ("same-origin", "none"):
        raise _refused("cross_site", f"A page from elsewhere ({site!r:.40}) asked for this.")
    origin = headers.get("Origin")
    if origin is not None and not _is_same(origin, host):
        raise _refused("cross_origin", f"A page of {origin!r:.200} asked for this, and the address here is {host}.")
    if method not in ("GET", "HEAD") and headers.get(HEADER) != "1":
        raise _refused("no_header", f"The header {HEADER} is missing.", f"Send it as `{HEADER}: 1`.")


def _refused(code: str, message: str, next: str = "Use the page that this ComfyUI serves itself.") -> Refused:
    return Refused(code, message, next=next, status=403)


def _name_of(host: str) -> str:
    """The host without its port, in lower case; empty for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
        clean = not (parts.path or parts.query or parts.fragment or "@" in host)
        return (parts.hostname or "").rstrip(".") if clean else ""
    except ValueError:
        return ""


def _is_ours(name: str) -> bool:
    """Whether nobody else can have *name* lead here: an IP address is asked of nobody's name server."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
        return True
    except ValueError:
        pass
    told = os.environ.get(_HOSTS, "").lower().replace(",", " ").split()
    return name in ("localhost", *told) or name.endswith(".localhost") or name in _own_names()


@lru_cache(maxsize=1)
def _own_names() -> frozenset[str]:
    """What this machine is called on its own network."""
    name = socket.gethostname().lower().partition(".")[0]
    return frozenset({name, f"{name}.local"}) if name else frozenset()


def _is_same(origin: str, host: str) -> bool:
    """Whether *origin* (``https://example.test``) is of the host and port that the request was sent to."""
    try:
        parts = urlsplit(origin)
        port = parts.port or _PORTS.get(parts.scheme)
        here = urlsplit(f"//{host}")
        return (
            parts.scheme in _PORTS and parts.hostname == here.hostname and port == (here.port or _PORTS[parts.scheme])
        )
    except ValueError:
        return False
