"""Real comfy-pack and this plugin in one real ComfyUI: both load, a name has one class, and both pages work."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from cpack_build.nodes.registration import NODE_CLASS_MAPPINGS
from tests.nodes.comfy import PLUGIN, Comfy, running
from tests.nodes.conftest import OpenComfy, opening
from tests.nodes.dialogs import Dialog
from tests.nodes.test_editor import MAKE, OUTPUTS, PARAMETERS, from_json_schema
from tests.serve.running import FIXTURE_PACK, ROOT
from tests.serve.workflows import picture

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module", params=["comfyui", "comfyui-newest"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """ComfyUI with both; comfy-pack runs pip whenever it is loaded, which here does nothing."""
    for variable in ("CPACK_TEST_COMFYUI", "CPACK_TEST_COMFY_PACK"):
        if variable not in os.environ:
            pytest.skip(f"needs {variable}")
    folder = tmp_path_factory.mktemp("both")
    (folder / "custom_nodes").mkdir()
    shutil.copytree(
        os.environ["CPACK_TEST_COMFY_PACK"],
        folder / "custom_nodes" / "comfy-pack",
        ignore=shutil.ignore_patterns(".git", "__pycache__"),
    )
    frozen = {"PYTHONPATH": str(ROOT / "cpack_build" / "serve" / "frozen")}
    with running(request.param, folder, environment=frozen) as comfy:
        (folder / "input" / "editor.png").write_bytes(picture())
        (folder / "input" / "editor.txt").write_bytes(b"x")
        yield comfy


@pytest.fixture
def open_both(both: Comfy, browser: Browser, tmp_path: Path) -> Iterator[OpenComfy]:
    with opening(both, browser, tmp_path) as open_comfy:
        yield open_comfy


def test_both_load_and_the_nodes_are_ours(both: Comfy) -> None:
    assert "(IMPORT FAILED)" not in both.log  # as custom nodes that do not load are told, with their folders
    info = both.get("/object_info").json()
    assert {info[name]["python_module"] for name in NODE_CLASS_MAPPINGS} == {f"custom_nodes.{PLUGIN}"}
    assert both.get("/bentoml/serve/heartbeat").status_code != 404
    assert both.get("/cpack/status", headers={"X-CPack": "1"}).ok


def test_both_extensions_run_and_our_dialogs_open(open_both: OpenComfy) -> None:
    opened = open_both()
    names = opened.page.evaluate("app.extensions.map(extension => extension.name)")
    assert {"cpack", "Comfy.CPackExtension", "Comfy.DynamicInput"} <= set(names)
    for name in ("Package", "Check"):
        dialog = Dialog(opened.page).open(name)
        opened.shot(f"beside-comfy-pack-{name}")
        dialog.close()


def test_what_is_drawn_is_exported_as_without_it(open_both: OpenComfy) -> None:
    opened = open_both()
    opened.page.evaluate(MAKE)
    assert from_json_schema(opened.export()) == (PARAMETERS, OUTPUTS)


def test_a_workflow_of_comfy_packs_opens_unchanged(open_both: OpenComfy) -> None:
    if not FIXTURE_PACK.is_file():
        pytest.skip("needs the shared fixture upscale.cpack.zip")
    with zipfile.ZipFile(FIXTURE_PACK) as pack:
        packed = json.loads(pack.read("workflow_api.json"))
    opened = open_both()
    opened.page.evaluate("packed => window.app.loadApiJson(packed, 'upscale')", packed)
    exported = opened.export()
    about = {"description", "required"}
    assert {
        node_id: {name: value for name, value in node["inputs"].items() if name not in about}
        for node_id, node in exported.items()
    } == {node_id: node["inputs"] for node_id, node in packed.items()}
