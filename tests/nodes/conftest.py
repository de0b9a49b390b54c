"""ComfyUI with the plugin, and pages of its frontend in a size, a theme and a language.

The same tests run on the stand-in and, where ``CPACK_TEST_COMFYUI`` names one, on real ComfyUI: with the frontend that
it requires itself and with the newest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
import requests
from playwright.sync_api import Browser, Page, TimeoutError

from tests.browser import Record, browsing, chromium, screenshot
from tests.nodes import routing
from tests.nodes.comfy import PLUGIN, Comfy, newest_frontend, running
from tests.nodes.dialogs import Dialog
from tests.serve.running import DEADLINE

KINDS = [pytest.param("standin", id="standin")]
if "CPACK_TEST_COMFYUI" in os.environ:
    KINDS += [pytest.param(kind, id=kind, marks=pytest.mark.comfyui) for kind in ("comfyui", "comfyui-newest")]


@pytest.fixture(scope="session", params=KINDS)
def comfy(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """ComfyUI with the plugin, shared: tests leave it as they found it."""
    with running(request.param, tmp_path_factory.mktemp("comfy")) as engine:
        yield engine


@pytest.fixture(scope="session", params=[kind for kind in KINDS if kind.id != "comfyui-newest"])
def comfyui(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[routing.Comfyui]:
    """An install with git, models and inputs, its plugin a clone: for the routes, which look at all of that. Shared."""
    with routing.running(tmp_path_factory.mktemp("comfyui"), kind=request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of one module (see tests/browser.py on why not for longer)."""
    with chromium() as browser:
        yield browser


# In the order in which the frontend makes them true.
_READY = (
    "window.app?.graph && window.app.extensionManager && window.app.vueAppReady",
    "!document.querySelector('#splash-loader')",
    "window.app.extensionManager.workflow?.activeWorkflow",
)


def wait_until_ready(page: Page, record: Record | None = None, *, graph: bool = True) -> None:
    """Wait until the frontend has loaded its extensions and shows a *graph*; a page that never does is described."""
    for condition in _READY if graph else _READY[:-1]:
        try:
            page.wait_for_function(condition)
        except TimeoutError as error:
            text = page.evaluate("document.body.innerText")
            told = record.told() if record else ""
            raise AssertionError(f"waited in vain for {condition}\n{told}\nthe page: {text}") from error


@dataclass
class ComfyPage:
    """A page of ComfyUI's frontend, with what went on in it."""

    page: Page
    record: Record
    shots: Path

    def shot(self, name: str) -> None:
        """Keep a picture (in ``CPACK_TEST_SCREENSHOTS`` where that is set)."""
        screenshot(self.page, name, self.shots)

    def ready(self) -> None:
        """Wait until the frontend has loaded its extensions and shows a graph."""
        wait_until_ready(self.page, self.record)

    def load(self, workflow: dict[str, Any]) -> None:
        """Show *workflow* (a drawing, as saved) in place of what is there."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)

    def drawing(self) -> dict[str, Any]:
        """What saving the workflow would write."""
        root = "(window.app.rootGraph ?? window.app.graph)"
        return dict(json.loads(self.page.evaluate(f"JSON.stringify({root}.serialize())")))

    def export(self) -> dict[str, Any]:
        """What Export (API) would write."""
        found = self.page.evaluate("window.app.graphToPrompt().then(found => JSON.stringify(found.output))")
        return dict(json.loads(found))


class OpenComfy(Protocol):
    """Opens the frontend; at the test's end there must be no error of the plugin's scripts."""

    def __call__(
        self,
        *,
        size: tuple[int, int] = (1440, 900),
        theme: Literal["dark", "light"] = "dark",
        language: Literal["en", "zh"] = "en",
        settings: dict[str, Any] | None = None,
    ) -> ComfyPage: ...


@contextmanager
def opening(comfy: Comfy, browser: Browser, shots: Path) -> Iterator[OpenComfy]:
    """Opens ComfyUI's page in a size, a theme and a language; at the end no script of the plugin may have failed."""
    records = []
    with ExitStack() as stack:

        def open_comfy(
            *,
            size: tuple[int, int] = (1440, 900),
            theme: Literal["dark", "light"] = "dark",
            language: Literal["en", "zh"] = "en",
            settings: dict[str, Any] | None = None,
        ) -> ComfyPage:
            chosen = {
                "Comfy.Locale": language,
                "Comfy.ColorPalette": theme,
                "Comfy.TutorialCompleted": True,
                "Comfy.Notification.ShowVersionUpdates": False,
                "Comfy.Workflow.ShowMissingNodesWarning": False,
                "Comfy.Workflow.ShowMissingModelsWarning": False,
                "Comfy.Workflow.WarnBlueprintOverwrite": False,
                **(settings or {}),
            }
            comfy.post("/api/settings", chosen).raise_for_status()
            viewport = {"width": size[0], "height": size[1]}
            options: dict[str, Any] = {"viewport": viewport, "locale": language, "color_scheme": theme}
            context, record = stack.enter_context(browsing(browser, comfy.url, **options))
            records.append(record)
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            page = context.new_page()
            page.goto("/")
            opened = ComfyPage(page, record, shots)
            opened.ready()
            return opened

        yield open_comfy
    for record in records:
        assert not record.errors_of(f"/extensions/{PLUGIN}/")


@pytest.fixture
def comfy_page(comfy: Comfy, browser: Browser, tmp_path: Path) -> Iterator[OpenComfy]:
    """Opens a page of its own for the test."""
    with opening(comfy, browser, tmp_path) as open_comfy:
        yield open_comfy


NEWEST_PAGE = ("--front-end-root", str(newest_frontend()))
"""Arguments of ComfyUI, for the newest frontend instead of its own."""
_QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Notification.ShowVersionUpdates": False,
}


class Open(Protocol):
    """Opens ComfyUI's page with a workflow (in the API's format) in it."""

    def __call__(self, comfyui: routing.Comfyui, prompt: dict[str, Any]) -> Dialog: ...


@pytest.fixture
def at(browser: Browser) -> Iterator[Open]:
    """Opens a page of its own each time."""
    with ExitStack() as stack:

        def open_page(comfyui: routing.Comfyui, prompt: dict[str, Any]) -> Dialog:
            requests.post(f"{comfyui.url}/api/settings", json=_QUIET, timeout=DEADLINE).raise_for_status()
            viewport = {"width": 1024, "height": 640}
            context, record = stack.enter_context(browsing(browser, comfyui.url, viewport=viewport))
            page = context.new_page()
            page.goto("/")
            wait_until_ready(page, record, graph=False)  # an older frontend has none where nothing persists
            page.evaluate("prompt => app.loadApiJson(prompt, 'my picture.json')", prompt)
            return Dialog(page)

        yield open_page
