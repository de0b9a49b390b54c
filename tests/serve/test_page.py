"""The page at / in a real browser: the form, a file, the progress, the results, errors where they belong."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.browser import browsing, chromium, screenshot
from tests.serve.running import Service
from tests.serve.workflows import picture


def test_a_person_runs_the_workflow_on_the_page(service: Service, tmp_path: Path) -> None:
    photo = tmp_path / "my photo.png"
    photo.write_bytes(picture((250, 120, 30), (200, 150)))
    size = {"width": 1100, "height": 900}
    with chromium() as browser, browsing(browser, service.url, viewport=size) as (context, record):
        page = context.new_page()
        page.goto("/")
        expect(page.locator(".field")).to_have_count(7)
        assert page.locator("#field-size").get_attribute("max") == "512"
        assert page.locator("#field-method option").count() == 5
        page.set_input_files("#field-photo", photo)
        for name, value in (("size", "200"), ("seconds", "1.2"), ("caption", "it's from\nthe page")):
            page.fill(f"#field-{name}", value)
        page.click("#run")
        expect(page.locator("#doing")).to_contain_text(re.compile(r"Wait: step \d+ of 24"))
        expect(page.locator("#bar")).to_have_js_property("hidden", False)
        assert page.evaluate("document.getElementById('bar').value") > 0
        screenshot(page, "page-running", tmp_path)
        expect(page.locator("figure")).to_have_count(3)
        expect(page.locator("figure img").first).to_have_js_property("naturalWidth", 200)
        assert page.locator("figure pre").first.text_content() == "it's from\nthe page"
        curl = page.locator("#curl").text_content() or ""
        assert "-F 'photo=@my photo.png'" in curl
        assert "--form-string 'size=200'" in curl
        assert "--form-string 'caption=it'\\''s from\nthe page'" in curl
        assert "method" not in curl
        python = page.locator("#python").text_content() or ""
        compile(python, "page", "exec")
        assert "\"photo\": Path('my photo.png')" in python or '"photo": Path("my photo.png")' in python
        screenshot(page, "page-done", tmp_path)
        page.emulate_media(color_scheme="dark")
        screenshot(page, "page-dark", tmp_path)
        # an error that belongs to a parameter
        page.evaluate("document.getElementById('field-size').value = 9999")
        page.click("#run")
        expect(page.locator(".problem:not(:empty)").first).to_contain_text("512")
        # cancelled
        page.fill("#field-size", "64")
        page.fill("#field-seconds", "500")
        page.click("#run")
        expect(page.locator("#doing")).to_contain_text("step")
        page.click("#cancel")
        expect(page.locator("#error")).to_have_text("Cancelled.")
        thrown = [error for error in record.errors if "status of 4" not in error]
        assert not thrown
        assert not record.elsewhere
    assert service.generate().status_code == 200
