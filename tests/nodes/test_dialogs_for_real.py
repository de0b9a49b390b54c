"""The dialogs on the plugin's own routes, with the real command-line tool where that is quick and needs no network;
else with a tool that answers what a build, a cloud or a restore would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from PIL import Image
from playwright.sync_api import expect

from cpack_build.cpack.reader import read_pack
from tests.cpack.packs import make_pack
from tests.nodes.conftest import KINDS, NEWEST_PAGE, Open, wait_until_ready
from tests.nodes.routing import Comfyui, Kind, fake_tool, listening, make_comfyui, own_address, running, workflow
from tests.nodes.test_building import ANSWERS
from tests.serve.running import DEADLINE, free_port, wait_for

_FAKED = ("lock", "plan", "image", "deploy", "restore")
_REAL = str(Path(sys.executable).with_name("cpack-build"))


@pytest.fixture(scope="module", params=KINDS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfyui]:
    """ComfyUI with the real tool."""
    folder = tmp_path_factory.mktemp("real")
    kind: Kind = "standin" if request.param == "standin" else "comfyui"
    root = make_comfyui(folder / "ComfyUI", kind=kind)
    Image.new("RGB", (4, 3), (255, 0, 10)).save(root / "input" / "a picture.png")
    page = () if request.param == "comfyui" else NEWEST_PAGE
    with running(folder, kind=kind, install=root, arguments=page) as comfyui:
        yield comfyui


@pytest.fixture(scope="module", params=KINDS)
def faked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfyui]:
    """ComfyUI with a tool whose builds, deployments and restores answer as in ``test_building``; the rest is real."""
    folder = tmp_path_factory.mktemp("faked")
    fake = folder / "fake"
    fake.mkdir()
    restored = {"workspace": "x", "notes": ["Its scripts were not run."], "scripts_not_run": []}
    for verb, document in {**ANSWERS, "restore": restored}.items():
        (fake / f"{verb}.json").write_text(json.dumps(document))
    tool = folder / "tool"
    tool.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"program = {str(fake_tool(folder))!r} if sys.argv[1] in {_FAKED!r} else {_REAL!r}\n"
        "os.execv(program, [program, *sys.argv[1:]])\n"
    )
    tool.chmod(0o755)
    kind: Kind = "standin" if request.param == "standin" else "comfyui"
    page = () if request.param == "comfyui" else NEWEST_PAGE
    environment = {"CPACK_BUILD": str(tool), "FAKE_TOOL": str(fake), "CPACK_BUILD_FLAGS": ""}
    with running(folder, kind=kind, arguments=page, **environment) as comfyui:
        yield comfyui


def test_a_package_has_what_was_ticked_and_comes_as_a_download(real: Comfyui, at: Open, tmp_path: Path) -> None:
    dialog = at(real, workflow()).open("Package")
    dialog.root.get_by_label("Name").fill("My picture")
    dialog.tab("models")
    expect(dialog.root.locator("[role=option][aria-selected=true]")).to_have_count(1)
    with dialog.page.expect_download() as coming:
        dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_contain_text("My picture.cpack.zip")
    assert coming.value.suggested_filename == "My picture.cpack.zip"
    coming.value.save_as(tmp_path / "made.cpack.zip")
    made = read_pack(tmp_path / "made.cpack.zip")
    assert [Path(model.filename).name for model in made.snapshot.models if not model.disabled] == ["tiny.safetensors"]
    assert [item.name for item in made.inputs] == ["input/example.png"]


def test_a_large_model_s_hashing_is_shown_by_bytes_and_cancelled_without_a_trace(real: Comfyui, at: Open) -> None:
    """The model is a hole of a terabyte: it takes no space, and nobody has hashed it before the button is found."""
    model = real.folder / "models" / "upscale_models" / "large.safetensors"
    with model.open("wb") as file:
        file.truncate(10**12)
    prompt = workflow()
    (loader,) = [node for node in prompt.values() if node["class_type"] == "UpscaleModelLoader"]
    loader["inputs"]["model_name"] = model.name
    before = leftovers(real)
    try:
        dialog = at(real, prompt).open("Package")
        dialog.root.get_by_label("Name").fill("never made")
        dialog.root.get_by_role("radio", name="Save it on the server").check()
        dialog.primary.click()
        amount = re.compile(r"^[\d.]+ [MG]B of 1 TB · .*/s · \d+ .+ left$")
        expect(dialog.root.locator("[data-part=work] .amount")).to_have_text(amount)
        assert processes_on(real.folder), "the tool is at work"
        dialog.button("Cancel").click()
        expect(dialog.root.locator("[data-part=outcome] .notice")).to_contain_text("Cancelled.")
        wait_for(lambda: not processes_on(real.folder), "the tool to end")
        assert leftovers(real) == before
        dialog.button("Back").click()
        expect(dialog.root.get_by_label("Name")).to_have_value("never made")
    finally:
        model.unlink()


def processes_on(folder: Path) -> list[str]:
    """The command lines that name *folder*: those of the tool, as ComfyUI's own does not."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_text())
    return [line for line in found if str(folder) in line]


def leftovers(comfyui: Comfyui) -> list[Path]:
    """What packing writes to: the folders of jobs and requests, and the saved packs."""
    places = [*comfyui.temporary.glob("*/jobs"), *comfyui.temporary.glob("*/requests"), comfyui.saved]
    return sorted(path for place in places for path in place.rglob("*"))


def test_a_package_saved_on_the_server_is_there_and_survives_a_reload(real: Comfyui, at: Open) -> None:
    dialog = at(real, workflow()).open("Package")
    dialog.root.get_by_label("Name").fill("kept here")
    dialog.root.get_by_role("radio", name="Save it on the server").check()
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_contain_text("cpack/kept here.cpack.zip")
    assert (real.saved / "kept here.cpack.zip").is_file()
    dialog.page.reload()
    wait_until_ready(dialog.page, graph=False)
    dialog.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.cpack')")
    job = dialog.page.locator(".job", has_text="kept here")
    expect(job).to_contain_text("Done")
    expect(job.get_by_role("link", name="Download")).to_have_attribute("href", re.compile("/cpack/jobs/.+/download$"))


def test_a_name_that_is_taken_leads_back_to_the_form(real: Comfyui, at: Open) -> None:
    real.saved.mkdir(parents=True, exist_ok=True)
    (real.saved / "taken.cpack.zip").write_bytes(b"mine")
    dialog = at(real, workflow()).open("Package")
    dialog.root.get_by_label("Name").fill("taken")
    dialog.root.get_by_role("radio", name="Save it on the server").check()
    dialog.primary.click()
    expect(dialog.root.get_by_role("alert").first).to_contain_text("taken.cpack.zip is there already.")
    dialog.button("Back").click()
    expect(dialog.root.get_by_label("Name")).to_have_value("taken")
    assert (real.saved / "taken.cpack.zip").read_bytes() == b"mine"


def test_a_model_that_is_not_here_is_found_and_leads_to_its_node(real: Comfyui, at: Open) -> None:
    prompt = workflow()
    (number,) = [number for number, node in prompt.items() if node["class_type"] == "UpscaleModelLoader"]
    prompt[number]["inputs"]["model_name"] = "absent.safetensors"
    dialog = at(real, prompt).open("Check")
    finding = dialog.root.locator("button.finding", has_text="absent.safetensors").first
    finding.click()
    expect(dialog.root).to_have_count(0)
    chosen = dialog.page.evaluate("Object.values(app.canvas.selected_nodes).map(node => String(node.id))")
    assert chosen == [number]


@pytest.mark.parametrize(
    ("who", "token", "address"),
    [("This computer only", "", "127.0.0.1"), ("Everyone in the network", "t0ken-of-mine", "0.0.0.0")],
    ids=["loopback", "network"],
)
def test_a_workflow_is_served_called_as_the_dialog_says_and_stopped(
    real: Comfyui, at: Open, tmp_path: Path, who: str, token: str, address: str
) -> None:
    prompt = {
        "1": {"class_type": "CPackInputImage", "inputs": {"image": "a picture.png"}, "_meta": {"title": "photo"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "CPackOutputImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }
    port = free_port()
    dialog = at(real, prompt).open("Serve")
    dialog.root.get_by_label("Port").fill(str(port))
    dialog.root.get_by_role("radio", name=who).check()
    dialog.root.get_by_label("Token").fill(token)
    dialog.primary.click()
    expect(dialog.root.locator(".state.ready")).to_be_visible()
    assert listening(port) == {address}
    if token:
        answer = requests.post(f"http://{own_address()}:{port}/generate", timeout=DEADLINE)
        assert answer.status_code == 401, "a caller from elsewhere who has no token"
        asking = {"Authorization": f"Bearer {token}"}
        document = requests.get(f"http://{own_address()}:{port}/interface.json", headers=asking, timeout=DEADLINE)
        assert document.status_code == 200
    else:
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{own_address()}:{port}/readyz", timeout=DEADLINE)
    expect(dialog.root.get_by_role("link")).to_have_attribute("href", f"http://127.0.0.1:{port}")
    line = dialog.root.locator("[role=tabpanel]:visible pre").inner_text()
    assert line.startswith("curl ")
    shutil.copy(real.folder / "input" / "a picture.png", tmp_path)
    environment = {**os.environ, "CPACK_TOKEN": token}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = [path for path in tmp_path.iterdir() if path.name != "a picture.png"]
    assert Image.open(made).convert("RGB").getpixel((0, 0)) == (0, 255, 245)
    dialog.root.locator("summary").click()
    expect(dialog.root.locator("pre.log")).not_to_have_text("Nothing yet.")
    dialog.button("Stop").click()
    expect(dialog.root.get_by_text("The service was stopped.")).to_be_visible()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE)


def test_a_pack_is_read_before_anything_is_made_of_it(real: Comfyui, at: Open, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "from a friend.cpack.zip")
    dialog = at(real, workflow()).open("Unpack")
    dialog.root.locator("input[type=file]").set_input_files(pack)
    expect(dialog.root.get_by_label("Name of the new folder")).to_have_value("from-a-friend")
    expect(dialog.root.locator("dl")).to_contain_text("1 missing of 1")
    dialog.tab("nodes")
    expect(dialog.root.locator("[role=tabpanel]:visible")).to_contain_text("some-registry-node")


def test_what_is_no_pack_is_told_and_another_can_be_chosen(real: Comfyui, at: Open) -> None:
    dialog = at(real, workflow()).open("Unpack")
    file = {"name": "notes.cpack.zip", "mimeType": "application/zip", "buffer": b"no zip at all"}
    dialog.root.locator("input[type=file]").set_input_files(file)
    expect(dialog.root.get_by_role("alert").first).to_contain_text("notes")
    dialog.button("Back").click()
    expect(dialog.button("Choose a file")).to_be_focused()


def test_a_pack_that_is_dropped_is_restored_beside_this_comfyui(faked: Comfyui, at: Open, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "dropped.cpack.zip")
    dialog = at(faked, workflow()).open("Unpack")
    dialog.drop(pack)
    dialog.root.get_by_label("Name of the new folder").fill("made anew")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_contain_text("made anew")
    expect(dialog.root.locator("pre").last).to_contain_text("main.py")
    assert (faked.folder.parent / "made anew").is_dir()


def test_an_image_is_looked_at_and_built(faked: Comfyui, at: Open) -> None:
    dialog = at(faked, workflow()).open("Image")
    dialog.root.get_by_label("Image name").fill("upscale")
    dialog.button("Preview layers").click()
    expect(dialog.root.locator(".layers > li")).to_have_count(2)
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_contain_text("upscale is built.")
    expect(dialog.root.locator("dl")).to_contain_text("sha256:3")
    expect(dialog.root.locator("pre")).to_have_text("docker run --rm -p 3000:3000 upscale")


def test_manifests_are_made_and_downloaded(faked: Comfyui, at: Open) -> None:
    dialog = at(faked, workflow()).open("Deploy")
    dialog.tab("compose")
    panel = dialog.root.locator("[role=tabpanel]:visible")
    panel.get_by_label("Name").fill("upscale")
    panel.get_by_label("Image").fill("registry.example/team/upscale:1")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=outcome] .notice.done")).to_be_visible()
    with dialog.page.expect_download() as coming:
        dialog.primary.click()
    assert coming.value.suggested_filename == "upscale.zip"


def test_a_deployment_to_the_cloud_takes_a_token_once(faked: Comfyui, at: Open) -> None:
    dialog = at(faked, workflow()).open("Deploy")
    for token in ("bc-secret-token", ""):
        dialog.root.get_by_label("Address of your account").fill("https://cloud.example")
        dialog.root.get_by_label("API token").fill(token)
        dialog.primary.click()
        expect(dialog.root.get_by_role("link")).to_have_attribute("href", "https://upscale.cloud.example")
        dialog.close()
        dialog.open("Deploy")
    assert "bc-secret-token" not in faked.get("/cpack/jobs").text
