"""The service runs workflows of our nodes as it runs those of comfy-pack's: the same parameters, the same files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cpack_build.workspace.plugin import plugin_files
from tests.serve.running import Engine, Service, serving, standin, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything, node, picture


def engine(folder: Path, *, plugin: bool) -> Engine:
    """The stand-in, with its imitation of comfy-pack's nodes or with our plugin as a workspace has it."""
    made = standin(folder)
    if plugin:
        nodes = made.folder / "nodes.py"
        nodes.write_text(nodes.read_text().replace('("cpack_nodes.py", "failing_nodes.py")', '("failing_nodes.py",)'))
        (made.folder / "cpack_nodes.py").unlink()
        for name, data in plugin_files().items():
            path = made.folder / "custom_nodes" / "cpack-build" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return made


def workflow() -> dict[str, Any]:
    """Everything that the service's own tests have, and our own nodes."""
    return {
        **everything(),
        "20": node("CPackInputFloat", "strength", value=0.5, min=0.0, max=1.0, description="How strongly"),
        "21": node("CPackOutputJSON", "number", value=["20", 0], filename_prefix="x"),
        "22": node("CPackInputChoice", "mode", value="a", choices="a\nb", required=True),
        "23": node("CPackOutputTextFile", "mode_note", text=["22", 0], filename_prefix="p", file_extension=".md"),
        "24": node("CPackInputMask", "mask", image="example.png", channel="auto"),
        "25": node("MaskToImage", "Show", mask=["24", 0]),
        "26": node("CPackOutputZip", "masks", images=["25", 0], filename_prefix="z", text="t"),
        "27": node("CPackInputBoolean", "tiled", value=False),
        "28": node("CPackOutputJSON", "was_tiled", value=["27", 0], filename_prefix="x"),
    }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service of that workflow, on the stand-in with our plugin and no other nodes of those names."""
    folder = tmp_path_factory.mktemp("plugin")
    app = write_app(folder / "app", workflow(), inputs=EVERYTHING_INPUTS)
    with serving(app, folder, engine=engine(folder / "comfyui", plugin=True)) as running:
        yield running


def outputs(answer: Any) -> dict[str, bytes]:
    import base64

    assert answer.status_code == 200, answer.text
    return {item["name"]: base64.b64decode(item["data"]) for item in answer.json()["outputs"]}


def test_every_kind_of_parameter_and_output_comes_through(service: Service) -> None:
    mask = io.BytesIO()
    Image.new("L", (6, 4), 255).save(mask, format="PNG")
    files = {"photo": ("p.png", picture((9, 200, 9), (50, 50))), "mask": ("m.png", mask.getvalue())}
    found = outputs(
        service.generate(
            accept="application/json; files=base64", files=files, strength=0.25, mode="b", tiled="true", size=40
        )
    )
    assert json.loads(found["number.json"]) == 0.25
    assert json.loads(found["was_tiled.json"]) is True
    assert found["mode_note.md"] == b"b"
    assert found["note.txt"] == b"hello"
    assert found["copied.txt"] == b"some notes\n"
    assert Image.open(io.BytesIO(found["picture.png"])).size == (40, 40)
    assert found["masks.zip"][:2] == b"PK"
    assert service.leftovers() == []


def test_bounds_choices_and_required_of_our_nodes_hold_in_the_api(service: Service) -> None:
    for values, words in (({}, "mode"), ({"mode": "c"}, "mode"), ({"mode": "a", "strength": 1.5}, "strength")):
        answer = service.generate(**values)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]
    schema = service.get("/interface.json").json()
    assert schema["properties"]["strength"] == {
        "type": "number", "minimum": 0, "maximum": 1, "default": 0.5, "description": "How strongly",
    }  # fmt: skip
    assert schema["properties"]["mode"] == {"enum": ["a", "b"]}
    document = service.get("/docs.json").json()["paths"]["/generate"]["post"]["requestBody"]
    assert document["content"]["multipart/form-data"]["schema"]["required"] == ["mode"]


def test_the_files_are_those_that_comfy_packs_nodes_give(service: Service, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, tmp_path / "theirs", engine=engine(tmp_path / "comfyui", plugin=False)) as theirs:
        expected = outputs(theirs.generate(accept="application/json; files=base64", size=33, caption="same"))
    found = outputs(service.generate(accept="application/json; files=base64", size=33, caption="same", mode="a"))
    assert {name: found[name] for name in ("note.txt", "copied.txt")} == {
        name: expected[name] for name in ("note.txt", "copied.txt")
    }
    ours, others = (Image.open(io.BytesIO(data["picture.png"])) for data in (found, expected))
    assert (ours.size, ours.tobytes()) == (others.size, others.tobytes())
    assert found.keys() >= expected.keys()
