"""A ComfyUI that misbehaves: a proxy before a real engine that spoils what a test names, and nothing else.

It listens on an address that the service does not take for this machine's, and keeps the engine's folders to itself, so
files go by the protocol as well.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web


class Faulty:
    """The proxy. *faults*: route (``POST /prompt``, ``GET /ws``) → what happens there.

    ``hang`` never answers, ``reset`` drops the connection, ``html`` and ``list`` answer what is no object of
    ComfyUI's, ``error`` is a 500, ``gone`` a 404, ``short`` ends in the middle of the body. For ``/ws`` also
    ``garbage``, which sends nonsense between the events.
    """

    def __init__(self, engine: str) -> None:
        self.faults: dict[str, str] = {}
        self.address = ""
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self._sockets: set[web.WebSocketResponse] = set()

    def drop_sockets(self) -> None:
        """Cut every WebSocket that is open."""

        async def cut() -> None:
            for socket in list(self._sockets):
                await socket.close()

        asyncio.run_coroutine_threadsafe(cut(), self._loop).result(30)

    async def serve(self, ready: threading.Event) -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            application = web.Application(client_max_size=1 << 30)
            application.router.add_route("*", "/{path:.*}", self._answer)
            runner = web.AppRunner(application, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.2", 0)
            await site.start()
            server = site._server
            assert isinstance(server, asyncio.Server)
            self.address = f"127.0.0.2:{server.sockets[0].getsockname()[1]}"
            self._ended = asyncio.Event()
            ready.set()
            await self._ended.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        route = f"{request.method} /{request.match_info['path'].split('/')[0]}"
        fault = self.faults.get(route, "")
        if fault == "hang":
            await self._ended.wait()
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault in ("html", "error", "gone"):
            status = {"html": 200, "error": 500, "gone": 404}[fault]
            return web.Response(text="<html>No JSON.</html>", content_type="text/html", status=status)
        if fault == "list":
            return web.json_response([1, None, {"a": []}])
        if route == "GET /ws":
            return await self._relay(request, garbage=fault == "garbage")
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("content-type", "accept")}
        async with self._session.request(
            request.method, f"{self._engine}{request.path_qs}", data=await request.read(), headers=headers
        ) as answer:
            body = await answer.read()
            if route == "GET /system_stats":
                body = b"{}"  # its folders are its own business
            if fault == "short":
                response = web.StreamResponse(headers={"Content-Length": str(len(body) + 10)})
                await response.prepare(request)
                await response.write(body)
                assert request.transport is not None
                request.transport.close()
                return response
            return web.Response(body=body, status=answer.status, content_type=answer.content_type)

    async def _relay(self, request: web.Request, *, garbage: bool) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            async with self._session.ws_connect(f"{self._engine}{request.path_qs}") as upstream:
                async for message in upstream:
                    if garbage:
                        for text in ("[]", '"x"', "{}", '{"type": "executed", "data": {"prompt_id": [], "node": {}}}'):
                            await socket.send_str(text)
                        await socket.send_bytes(b"\0\0\0")
                    if message.type is aiohttp.WSMsgType.TEXT:
                        await socket.send_str(message.data)
                    elif message.type is aiohttp.WSMsgType.BINARY:
                        await socket.send_bytes(message.data)
        except ConnectionError:
            pass  # the other side was cut by the test
        finally:
            self._sockets.discard(socket)
        return socket

    def run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.serve(ready))
        self._loop.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)


@contextmanager
def faulty(engine: str) -> Iterator[Faulty]:
    """A proxy before the ComfyUI at *engine*, for as long as the block runs."""
    proxy, ready = Faulty(engine), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,))
    thread.start()
    assert ready.wait(30)
    try:
        yield proxy
    finally:
        proxy.end()
        thread.join(30)
