"""A headless Chromium: the system's, driven by Playwright, with a record of what a page asked for and what went wrong.

Playwright's own loop runs in the thread that started it, where ``asyncio.run`` then refuses to work: a test that uses a
page does its other asking with ``requests``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests import need
from tests.serve.running import DEADLINE


@dataclass
class Record:
    """What pages of one context did: URLs *asked* for (those elsewhere were refused), *errors* of scripts by place."""

    asked: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

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
    context.on("request", lambda request: record.asked.append(request.url))
    context.on("weberror", lambda thrown: record.errors.append(thrown.error.stack or thrown.error.message))

    def listen(message: Any) -> None:
        if message.type == "error":
            record.errors.append(f"{message.text} ({message.location.get('url', '')})")

    context.on("console", listen)
    try:
        yield context, record
    finally:
        context.close()


def screenshot(page: Page, name: str, folder: Path) -> None:
    """Keep a picture of *page* as NAME.png: in ``CPACK_TEST_SCREENSHOTS`` where that is set, else in *folder*."""
    shots = Path(os.environ.get("CPACK_TEST_SCREENSHOTS") or folder)
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots / f"{name}.png")
