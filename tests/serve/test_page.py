"""The page at / in a real browser: the form, a file, the progress, the results, errors where they belong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.serve.browser import browsing
from tests.serve.running import Service
from tests.serve.workflows import picture


def test_a_person_runs_the_workflow_on_the_page(service: Service, tmp_path: Path) -> None:
    photo = tmp_path / "my photo.png"
    photo.write_bytes(picture((250, 120, 30), (200, 150)))
    shots = Path(os.environ.get("CPACK_TEST_SCREENSHOTS") or tmp_path)

    async def use() -> None:
        async with browsing(service.url + "/", tmp_path / "browser") as page:
            await page.until("document.querySelectorAll('.field').length === 7")
            assert await page.value("document.getElementById('field-size').max") == "512"
            assert await page.value("document.getElementById('field-method').options.length") == 5
            await page.choose_file("#field-photo", photo)
            for name, value in (("size", "200"), ("seconds", "1.2"), ("caption", "it's from\\nthe page")):
                await page.value(
                    f"(() => {{ const e = document.getElementById('field-{name}'); e.value = \"{value}\";"
                    "e.dispatchEvent(new Event('input')); })()"
                )
            await page.value("document.getElementById('run').click()")
            await page.until("/Wait: step \\d+ of 24/.test(document.getElementById('doing').textContent)")
            await page.until("document.getElementById('bar').value > 0")
            await page.screenshot(shots / "page-running.png")
            await page.until("document.querySelectorAll('figure').length === 3")
            assert await page.until("document.querySelector('figure img').naturalWidth") == 200
            assert await page.value("document.querySelector('figure pre').textContent") == "it's from\nthe page"
            curl = await page.value("document.getElementById('curl').textContent")
            assert "-F 'photo=@my photo.png'" in curl
            assert "--form-string 'size=200'" in curl
            assert "--form-string 'caption=it'\\''s from\nthe page'" in curl
            assert "method" not in curl
            python = await page.value("document.getElementById('python').textContent")
            compile(python, "page", "exec")
            assert "\"photo\": Path('my photo.png')" in python or '"photo": Path("my photo.png")' in python
            await page.screenshot(shots / "page-done.png")
            dark = [{"name": "prefers-color-scheme", "value": "dark"}]
            await page.call("Emulation.setEmulatedMedia", features=dark)
            await page.screenshot(shots / "page-dark.png")
            # an error that belongs to a parameter
            await page.value("document.getElementById('field-size').value = 9999")
            await page.value("document.getElementById('run').click()")
            await page.until("document.querySelector('.problem:not(:empty)')?.textContent.includes('512')")
            # cancelled
            await page.value("document.getElementById('field-size').value = 64")
            await page.value("document.getElementById('field-seconds').value = 500")
            await page.value("document.getElementById('run').click()")
            await page.until("document.getElementById('doing').textContent.includes('step')")
            await page.value("document.getElementById('cancel').click()")
            await page.until("document.getElementById('error').textContent === 'Cancelled.'")
            assert not page.errors
            elsewhere = [url for url in page.asked if not url.startswith((service.url, "data:", "blob:"))]
            assert not elsewhere

    asyncio.run(use())
    assert service.generate().status_code == 200
