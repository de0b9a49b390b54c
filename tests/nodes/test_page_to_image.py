"""From ComfyUI's page to a container that answers, and back to a workspace: every dialog with the real tool, the real
registries of packages and a real Docker, and nothing in between that only the tests have.

On the stand-in with the example's workflow; and on real ComfyUI, where ``CPACK_TEST_COMFYUI`` names one, with the
workflow of comfy-pack's own pack.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import expect

from cpack_build.lock.uv import program as uv_program
from cpack_build.oci.types import MANIFEST
from tests.asking import ask_comfyui, ask_service, pixels, png, until_ready
from tests.browser import screenshot
from tests.deploy.cloudserver import TOKEN, running_cloud
from tests.engines import Docker, Registry, free_port
from tests.example import WORKFLOW
from tests.fetch.repositories import git
from tests.making import make_wheel
from tests.nodes.conftest import KINDS, NEWEST_PAGE, Open
from tests.nodes.dialogs import Dialog
from tests.nodes.routing import Comfyui, Kind, running
from tests.serve.running import FIXTURE_MODEL, FIXTURE_PACK, MODEL
from tests.standin.repository import make_model, make_nodes_repository, make_repository
from tests.test_first_light import cpack_build
from tests.test_real_comfyui import TORCHVISION_SCHEMA, _named
from tests.workspace.installs import publish

pytestmark = [pytest.mark.docker, pytest.mark.network, pytest.mark.xdist_group("engines")]

_COMFYUI = "https://github.com/Comfy-Org/ComfyUI"
_NODE = "https://nodes.example/standin-tint"
_MINUTES = 60_000
"""In milliseconds, as Playwright counts."""


@dataclass(frozen=True)
class Desk:
    """A ComfyUI with the plugin as `plugin install` puts it there, the workflow for its page, and what tells the tool
    where the things are that no registry has."""

    comfyui: Comfyui
    prompt: dict[str, Any]
    settings: Path
    environment: dict[str, str]

    def pixels(self, picture: bytes, size: int) -> tuple[tuple[int, int], bytes]:
        """What this very ComfyUI makes of *picture*."""
        return pixels(ask_comfyui(self.comfyui.url, self.sized(size), "7", picture=picture, into="1"))

    def sized(self, size: int) -> dict[str, Any]:
        """The workflow with another value for its parameter ``size``."""
        prompt: dict[str, Any] = json.loads(json.dumps(self.prompt))
        (number,) = (node for node in prompt.values() if node["class_type"] == "CPackInputInt")
        number["inputs"]["value"] = size
        return prompt


def make_workspace(kind: Kind, root: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """ComfyUI of that *kind* at *root* with the plugin; its workflow, the settings for it, and the Python to run it."""
    settings: dict[str, Any] = {"system": {"defaults": "none"}, "models": [str(root / "models")]}
    if kind == "standin":
        make_repository(root)
        make_nodes_repository(root / "custom_nodes/standin-tint")
        publish(root / "custom_nodes/standin-tint", _NODE)
        make_model(root / "models/upscale_models/tiny.safetensors", metadata={"scale": "2"})
        (root / "input").mkdir(exist_ok=True)
        (root / "input/sample.png").write_bytes(png())
        uv, python = uv_program(), str(root / ".venv/bin/python")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, root / ".venv"], check=True)
        needed = [uv, "pip", "install", "--quiet", "--python", python, "-r", root / "requirements.txt"]
        subprocess.run(needed, check=True)
        prompt = WORKFLOW
        settings["mirrors"] = {_COMFYUI: str(root), _NODE: str(root / "custom_nodes/standin-tint")}
    else:
        if not FIXTURE_PACK.is_file():
            pytest.skip("needs ../shared/fixtures")
        git(root.parent, "clone", "--quiet", str(_named("CPACK_TEST_COMFYUI")), str(root))
        shutil.copy(FIXTURE_MODEL, root / "models/upscale_models" / MODEL)
        with zipfile.ZipFile(FIXTURE_PACK) as packed:
            prompt = json.loads(packed.read("workflow_api.json"))
            for name in packed.namelist():
                if name.startswith("input/"):
                    packed.extract(name, root)
        python = str(_named("CPACK_TEST_COMFYUI_PYTHON"))
        wheel = make_wheel(
            root.parent / "wheels",
            "cpack_test_torchvision_schema",
            {
                "cpack_test_torchvision_schema.py": TORCHVISION_SCHEMA,
                "cpack_test_torchvision_schema.pth": b"import cpack_test_torchvision_schema\n",
            },
        )
        settings["mirrors"] = {_COMFYUI: str(root)}
        settings["python"] = {
            "find_links": [str(_named("CPACK_TEST_FIND_LINKS")), str(wheel.path.parent)],
            "packages": ["cpack-test-torchvision-schema"],
        }
    publish(root, "https://github.com/comfyanonymous/ComfyUI.git")
    cpack_build("plugin", "install", root, environment={})
    return prompt, settings, python


@pytest.fixture(scope="module", params=KINDS)
def desk(request: pytest.FixtureRequest, _docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    kind: Kind = "standin" if request.param == "standin" else "comfyui"
    folder = tmp_path_factory.mktemp("desk")
    root = folder / "ComfyUI"
    prompt, document, python = make_workspace(kind, root)
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps(document))
    page = () if request.param == "comfyui" else NEWEST_PAGE
    flags = f"--config {shlex.quote(str(settings))}"
    environment = {
        "CPACK_HOME": str(folder / "store"),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        **_docker.environment,
    }
    with running(
        folder, kind=kind, install=root, python=python, arguments=page, **environment,
        CPACK_BUILD_FLAGS=flags, CPACK_RESTORE_FLAGS=flags,
    ) as comfyui:  # fmt: skip
        yield Desk(comfyui, prompt, settings, environment)


def packaged(dialog: Dialog, folder: Path) -> Path:
    """The pack of what is on the page, with what the dialog proposes, as it is downloaded."""
    dialog.open("Package")
    with dialog.page.expect_download() as coming:
        dialog.primary.click()
    pack = folder / coming.value.suggested_filename
    coming.value.save_as(pack)
    dialog.close()
    return pack


def test_a_workflow_becomes_a_pack_and_an_image_that_answers_as_its_page_does(
    desk: Desk, at: Open, docker: Docker, tmp_path: Path
) -> None:
    dialog = at(desk.comfyui, desk.prompt).open("Image")
    dialog.root.get_by_label("Image name").fill("team/from-the-page:1")
    dialog.root.get_by_label("Runs on").select_option("cpu")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome]")).to_be_visible(timeout=15 * _MINUTES)
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_have_text("team/from-the-page:1 is built.")
    (digest,) = re.findall(r"sha256:[0-9a-f]{64}", dialog.root.locator("dl").inner_text())
    line = dialog.root.locator("pre").inner_text()
    screenshot(dialog.page, "page-to-image", tmp_path)
    job = desk.comfyui.get("/cpack/jobs").json()["jobs"][0]
    assert docker("inspect", "--format", "{{.Id}}", "team/from-the-page:1").stdout.strip() == job["result"]["image_id"]

    dialog.close()
    pack = packaged(dialog, tmp_path)
    layout = f"oci:{tmp_path / 'image'}"
    made = cpack_build(
        "image", pack, "--config", desk.settings, "--target", "cpu", "--output", layout, environment=desk.environment
    )
    assert made["image_id"] == job["result"]["image_id"], "both dialogs pack the same bytes"

    assert line.startswith("docker run "), line
    port = free_port()
    words = shlex.split(line.replace("3000:3000", f"127.0.0.1:{port}:3000"))
    container = docker("run", "--detach", *words[2:]).stdout.strip()
    try:
        until_ready(f"http://127.0.0.1:{port}/readyz", seconds=180)
        picture = png(96, 64)
        body, media_type = ask_service(f"http://127.0.0.1:{port}", accept="image/png", photo=picture, size=48)
        assert media_type == "image/png"
        answered = pixels(body)
        print(f"\n{line}\n{digest}: {job['result']['size'] / 1e6:.0f} MB, {job['result']['layers']} layers; "
              f"/generate gave a picture of {answered[0]}")  # fmt: skip
        assert answered == desk.pixels(picture, 48)
    finally:
        docker("rm", "--force", container)


def test_its_pack_is_restored_beside_this_comfyui_and_gives_the_same_pixels(
    desk: Desk, at: Open, tmp_path: Path
) -> None:
    dialog = at(desk.comfyui, desk.prompt)
    pack = packaged(dialog, tmp_path)
    before = sorted(path.name for path in desk.comfyui.folder.parent.iterdir())
    dialog.open("Unpack").drop(pack)
    expect(dialog.root.locator("dl")).to_contain_text("0 missing of 1")
    dialog.root.get_by_label("Name of the new folder").fill("another ComfyUI")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome]")).to_be_visible(timeout=15 * _MINUTES)
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_contain_text("Restored.")
    line = dialog.root.locator("pre").last.inner_text()
    folder = desk.comfyui.folder.parent / "another ComfyUI"
    assert {path.name for path in folder.parent.iterdir()} - {*before} == {folder.name}
    assert cpack_build("restore", "--verify", folder, environment=desk.environment)["same"]

    port, picture = free_port(), png(96, 64)
    with subprocess.Popen(
        ["sh", "-c", f"exec {line.replace(' && ', ' && exec ')} --cpu --port {port}".removeprefix("exec ")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            until_ready(f"http://127.0.0.1:{port}/system_stats", seconds=180)
            found = pixels(ask_comfyui(f"http://127.0.0.1:{port}", desk.sized(48), "7", picture=picture, into="1"))
        finally:
            process.kill()
    assert found == desk.pixels(picture, 48)


def test_its_image_is_looked_at_pushed_and_named_by_its_digest_in_the_files_of_a_deployment(
    desk: Desk, at: Open, registry: Registry, tmp_path: Path
) -> None:
    name = f"{registry.host}/team/from-the-page:1"
    dialog = at(desk.comfyui, desk.prompt).open("Image")
    dialog.root.get_by_label("Image name").fill(name)
    dialog.root.get_by_label("Runs on").select_option("cpu")
    dialog.button("Preview layers").click()
    expect(dialog.root.locator(".layers > li").first).to_be_visible(timeout=15 * _MINUTES)
    shown = dialog.root.locator(".layers > li").count()
    dialog.root.get_by_label("Push it").check()
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_have_text(
        f"{name} is built.", timeout=15 * _MINUTES
    )
    (digest,) = re.findall(r"sha256:[0-9a-f]{64}", dialog.root.locator("dl").inner_text())
    url = f"http://{registry.host}/v2/team/from-the-page/manifests/{digest}"
    manifest = requests.get(url, headers={"Accept": MANIFEST}, timeout=60).json()
    assert len(manifest["layers"]) == shown
    dialog.close()
    for place, file in (("kubernetes", "kustomization.yaml"), ("compose", "compose.yaml")):
        dialog.open("Deploy").tab(place)
        panel = dialog.root.locator("[role=tabpanel]:visible")
        panel.get_by_label("Name").fill("upscale")
        panel.get_by_label("Image").fill(name)
        dialog.primary.click()
        expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_be_visible(timeout=_MINUTES)
        with dialog.page.expect_download() as coming:
            dialog.primary.click()
        saved = tmp_path / f"{place}.zip"
        coming.value.save_as(saved)
        with zipfile.ZipFile(saved) as files:
            assert f"upscale/{file}" in files.namelist()
            assert any(f"/team/from-the-page@{digest}".encode() in files.read(one) for one in files.namelist())
        dialog.close()


def test_it_is_deployed_to_bentocloud_with_a_token_that_nothing_keeps(desk: Desk, at: Open) -> None:
    with running_cloud() as cloud:
        dialog = at(desk.comfyui, desk.prompt).open("Deploy")
        panel = dialog.root.locator("[role=tabpanel]:visible")
        panel.get_by_label("Name").fill("from-the-page")
        panel.get_by_label("Address of your account").fill(cloud.url)
        panel.get_by_label("API token").fill(TOKEN)
        dialog.primary.click()
        outcome = dialog.root.locator("[data-part=outcome]")
        looked, deadline = 0, time.monotonic() + 900
        while not outcome.is_visible() and time.monotonic() < deadline:
            assert not [line for line in command_lines() if TOKEN in line]
            looked += 1
            dialog.page.wait_for_timeout(200)
        assert looked > 5
        expect(outcome.locator(".notice.done")).to_be_visible()
        jobs = desk.comfyui.get("/cpack/jobs").json()["jobs"]
        (job,) = (job for job in jobs if job["title"] == "Deploy from-the-page")
        assert (job["result"]["name"], job["result"]["status"]) == ("from-the-page", "running")
        expect(dialog.root.get_by_role("link")).to_have_attribute("href", job["result"]["url"])
        (body,) = (body for request, body in cloud.bodies if request == "POST /api/v2/deployments")
        assert body["name"] == "from-the-page"
        assert cloud.contents, "the Bento was uploaded"
    kept = dialog.page.evaluate(
        """async () => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie,
            app.graph.serialize(), await (await fetch('/api/settings')).json(),
            await (await fetch('/cpack/jobs', {headers: {'X-CPack': '1'}})).text()])"""
    )
    assert TOKEN not in kept
    folder = desk.comfyui.folder.parent
    holding = [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not holding


def command_lines() -> list[str]:
    """Those of all processes."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_text(errors="replace"))
    return found
