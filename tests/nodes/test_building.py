"""Plan, image and deploy ask the tool for exactly what the dialog says, and for nothing that a page may not choose."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cpack_build.cli.image import image
from cpack_build.cli.lock import lock
from cpack_build.cli.plan import plan
from cpack_build.nodes.building import NOT_OF_PLAN, of_plan
from tests.nodes.routing import Comfyui, fake_tool, running, values, workflow

TOKEN = "bc-0123456789abcdef"
ANSWERS: dict[str, Any] = {
    "pack": {"pack": "packed.cpack.zip", "size": 1, "sha256": "0", "missing": [], "notes": []},
    "lock": {"lock": "x.cpack.lock"},
    "plan": {
        "base": "scratch",
        "layers": [
            {"kind": "model", "name": "tiny", "size": 9, "compressed": 9, "digest": "sha256:1", "known": True,
             "shared": "every image with this model"},
            {"kind": "app", "name": "app", "size": None, "compressed": None, "digest": None, "known": False,
             "shared": "no other image"},
        ],
    },
    "dry": {"outputs": ["docker:upscale:latest"]},
    "image": {
        "image_id": "sha256:2", "digest": "sha256:3", "size": 10, "layers": 2,
        "outputs": [{"name": "docker:upscale:latest", "run": "docker run --rm -p 3000:3000 upscale"}],
    },
    "deploy": {"deployment": "upscale", "urls": ["https://upscale.cloud.example"], "status": "running", "console": ""},
}  # fmt: skip


class Scene:
    """ComfyUI with the fake tool, and what it was asked."""

    def __init__(self, comfyui: Comfyui, folder: Path) -> None:
        self.comfyui = comfyui
        self._folder = folder

    def answers(self, verb: str, document: Any) -> None:
        (self._folder / f"{verb}.json").write_text(json.dumps(document))

    def calls(self) -> list[tuple[list[str], str | None]]:
        """What was asked since the last call."""
        file = self._folder / "calls"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return [(words, token) for words, token in calls]


@pytest.fixture(scope="module")
def _scene(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("building")
    fake = folder / "fake"
    fake.mkdir()
    flags = "--offline --retries 3 --index-url https://index.example/simple"
    with running(folder, CPACK_BUILD=str(fake_tool(folder)), FAKE_TOOL=str(fake), CPACK_BUILD_FLAGS=flags) as comfyui:
        yield Scene(comfyui, fake)


@pytest.fixture
def scene(_scene: Scene) -> Scene:
    for verb, document in ANSWERS.items():
        _scene.answers(verb, document)
    _scene.calls()
    return _scene


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_a_plan_is_packed_locked_and_shown(scene: Scene) -> None:
    result = scene.comfyui.done("plan", name="up scale", prompt=workflow(), target="cuda12.8", base="cuda")
    assert [(one["kind"], one["known"], one["shared_with"]) for one in result["layers"]] == [
        ("model", True, ["every image with this model"]),
        ("app", False, []),
    ]
    packed, locked, planned = (words for words, _ in scene.calls())
    assert (packed[0], locked[0], planned[0]) == ("pack", "lock", "plan")
    assert after(packed, "--output").endswith("/up scale.cpack.zip")
    for words in (locked, planned):
        assert (after(words, "--target"), after(words, "--base")) == ("cuda12.8", "cuda")
        assert after(words, "--index-url") == "https://index.example/simple"
    assert "--offline" in locked


def test_what_plan_is_not_told_is_what_it_does_not_know() -> None:
    known = [{option for param in command.params for option in param.opts} for command in (plan, lock, image)]
    flags = {option for option in (known[1] & known[2]) - known[0] if option.startswith("--")}
    assert NOT_OF_PLAN.keys() == flags - {"--output", "--dry-run"}
    assert of_plan(["--retries", "3", "--base", "cuda", "--from=x", "--trust", "--no-pickle"]) == [
        "--base", "cuda", "--no-pickle"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("params", "flags"),
    [
        ({"then": "load", "reference": "team/upscale:1", "target": "cuda12.8"}, ["--tag", "team/upscale:1"]),
        ({"then": "push", "reference": "registry.example:5000/team/upscale:1"},
         ["--push", "registry.example:5000/team/upscale:1"]),
    ],
)  # fmt: skip
def test_an_image_goes_where_it_was_asked_to(scene: Scene, params: dict[str, Any], flags: list[str]) -> None:
    result = scene.comfyui.done("image", name="upscale", prompt=workflow(), **params)
    assert result["digest"] == "sha256:3"
    assert result["reference"] == params["reference"]
    assert result["run"] == "docker run --rm -p 3000:3000 upscale"
    words = scene.calls()[-1][0]
    assert words[0] == "image"
    assert "--locked" in words
    assert after(words, flags[0]) == flags[1]
    assert "--trust" not in words


def test_a_folder_is_below_the_output_folder_and_nothing_is_replaced(scene: Scene) -> None:
    result = scene.comfyui.done("image", name="kept", prompt=workflow(), then="folder", trust=True)
    assert result["saved"] == "cpack/kept.oci"
    assert result["reference"] is None
    words = scene.calls()[-1][0]
    assert after(words, "--output") == f"oci:{scene.comfyui.saved / 'kept.oci'}"
    assert "--trust" in words
    (scene.comfyui.saved / "kept.oci").mkdir()
    again = {"kind": "image", "params": {"name": "kept", "prompt": workflow(), "then": "folder"}}
    assert scene.comfyui.post("/cpack/jobs", again).status_code == 409


def test_without_an_engine_it_says_so_instead_of_filling_a_disk(scene: Scene) -> None:
    scene.answers("dry", {"outputs": ["oci:/somewhere"]})
    job = scene.comfyui.over(scene.comfyui.start("image", name="upscale", prompt=workflow()))
    assert job["error"]["code"] == "no_engine"
    assert [words[0] for words, _ in scene.calls()] == ["pack", "lock", "image"]


@pytest.mark.parametrize(
    "params",
    [
        {"base": "oci:/etc"}, {"base": "docker-archive:x.tar"}, {"base": "--config=/etc/shadow"}, {"base": "$(id)"},
        {"target": "../x"}, {"target": "--trust"}, {"then": "delete"}, {"then": "push", "reference": "upscale"},
        {"then": "push", "reference": "--push-models"}, {"reference": "a b"}, {"reference": "oci:x;id"},
        {"name": "../x"}, {"trust": "yes"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["image", "plan"])
def test_what_a_page_may_not_choose_is_refused(scene: Scene, kind: str, params: dict[str, Any]) -> None:
    if kind == "plan" and params.keys() & {"then", "reference"}:
        params = {"name": "a/b"}
    body = {"kind": kind, "params": {"name": "x", "prompt": workflow(), **params}}
    answer = scene.comfyui.post("/cpack/jobs", body)
    assert answer.status_code == 400, answer.text
    assert scene.calls() == []


def test_a_token_comes_once_goes_to_its_endpoint_and_is_nowhere_else(scene: Scene) -> None:
    asked = {"where": "bentocloud", "name": "upscale", "endpoint": "https://team.cloud.example", "prompt": workflow()}
    first = scene.comfyui.post("/cpack/jobs", {"kind": "deploy", "params": asked})
    assert (first.status_code, first.json()["error"]["code"]) == (400, "no_token")
    key = scene.comfyui.start("deploy", **asked, token=TOKEN)
    job = scene.comfyui.over(key)
    assert job["result"]["url"] == "https://upscale.cloud.example"
    (_, at_pack), (words, at_deploy) = scene.calls()
    assert at_pack is None
    assert at_deploy == TOKEN
    assert words[:2] == ["deploy", "bentocloud"]
    assert (after(words, "--name"), after(words, "--endpoint")) == ("upscale", "https://team.cloud.example")
    assert TOKEN not in " ".join(words)
    status = scene.comfyui.get("/cpack/status")
    assert status.json()["token_known"] is True
    log = scene.comfyui.get(f"/cpack/jobs/{key}/log").text
    assert "of deploy" in log  # the tool itself said its token there
    for text in (values(job), status.text, log, scene.comfyui.get("/cpack/jobs").text, scene.comfyui.log):
        assert TOKEN not in text
    for file in scene.comfyui.temporary.parent.rglob("*"):
        if file.is_file() and file.name != "calls" and ".git" not in file.parts:
            assert TOKEN.encode() not in file.read_bytes(), file
    scene.comfyui.done("deploy", **asked)  # known for that endpoint now
    other = scene.comfyui.post(
        "/cpack/jobs", {"kind": "deploy", "params": asked | {"endpoint": "https://evil.example"}}
    )
    assert other.json()["error"]["code"] == "no_token"


@pytest.mark.parametrize(
    "token", ["bc 0123456789abcdef", "bc-0123456789abcdéf", "bc-0123\r\n456789abcdef", ["bc-0123456789"]]
)
@pytest.mark.parametrize("kind", ["deploy", "serve"])
def test_a_mistyped_token_is_not_shown(scene: Scene, kind: str, token: Any) -> None:
    asked = {"where": "bentocloud", "name": "x", "endpoint": "https://a.example", "prompt": workflow(), "token": token}
    answer = scene.comfyui.post("/cpack/jobs", {"kind": kind, "params": asked})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_value")
    assert "0123" not in answer.text


def test_spaces_around_a_token_are_a_careless_copy_s(scene: Scene) -> None:
    asked = {"where": "bentocloud", "name": "upscale", "endpoint": "https://spaces.example", "prompt": workflow()}
    scene.comfyui.done("deploy", **asked, token=f" {TOKEN}\n")
    assert scene.calls()[-1][1] == TOKEN


@pytest.mark.parametrize("where", ["kubernetes", "compose"])
def test_manifests_come_as_a_zip(scene: Scene, where: str) -> None:
    key = scene.comfyui.start("deploy", where=where, name="upscale", image="registry.example/team/upscale:1")
    job = scene.comfyui.over(key)
    assert job["state"] == "done", values(job)
    words = scene.calls()[-1][0]
    assert words[:3] == ["deploy", where, "registry.example/team/upscale:1"]
    answer = scene.comfyui.get(f"/cpack/jobs/{key}/download")
    assert "upscale.zip" in answer.headers["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("upscale/made.txt") == b"made"
    assert "upscale" in job["result"]["apply"]


@pytest.mark.parametrize(
    "params",
    [
        {"where": "production"}, {"name": "Up"}, {"name": "a/b"}, {"name": "--x"}, {"image": "--apply"},
        {"image": "a b"}, {"where": "bentocloud", "endpoint": "http://cloud.example", "token": "x"},
        {"where": "bentocloud", "endpoint": "https://u:p@cloud.example", "token": "x"},
        {"where": "bentocloud", "endpoint": "https://cloud.example/../x", "token": "x"},
        {"where": "bentocloud", "endpoint": "https://cloud.example", "token": "x\r\ny"},
    ],
)  # fmt: skip
def test_a_deployment_that_makes_no_sense_is_refused(scene: Scene, params: dict[str, Any]) -> None:
    asked = {"where": "kubernetes", "name": "x", "image": "registry.example/x:1", "prompt": workflow(), **params}
    answer = scene.comfyui.post("/cpack/jobs", {"kind": "deploy", "params": asked})
    assert answer.status_code == 400, answer.text
    assert scene.calls() == []
