"""ComfyUI's own frontend opens with the plugin in it."""

from __future__ import annotations

import pytest

from tests.nodes.comfy import PLUGIN, Comfy
from tests.nodes.conftest import OpenComfy


def test_the_frontend_opens_with_our_extension_and_no_error_of_it(comfy: Comfy, comfy_page: OpenComfy) -> None:
    opened = comfy_page()
    assert f"/extensions/{PLUGIN}/cpack.js" in comfy.get("/extensions").json()
    names = opened.page.evaluate("window.app.extensions.map(extension => extension.name)")
    assert names.count("cpack") == 1
    assert opened.page.evaluate("window.app.graph.nodes.length") >= 0
    opened.shot("frontend")


@pytest.mark.parametrize(("size", "theme", "language"), [((1024, 640), "light", "zh")])
def test_the_frontend_has_the_size_theme_and_language_that_a_test_asks_for(
    comfy_page: OpenComfy, size: tuple[int, int], theme: str, language: str
) -> None:
    page = comfy_page(size=size, theme="light", language="zh").page
    assert page.evaluate("[innerWidth, innerHeight]") == list(size)
    assert page.evaluate("window.app.extensionManager.setting.get('Comfy.Locale')") == language
    assert page.evaluate("document.body.classList.contains('dark-theme')") is (theme == "dark")
