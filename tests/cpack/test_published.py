"""The published JSON Schema of a pack and the reader agree: a wrong type in any field is refused by both, by name."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cpack_build.cpack.published import pack_schema, settings_schema
from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.settings import Settings, parse_settings
from cpack_build.cpack.snapshot import read_first_weeks, read_snapshot
from cpack_build.errors import BadField, BadSettings, CpackError, WorkflowError
from tests import need
from tests.cpack.packs import WORKFLOW, make_pack, model, snapshot

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "upscale.cpack.zip"
SCHEMA = pack_schema()
SNAPSHOT_SCHEMA = {**SCHEMA["$defs"]["SnapshotDocument"], "$defs": SCHEMA["$defs"]}
WRONG: tuple[Any, ...] = (True, 7, -1, 0.5, "wrong", [], [1], {}, {"a": 1}, None)


def whole() -> dict[str, Any]:
    """A snapshot in which every field of the schema has a value."""
    source = {
        "download_url": "https://hub.example/x",
        "url": "https://hub.example/x",
        "urls": ["https://hub.example/x"],
    }
    node = {"https://hub.example/a/b": {"hash": "a" * 40, "disabled": False, "path": "b"}}
    ours = {
        "comfyui": {"version": "0.3.64", "content_sha256": "a" * 64, "files": 1},
        "local_nodes": ["mine"],
        "disabled_nodes": [{"name": "x", "kind": "registry", "id": "x", "version": "1.0"}],
    }
    return snapshot(models=[model(source=source)], git_custom_nodes=node, cpack=ours)


def fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in members:
        yield from fields(below, (*path, key))


def changed(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def test_every_field_of_the_schema_is_walked() -> None:
    named = {str(key) for path in fields(whole()) for key in path}
    for part in SCHEMA["$defs"].keys() - {"WorkflowNodeDocument"}:
        assert set(SCHEMA["$defs"][part]["properties"]) <= named, part


@pytest.mark.parametrize("path", sorted(fields(whole()), key=str), ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_type_in_any_field_is_refused_by_reader_and_schema_alike(path: tuple[str | int, ...]) -> None:
    refused = 0
    for wrong in WRONG:
        document = changed(whole(), path, wrong)
        valid = jsonschema.Draft202012Validator(SNAPSHOT_SCHEMA).is_valid(document)
        error = _refusal(document)
        if error is None:
            assert valid, (path, wrong)
            continue
        refused += 1
        assert not valid or isinstance(wrong, str), (path, wrong)  # a text may be refused for what it says
        if not isinstance(wrong, str):
            assert isinstance(error, BadField)
            assert str(path[0]) in error.field
            assert "snapshot.json: " in error.message
    assert refused


def _refusal(document: Any) -> CpackError | None:
    try:
        read_snapshot(document)
    except CpackError as error:
        return error
    return None


def test_the_packs_of_comfy_pack_and_of_these_tests_are_valid() -> None:
    document = {"snapshot.json": whole(), "workflow_api.json": WORKFLOW, "workflow.json": {}}
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_the_real_pack_is_valid() -> None:
    if not FIXTURE.is_file():
        need.missing("shared/fixtures/upscale.cpack.zip")
    with zipfile.ZipFile(FIXTURE) as archive:
        names = ("snapshot.json", "workflow_api.json", "workflow.json")
        jsonschema.Draft202012Validator(SCHEMA).validate({name: json.loads(archive.read(name)) for name in names})


@pytest.mark.parametrize("key", sorted(Settings.model_fields))
def test_a_wrong_type_in_any_setting_is_named(key: str) -> None:
    jsonschema.Draft202012Validator.check_schema(settings_schema())
    for wrong in ("[[1]]", "{a: {b: 1}}", "7"):
        with pytest.raises(BadSettings, match=key):
            parse_settings(f"{key}: {wrong}", name="cpack.yaml")


@pytest.mark.parametrize("field", ["class_type", "inputs", "node"])
def test_a_wrong_type_in_the_workflow_names_the_node(tmp_path: Path, field: str) -> None:
    for wrong in (True, 7, [], [1], None):
        node = {"class_type": "X", "inputs": {}}
        broken = wrong if field == "node" else node | {field: wrong}
        with pytest.raises(WorkflowError, match="node '1'"):
            read_pack(make_pack(tmp_path / "x.cpack.zip", workflow_api={"1": broken}))


OLD = {
    "python": "3.11",
    "comfyui": "a" * 40,
    "models": [model()],
    "custom_nodes": [{"url": "https://hub.example/a/b", "commit_hash": "a" * 40, "disabled": False, "path": "b"}],
}
FIRST = {
    "models.json": [{"filename": "models/vae/x.pt", "sha256": "a" * 64}],
    "custom_nodes.json": [{"repo": "a/b", "commit_hash": "a" * 40}],
}


@pytest.mark.parametrize("path", sorted(fields(OLD), key=str), ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_type_in_any_field_of_an_older_pack_is_named(path: tuple[str | int, ...]) -> None:
    named = []
    for wrong in WRONG:
        try:
            read_snapshot(changed(OLD, path, wrong), requirements="")
        except BadField as error:
            named.append(error.field)
        except CpackError:
            assert isinstance(wrong, str)
    assert any(str(path[0]) in field for field in named)


@pytest.mark.parametrize("path", sorted(fields(FIRST), key=str), ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_type_in_any_field_of_the_first_packs_is_named(path: tuple[str | int, ...]) -> None:
    refused = []
    for wrong in WRONG:
        document = changed(FIRST, path, wrong)
        try:
            read_first_weeks(document["models.json"], document["custom_nodes.json"], requirements=None)
        except CpackError as error:
            refused.append(error.message)
    assert any(str(path[0]) in message for message in refused)
