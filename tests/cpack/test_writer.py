"""A pack is written to the same bytes for the same content, whole or not at all, and read back as it was meant."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpack_build.cpack.archive import unsafe_name
from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.writer import write_pack
from cpack_build.errors import StorageError, UnsafeInput
from tests.cpack.packs import WORKFLOW, snapshot

# A pack's folder, whatever its content: hypothesis runs many examples in one.
_IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)

_PART = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_NAMES = st.lists(_PART, min_size=1, max_size=3).map("/".join)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = {"b.png": b"2", "a.png": b"1", "sub/c.txt": b"3"}
    for name, order in (("one", sorted(inputs)), ("two", sorted(inputs, reverse=True))):
        mask = os.umask(0o077 if name == "one" else 0)
        try:
            write_pack(
                tmp_path / f"{name}.cpack.zip",
                snapshot_document=snapshot(),
                workflow_api=WORKFLOW,
                workflow={},
                inputs={key: inputs[key] for key in order},
                settings="base: scratch\n",
            )
        finally:
            os.umask(mask)
    one, two = (tmp_path / f"{name}.cpack.zip" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert stat.S_IMODE(one.stat().st_mode) == 0o644
    with zipfile.ZipFile(one) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {(info.compress_type, info.date_time) for info in infos} == {(zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))}


@_IN_ONE_FOLDER
@given(inputs=st.dictionaries(_NAMES, st.binary(max_size=100), max_size=5), text=st.text(max_size=50))
def test_what_is_written_is_read_back(tmp_path: Path, inputs: dict[str, bytes], text: str) -> None:
    names = [f"input/{name}" for name in inputs]
    clash = any(other.startswith(name + "/") for name in names for other in names)
    path = tmp_path / "pack.cpack.zip"
    try:
        document = snapshot(extra=text)
        json.dumps(text, ensure_ascii=False).encode()
        write_pack(path, snapshot_document=document, workflow_api=WORKFLOW, inputs=inputs)
    except (UnsafeInput, UnicodeEncodeError):
        assert any(unsafe_name(name) for name in names) or not _encodable(text)
        return
    if clash:
        with pytest.raises(UnsafeInput, match="both a file and a folder"):
            read_pack(path)
        return
    pack = read_pack(path)
    assert {item.name: pack.open_member(item.name) for item in pack.inputs} == dict(
        zip(names, inputs.values(), strict=True)
    )
    assert json.loads(pack.open_member("snapshot.json"))["extra"] == text


@given(name=st.text(max_size=40))
def test_a_safe_name_stays_inside_whatever_folder_it_is_joined_to(name: str) -> None:
    if unsafe_name(name):
        return
    joined = os.path.normpath(os.path.join("/srv/place", name))
    assert joined.startswith("/srv/place/")
    assert joined == f"/srv/place/{name}"


def test_a_name_that_would_leave_the_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeInput, match="leaves its folder"):
        write_pack(tmp_path / "x.zip", snapshot_document={}, workflow_api={}, inputs={"../x": b""})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_pack(tmp_path / "absent" / "x.zip", snapshot_document={}, workflow_api={})
    with pytest.raises(TypeError):
        write_pack(tmp_path / "x.zip", snapshot_document={}, workflow_api={}, inputs={"a": None})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
