"""Each dialog from open to result: in two sizes, themes and languages, by keyboard alone, and where things go wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.nodes.answers import HOSTILE, SERVING, Answers
from tests.nodes.comfy import PLUGIN, Comfy
from tests.nodes.conftest import ComfyPage, OpenComfy, opening
from tests.nodes.dialogs import WEB, Dialog, assert_no_key_is_shown

LOOKS = [
    pytest.param({"size": size, "theme": theme, "language": language}, id=f"{size[0]}-{theme}-{language}")
    for size, theme, language in [
        ((1440, 900), "dark", "en"),
        ((1440, 900), "light", "en"),
        ((1024, 640), "dark", "zh"),
        ((1024, 640), "light", "en"),
    ]
]

WORKFLOW: dict[str, Any] = {
    "last_node_id": 2, "last_link_id": 0, "groups": [], "config": {}, "extra": {}, "version": 0.4, "links": [],
    "nodes": [
        {"id": number, "type": "Note", "title": title, "pos": [x, 100], "size": [210, 80], "flags": {}, "order": 0,
         "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [title]}
        for number, title, x in [(1, "The photo", 100), (2, "The far one", 4000)]
    ],
}  # fmt: skip


@dataclass
class Desk:
    """A page with the routes answered by the test."""

    opened: ComfyPage
    answers: Answers
    dialog: Dialog

    @property
    def page(self) -> Page:
        return self.opened.page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def show_panel(self) -> None:
        self.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.cpack')")


class OpenDesk(Protocol):
    def __call__(self, **look: Any) -> Desk: ...


@pytest.fixture(scope="module")
def open_once(comfy: Comfy, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenComfy]:
    """Opens a page of each look once for all tests here: a page takes seconds to load."""
    pages: dict[str, ComfyPage] = {}
    with opening(comfy, browser, tmp_path_factory.mktemp("shots")) as open_comfy:

        def open_or_find(**look: Any) -> ComfyPage:
            if (key := str(look)) not in pages:
                pages[key] = open_comfy(**look)
            return pages[key]

        yield open_or_find


@pytest.fixture
def desk(open_once: OpenComfy) -> Iterator[OpenDesk]:
    """A page without jobs or dialogs."""
    used = []

    def sit_down(**look: Any) -> Desk:
        opened = open_once(**look)
        used.append(opened.page)
        answers = Answers(opened.page)
        opened.page.evaluate(f"import('/extensions/{PLUGIN}/jobs.js').then(({{jobs}}) => jobs.refresh())")
        return Desk(opened, answers, Dialog(opened.page))

    yield sit_down
    for page in used:
        page.evaluate("document.querySelector('[data-cpack-dialog]')?.shadowRoot.querySelector('dialog').close()")
        page.evaluate(
            "app.extensionManager.sidebarTab?.activeSidebarTabId === 'cpack'"
            " && app.extensionManager.command.execute('Workspace.ToggleSidebarTab.cpack')"
        )
        page.unroute_all()


def package(dialog: Dialog, answers: Answers, seen: Callable[[str], None]) -> None:
    dialog.open("Package")
    seen("package")
    for tab in ("models", "inputs", "nodes", "packages", "system", "findings"):
        dialog.tab(tab)
        seen(f"package-{tab}")
    dialog.primary.click()
    expect(dialog.root.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "44")
    seen("package-work")
    answers.finish()
    expect(dialog.root.locator(".notice.done")).to_contain_text("upscale.cpack.zip")
    seen("package-done")


def serve(dialog: Dialog, answers: Answers, seen: Callable[[str], None]) -> None:
    dialog.open("Serve")
    dialog.root.get_by_role("radio").nth(1).check()
    expect(dialog.root.locator(".notice.warning")).to_be_visible()
    seen("serve")
    dialog.primary.click()
    expect(dialog.root.locator(".state.starting")).to_be_visible()
    answers.push(result=SERVING)
    expect(dialog.root.locator(".state.ready")).to_be_visible()
    expect(dialog.root.get_by_role("link")).to_have_attribute("href", "http://127.0.0.1:3000")
    dialog.root.locator("summary").click()
    expect(dialog.root.locator("pre.log")).to_have_text("listening\n")
    seen("serve-ready")
    answers.push(state="cancelled")
    expect(dialog.primary).to_be_visible()


def image(dialog: Dialog, answers: Answers, seen: Callable[[str], None]) -> None:
    dialog.open("Image")
    seen("image")
    dialog.foot.locator(".button").first.click()
    expect(dialog.root.get_by_role("progressbar")).to_be_visible()
    answers.finish()
    expect(dialog.root.locator(".layers > li")).to_have_count(10)
    expect(dialog.root.locator(".layers > li.known")).to_have_count(5)
    seen("image-plan")
    dialog.primary.click()
    expect(dialog.root.get_by_role("progressbar")).to_be_visible()
    answers.finish()
    expect(dialog.root.locator("pre")).to_have_text("docker run --rm -p 3000:3000 upscale:latest")
    seen("image-done")


def deploy(dialog: Dialog, answers: Answers, seen: Callable[[str], None]) -> None:
    dialog.open("Deploy")
    seen("deploy")
    dialog.tab("kubernetes")
    dialog.body.locator("input:visible").nth(1).fill("registry.example/team/upscale:1")
    seen("deploy-kubernetes")
    dialog.primary.click()
    expect(dialog.root.get_by_role("progressbar")).to_be_visible()
    answers.finish()
    expect(dialog.root.locator("a.primary")).to_have_attribute("download", "upscale-kubernetes.zip")
    seen("deploy-done")


def unpack(dialog: Dialog, answers: Answers, seen: Callable[[str], None]) -> None:
    dialog.open("Unpack")
    seen("unpack")
    file = {"name": "upscale.cpack.zip", "mimeType": "application/zip", "buffer": b"PK"}
    dialog.root.locator("input[type=file]").set_input_files(file)
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    answers.finish()
    expect(dialog.root.locator(".notice.warning")).to_be_visible()
    seen("unpack-needs")
    dialog.tab("models")
    seen("unpack-models")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    answers.finish()
    expect(dialog.root.locator("pre")).to_contain_text("main.py")
    seen("unpack-done")


def check(dialog: Dialog, answers: Answers, seen: Callable[[str], None]) -> None:
    dialog.open("Check")
    expect(dialog.root.locator(".finding")).to_have_count(3)
    seen("check")


@pytest.mark.parametrize("walk", [package, serve, image, deploy, unpack, check])
@pytest.mark.parametrize("look", LOOKS)
def test_every_dialog_goes_from_open_to_result(desk: OpenDesk, look: dict[str, Any], walk: Callable[..., None]) -> None:
    at = desk(**look)

    def seen(name: str) -> None:
        at.dialog.assert_fits()
        at.dialog.assert_accessible()
        assert_no_key_is_shown(at.dialog.root)
        width, _ = look["size"]
        at.opened.shot(f"dialog-{name}-{width}-{look['theme']}-{look['language']}")

    walk(at.dialog, at.answers, seen)
    at.dialog.close()


def test_a_package_is_made_by_keyboard_alone(desk: OpenDesk) -> None:
    at = desk(size=(1024, 640))
    answers, dialog = at.answers, at.dialog
    at.press("Alt+Shift+P")
    name = dialog.root.get_by_label("Name")
    expect(name).to_be_focused()
    at.page.keyboard.type("My picture")
    at.press("Shift+Tab")
    overview = dialog.root.get_by_role("tab", name="Overview")
    expect(overview).to_be_focused()
    at.press("ArrowDown", "Tab", "Tab")
    show = dialog.root.get_by_label("Which models to show")
    expect(show).to_be_focused()
    at.press("Tab", "Tab", "Tab")
    options = dialog.root.locator("[role=option]")
    expect(options.nth(0)).to_be_focused()
    at.press("ArrowDown", "ArrowDown", "Space")
    expect(dialog.root.locator("[role=option][data-path='checkpoints/dreamshaper_8.safetensors']")).to_have_attribute(
        "aria-selected", "true"
    )
    at.press("Home", "Space")
    at.press("Tab", "Tab", "Enter")
    expect(dialog.button("Cancel")).to_be_focused()
    assert answers.asked[0]["kind"] == "pack"
    params = answers.asked[0]["params"]
    assert params["name"] == "My picture"
    assert params["models"] == ["upscale_models/tiny_esrgan_4x.safetensors", "checkpoints/dreamshaper_8.safetensors"]
    assert params["inputs"] == ["example.png"]
    answers.finish()
    expect(dialog.primary).to_be_focused()
    expect(dialog.primary).to_have_attribute("href", re.compile("/cpack/jobs/pack0/download$"))
    at.press("Escape")
    expect(dialog.root).to_have_count(0)


@pytest.mark.parametrize("kind", ["Serve", "Image", "Deploy", "Unpack", "Check"])
def test_each_dialog_opens_by_its_keys_keeps_the_focus_inside_and_closes_on_escape(desk: OpenDesk, kind: str) -> None:
    at = desk(size=(1024, 640))
    dialog = at.dialog
    at.press(f"Alt+Shift+{ {'Image': 'B'}.get(kind, kind[0]) }")
    expect(dialog.foot.get_by_role("button").last).to_be_visible()
    places = set()
    for _ in range(25):
        at.press("Tab")
        place = at.page.evaluate(
            """() => {
                const host = document.activeElement;
                const inner = host.shadowRoot?.activeElement;
                if (!inner) return 'OUTSIDE';
                const {outlineStyle} = getComputedStyle(inner.closest('.choice') ?? inner);
                return outlineStyle === 'none' ? `INVISIBLE ${inner.outerHTML}` : inner.outerHTML;
            }"""
        )
        places.add(place)
    assert len(places) > 2
    assert not [place for place in places if place.startswith(("OUTSIDE", "INVISIBLE"))]
    at.press("Escape")
    expect(dialog.root).to_have_count(0)


def test_the_canvas_never_sees_what_is_typed_copied_or_dropped_in_a_dialog(desk: OpenDesk) -> None:
    at = desk()
    at.opened.load(WORKFLOW)
    at.page.evaluate("app.canvas.selectItems(app.graph.nodes)")
    dialog = at.dialog.open("Package")
    name = dialog.root.get_by_label("Name")
    name.fill("")
    at.page.keyboard.type("r q w n.")
    expect(name).to_have_value("r q w n.")
    dialog.button("Close").last.focus()
    at.press("Delete", "Backspace", "Control+a", "Control+x", "Control+b", "Control+m")
    dialog.root.evaluate(
        """root => {
            const data = new DataTransfer();
            data.items.add(new File(['{"nodes": []}'], 'other.json', {type: 'application/json'}));
            const how = {dataTransfer: data, bubbles: true, composed: true, cancelable: true};
            root.dispatchEvent(new DragEvent('drop', how));
        }"""
    )
    dialog.close()
    assert [node["mode"] for node in at.opened.drawing()["nodes"]] == [0, 0]


def test_models_are_found_by_words_and_narrowed_by_kind(desk: OpenDesk) -> None:
    at = desk(size=(1024, 640))
    dialog = at.dialog.open("Package")
    dialog.tab("models")
    rows = dialog.root.locator("[role=option]:visible")
    expect(rows).to_have_count(65)
    search = dialog.root.get_by_role("searchbox", name="Search models")
    search.fill("loras colour_01")
    expect(rows).to_have_count(1)
    search.fill("nothing like it")
    expect(dialog.root.get_by_text("No model is like that.")).to_be_visible()
    search.fill("")
    dialog.root.get_by_label("Which models to show").select_option("referenced")
    expect(rows).to_have_count(2)
    dialog.button("Untick all").click()
    expect(dialog.foot).to_contain_text("0 models")
    dialog.root.get_by_label("Which models to show").select_option("recent")
    dialog.button("Tick all").click()
    expect(dialog.foot).to_contain_text("2 models")


def test_a_folder_of_input_files_ticks_what_is_in_it_and_shows_a_part_as_mixed(desk: OpenDesk) -> None:
    at = desk()
    answers = at.answers
    dialog = at.dialog.open("Package")
    dialog.tab("inputs")
    tree = dialog.root.get_by_role("tree")
    faces = tree.locator("[data-path='faces/']")
    expect(tree.locator("[role=treeitem]:visible")).to_have_count(3)
    expect(tree.locator("[aria-checked=true]:visible")).to_have_attribute("data-path", "example.png")
    tree.locator("[role=treeitem]:visible").first.focus()
    at.press("End", "ArrowRight", "ArrowDown", "Space")
    expect(faces).to_have_attribute("aria-checked", "mixed")
    at.press("ArrowLeft")
    expect(faces).to_be_focused()
    at.press("Space")
    expect(faces).to_have_attribute("aria-checked", "true")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    assert answers.asked[0]["params"]["inputs"] == ["example.png", "faces/anna.png", "faces/old/ben.jpg"]


def test_a_name_from_a_file_is_text_and_never_markup(desk: OpenDesk) -> None:
    at = desk()
    answers = at.answers
    dialog = at.dialog.open("Package")
    dialog.tab("models")
    expect(dialog.root.get_by_text(HOSTILE, exact=True)).to_be_attached()
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    answers.push(progress={"label": HOSTILE}, stages=[{"code": "x", "label": HOSTILE, "state": "running"}])
    answers.push(state="failed", error={"code": "x", "message": HOSTILE, "next": HOSTILE})
    expect(dialog.root.locator(".notice.error")).to_contain_text(HOSTILE)
    assert dialog.root.locator("img").count() == 0
    assert at.page.title() != "broken"


def test_what_the_server_refuses_is_told_with_the_next_step_and_can_be_tried_again(desk: OpenDesk) -> None:
    at = desk()
    answers = at.answers
    answers.told["/inventory"] = {"code": "tool_missing", "message": "The tool is gone.", "next": "Install it."}
    dialog = at.dialog.open("Package")
    expect(dialog.root.get_by_role("alert")).to_contain_text("The tool is gone.")
    expect(dialog.root.get_by_role("alert")).to_contain_text("Install it.")
    answers.told.clear()
    dialog.button("Try again").click()
    expect(dialog.root.get_by_label("Name")).to_be_visible()
    at.page.unroute_all()
    at.page.route("**/cpack/jobs", lambda route: route.abort())
    dialog.primary.click()
    expect(dialog.root.get_by_role("alert").filter(has_text="ComfyUI's server does not answer.")).to_be_visible()


def test_a_failed_job_tells_why_and_leads_back_to_what_was_filled_in(desk: OpenDesk) -> None:
    at = desk()
    answers = at.answers
    dialog = at.dialog.open("Image")
    dialog.root.get_by_label("Image name").fill("registry.example/team/upscale:2")
    dialog.root.get_by_role("radio", name="Push it").check()
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    answers.push(state="failed", error={"code": "x", "message": "The registry said no.", "next": "Log in."})
    expect(dialog.root.get_by_role("alert")).to_contain_text("The registry said no.")
    expect(dialog.root.locator("pre.log")).to_have_text("reading\nhashing\n")
    dialog.button("Back").click()
    expect(dialog.root.get_by_label("Image name")).to_have_value("registry.example/team/upscale:2")
    expect(dialog.root.get_by_role("radio", name="Push it")).to_be_checked()


@pytest.mark.parametrize(("code", "flag"), [("NeedsTrust", "trust"), ("UnsafeInput", "include_local")])
def test_what_needs_consent_is_asked_for_and_goes_on_with_it(desk: OpenDesk, code: str, flag: str) -> None:
    at = desk()
    dialog = at.dialog.open("Package")
    box = dialog.root.get_by_role("checkbox")
    box.uncheck()
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    assert not at.answers.asked[0]["params"].get(flag)
    at.answers.push(state="failed", error={"code": code, "message": "Not without you.", "next": ""})
    dialog.button("Agree and go on").click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    assert at.answers.asked[1]["params"][flag] is True
    at.answers.push(state="failed", error={"code": code, "message": "Not even so.", "next": ""})
    expect(dialog.button("Back")).to_be_focused()
    expect(dialog.button("Agree and go on")).to_have_count(0)


@pytest.mark.parametrize(
    ("command", "label", "wrong", "message"),
    [
        ("Package", "Name", "../../etc", "A name begins with"),
        ("Package", "Name", "", "Give it a name."),
        ("Image", "Image name", "Upscale Me", "Image names have small letters"),
        ("Serve", "Port", "70000", "A port is a whole number"),
        ("Deploy", "Address of your account", "http://cloud.example", "An address begins with https://"),
    ],
)
def test_what_cannot_be_right_is_told_at_its_field_and_not_sent(
    desk: OpenDesk, command: str, label: str, wrong: str, message: str
) -> None:
    at = desk()
    answers = at.answers
    dialog = at.dialog.open(command)
    field = dialog.root.get_by_label(label, exact=True)
    field.fill(wrong)
    at.press("Enter")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(dialog.root.get_by_role("alert").filter(has_text=message)).to_be_visible()
    assert not answers.asked


def test_a_finding_leads_to_its_node_on_the_canvas(desk: OpenDesk) -> None:
    at = desk()
    at.opened.load(WORKFLOW)
    dialog = at.dialog.open("Check")
    finding = dialog.root.locator("button.finding")
    expect(finding).to_contain_text("The far one")
    expect(finding).to_be_focused()
    at.press("Enter")
    expect(dialog.root).to_have_count(0)
    at.page.wait_for_function("Object.values(app.canvas.selected_nodes).map(node => node.id).join() === '2'")
    x = at.page.evaluate("-app.canvas.ds.offset[0] + innerWidth / app.canvas.ds.scale / 2")
    assert 3500 < x < 4700


def test_a_cloud_token_is_sent_once_and_kept_nowhere_in_the_browser(desk: OpenDesk) -> None:
    at = desk()
    answers = at.answers
    dialog = at.dialog.open("Deploy")
    dialog.root.get_by_label("Address of your account").fill("https://cloud.example")
    token = dialog.root.get_by_label("API token")
    assert token.get_attribute("type") == "password"
    token.fill("s3cret-t0ken")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    assert answers.asked[0]["params"]["token"] == "s3cret-t0ken"
    kept = at.page.evaluate(
        """async () => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, document.body.outerHTML,
            app.graph.serialize(), await (await fetch('/api/settings')).json(),
            [...document.querySelectorAll('[data-cpack-dialog]')]
                .flatMap(each => [...each.shadowRoot.querySelectorAll('input')]).map(each => each.value)])"""
    )
    assert "s3cret" not in kept
    answers.push(state="failed", error={"code": "x", "message": "No.", "next": ""})
    dialog.button("Back").click()
    expect(token).to_have_value("")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    assert "token" not in answers.asked[1]["params"]


def test_a_job_survives_a_reload_of_the_page_and_the_panel_leads_back_to_it(comfy_page: OpenComfy) -> None:
    opened = comfy_page()
    answers = Answers(opened.page)
    dialog = Dialog(opened.page).open("Package")
    dialog.primary.click()
    expect(dialog.root.locator("[data-part=work]")).to_be_visible()
    opened.page.reload()
    opened.ready()
    opened.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.cpack')")
    job = opened.page.locator("[data-job=pack0]")
    expect(job).to_contain_text("Running")
    opened.shot("panel")
    job.get_by_role("button", name="Details").click()
    expect(dialog.root.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "44")
    answers.finish()
    expect(dialog.root.locator(".notice.done")).to_contain_text("upscale.cpack.zip")
    dialog.close()
    expect(job).to_contain_text("Done")


def test_a_job_can_be_cancelled_from_dialog_and_panel(desk: OpenDesk) -> None:
    at = desk()
    answers = at.answers
    dialog = at.dialog.open("Package")
    dialog.primary.click()
    dialog.button("Cancel").click()
    expect(dialog.root.get_by_text("Nothing half-made was left behind.")).to_be_visible()
    dialog.close()
    answers.begin("image")
    at.show_panel()
    job = at.page.locator("[data-job=image1]")
    answers.push()
    job.get_by_role("button", name="Cancel").click()
    answers.push()
    expect(job).to_contain_text("Cancelled")


def test_a_job_that_ends_unseen_is_told_in_the_frontends_corner(desk: OpenDesk) -> None:
    at = desk()
    answers = at.answers
    answers.begin("image")
    answers.push()
    answers.push(state="failed", error={"code": "x", "message": "The disk is full.", "next": ""})
    expect(at.page.get_by_text("The disk is full.", exact=True)).to_be_visible()


def test_without_the_tool_the_panel_says_how_to_get_it(desk: OpenDesk) -> None:
    at = desk()
    status = {"tool": {"found": False, "looking": False, "how": "pipx install cpack-build", "problem": None}}
    at.page.route("**/cpack/status", lambda route: route.fulfill(json=status))
    at.page.route("**/cpack/jobs", lambda route: route.fulfill(json={"jobs": []}))
    at.show_panel()
    expect(at.page.get_by_text("pipx install cpack-build")).to_be_visible()


def test_commands_follow_the_language_without_a_reload(comfy_page: OpenComfy) -> None:
    page = comfy_page().page
    label = "app.extensionManager.command.commands.find(each => each.id === 'CPack.Package').label"
    assert page.evaluate(label) == "Package this workflow…"
    page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    page.wait_for_function(f"{label} === '打包此工作流…'")


def _texts(language: str) -> dict[str, str]:
    return dict(json.loads((WEB / "locales" / f"{language}.json").read_text("utf-8")))


def test_each_text_has_the_same_names_to_fill_in_in_each_language() -> None:
    english, chinese = _texts("en"), _texts("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", chinese[key])), key
        assert text, key
        assert chinese[key], key


def test_each_text_that_the_scripts_name_is_there_and_each_that_is_there_is_named() -> None:
    scripts = "".join(path.read_text("utf-8") for path in WEB.glob("*.js"))
    named = set(re.findall(r'"([a-z]+(?:\.[a-z]+)*)"', scripts))
    begun = set(re.findall(r"`([a-z.]+\.)\$\{", scripts))
    ended = set(re.findall(r"`\$\{\w+\}(\.[a-z]+)`", scripts))
    keys = set(_texts("en"))
    counted = {key.removesuffix(".one") for key in keys if key.endswith(".one")}
    texts = counted | keys - {f"{key}.{form}" for key in counted for form in ("one", "other")}
    asked = set(re.findall(r'\bt\("([^"]+)"', scripts))
    assert asked <= texts
    assert not [key for key in texts - named if not key.startswith(tuple(begun)) and not key.endswith(tuple(ended))]


def test_no_script_imports_what_the_frontend_has_deprecated_or_what_is_elsewhere() -> None:
    for path in Path(WEB).glob("*.js"):
        for source in re.findall(r'^(?:import|export) .*?from "([^"]+)"', path.read_text("utf-8"), re.M):
            assert source.startswith("./") or source in ("../../scripts/app.js", "../../scripts/api.js"), (path, source)
