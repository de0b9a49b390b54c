"""A headless Chromium, driven by its own protocol (DevTools) over aiohttp: enough to fill a form and look at a page."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests import need
from tests.serve.running import DEADLINE, wait_for


class Page:
    """One page of the browser. *asked* has the URLs that it requested, *errors* what its scripts threw."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.asked: list[str] = []
        self.errors: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(DEADLINE)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))

    async def value(self, expression: str) -> Any:
        """What the JavaScript *expression* gives there."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The first true value of *expression*."""
        for _ in range(600):
            if value := await self.value(expression):
                return value
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited in vain for {expression}: {await self.value('document.body.innerText')}")

    async def choose_file(self, selector: str, path: Path) -> None:
        document = await self.call("DOM.getDocument")
        node = await self.call("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
        await self.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(path)])

    async def screenshot(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def browsing(url: str, folder: Path) -> AsyncIterator[Page]:
    """A page that shows *url*; the browser's files are under *folder*."""
    program = need.tool("chromium")
    folder.mkdir()
    log = folder / "log"
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
               "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
               f"--user-data-dir={folder / 'profile'}", "--window-size=1100,900", "about:blank"]  # fmt: skip
    with log.open("wb") as lines:
        process = subprocess.Popen(command, stderr=lines, stdout=lines, env={**os.environ, "HOME": str(folder)})
    try:
        address = wait_for(
            lambda: re.search(r"DevTools listening on ws://([\d.:]+)/", log.read_text(errors="replace")),
            "the browser",
            log=lambda: log.read_text(errors="replace"),
        )[1]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{address}/json/list") as answer:
                target = next(item for item in await answer.json() if item["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Network", "Runtime", "Page", "DOM"):
                    await page.call(f"{domain}.enable")
                await page.call("Page.navigate", url=url)
                yield page
    finally:
        process.terminate()
        process.wait(60)
