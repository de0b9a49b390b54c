"""Any JSON at all as a snapshot gives a :class:`Snapshot` that keeps its promises, or an error of ours."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from cpack_build.cpack.archive import unsafe_name
from cpack_build.cpack.published import pack_schema
from cpack_build.cpack.schema import COMFYUI_URL, FileNode, GitPin, ModelEntry, NodePin, Snapshot
from cpack_build.cpack.snapshot import read_snapshot, snapshot_document
from cpack_build.errors import BadInput, CpackError
from tests.cpack.packs import COMMIT, SHA256, model, snapshot

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_ADDRESS = st.one_of(
    _TEXT,
    st.sampled_from(["https://hub.example/a/b.git", "git@hub.example:a/b", "file:///etc", "https://[", "null", ""]),
    st.builds("https://hub.example/{}/{}".format, _TEXT, _TEXT),
)
_FILENAME = st.one_of(_TEXT, st.builds("models\\{}/{}".format, _TEXT, _TEXT), st.just("models/a.bin"))
_HASH = st.sampled_from([SHA256, SHA256.upper(), "", None, "short", 3])
_SOURCE = st.one_of(
    _JSON,
    st.fixed_dictionaries(
        {},
        optional={
            "download_url": _ADDRESS,
            "url": _ADDRESS,
            "repo": _JSON,
            "commit": st.sampled_from([COMMIT, 12, None, "main"]),
            "path": _TEXT,
            "source": st.sampled_from(["huggingface", "civitai", 1]),
        },
    ),
)
_DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "python": st.one_of(_JSON, st.just("3.11")),
        "comfyui": st.one_of(_JSON, st.sampled_from([COMMIT, COMMIT + "\n"])),
        "git_custom_nodes": st.one_of(
            _JSON,
            st.dictionaries(_ADDRESS, st.fixed_dictionaries({"hash": st.just(COMMIT)}), max_size=4),
        ),
        "cnr_custom_nodes": st.one_of(_JSON, st.dictionaries(_TEXT, _TEXT, max_size=3)),
        "file_custom_nodes": _JSON,
        "custom_nodes": _JSON,
        "pips": st.one_of(_JSON, st.dictionaries(_TEXT, _ADDRESS, max_size=3)),
        "models": st.one_of(
            _JSON,
            st.lists(
                st.fixed_dictionaries({"filename": _FILENAME, "sha256": _HASH, "source": _SOURCE, "disabled": _JSON}),
                max_size=3,
            ),
        ),
    },
)


@settings(max_examples=300, deadline=None)
@given(document=st.one_of(_JSON, _DOCUMENT, _DOCUMENT.map(lambda changes: snapshot(**changes))))
def test_any_document_is_read_or_refused(document: Any) -> None:
    try:
        found = read_snapshot(document, requirements="")
    except CpackError:
        return
    _keeps_its_promises(found)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_requirements_are_read_or_refused(text: str) -> None:
    old = {"python": "3.11", "comfyui": None, "custom_nodes": [], "models": [model()]}
    try:
        found = read_snapshot(old, requirements=text)
    except CpackError:
        return
    _keeps_its_promises(found)


def _keeps_its_promises(found: Snapshot) -> None:
    assert found.python is None or re.fullmatch(r"3\.[0-9]{1,2}", found.python)
    for node in found.nodes:
        assert not unsafe_name(node.name)
        assert "/" not in node.name
        assert re.fullmatch(r"[0-9a-f]{40}", node.commit)
        assert node.url.startswith(("https://", "http://", "ssh://")) or "@" in node.url
    enabled = [node.name.casefold() for node in found.nodes if not node.disabled]
    assert len(enabled) == len(set(enabled))
    for entry in found.models:
        assert not unsafe_name(entry.filename)
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert all(url.startswith(("https://", "http://")) and url.isprintable() for url in entry.urls)
    for requirement in found.requirements:
        assert Requirement(requirement).name


_URLS = st.builds(
    "https://hub.example/{}/{}.git".format, st.sampled_from("abc"), st.from_regex(r"[a-z]{1,5}", fullmatch=True)
)
_NAME = st.from_regex(r"[A-Za-z0-9_ ñ-]{1,8}", fullmatch=True)
_COMMITS = st.from_regex(r"[0-9a-f]{40}", fullmatch=True)
_SNAPSHOTS = st.builds(
    Snapshot,
    python=st.sampled_from(["3.9", "3.11", "3.13"]),
    comfyui=st.none() | st.builds(GitPin, url=st.just(COMFYUI_URL), commit=_COMMITS),
    nodes=st.lists(
        st.builds(NodePin, name=_NAME, url=_URLS, commit=_COMMITS, disabled=st.booleans()),
        max_size=4,
        unique_by=(lambda pin: pin.url, lambda pin: pin.name.casefold()),
    ).map(lambda pins: tuple(sorted(pins, key=lambda pin: (pin.name, pin.url)))),
    registry_nodes=st.dictionaries(_NAME, st.from_regex(r"[0-9]\.[0-9]", fullmatch=True), max_size=2),
    file_nodes=st.lists(st.builds(FileNode, filename=_NAME, disabled=st.booleans()), max_size=2).map(tuple),
    requirements=st.sampled_from(
        [(), ("a==1.0", "b[x]==2"), ("kornia @ git+https://hub.example/k.git@main", 'z==1; python_version < "3.13"')]
    ),
    models=st.lists(
        st.builds(
            ModelEntry,
            filename=st.builds("models/{}/{}.bin".format, _NAME, _NAME),
            size=st.none() | st.integers(0, 2**62),
            sha256=st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
            disabled=st.booleans(),
            urls=st.lists(
                st.builds("https://hub.example/{}".format, st.sampled_from("xyz")), max_size=3, unique=True
            ).map(tuple),
        ),
        max_size=3,
        unique_by=lambda model: model.filename,
    ).map(tuple),
)


@settings(max_examples=120, deadline=None)
@given(pinned=_SNAPSHOTS)
def test_what_is_written_is_read_back(pinned: Snapshot) -> None:
    document = json.loads(json.dumps(snapshot_document(pinned)))
    assert read_snapshot(document) == pinned
    jsonschema.Draft202012Validator(pack_schema()).validate({"snapshot.json": document, "workflow_api.json": {}})


def test_what_a_pack_has_no_room_for_is_refused() -> None:
    pin = NodePin(name="a", url="https://hub.example/a/b", commit=COMMIT)
    for changes, words in (
        ({"python": None}, "no version of Python"),
        ({"comfyui": GitPin(url="https://fork.example/ComfyUI.git", commit=COMMIT)}, "comes from"),
        ({"nodes": (pin, pin.model_copy(update={"name": "c"}))}, "Two custom nodes"),
    ):
        with pytest.raises(BadInput, match=words):
            snapshot_document(Snapshot(python="3.11", comfyui=None).model_copy(update=changes))
