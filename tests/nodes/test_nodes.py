"""The interface nodes, run by ComfyUI: comfy-pack's names, widgets, defaults and files; nothing outside its folders."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.nodes.comfy import PLUGIN, Comfy, import_seconds, running
from tests.serve.workflows import node, picture

# What comfy-pack 0.4.4 declares: class → (category, outputs, is an output node, defaults: required, optional).
COMFY_PACK: dict[str, tuple[str, list[str], bool, dict[str, Any], dict[str, Any]]] = {
    "CPackInputImage": ("ComfyPack/input", ["IMAGE", "MASK"], False, {"image": None}, {}),
    "CPackInputString": ("ComfyPack/input", ["STRING"], False, {"value": ""}, {}),
    "CPackInputInt": ("ComfyPack/input", ["INT"], False, {"value": 0}, {"min": -(2**63) + 1, "max": 2**63 - 1}),
    "CPackInputFile": ("ComfyPack/input", ["*"], False, {"path": ""}, {}),
    "CPackInputAny": ("ComfyPack/input", ["*"], False, {"input": ""}, {}),
    "CPackOutputFile": ("ComfyPack/output", [], True, {"filename": "", "filename_prefix": "cpack_output_"}, {}),
    "CPackOutputImage": ("ComfyPack/output", [], True, {"images": None, "filename_prefix": "cpack_output_"}, {}),
    "CPackOutputAudio": ("ComfyPack/output", [], True, {"audio": None, "filename_prefix": "audio/comfypack"}, {}),
    "CPackOutputVideo": (
        "ComfyPack/output",
        [],
        True,
        {"video": None, "filename_prefix": "video/comfypack", "format": "auto", "codec": "auto"},
        {},
    ),
    "CPackOutputTextFile": (
        "ComfyPack/output",
        [],
        True,
        {"text": None, "filename_prefix": "cpack_output_"},
        {"file_extension": ".txt"},
    ),
    "CPackOutputZip": (
        "ComfyPack/output",
        [],
        True,
        {"images": None, "filename_prefix": "cpack_output_", "text": ""},
        {},
    ),
    "CPackOutputZipSwitch": ("ComfyPack/output", [], False, {}, {}),
}
OURS = {"CPackInputFloat", "CPackInputBoolean", "CPackInputChoice", "CPackInputMask", "CPackOutputJSON"}
EMPTY = node("EmptyImage", "Empty", width=8, height=4, batch_size=2, color=255)


@pytest.fixture
def photo(comfy: Comfy) -> Iterator[str]:
    """A picture in ComfyUI's input folder."""
    path = comfy.folder / "input" / "nodes test.png"
    path.write_bytes(picture())
    yield path.name
    path.unlink()


def defaults(declared: dict[str, Any]) -> dict[str, Any]:
    return {name: (entry[1] if len(entry) > 1 else {}).get("default") for name, entry in declared.items()}


def reported(entry: dict[str, Any], node_id: str) -> list[dict[str, str]]:
    """The files that the node *node_id* told of."""
    assert entry["status"]["status_str"] == "success", entry["status"]
    return [
        item
        for listed in entry["outputs"][node_id].values()
        if isinstance(listed, list)
        for item in listed
        if isinstance(item, dict)
    ]


def fetched(comfy: Comfy, item: dict[str, str]) -> bytes:
    kind = item["type"]
    assert kind == "output"
    return comfy.get("/view", params=item).content


def failure(entry: dict[str, Any]) -> str:
    (message,) = [data["exception_message"] for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    return str(message)


def test_every_class_of_comfy_pack_is_there_with_its_widgets_and_defaults(comfy: Comfy) -> None:
    info = comfy.get("/object_info").json()
    assert {name for name in info if name.startswith("CPack")} == COMFY_PACK.keys() | OURS
    for name, (category, gives, is_output, required, optional) in COMFY_PACK.items():
        told = info[name]
        assert told["python_module"] == f"custom_nodes.{PLUGIN}", name
        assert (told["category"], told["output"], told["output_node"]) == (category, gives, is_output), name
        found = defaults(told["input"].get("required", {}))
        if name == "CPackInputImage":
            found["image"] = None
        assert found == required, name
        # What is ours comes after what a saved workflow knows, so that its values find their widgets.
        assert list(defaults(told["input"].get("optional", {})).items())[: len(optional)] == list(optional.items()), (
            name
        )
        assert told["description"], name


def test_pictures_are_saved_one_after_another_under_comfy_packs_names(comfy: Comfy) -> None:
    prompt = {"1": EMPTY, "2": node("CPackOutputImage", "out", images=["1", 0], filename_prefix="deep/er/pic")}
    first = reported(comfy.run(prompt), "2")
    assert [item["filename"] for item in first] == ["pic_00001_.png", "pic_00002_.png"]
    assert {item["subfolder"] for item in first} == {"deep/er"}
    prompt["1"] = {**EMPTY, "inputs": {**EMPTY["inputs"], "color": 9}}
    again = reported(comfy.run(prompt), "2")
    assert [item["filename"] for item in again] == ["pic_00003_.png", "pic_00004_.png"]
    with Image.open(io.BytesIO(fetched(comfy, first[0]))) as saved:
        assert (saved.size, saved.getpixel((0, 0))) == ((8, 4), (0, 0, 255))
        assert json.loads(saved.text["prompt"])["2"]["class_type"] == "CPackOutputImage"


@pytest.mark.parametrize(
    ("kind", "takes", "source", "names"),
    [
        ("Image", "images", EMPTY, ["a0b_00001_.png", "a1b_00002_.png"]),
        ("Audio", "audio", node("TestSound", "s", samples=800, sample_rate=8000, channels=1), ["a0b_00001.flac"]),
        ("JSON", "value", node("CPackInputString", "t", value="x"), ["a%batch_num%b_00001.json"]),
    ],
)
def test_a_prefix_with_the_number_in_the_batch_replaces_nothing(
    comfy: Comfy, kind: str, takes: str, source: dict[str, Any], names: list[str]
) -> None:
    prefix = f"batch{kind}/a%batch_num%b"
    found = []
    for suffix in ("", "/../a%batch_num%b"):  # The same place in other words: the node runs again.
        output = node(f"CPackOutput{kind}", "out", filename_prefix=prefix + suffix, **{takes: ["1", 0]})
        found.append([item["filename"] for item in reported(comfy.run({"1": source, "2": output}), "2")])
    assert found[0] == names
    assert len({*names, *found[1]}) == 2 * len(names)
    assert {path.name for path in (comfy.folder / "output" / f"batch{kind}").iterdir()} == {*names, *found[1]}


def test_text_json_files_and_zips_are_saved_and_reported(comfy: Comfy) -> None:
    (comfy.folder / "input" / "notes.txt").write_bytes(b"some notes\n")
    prompt = {
        "1": node("CPackInputString", "text", value="grüße\n"),
        "2": node("CPackOutputTextFile", "a", text=["1", 0], filename_prefix="t/note", file_extension=".md"),
        "3": node("CPackOutputJSON", "b", value=["1", 0], filename_prefix="t/value"),
        "4": node("CPackInputFile", "file", path=str(comfy.folder / "input" / "notes.txt")),
        "5": node("CPackOutputFile", "c", filename=["4", 0], filename_prefix="t/copy_of_"),
        "6": EMPTY,
        "7": node("CPackOutputZip", "d", images=["6", 0], filename_prefix="t/all", text="beside"),
    }
    entry = comfy.run(prompt)
    found = {item["filename"]: fetched(comfy, item) for node_id in "2357" for item in reported(entry, node_id)}
    assert found["note_0001.md"] == "grüße\n".encode()
    assert json.loads(found["value_00001.json"]) == "grüße\n"
    assert found["copy_of_notes.txt"] == b"some notes\n"
    with zipfile.ZipFile(io.BytesIO(found["all_batch_00001.zip"])) as archive:
        assert archive.namelist() == ["image_00000.png", "text_00000.txt", "image_00001.png", "text_00001.txt"]
        assert archive.read("text_00001.txt") == b"beside"


def test_numbers_switches_and_choices_reach_the_node_that_they_feed(comfy: Comfy) -> None:
    prompt: dict[str, Any] = {}
    given = {
        "Int": (-5, {"min": -10, "max": 10}),
        "Float": (0.25, {"min": 0.0, "max": 1.0}),
        "Boolean": (True, {}),
        "Choice": ("b", {"choices": "a\nb\n"}),
        "String": ("é", {}),
    }
    for number, (kind, (value, more)) in enumerate(given.items()):
        prompt[f"{number}"] = node(f"CPackInput{kind}", kind, value=value, description="d", required=True, **more)
        prompt[f"1{number}"] = node("CPackOutputJSON", kind, value=[f"{number}", 0], filename_prefix=f"v/{kind}")
    prompt["9"] = node("CPackInputAny", "any", input={"a": [1, None]})
    prompt["19"] = node("CPackOutputJSON", "any", value=["9", 0], filename_prefix="v/any")
    entry = comfy.run(prompt)
    for number, (value, _) in enumerate(given.values()):
        (item,) = reported(entry, f"1{number}")
        assert json.loads(fetched(comfy, item)) == value
    (item,) = reported(entry, "19")
    assert json.loads(fetched(comfy, item)) == {"a": [1, None]}


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("Int", {"value": 11, "min": 0, "max": 10}, "above the maximum 10"),
        ("Int", {"value": 0, "min": 5, "max": 1}, "minimum 5 is above the maximum 1"),
        ("Float", {"value": -0.5, "min": 0.0, "max": 1.0}, "below the minimum 0.0"),
        ("Choice", {"value": "c", "choices": "a\nb"}, "none of the choices: a, b"),
        ("File", {"path": "/etc/passwd"}, "outside ComfyUI's folders"),
        ("File", {"path": "~/.ssh/id_rsa"}, "outside ComfyUI's folders"),
        ("File", {"path": "user/default/comfy.settings.json"}, "outside ComfyUI's folders"),
        ("File", {"path": "custom_nodes/x/config.ini"}, "outside ComfyUI's folders"),
        ("File", {"path": "input/../user/default/x"}, "outside ComfyUI's folders"),
        ("File", {"path": "a/../../../../../../../../etc/passwd"}, "outside ComfyUI's folders"),
        ("Image", {"image": "../../../../../../../../etc/passwd"}, "outside ComfyUI's input"),
        ("Image", {"image": "/etc/passwd"}, "outside ComfyUI's input"),
        ("Image", {"image": "../x.png [output]"}, "outside ComfyUI's input"),
        ("Mask", {"image": "/etc/passwd"}, "outside ComfyUI's input"),
        ("Image", {"image": "no such.png"}, "There is no file 'no such.png'"),
        ("Image", {"image": ""}, "There is no file's name"),
    ],
)
def test_a_value_that_is_wrong_or_leads_out_is_refused_before_anything_runs(
    comfy: Comfy, kind: str, inputs: dict[str, Any], message: str
) -> None:
    takes = {"Image": "images", "Mask": "value"}.get(kind, "value")
    output = node("CPackOutputImage" if kind == "Image" else "CPackOutputJSON", "out", filename_prefix="refused")
    output["inputs"][takes] = ["1", 0]
    answer = comfy.post("/prompt", {"prompt": {"1": node(f"CPackInput{kind}", "in", **inputs), "2": output}})
    assert answer.status_code == 400
    # ComfyUI says it of each of the widgets that were looked at together.
    assert {message in error["details"] for error in answer.json()["node_errors"]["1"]["errors"]} == {True}


@pytest.mark.parametrize(
    "prefix", ["../outside/x", "/tmp/cpack-outside/x", "a/../../x", "linked/x", "..", "x/..", "nul\0l", "/etc/x"]
)
@pytest.mark.parametrize("kind", ["Image", "TextFile", "JSON", "Zip", "File", "Audio", "Video"])
def test_a_prefix_that_leads_out_of_the_output_folder_writes_nothing(
    comfy: Comfy, tmp_path: Path, kind: str, prefix: str
) -> None:
    link = comfy.folder / "output" / "linked"
    link.symlink_to(tmp_path)
    (comfy.folder / "input" / "notes.txt").write_bytes(b"x")
    sources = {
        "Image": ("images", EMPTY),
        "Zip": ("images", EMPTY),
        "Audio": ("audio", node("TestSound", "s", samples=800, sample_rate=8000, channels=1)),
        "File": ("filename", node("CPackInputFile", "f", path=str(comfy.folder / "input" / "notes.txt"))),
        "TextFile": ("text", node("CPackInputString", "t", value="x")),
        "JSON": ("value", node("CPackInputString", "t", value="x")),
        "Video": ("video", node("CreateVideo", "v", images=["0", 0], fps=5)),
    }
    name, source = sources[kind]
    output = node(f"CPackOutput{kind}", "out", filename_prefix=prefix, **{name: ["1", 0]})
    output["inputs"] |= {"Video": {"format": "auto", "codec": "auto"}, "Zip": {"text": ""}}.get(kind, {})
    if kind == "File" and prefix.endswith(".."):  # the file's own name follows it, so it is one: ..notes.txt
        output["inputs"]["filename_prefix"] += "/../"
    before = sorted(path for path in comfy.folder.rglob("*") if "user" not in path.parts)
    try:
        message = failure(comfy.run({"0": EMPTY, "1": source, "2": output}))
    finally:
        link.unlink()
    assert "leads out of ComfyUI's output folder" in message or "null byte" in message
    assert not list(tmp_path.iterdir())
    assert not Path("/tmp/cpack-outside").exists()
    left = [path for path in before if path.name != "linked"]
    assert sorted(path for path in comfy.folder.rglob("*") if "user" not in path.parts) == left


@pytest.mark.parametrize("extension", ["/../../x", ".a/b", "\0", "x" * 40, " .txt"])
def test_a_file_extension_that_is_none_is_refused(comfy: Comfy, extension: str) -> None:
    text = node("CPackInputString", "t", value="x")
    output = node("CPackOutputTextFile", "o", text=["1", 0], filename_prefix="p", file_extension=extension)
    assert "no file extension" in failure(comfy.run({"1": text, "2": output}))


def test_neither_a_link_nor_another_nodes_word_makes_a_node_read_elsewhere(comfy: Comfy, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    link = comfy.folder / "input" / "link.png"
    link.symlink_to(secret)
    try:
        for name in ("link.png", str(link), str(secret)):
            prompt = {
                "1": node("CPackInputString", "s", value=name),
                "2": node("CPackOutputFile", "o", filename=["1", 0], filename_prefix="stolen/x"),
            }
            assert "outside ComfyUI's input, output and temp folders" in failure(comfy.run(prompt))
        prompt = {
            "1": node("CPackInputImage", "i", image="link.png"),
            "2": node("CPackOutputImage", "o", images=["1", 0], filename_prefix="stolen/x"),
        }
        assert comfy.post("/prompt", {"prompt": prompt}).status_code == 400
    finally:
        link.unlink()
    assert not (comfy.folder / "output" / "stolen").exists()


def test_a_file_is_not_written_through_a_link_of_its_name(comfy: Comfy, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (comfy.folder / "input" / "notes.txt").write_bytes(b"new")
    folder = comfy.folder / "output" / "through"
    folder.mkdir()
    (folder / "x_notes.txt").symlink_to(target)
    prompt = {
        "1": node("CPackInputFile", "f", path=str(comfy.folder / "input" / "notes.txt")),
        "2": node("CPackOutputFile", "o", filename=["1", 0], filename_prefix=f"{folder}/x_"),
    }
    (item,) = reported(comfy.run(prompt), "2")
    assert item == {"filename": "x_notes.txt", "subfolder": "through", "type": "output"}
    assert target.read_text() == "kept"
    assert (folder / "x_notes.txt").read_bytes() == b"new"
    assert not (folder / "x_notes.txt").is_symlink()
    assert [path.name for path in folder.iterdir()] == ["x_notes.txt"]


def test_a_mask_is_the_transparency_else_the_brightness(comfy: Comfy) -> None:
    with_alpha = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    with_alpha.save(comfy.folder / "input" / "alpha.png")
    Image.new("L", (4, 4), 255).save(comfy.folder / "input" / "white.png")
    Image.new("RGB", (4, 4), (0, 255, 0)).save(comfy.folder / "input" / "green.png")
    for name, channel, expected in (
        ("alpha.png", "auto", 255),
        ("white.png", "auto", 255),
        ("green.png", "auto", 0),
        ("green.png", "green", 255),
    ):
        prompt = {
            "1": node("CPackInputMask", "m", image=name, channel=channel),
            "2": node("MaskToImage", "show", mask=["1", 0]),
            "3": node("CPackOutputImage", "o", images=["2", 0], filename_prefix="masks/m"),
        }
        (item,) = reported(comfy.run(prompt), "3")
        with Image.open(io.BytesIO(fetched(comfy, item))) as shown:
            assert shown.getpixel((1, 1))[0] == expected, (name, channel)


def test_a_picture_comes_through_as_it_went_in(comfy: Comfy, photo: str) -> None:
    prompt = {
        "1": node("CPackInputImage", "i", image=photo),
        "2": node("CPackOutputImage", "o", images=["1", 0], filename_prefix="same/x"),
    }
    (item,) = reported(comfy.run(prompt), "2")
    with Image.open(io.BytesIO(fetched(comfy, item))) as found, Image.open(io.BytesIO(picture())) as given:
        assert found.convert("RGB").tobytes() == given.convert("RGB").tobytes()
    (comfy.folder / "input" / photo).write_bytes(picture((1, 250, 1)))
    (changed,) = reported(comfy.run(prompt), "2")
    assert changed != item  # the file changed, so the node ran again


def test_sound_and_film_can_be_played(comfy: Comfy) -> None:
    av = pytest.importorskip("av")
    prompt = {
        "1": node("TestSound", "s", samples=11025, sample_rate=22050, channels=2),
        "2": node("CPackOutputAudio", "sound", audio=["1", 0], filename_prefix="audio/comfypack"),
        "3": {**EMPTY, "inputs": {**EMPTY["inputs"], "width": 32, "height": 16, "batch_size": 5}},
        "4": node("CreateVideo", "v", images=["3", 0], fps=5.0),
        "5": node("CPackOutputVideo", "film", video=["4", 0], filename_prefix="video/x", format="auto", codec="auto"),
    }
    entry = comfy.run(prompt)
    (sound,), (film,) = reported(entry, "2"), reported(entry, "5")
    assert (sound["subfolder"], sound["filename"]) == ("audio", "comfypack_00001.flac")
    with av.open(io.BytesIO(fetched(comfy, sound))) as container:
        (stream,) = container.streams.audio
        assert (stream.rate, stream.channels) == (22050, 2)
        assert sum(frame.samples for frame in container.decode(stream)) == 11025
        assert "prompt" in {key.lower() for key in container.metadata}
    assert (film["subfolder"], film["filename"]) == ("video", "x_00001.mp4")
    with av.open(io.BytesIO(fetched(comfy, film))) as container:
        (stream,) = container.streams.video
        assert (stream.width, stream.height) == (32, 16)
        assert len(list(container.decode(stream))) == 5


def test_a_value_that_is_no_json_is_refused_by_name(comfy: Comfy) -> None:
    entry = comfy.run({"1": EMPTY, "2": node("CPackOutputJSON", "o", value=["1", 0], filename_prefix="x")})
    assert "nothing that JSON can hold" in failure(entry)


def test_beside_comfy_pack_our_nodes_are_used_and_nothing_breaks(tmp_path: Path) -> None:
    """Whichever ComfyUI loads last; it lists the folder in no order."""
    folder = tmp_path / "comfy"
    folder.mkdir()
    (folder / "custom_nodes").mkdir()
    for name in ("aaa-comfy-pack", "zzz-comfy-pack"):
        other = folder / "custom_nodes" / name
        other.mkdir()
        (other / "__init__.py").write_text(
            "class Other:\n"
            "    CATEGORY = 'x'; RETURN_TYPES = (); FUNCTION = 'f'\n"
            "    @classmethod\n"
            "    def INPUT_TYPES(cls): return {'required': {}}\n"
            "NODE_CLASS_MAPPINGS = {'CPackInputAny': Other, 'CPackOutputImage': Other, 'Unrelated': Other}\n"
        )
    with running("standin", folder) as comfy:
        info = comfy.get("/object_info").json()
        assert info["CPackInputAny"]["python_module"] == f"custom_nodes.{PLUGIN}"
        assert info["CPackOutputImage"]["category"] == "ComfyPack/output"
        assert "Unrelated" in info
        assert "another plugin" in comfy.log


def test_without_metadata_none_is_written(tmp_path: Path) -> None:
    with running("standin", tmp_path, arguments=["--disable-metadata"]) as comfy:
        prompt = {"1": EMPTY, "2": node("CPackOutputImage", "out", images=["1", 0], filename_prefix="x")}
        item = reported(comfy.run(prompt), "2")[0]
        with Image.open(io.BytesIO(fetched(comfy, item))) as saved:
            assert not getattr(saved, "text", {})


def test_the_log_has_no_trace_of_an_error_of_ours(comfy: Comfy) -> None:
    assert f"Cannot import {comfy.folder / 'custom_nodes' / PLUGIN}" not in comfy.log
    assert import_seconds(comfy) < 5
