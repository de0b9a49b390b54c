"""``cpack_build.AsyncClient``: the same as ``cpack_build.Client``, for programs that live in an event loop.

async with AsyncClient("http://localhost:3000") as client:
    result = await client.generate({"photo": Path("cat.png"), "size": 512}, on_progress=print)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cpack_build.errors import NetworkError
from cpack_build.serve.caller import (
    EventReader,
    Generated,
    OnProgress,
    cut_short,
    failure,
    form_fields,
    refusal,
    silence,
)

if TYPE_CHECKING:
    import aiohttp

__all__ = ["AsyncClient"]

_LONGEST_LINE = 64 << 20
"""Bytes of one event: a preview is a picture in base64."""


class AsyncClient:
    """A client of the service at *url*; *token* is its ``CPACK_TOKEN``, *timeout* the seconds without any event."""

    def __init__(self, url: str, *, token: str = "", timeout: float = 120) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout
        self._opened: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._opened is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self._timeout)
            self._opened = aiohttp.ClientSession(
                headers=self._headers, timeout=timeout, read_bufsize=_LONGEST_LINE, trust_env=True
            )
        return self._opened

    async def parameters(self) -> dict[str, Any]:
        """The workflow's parameters, as a JSON Schema."""
        async with self._asked("GET", "/interface.json") as answer:
            return dict(await answer.json())

    async def generate(
        self, values: Mapping[str, Any] | None = None, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Generated:
        """Run the workflow with *values* (and *more*) by parameter name, and return its files.

        A :class:`~pathlib.Path` is sent as a file. When the task is cancelled, or *on_progress* raises, the run is
        taken back. Raises :class:`RunError`, with the service's status and words, and :class:`NetworkError`.
        """
        import aiohttp

        given = {**(values or {}), **more}
        files = {name: value for name, value in given.items() if isinstance(value, Path)}
        with contextlib.ExitStack() as stack:
            body: dict[str, Any] = {"json": given}
            if files:
                form = aiohttp.FormData(form_fields(given), default_to_multipart=True)
                for name, path in files.items():
                    form.add_field(name, stack.enter_context(path.open("rb")), filename=path.name)
                body = {"data": form}
            async with self._asked("POST", "/generate/stream", **body) as answer:
                async for event, data in _events(answer):
                    if event == "result":
                        return Generated({item["name"]: await self._fetch(item["url"]) for item in data["outputs"]})
                    if event == "error":
                        raise failure(int(data.get("status", 500)), data)
                    if on_progress is not None:
                        on_progress(event, data)
        raise cut_short(self._url)

    async def _fetch(self, path: str) -> bytes:
        async with self._asked("GET", path) as answer:
            return await answer.read()

    @contextlib.asynccontextmanager
    async def _asked(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        try:
            answer = await self._session.request(method, self._url + path, **options)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise silence(self._url, error) from None
        async with answer:
            if answer.status != 200:
                raise refusal(answer.status, await answer.read())
            yield answer


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    import aiohttp

    reader = EventReader()
    try:
        async for line in answer.content:
            if (event := reader.feed(line.rstrip(b"\r\n"))) is not None:
                yield event
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise NetworkError(f"The stream broke ({type(error).__name__}).", hint="Try again.") from None
