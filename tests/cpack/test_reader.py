"""A pack of any era is read into one shape; whatever is wrong with one is an error of ours that names it."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpack_build.cpack import archive as archive_module
from cpack_build.cpack.archive import open_archive
from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.schema import COMFYUI_URL, FileNode, GitPin
from cpack_build.errors import BadField, BadInput, CpackError, NotAPack, UnsafeInput, WorkflowError
from cpack_build.workflow import references
from tests.cpack.packs import COMMIT, SHA256, WORKFLOW, add, make_pack, model, snapshot

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "upscale.cpack.zip"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upscale.cpack.zip"


def test_a_pack_of_comfy_pack_0_4_is_read(path: Path) -> None:
    pack = read_pack(make_pack(path, files={"cpack.yaml": b"base: scratch\n", "service.py": b"raise SystemExit"}))

    assert pack.name == "upscale"
    assert pack.era == "0.4"
    assert pack.snapshot.python == "3.11"
    assert pack.snapshot.comfyui == GitPin(url=COMFYUI_URL, commit=COMMIT)
    assert [(node.name, node.commit, node.disabled) for node in pack.snapshot.nodes] == [("some-node", COMMIT, False)]
    assert pack.snapshot.registry_nodes == {"some-registry-node": "1.2.3"}
    assert pack.snapshot.file_nodes == (FileNode(filename="single.py"),)
    assert pack.snapshot.requirements == ("kornia @ git+https://hub.example/kornia.git@main", "pillow==10.0.0")
    assert pack.settings_text == "base: scratch\n"
    assert pack.other == ("service.py",)
    assert pack.workflow_api == WORKFLOW
    assert [item.name for item in pack.inputs] == ["input/example.png"]
    assert pack.open_member("input/example.png") == b"not really a picture"
    assert b"".join(pack.stream_member("input/example.png")) == b"not really a picture"
    assert set(pack.documents()) == {
        "snapshot.json",
        "workflow_api.json",
        "workflow.json",
        "input/example.png",
        "cpack.yaml",
    }
    assert [item.name for item in pack.served().interface.inputs] == ["photo"]


def test_a_pack_of_comfy_pack_0_1_is_read(path: Path) -> None:
    old = {
        "python": "3.10",
        "comfyui": COMMIT,
        "models": [model(sha256=None)],
        "custom_nodes": [
            {"url": "https://hub.example/a/one.git", "commit_hash": COMMIT, "disabled": False},
            {"url": "git@hub.example:b/two", "commit_hash": COMMIT, "disabled": True, "path": "Two.disabled"},
            {"url": "", "commit_hash": COMMIT, "disabled": False, "path": "mine"},
        ],
    }
    requirements = (
        "# frozen\naiohttp==3.11.10\n-e git+https://hub.example/x/y@main#egg=y_package\n--no-index\n"
        f"thing @ git+https://hub.example/thing@{COMMIT}\n"
    )
    pack = read_pack(make_pack(path, snapshot_document=old, files={"requirements.txt": requirements.encode()}))

    assert pack.snapshot.python == "3.10"
    assert [(node.name, node.disabled) for node in pack.snapshot.nodes] == [("Two", True), ("one", False)]
    assert pack.snapshot.requirements == (
        "aiohttp==3.11.10",
        f"thing @ git+https://hub.example/thing@{COMMIT}",
        "y_package @ git+https://hub.example/x/y@main",
    )
    assert pack.snapshot.models[0].sha256 is None
    assert any("mine has no git remote" in note for note in pack.snapshot.notes)
    assert any("--no-index" in note for note in pack.snapshot.notes)


def test_a_pack_of_the_first_weeks_is_read(path: Path) -> None:
    """As comfy-pack's first commits wrote it: GitHub names, no sizes, ``inputs/``, neither ComfyUI nor Python."""
    models = [{"filename": "models/vae/x.pt", "sha256": SHA256}]
    nodes = [{"repo": "someone/some-node", "commit_hash": COMMIT}, {"repo": "unknown", "commit_hash": COMMIT}]
    files = {
        "models.json": json.dumps(models).encode(),
        "custom_nodes.json": json.dumps(nodes).encode(),
        "requirements.txt": b"aiohttp==3.11.0\n",
        "inputs/sub/a.png": b"picture",
    }
    pack = read_pack(make_pack(path, without=["snapshot.json", "input/example.png"], files=files))
    assert pack.era == "0.0"
    assert (pack.snapshot.python, pack.snapshot.comfyui) == (None, None)
    assert [(node.name, node.url) for node in pack.snapshot.nodes] == [
        ("some-node", "https://github.com/someone/some-node.git")
    ]
    assert [model.filename for model in pack.snapshot.models] == ["models/vae/x.pt"]
    assert pack.snapshot.requirements == ("aiohttp==3.11.0",)
    assert pack.documents()["input/sub/a.png"] == b"picture"
    assert any("unknown has no git remote" in note for note in pack.snapshot.notes)


def test_the_first_snapshots_named_no_python(path: Path) -> None:
    old = {"comfyui": COMMIT, "models": [], "custom_nodes": []}
    pack = read_pack(make_pack(path, snapshot_document=old, files={"requirements.txt": b""}))
    assert (pack.era, pack.snapshot.python) == ("0.1", None)


def test_a_pack_without_a_workflow_is_read_but_not_served(path: Path) -> None:
    pack = read_pack(make_pack(path, workflow_api={}))
    with pytest.raises(WorkflowError, match="has no workflow"):
        pack.served()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"python": 3.11}, "python"),
        ({"python": "eleven"}, "python"),
        ({"python": ...}, "python"),
        ({"comfyui": "main"}, "comfyui"),
        ({"comfyui": 7}, "comfyui"),
        ({"git_custom_nodes": []}, "git_custom_nodes"),
        (
            {"git_custom_nodes": {"https://hub.example/a": {"hash": "HEAD"}}},
            "git_custom_nodes['https://hub.example/a'].hash",
        ),
        ({"git_custom_nodes": {"https://hub.example/a": COMMIT}}, "git_custom_nodes['https://hub.example/a']"),
        ({"cnr_custom_nodes": {"a": 1}}, "cnr_custom_nodes['a']"),
        ({"file_custom_nodes": {}}, "file_custom_nodes"),
        ({"file_custom_nodes": [{"filename": "a.py", "disabled": "no"}]}, "file_custom_nodes[0].disabled"),
        ({"pips": ["a==1"]}, "pips"),
        ({"pips": {"a==1": None, "b ==": ""}}, "pips['b ==']"),
        ({"pips": {"a==1": 1}}, "pips['a==1']"),
        ({"models": "none"}, "models"),
        ({"models": [model(), model(filename="models/b", size="1")]}, "models[1].size"),
        ({"models": [model(size=-1)]}, "models[0].size"),
        ({"models": [model(size=True)]}, "models[0].size"),
        ({"models": [model(size=2**63)]}, "models[0].size"),
        ({"models": [model(sha256="abc")]}, "models[0].sha256"),
        ({"models": [model(disabled=0)]}, "models[0].disabled"),
        ({"models": [model(filename=None)]}, "models[0].filename"),
        ({"models": [model(source="huggingface")]}, "models[0].source"),
        ({"models": [model(), model()]}, "models[1].filename"),
        ({"pips": ...}, "the document"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_its_path(path: Path, changes: dict[str, Any], field: str) -> None:
    make_pack(path, snapshot_document=snapshot(**changes))
    with pytest.raises(BadField) as caught:
        read_pack(path)
    assert caught.value.field == field
    assert f"snapshot.json: {field}: " in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"models": [model(filename="../../.ssh/authorized_keys")]},
        {"models": [model(filename="models\\..\\..\\x")]},
        {"models": [model(filename="/etc/passwd")]},
        {"models": [model(filename="C:\\models\\x")]},
        {"models": [model(filename="\\\\server\\share\\x")]},
        {"models": [model(filename="models/a\x1b[2Jb")]},
        {"models": [model(filename="models/a\0b")]},
        {"models": [model(filename=".")]},
        {"git_custom_nodes": {"https://hub.example/a/..": {"hash": COMMIT}}},
        {"git_custom_nodes": {"file:///etc": {"hash": COMMIT}}},
        {"git_custom_nodes": {"ext::sh -c id": {"hash": COMMIT}}},
        {"git_custom_nodes": {"-oProxyCommand=id": {"hash": COMMIT}}},
        {"git_custom_nodes": {"git://hub.example/a": {"hash": COMMIT}}},
        {"file_custom_nodes": [{"filename": "../x.py"}]},
        {"file_custom_nodes": [{"filename": "a/b.py"}]},
        {"cnr_custom_nodes": {"../x": "1"}},
        {"pips": {"a": "ftp://hub.example/a.whl"}},
        {"pips": {"a": "git+git://hub.example/a"}},
    ],
)
def test_a_name_or_address_that_leaves_its_place_is_refused(path: Path, changes: dict[str, Any]) -> None:
    make_pack(path, snapshot_document=snapshot(**changes))
    with pytest.raises(UnsafeInput):
        read_pack(path)


def test_a_model_that_was_not_chosen_cannot_stop_a_pack(path: Path) -> None:
    models = [model(), model(filename="../shared/x.safetensors", disabled=True)]
    pack = read_pack(make_pack(path, snapshot_document=snapshot(models=models)))
    assert [item.filename for item in pack.snapshot.models] == ["models/upscale_models/tiny.safetensors"]
    assert "../shared/x.safetensors" in pack.snapshot.notes[0]


def test_windows_separators_and_empty_hashes_are_normalised(path: Path) -> None:
    written = model(filename="models\\loras\\style one.safetensors", sha256="", size=None)
    upper = model(sha256=SHA256.upper())
    found = read_pack(make_pack(path, snapshot_document=snapshot(models=[written, upper]))).snapshot.models
    assert (found[0].filename, found[0].sha256, found[0].size) == ("models/loras/style one.safetensors", None, None)
    assert found[1].sha256 == SHA256


def test_model_addresses_come_from_the_source_by_its_kind(path: Path) -> None:
    commit = "0" * 40
    sources: list[Any] = [
        {
            "download_url": "https://huggingface.co/a/b/resolve/main/x (1).safetensors?download=true",
            "url": "https://huggingface.co/a/b/blob/main/x.safetensors",
        },
        {
            "download_url": "dir/x y.bin",
            "repo": "datasets/a/b",
            "commit": commit,
            "path": "dir/x y.bin",
            "source": "huggingface",
        },
        {
            "download_url": "https://civitai.com/api/download/models/12?token=secret",
            "url": "https://civitai.com/models/7?modelVersionId=12",
            "repo": 7,
            "commit": 12,
            "source": "civitai",
        },
        {"download_url": "file:///etc/passwd", "url": "javascript:alert(1)"},
        {"download_url": "https://someone:password@hub.example:8443/x"},
        None,
    ]
    models = [model(filename=f"models/{number}", source=source) for number, source in enumerate(sources)]
    found = [
        item.urls for item in read_pack(make_pack(path, snapshot_document=snapshot(models=models))).snapshot.models
    ]
    assert found == [
        (
            "https://huggingface.co/a/b/resolve/main/x%20(1).safetensors?download=true",
            "https://huggingface.co/a/b/resolve/main/x.safetensors",
        ),
        (f"https://huggingface.co/datasets/a/b/resolve/{commit}/dir/x%20y.bin",),
        ("https://civitai.com/api/download/models/12",),
        (),
        ("https://hub.example:8443/x",),
        (),
    ]


def test_credentials_of_whoever_made_the_pack_are_dropped(path: Path) -> None:
    changes = {
        "git_custom_nodes": {
            "https://someone:ghp_secret@hub.example/a/b.git": {"hash": COMMIT},
            "ssh://git@hub.example:2222/a/c": {"hash": COMMIT},
            "https://[::1]:8443/d": {"hash": COMMIT},
        },
        "pips": {"x": "git+https://oauth2:glpat-secret@hub.example/x.git@main"},
    }
    found = read_pack(make_pack(path, snapshot_document=snapshot(**changes))).snapshot
    assert [node.url for node in found.nodes] == [
        "https://hub.example/a/b.git",
        "ssh://git@hub.example:2222/a/c",
        "https://[::1]:8443/d",
    ]
    assert found.requirements == ("x @ git+https://hub.example/x.git@main",)


def test_two_enabled_nodes_of_one_name_get_two_folders(path: Path) -> None:
    nodes = {
        "https://hub.example/a/same": {"hash": COMMIT},
        "https://hub.example/b/Same.git": {"hash": COMMIT},
        "https://hub.example/c/same": {"hash": COMMIT, "disabled": True},
    }
    found = read_pack(make_pack(path, snapshot_document=snapshot(git_custom_nodes=nodes))).snapshot
    enabled = [node.name for node in found.nodes if not node.disabled]
    assert enabled == ["Same-2", "same"]
    assert len({name.casefold() for name in enabled}) == 2
    assert any("Same-2" in note for note in found.notes)


def test_packages_installed_from_files_keep_their_version_if_it_is_known(path: Path) -> None:
    pips = {
        "built": "file:///tmp/build/built-1.2.3-py3-none-any.whl",
        "conda-thing": "file:///croot/conda-thing_1/work",
        "torch==2.13.0+cpu": "",
    }
    found = read_pack(make_pack(path, snapshot_document=snapshot(pips=pips))).snapshot
    assert found.requirements == ("built==1.2.3", "conda-thing", "torch==2.13.0+cpu")
    assert len(found.notes) == 2


# -- workflows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        ({"last_node_id": 3, "nodes": [], "links": []}, "editor's format"),
        ({"nodes": [{"id": 1}]}, "editor's format"),
        ([], "no nodes"),
        ({"1": {"inputs": {}}}, "node '1' has no class_type"),
        ({"1": []}, "node '1' has no class_type"),
        ({"1": {"class_type": "X", "inputs": []}}, "node '1': inputs"),
    ],
)
def test_a_workflow_that_cannot_be_executed_is_named(path: Path, workflow: object, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        read_pack(make_pack(path, workflow_api=workflow))


def test_a_workflow_without_output_can_be_read_but_not_served(path: Path) -> None:
    pack = read_pack(make_pack(path, workflow_api={"1": {"class_type": "LoadImage", "inputs": {}}}))
    with pytest.raises(WorkflowError, match="no CPack output node"):
        pack.served()


# -- zips that are none, and hostile ones ------------------------------------------------------------------------------


def test_a_file_that_is_no_zip_is_told_from_a_truncated_one(path: Path) -> None:
    path.write_bytes(b"hello\n" * 100)
    with pytest.raises(NotAPack, match="not a zip"):
        read_pack(path)
    path.write_bytes(b"")
    with pytest.raises(NotAPack, match="empty"):
        read_pack(path)
    whole = make_pack(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotAPack, match="truncated"):
        read_pack(path)
    with pytest.raises(NotAPack, match="folder"):
        read_pack(path.parent)
    with pytest.raises(BadInput, match="no file"):
        read_pack(path.with_name("absent.cpack.zip"))


@pytest.mark.parametrize("name", ["snapshot.json", "workflow_api.json"])
def test_a_missing_document_is_named(path: Path, name: str) -> None:
    with pytest.raises(NotAPack, match=f"no {name}"):
        read_pack(make_pack(path, without=[name]))


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "input/../../escape",
        "/etc/cron.d/x",
        "C:/windows/x",
        "C:x",
        "\\\\server\\share\\x",
        "input\\..\\..\\x",
        "input/./x",
        "input//x",
        "input/\x07x",
        "input/" + "x" * 256,
    ],
)
def test_an_entry_whose_name_leaves_its_place_is_refused(path: Path, name: str) -> None:
    add(make_pack(path), name)
    with pytest.raises(UnsafeInput, match=r"entry"):
        read_pack(path)


def test_a_name_cut_by_nul_is_refused(path: Path) -> None:
    add(make_pack(path), "input/aXb")
    path.write_bytes(path.read_bytes().replace(b"input/aXb", b"input/a\0b"))
    with pytest.raises(CpackError):
        read_pack(path)


def test_links_and_special_files_are_refused(path: Path) -> None:
    for number, mode in enumerate((0o120777, 0o020644, 0o010644)):
        pack = make_pack(path.with_name(f"{number}.cpack.zip"))
        with pytest.raises(UnsafeInput, match="link or a special file"):
            read_pack(add(pack, "input/link", b"/etc/passwd", mode=mode))


def test_an_entry_that_occurs_twice_is_refused(path: Path) -> None:
    make_pack(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        add(path, "snapshot.json", b"{}")
    with pytest.raises(UnsafeInput, match="occurs twice"):
        read_pack(path)


def test_a_file_that_is_also_a_folder_is_refused(path: Path) -> None:
    add(make_pack(path, files={"input/a": b""}), "input/a/b")
    with pytest.raises(UnsafeInput, match="both a file and a folder"):
        read_pack(path)


def test_a_zip_bomb_is_stopped_while_it_is_read(path: Path) -> None:
    make_pack(path, without=["workflow.json"])
    add(path, "workflow.json", b"[" + b" " * (20 << 20) + b"]", compress=True)
    with pytest.raises(UnsafeInput, match=f"more than {archive_module.RATIO_LIMIT} times"):
        read_pack(path)


def test_a_pack_that_unpacks_to_more_than_any_disk_should_hold_is_refused(path: Path) -> None:
    """No entry is beyond its limit, and all are together."""
    make_pack(path)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(5):
            archive.writestr(f"input/{number}.bin", b"x")
            archive.filelist[-1].file_size = (2 << 30) - 1  # what its list of entries will say
    with pytest.raises(UnsafeInput, match="unpacks to more than 8 GiB"):
        read_pack(path)


def test_a_size_that_lies_does_not_get_past_the_limits(path: Path) -> None:
    """The header says a few bytes; what comes out is never more, and the damage is noticed."""
    bomb = b" " * (4 << 20)
    add(make_pack(path, without=["workflow.json"]), "workflow.json", bomb, compress=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", len(bomb)), struct.pack("<I", 10)))
    with pytest.raises(CpackError):
        read_pack(path)


def test_a_document_beyond_its_limit_is_refused(path: Path) -> None:
    text = random.Random(1).randbytes((64 << 20) // 2 + 1).hex().encode()
    with pytest.raises(UnsafeInput, match="bigger than 64 MiB"):
        read_pack(make_pack(path, files={"workflow.json": text}))


def test_too_many_entries_are_refused(path: Path) -> None:
    make_pack(path)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(10_000):
            archive.writestr(f"input/{number}", b"")
    with pytest.raises(UnsafeInput, match="more than 10000 entries"):
        read_pack(path)


def test_a_forged_list_of_entries_does_not_fill_the_memory(path: Path) -> None:
    """The end record announces a central directory of 200 MB; it is refused before it is read."""
    with path.open("wb") as file:
        file.truncate(200 << 20)
        file.seek(0, 2)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 200 << 20, 0, 0))
    with pytest.raises(NotAPack, match="list of entries is too long"):
        open_archive(path)


def test_encrypted_and_strangely_compressed_entries_are_refused(path: Path) -> None:
    with zipfile.ZipFile(make_pack(path), "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("input/x", b"x" * 1000)
    with pytest.raises(NotAPack, match="compressed in a way"):
        read_pack(path)
    data = bytearray(make_pack(path).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(NotAPack, match="encrypted"):
        read_pack(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b'{"python": NaN}', "not JSON: NaN"),
        (b'{"python": 1e999}', "too big"),
        (b'{"python": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"python": "\\ud800"}', "half a character"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 101 + b"]" * 101, "nested deeper"),
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
    ],
)
def test_a_snapshot_that_is_no_sound_json_is_named(path: Path, text: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        read_pack(make_pack(path, files={"snapshot.json": text}))
    assert "snapshot.json" in caught.value.message


def test_a_byte_order_mark_is_passed_over(path: Path) -> None:
    text = b"\xef\xbb\xbf" + json.dumps(snapshot()).encode()
    assert read_pack(make_pack(path, files={"snapshot.json": text})).snapshot.python == "3.11"


def test_damage_anywhere_is_an_error_of_ours_or_harmless(path: Path) -> None:
    """A few hundred packs with flipped bytes: nothing but our own errors comes out."""
    whole = make_pack(path).read_bytes()
    chance = random.Random(20261123)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            pack = read_pack(path)
            for item in pack.inputs:
                pack.open_member(item.name)
        except CpackError:
            continue


def test_a_hundred_thousand_entries_are_refused_quickly_and_nothing_is_written(path: Path) -> None:
    """A central directory of 6 MB and more is not even listed."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    listing = entry * 100_000
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 1, 0) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(listing), len(local), 0)
    path.write_bytes(local + listing + end)
    with pytest.raises(UnsafeInput, match="more than 10000 entries"):
        read_pack(path)
    assert list(path.parent.iterdir()) == [path]


def test_names_in_another_encoding_are_names_or_an_error(path: Path) -> None:
    """Without the UTF-8 flag zipfile takes a name for code page 437; with it, bytes that are no UTF-8 are refused."""
    add(make_pack(path), "input/größe.png")
    data = path.read_bytes()
    path.write_bytes(data.replace("größe".encode(), b"gr\xff\xfe\xfd\xfce"))
    with pytest.raises(NotAPack, match="damaged"):
        read_pack(path)


def test_a_huge_document_is_refused_before_it_is_parsed(path: Path) -> None:
    add(make_pack(path, without=["snapshot.json"]), "snapshot.json", b" " * ((64 << 20) + 1))
    with pytest.raises(UnsafeInput, match="bigger than 64 MiB"):
        read_pack(path)


@pytest.mark.parametrize("name", ["snapshot.json", "workflow_api.json", "workflow.json"])
@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 5000, b"\xff", b'"\\ud800"', b"{", b"[1e999]"])
def test_no_document_of_a_pack_can_break_the_reader(path: Path, name: str, text: bytes) -> None:
    with pytest.raises(BadInput, match=name):
        read_pack(make_pack(path, files={name: text}))


def _real() -> bytes:
    """The fixture written by comfy-pack 0.4 itself, less the bulk of its package list, or a pack like it."""
    if FIXTURE.is_file():
        return FIXTURE.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        return make_pack(Path(folder) / "x.zip").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.integers(0, 8)), max_size=5),
    cut=st.none() | st.floats(0, 1),
)
def test_a_mutated_real_pack_is_read_or_refused(
    path: Path, edits: list[tuple[float, bytes, int]], cut: float | None
) -> None:
    """Bytes are replaced, put in and taken out anywhere in the zip."""
    data = bytearray(_real())
    for place, new, gone in edits:
        start = int(place * len(data))
        data[start : start + gone] = new
    path.write_bytes(data[: int(cut * len(data))] if cut is not None else data)
    _read_all(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["snapshot.json", "workflow_api.json", "workflow.json"]),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True), st.sampled_from(['"', "{", "}", "[1]", "null", "7", "..", "\\", "é"])
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_real_pack_with_a_mutated_document_is_read_or_refused(
    path: Path, name: str, edits: list[tuple[float, str]]
) -> None:
    """The zip is sound and its JSON is not what it was."""
    with zipfile.ZipFile(io.BytesIO(_real())) as archive:
        entries = {item: archive.read(item) for item in archive.namelist()}
    text = entries[name].decode()
    for place, new in edits:
        start = int(place * len(text))
        text = text[:start] + new + text[start + 1 :]
    with zipfile.ZipFile(path, "w") as archive:
        for item, content in entries.items():
            archive.writestr(item, text.encode() if item == name else content)
    _read_all(path)


def _read_all(path: Path) -> None:
    with suppress(CpackError):
        pack = read_pack(path)
        for item in pack.inputs:
            pack.open_member(item.name)
        references(pack.workflow_api)
        pack.served()
