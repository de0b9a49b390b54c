"""Fetches the files that a caller gives by URL, and only from where the operator allows.

The caller chooses the URL, the service stands inside a network: so only http and https, only hosts of the allow-list,
and only public addresses unless told otherwise. Names are resolved here, every address is checked, and the connection
goes to the address that was checked; each redirect is a new URL and is checked as one.
"""

from __future__ import annotations

import asyncio
import errno
import fnmatch
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from cpack_build.errors import RunError

if TYPE_CHECKING:
    import aiohttp
    import yarl

__all__ = ["Remote", "is_public"]

_REDIRECTS = 5
_SECONDS = 300
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether the IP *address* is one of the open internet, also where an IPv6 address stands for an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class Remote:
    """Where files may come from: *hosts* are names or patterns such as ``*.example.com``; ``*`` is any."""

    def __init__(self, hosts: Sequence[str], *, private: bool = False) -> None:
        self._hosts = tuple(hosts)
        self._private = private

    def name(self, url: str) -> str:
        """The last part of the path of *url*; may be empty."""
        try:
            return unquote(urlsplit(url).path).rpartition("/")[2]
        except ValueError:
            return ""

    async def fetch(self, url: str, target: Path, *, most: int) -> None:
        """Write what *url* gives, at most *most* bytes, to *target*. Raises :class:`RunError` that says why not."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_SECONDS, sock_connect=10, sock_read=30)
        try:
            async with self.session(timeout=timeout) as session:
                for _ in range(_REDIRECTS + 1):
                    async with session.get(self.check(url), allow_redirects=False) as response:
                        where = response.headers.get("Location")
                        if response.status in (301, 302, 303, 307, 308) and where:
                            url = urljoin(url, where)
                            continue
                        if response.status != 200:
                            raise _refused(url, f"it answered with status {response.status}")
                        return await _save(response, target, url=url, most=most)
            raise _refused(url, f"it redirects more than {_REDIRECTS} times")
        except asyncio.TimeoutError:
            raise _refused(url, "it takes too long") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # it is not the other side's
            raise _refused(url, _reason(error)) from None

    def session(self, *, timeout: Any) -> aiohttp.ClientSession:
        """A session that connects only to addresses that are allowed, and knows neither proxies nor cookies."""
        import aiohttp

        connector = aiohttp.TCPConnector(resolver=_make_resolver(private=self._private), use_dns_cache=False)
        return aiohttp.ClientSession(
            timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    def check(self, url: str) -> yarl.URL:
        """*url* as it is to be asked. Raises :class:`RunError` if it may not be, as far as its text tells.

        What is checked is what the client will connect to: it makes ``①.2.3.4`` an address, too.
        """
        import yarl

        try:
            target = yarl.URL(url)
            host = (target.raw_host or "").lower().rstrip(".")
            target.port  # noqa: B018 - it is read from the text when it is asked for
        except (ValueError, UnicodeError):
            raise _refused("The URL", "it is none") from None
        if target.scheme not in ("http", "https") or not host or target.user is not None:
            raise _refused(host or "The URL", "only http and https URLs without a user name are fetched")
        if not any(fnmatch.fnmatchcase(host, pattern) for pattern in self._hosts):
            raise _refused(host, "files are fetched only from the hosts in CPACK_URL_HOSTS")
        try:
            is_address = bool(ipaddress.ip_address(host.partition("%")[0]))
        except ValueError:
            is_address = False
        if is_address and not self._private and not is_public(host):
            raise _refused(host, _PRIVATE)
        return target


_PRIVATE = "its address is not a public one"


class _Private(OSError):
    pass


def _make_resolver(*, private: bool) -> Any:
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Checked(AbstractResolver):
        """Resolves as the system does, and gives an answer only if all addresses are allowed."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
            results: list[ResolveResult] = []
            for kind, _, protocol, _, address in found:
                ip = str(address[0])
                if not private and not is_public(ip):
                    raise _Private(_PRIVATE)
                results.append(
                    ResolveResult(
                        hostname=host,
                        host=ip,
                        port=port,
                        family=kind,
                        proto=protocol,
                        flags=socket.AI_NUMERICHOST,
                    )
                )
            return results

        async def close(self) -> None:
            pass

    return Checked()


async def _save(response: aiohttp.ClientResponse, target: Path, *, url: str, most: int) -> None:
    if response.content_length is not None and response.content_length > most:
        raise _refused(url, f"it is larger than {most >> 20} MiB")
    size = 0
    with target.open("wb") as file:
        async for block in response.content.iter_chunked(1 << 18):
            size += len(block)
            if size > most:
                raise _refused(url, f"it is larger than {most >> 20} MiB")
            file.write(block)


def _reason(error: BaseException) -> str:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _Private):
            return _PRIVATE
        seen = seen.__cause__ or getattr(seen, "os_error", None)
    return f"it cannot be reached ({type(error).__name__})"


def _refused(url: str, why: str) -> RunError:
    try:
        host = (urlsplit(url).hostname or "The URL") if "//" in url else url
    except ValueError:
        host = "The URL"
    return RunError(f"{host}: {why}.", hint="Send the file itself, or as a data: URL.", status=400)
