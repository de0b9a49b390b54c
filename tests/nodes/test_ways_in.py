"""The ways to the dialogs, as a hand takes them: buttons, menu, keys and the panel; in older frontends, too."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from playwright.sync_api import TimeoutError as NotInTime

from tests import need
from tests.nodes.comfy import running
from tests.nodes.conftest import OpenComfy, opening
from tests.nodes.dialogs import Dialog

NAMES = {"Package": "p", "Serve": "s", "Build image": "b", "Deploy": "d", "Unpack": "u", "Check": "c"}
BUTTONS = ("Package this workflow…", "Serve this workflow…", "Build an image…")
# ComfyUI 0.3.64 requires the first, which knows no buttons beside its own; the others are between it and the newest.
OLDER = ("1.27.10", "1.33.14", "1.39.19")


def frontend(version: str, folder: Path) -> Path:
    """The page of the frontend's *version*, from the package index."""
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", folder]
    done = subprocess.run(
        [*command, f"comfyui-frontend-package=={version}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        need.missing(f"comfyui-frontend-package {version} ({done.stderr.strip()[-200:]})")
    return folder / "comfyui_frontend_package" / "static"


@pytest.fixture(scope="module", params=OLDER)
def older(request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of the stand-in with an older frontend."""
    page = frontend(request.param, tmp_path_factory.mktemp("frontend"))
    folder = tmp_path_factory.mktemp("older")
    with (
        running("standin", folder, arguments=("--front-end-root", str(page))) as comfy,
        opening(comfy, browser, folder) as open_comfy,
    ):
        opened = open_comfy()
        assert opened.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__") == request.param
        yield opened.page


@pytest.fixture
def page(comfy_page: OpenComfy) -> Page:
    return comfy_page().page


def by_keys(page: Page) -> None:
    page.evaluate("document.activeElement.blur()")
    for name, key in NAMES.items():
        page.keyboard.press(f"Alt+Shift+{key}")
        is_open(page, name)


def by_menu(page: Page) -> None:
    for name in NAMES:
        page.locator("[class*=comfyui-logo]").first.click()
        entry = page.get_by_role("menuitem", name=re.compile(f"^{name}")).first
        # A slow page has not yet laid the menu out when the pointer comes, and opens nothing until it comes again.
        for _ in range(10):
            page.get_by_role("menuitem", name="CPack", exact=True).hover()
            with suppress(NotInTime):
                entry.wait_for(timeout=3000)
                break
            page.mouse.move(0, 0)
        entry.click()
        is_open(page, name)


def by_panel(page: Page) -> None:
    page.locator("button:has(.pi-box.side-bar-button-icon)").first.click()
    for name in NAMES:
        page.locator(".actions").get_by_role("button", name=name, exact=True).click()
        is_open(page, name)
    page.locator("button:has(.pi-box.side-bar-button-icon)").first.click()


def is_open(page: Page, name: str) -> None:
    dialog = Dialog(page)
    expect(dialog.root).to_be_visible()
    expect(dialog.root.get_by_role("heading").first).to_contain_text(name.split()[0])
    dialog.close()


def test_keys_lead_to_each_dialog(page: Page) -> None:
    by_keys(page)


def test_the_menu_leads_to_each_dialog(page: Page) -> None:
    by_menu(page)


def test_the_panel_leads_to_each_dialog(page: Page) -> None:
    by_panel(page)


def test_the_bars_buttons_lead_to_their_dialogs_where_the_frontend_has_them(page: Page) -> None:
    if page.evaluate("window.__COMFYUI_FRONTEND_VERSION__") == OLDER[0]:
        pytest.skip("this frontend has no buttons of extensions; its menu, keys and panel are tested")
    for name in BUTTONS:
        page.get_by_role("button", name=name).click()
        is_open(page, name)


@pytest.mark.parametrize("way", [by_keys, by_menu, by_panel])
def test_an_older_frontend_has_them(older: Page, way: object) -> None:
    assert callable(way)
    way(older)


def test_an_older_frontend_has_the_buttons_if_it_knows_any(older: Page) -> None:
    known = older.evaluate("window.__COMFYUI_FRONTEND_VERSION__") != OLDER[0]
    expect(older.get_by_role("button", name=BUTTONS[0])).to_have_count(int(known))
