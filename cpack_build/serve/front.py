"""What every request passes before BentoML sees it: an id, the token, the limits, our own routes, one line of log.

A pure ASGI application around BentoML's, because the limits must hold while a body is read, chunked bodies included.
"""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import json
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cpack_build.errors import RunError
from cpack_build.serve.gate import Gate
from cpack_build.serve.metrics import Metrics
from cpack_build.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

__all__ = ["Front", "request_id"]

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the request that is being answered: the caller's ``X-Request-ID``, or a new one."""

_OPEN = frozenset({"/", "/livez", "/readyz", "/healthz", "/health"})  # and /page/: no secret of anyone's
_PROBES = frozenset({"/livez", "/readyz", "/healthz", "/health", "/metrics"})
_GENERATE = frozenset({"/generate", "/generate/stream", "/generate_task", "/generate_task/submit"})


class Front:
    """The ASGI application: *routes* first, then *app*."""

    def __init__(
        self,
        app: Any,
        routes: Sequence[BaseRoute],
        *,
        settings: Settings,
        gate: Gate,
        metrics: Metrics,
        log: Callable[[str], None],
    ) -> None:
        from starlette.routing import Router

        self._inner = Router(routes, default=app, redirect_slashes=False)
        self._app = app
        self._settings = settings
        self._most = settings.max_upload_mib << 20
        self._gate = gate
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        own = given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex
        token = request_id.set(own)
        exchange = _Exchange(receive, send, own, most=self._most, seconds=self._settings.body_seconds)
        began = time.perf_counter()
        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await exchange.refuse(*refusal)
            elif scope["method"] == "POST" and scope["path"] in _GENERATE:
                try:
                    with self._gate.pass_through():
                        await self._serve(scope, exchange)
                except RunError as error:
                    await exchange.refuse(error.status, f"{error.message} {error.hint}")
            else:
                await self._serve(scope, exchange)
        finally:
            request_id.reset(token)
            seconds = time.perf_counter() - began
            if scope["path"] in _GENERATE:
                self._metrics.answered(exchange.status or 499)
            if self._settings.json_log and scope["path"] not in _PROBES:
                line = {
                    "request_id": own,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": exchange.status or 499,
                    "seconds": round(seconds, 4),
                    "bytes": exchange.sent,
                    "client": (scope.get("client") or [""])[0],
                }
                self._log(json.dumps(line))

    async def _serve(self, scope: Any, exchange: _Exchange) -> None:
        from starlette.requests import ClientDisconnect

        try:
            await self._inner(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            if exchange.broken is not None:
                await exchange.refuse(*exchange.broken)

    def _refusal(self, scope: Any, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and message if the request is refused by its head alone."""
        path = scope["path"]
        if self._settings.token and path not in _OPEN and not path.startswith("/page/"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = self._settings.token.encode()
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), right):
                return 401, "This service wants its token: send the header Authorization: Bearer TOKEN."
        elif scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") == "cross-site":
            # A page of another site, in a browser that can reach us, perhaps where nobody else can.
            return 403, "Pages of other sites may not use this service; set CPACK_TOKEN to let them."
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            return 413, f"The request is larger than {self._most >> 20} MiB (CPACK_MAX_UPLOAD_MIB)."
        return None


class _Exchange:
    """The messages of one request, held to *most* bytes of body, which must have come after *seconds*."""

    def __init__(self, receive: Any, send: Any, own_id: str, *, most: int, seconds: float) -> None:
        self._receive = receive
        self._send = send
        self._id = own_id
        self._most = most
        self._until = time.monotonic() + seconds
        self._received = 0
        self._whole = False
        self.broken: tuple[int, str] | None = None
        self._refused = False
        self.status = 0
        self.sent = 0

    async def receive(self) -> Any:
        """The next message; one too many, or too late, is told as if the caller had gone."""
        if self.broken is not None:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._until - time.monotonic())
        except asyncio.TimeoutError:
            self.broken = (408, "The body of the request took too long to come.")
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            body = len(message.get("body", b""))
            self._received += body
            if body:  # whoever sends a large file at a bearable rate (1 MiB in 10 s) may go on
                self._until += 10 * body / (1 << 20)
            self._whole = not message.get("more_body")
            if self._received > self._most:
                self.broken = (413, f"The request is larger than {self._most >> 20} MiB (CPACK_MAX_UPLOAD_MIB).")
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Any) -> None:
        """Send *message*, unless the body was refused: then say so instead."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            if self.broken is not None:
                await self.refuse(*self.broken)
                return
            self.status = message["status"]
            kept = [(key, value) for key, value in message.get("headers", ()) if key.lower() != b"x-request-id"]
            message = {**message, "headers": [*kept, (b"x-request-id", self._id.encode())]}
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, status: int, text: str) -> None:
        """Answer with *status* and an error, and with nothing else after it."""
        if self.status:
            return
        self._refused = True
        self.status = status
        body = json.dumps({"error": text, "type": "RunError"}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", self._id.encode()),
        ]
        if status in (429, 503):
            headers.append((b"retry-after", b"2"))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status in (408, 413):
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
