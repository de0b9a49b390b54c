"""A headless Chromium: the system's, driven by Playwright, with a record of what a page asked for and what went wrong.

Playwright's own loop runs in the thread that started it, where ``asyncio.run`` then refuses to work: a test that uses a
page does its other asking with ``requests``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    WebError,
    WebSocket,
    expect,
    sync_playwright,
)

from tests import need
from tests.serve.running import DEADLINE


@dataclass
class Record:
    """What pages of one context did: URLs *asked* for (those elsewhere were refused), *errors* of scripts by place, and
    all that was *seen* in the order in which it happened: requests, answers, messages, connections."""

    asked: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    waiting: dict[Request, str] = field(default_factory=dict)

    def listen(self, context: BrowserContext) -> None:
        """Write down what goes on in *context* from now on."""
        began = time.monotonic()

        def see(what: str) -> None:
            self.seen.append(f"{time.monotonic() - began:6.2f} s  {what}")

        def ask(request: Request) -> None:
            self.asked.append(request.url)
            self.waiting[request] = f"{request.method} {request.url}"

        def over(request: Request) -> None:
            self.waiting.pop(request, None)
            if request.failure:
                see(f"{request.failure}: {request.method} {request.url}")

        def answered(response: Response) -> None:
            if response.status >= 400:
                see(f"HTTP {response.status}: {response.request.method} {response.url}")

        def told(message: ConsoleMessage) -> None:
            see(f"{message.type}: {message.text}")
            if message.type == "error":
                self.errors.append(f"{message.text} ({message.location.get('url', '')})")

        def failed(thrown: WebError) -> None:
            see(f"thrown: {thrown.error.stack or thrown.error.message}")
            self.errors.append(thrown.error.stack or thrown.error.message)

        def connected(socket: WebSocket) -> None:
            see(f"opened {socket.url}")
            socket.on("close", lambda _: see(f"closed {socket.url}"))

        context.on("request", ask)
        context.on("requestfinished", over)
        context.on("requestfailed", over)
        context.on("response", answered)
        context.on("weberror", failed)
        context.on("console", told)
        context.on("page", lambda page: page.on("websocket", connected))

    def told(self) -> str:
        """What happened, and what was asked for and never answered: for a page that does not come to its end."""
        return "\n".join([*self.seen[-200:], "not answered:", *(self.waiting.values() or ["nothing"])])

    def errors_of(self, part: str) -> list[str]:
        """The errors that name *part* of a URL: thrown there, logged there, or passed through it."""
        return [error for error in self.errors if part in error]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser."""
    program = need.tool("chromium")
    options = ["--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=options, chromium_sandbox=False, timeout=1000 * DEADLINE
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browsing(browser: Browser, address: str, **options: Any) -> Iterator[tuple[BrowserContext, Record]]:
    """A context of *browser* that reaches nothing but *address*."""
    record = Record()
    context = browser.new_context(base_url=address, accept_downloads=True, **options)
    context.set_default_timeout(1000 * DEADLINE)
    expect.set_options(timeout=1000 * DEADLINE)

    def route(asking: Any) -> None:
        url = asking.request.url
        if url.startswith((address, "data:", "blob:")):
            asking.continue_()
        else:
            record.elsewhere.append(url)
            asking.abort()

    context.route("**/*", route)
    record.listen(context)
    try:
        yield context, record
    finally:
        context.close()


def screenshot(page: Page, name: str, folder: Path) -> None:
    """Keep a picture of *page* as NAME.png: in ``CPACK_TEST_SCREENSHOTS`` where that is set, else in *folder*."""
    shots = Path(os.environ.get("CPACK_TEST_SCREENSHOTS") or folder)
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots / f"{name}.png")
