"""One of the plugin's dialogs, as a test uses it."""

from __future__ import annotations

import json
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.serve.running import ROOT

WEB = ROOT / "cpack_build" / "web"
KEYS = json.loads((WEB / "locales" / "en.json").read_text("utf-8")).keys()

_CUT = """main => [main, ...main.querySelectorAll('*')].filter(each =>
    each.clientWidth && each.scrollWidth > each.clientWidth + 1
    && !each.closest('pre, .clip, .out-of-sight, input, textarea, select, .pick')
).map(each => each.outerHTML.slice(0, 200))"""
_TEXTS = "root => [...root.querySelectorAll('*')].map(each => each.textContent)"


class Dialog:
    """The open dialog of *page*."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.root = page.locator("[data-cpack-dialog] dialog")
        self.body = self.root.locator("[data-part=body]")
        self.foot = self.root.locator("[data-part=foot]")
        self.primary = self.foot.locator(".primary")

    def open(self, command: str) -> Dialog:
        """Open it by its *command*, and wait until it has something to ask or tell."""
        self.page.evaluate("command => { app.extensionManager.command.execute(command) }", f"CPack.{command}")
        expect(self.root).to_be_visible()
        expect(self.root.locator("[role=progressbar]")).to_have_count(0)
        return self

    def tab(self, name: str) -> None:
        self.root.locator(f"[data-tab={name}]").click()

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    def drop(self, file: Path) -> None:
        """Let *file* fall where the dialog takes one."""
        self.root.locator(".drop").evaluate(
            """(zone, [name, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], name, {type: 'application/zip'}));
                zone.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, composed: true}));
            }""",
            [file.name, list(file.read_bytes())],
        )

    def close(self) -> None:
        self.page.keyboard.press("Escape")
        expect(self.root).to_have_count(0)

    def assert_fits(self) -> None:
        """It lies in the window, its buttons can be seen, and nothing is cut off at its side."""
        width, height = self.page.evaluate("[innerWidth, innerHeight]")
        for part in (self.root, self.foot):
            box = part.bounding_box()
            assert box is not None
            assert box["x"] >= 0, box
            assert box["y"] >= 0, box
            assert box["x"] + box["width"] <= width, box
            assert box["y"] + box["height"] <= height, box
        assert self.body.evaluate(_CUT) == []

    def assert_accessible(self) -> None:
        """axe-core (roles, names, contrast of at least 4.5, …) has nothing to complain about."""
        context = {"include": [["[data-cpack-dialog]"]]}
        found = Axe().run(self.page, context=context, options={"resultTypes": ["violations"]})
        told = [(rule["id"], rule["help"], [(node["html"][:300], node["failureSummary"]) for node in rule["nodes"]])
                for rule in found.response["violations"]]  # fmt: skip
        assert not told, told


def assert_no_key_is_shown(root: Locator) -> None:
    """Each text was found in the language's file: one that is missing there would show as its key."""
    texts: list[str] = root.evaluate(_TEXTS)
    shown = [text for text in texts if "." in text and text in KEYS]
    assert not shown, shown
