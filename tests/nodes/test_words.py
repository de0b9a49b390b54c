"""The nodes speak the frontend's language: title, description, inputs, tooltips and outputs, by ComfyUI's ``/i18n``."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from cpack_build.nodes.registration import NODE_CLASS_MAPPINGS
from cpack_build.workflow import read_workflow
from tests.nodes.comfy import Comfy
from tests.nodes.conftest import OpenComfy
from tests.nodes.dialogs import WEB
from tests.nodes.test_editor import MAKE, OUTPUTS, PARAMETERS, from_json_schema
from tests.serve.running import ROOT
from tests.serve.workflows import picture

_SAME = {"ComfyPack", "CPack"}
_SHOWN = """
type => {
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  const told = {
    title: node.title,
    inputs: Object.fromEntries((node.inputs ?? []).map(slot => [slot.name, slot.label ?? slot.localized_name])),
    widgets: Object.fromEntries((node.widgets ?? []).map(widget => [widget.name, widget.label])),
    outputs: (node.outputs ?? []).map(slot => slot.label ?? slot.localized_name),
  };
  app.graph.remove(node);
  return told;
}
"""


def _words(language: str, name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "locales" / language / f"{name}.json").read_text("utf-8")))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: text for name, below in tree.items() for key, text in _leaves(below, (*path, name)).items()}


def _declared(info: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI tells of a node, in the shape of ``nodeDefs.json``."""
    given = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    words: dict[str, Any] = {"display_name": info["display_name"], "description": info["description"]}
    if given:
        words["inputs"] = {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in given.items()}
    if info["output_name"]:
        words["outputs"] = {str(place): {"name": name} for place, name in enumerate(info["output_name"])}
    return words


def test_the_english_words_are_those_that_the_nodes_declare(comfy: Comfy) -> None:
    info = comfy.get("/object_info").json()
    assert {name: _declared(info[name]) for name in NODE_CLASS_MAPPINGS} == _words("en", "nodeDefs")


@pytest.mark.parametrize("name", ["nodeDefs", "commands", "settings", "main"])
def test_each_word_is_there_in_chinese(name: str) -> None:
    english, chinese = _leaves(_words("en", name)), _leaves(_words("zh", name))
    assert list(english) == list(chinese)
    for path, text in chinese.items():
        assert re.search(r"[\u4e00-\u9fff]", text) or text in _SAME, (path, text)


def test_an_unnamed_node_is_the_same_parameter_in_each_language() -> None:
    """A title that is no identifier is normalised for the API, and one that is would be taken as it is."""

    def called(title: str) -> str:
        prompt = {
            "1": {"class_type": "CPackInputString", "inputs": {"value": ""}, "_meta": {"title": title}},
            "2": {"class_type": "CPackOutputJSON", "inputs": {"value": 1}, "_meta": {"title": title}},
        }
        interface = read_workflow(prompt, name="w").interface
        assert [item.name for item in interface.inputs] == [item.name for item in interface.outputs]
        return interface.inputs[0].name

    english, chinese = _words("en", "nodeDefs"), _words("zh", "nodeDefs")
    for name, words in english.items():
        assert called(words["display_name"]) == called(chinese[name]["display_name"]), name


def test_commands_have_the_words_of_the_dialogs() -> None:
    for language in ("en", "zh"):
        texts = json.loads((WEB / "locales" / f"{language}.json").read_text("utf-8"))
        for command, words in _words(language, "commands").items():
            name = command.removeprefix("CPack_").lower()
            parts = {"label": "command", "menubarLabel": "short", "tooltip": "subtitle"}
            assert words == {key: texts[f"{name}.{part}"] for key, part in parts.items()}


def test_settings_and_commands_are_those_that_the_page_registers(comfy_page: OpenComfy) -> None:
    found = comfy_page().page.evaluate("""() => {
        const {settings, commands} = app.extensions.find(extension => extension.name === "cpack");
        return {settings: settings.map(({id, name, tooltip, options}) => ({id, name, tooltip, options})),
                commands: commands.map(({id}) => id)};
    }""")
    known = _words("en", "settings")
    for setting in found["settings"]:
        words = {key: setting[key] for key in ("name", "tooltip") if setting.get(key)}
        if setting.get("options"):
            words["options"] = {option["text"]: option["text"] for option in setting["options"]}
        assert known.pop(setting["id"].replace(".", "_")) == words
    assert not known
    assert [command.replace(".", "_") for command in found["commands"]] == list(_words("en", "commands"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_editor_shows_each_node_in_its_language(comfy: Comfy, comfy_page: OpenComfy, language: Any) -> None:
    assert comfy.get("/i18n").json()[language]["nodeDefs"].items() >= _words(language, "nodeDefs").items()
    opened = comfy_page(language=language)
    for name, words in _words(language, "nodeDefs").items():
        shown = opened.page.evaluate(_SHOWN, name)
        assert shown["title"] == words["display_name"]
        labels = {**shown["inputs"], **{key: text for key, text in shown["widgets"].items() if text}}
        for key, word in words.get("inputs", {}).items():
            assert (labels.get(key) or key) == word["name"], (name, key)
        for place, word in words.get("outputs", {}).items():
            assert (shown["outputs"][int(place)] or "value") == word["name"], (name, place)


def test_what_is_made_in_a_chinese_editor_has_the_same_api(comfy: Comfy, comfy_page: OpenComfy) -> None:
    (comfy.folder / "input" / "editor.png").write_bytes(picture())
    opened = comfy_page(language="zh")
    opened.page.evaluate(MAKE)
    opened.shot("every-node-zh")
    assert from_json_schema(opened.export()) == (PARAMETERS, OUTPUTS)
