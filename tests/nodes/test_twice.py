"""A plugin that is there twice, as a clone beside what ComfyUI's registry installed: one runs, and it is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.nodes.comfy import PLUGIN, running
from tests.nodes.conftest import KINDS, opening
from tests.serve.running import ROOT

OTHER = "cpack-build"


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_copies_one_runs_and_the_other_is_named(kind: str, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / OTHER).symlink_to(ROOT)
    with running(kind, tmp_path) as comfy, opening(comfy, browser, tmp_path) as open_comfy:
        told = re.findall(r"the plugin is here twice; \S+/(\S+) is used\. Remove \S+/(\S+)\.\n", comfy.log)
        assert [sorted(pair) for pair in told] == [sorted([OTHER, PLUGIN])]
        used = told[0][0]
        assert "(IMPORT FAILED)" not in comfy.log
        scripts = [script for script in comfy.get("/extensions").json() if script.endswith("/cpack.js")]
        assert scripts == [f"/extensions/{used}/cpack.js"]
        assert comfy.get("/object_info").json()["CPackInputImage"]["python_module"] == f"custom_nodes.{used}"
        assert comfy.get("/cpack/status", headers={"X-CPack": "1"}).ok
        opened = open_comfy()
        names = opened.page.evaluate("window.app.extensions.map(extension => extension.name)")
        assert names.count("cpack") == 1
        assert not opened.record.errors_of("/extensions/cpack-build")
