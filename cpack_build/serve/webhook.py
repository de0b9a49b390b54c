"""Tells another server that a task has ended: a signed ``POST``, tried again when it is not taken.

The body is the task's status. ``X-CPack-Signature`` is ``t=UNIX,v1=HEX``: the HMAC-SHA256, with the secret of
``CPACK_WEBHOOK_SECRET``, of ``UNIX.BODY``. The same rules hold for its URL as for files that are fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cpack_build.errors import RunError
from cpack_build.serve.remote import Remote

__all__ = ["Webhook", "signature"]

_DELAYS = (1, 5, 30, 120)  # seconds before each further try


def signature(body: bytes, *, secret: str, when: int) -> str:
    """The header for *body*, sent at the Unix time *when*."""
    digest = hmac.new(secret.encode(), f"{when}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={when},v1={digest}"


class Webhook:
    """Sends to what *remote* allows, signed with *secret* if there is one."""

    def __init__(self, remote: Remote, *, secret: str, log: Callable[[str], None]) -> None:
        self._remote = remote
        self._secret = secret
        self._log = log
        self._sending: set[asyncio.Task[None]] = set()

    def problem(self, url: str) -> str:
        """Why *url* cannot be told, or nothing."""
        try:
            self._remote.check(url)
        except RunError as error:
            return f"X-CPack-Webhook: {error.message}"
        return ""

    def tell(self, url: str, document: Mapping[str, Any]) -> None:
        """Send *document* to *url*; returns at once."""
        task = asyncio.create_task(self._send(url, json.dumps(document).encode()))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, url: str, body: bytes) -> None:
        import aiohttp

        why = ""
        for delay in (0, *_DELAYS):
            await asyncio.sleep(delay)
            headers = {"Content-Type": "application/json"}
            if self._secret:
                headers["X-CPack-Signature"] = signature(body, secret=self._secret, when=int(time.time()))
            try:
                async with (
                    self._remote.session(timeout=aiohttp.ClientTimeout(total=20)) as session,
                    session.post(url, data=body, headers=headers, allow_redirects=False) as response,
                ):
                    if response.status < 300:
                        return
                    why = f"status {response.status}"
                    if 400 <= response.status < 500 and response.status not in (408, 425, 429):
                        break
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                why = type(error).__name__
        self._log(f"The webhook of a task was not taken: {why}.")

    async def close(self) -> None:
        """Give up what is not sent yet."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
