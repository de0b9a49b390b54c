"""A bundle that lies is refused by name, and puts nothing outside of its place."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import BadInput, HashMismatch, UsageError
from cpack_build.fetch.repository import has_commit
from cpack_build.fetch.store import Store
from cpack_build.image.bundle import DESCRIPTION, open_bundle, write_bundle
from tests import need
from tests.fetch.repositories import make_repository

SHA256 = hashlib.sha256(b"blob").hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


def description(**changes: Any) -> bytes:
    document = {"bundle": 1, "blobs": {}, "repositories": [], "bases": [], "documents": []} | changes
    return json.dumps(document).encode()


def archive(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def folder(path: Path, data: bytes) -> Path:
    path.mkdir()
    (path / DESCRIPTION).write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle": 2}, "its revision is another"),
        ({"blobs": {"../../x": 1}}, "hashes that are none"),
        ({"documents": ["../x.cpack.lock"]}, "documents that are none"),
        ({"documents": ["x.sh"]}, "documents that are none"),
        ({"repositories": [{"name": "../x", "commits": [], "shallow": []}]}, "names a repository"),
        ({"repositories": [{"name": "0" * 64, "commits": ["--x"], "shallow": []}]}, "commits that are none"),
        ({"repositories": [{"name": "0" * 64, "commits": ["0" * 40]}]}, "commits that are none"),
        ({"blobs": []}, "is damaged"),
        ({"blobs": {"0" * 64: float("inf")}}, "is damaged"),
    ],
)  # fmt: skip
def test_a_description_that_lies_is_refused(tmp_path: Path, store: Store, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        open_bundle(folder(tmp_path / "folder", description(**changes)), store=store)
    with pytest.raises(BadInput, match=said):
        open_bundle(archive(tmp_path / "x.tar", [(DESCRIPTION, description(**changes))]), store=store)


def test_what_is_no_bundle_says_how_to_make_one(tmp_path: Path, store: Store) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("not a tar")
    for path in (tmp_path / "empty", tmp_path / "text.tar", tmp_path / "none.tar", archive(tmp_path / "x.tar", [])):
        with pytest.raises(BadInput, match="is no bundle") as caught:
            open_bundle(path, store=store)
        assert "cpack-build fetch" in caught.value.hint


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../outside", "which no bundle has"),
        ("/etc/passwd", "which no bundle has"),
        ("base-amd64/../../x", "which no bundle has"),
        ("base-amd64/blobs/sha256/../../../x", "which no bundle has"),
        ("hooks/post-checkout", "which no bundle has"),
        (link(f"blobs/sha256/{SHA256}", "/etc/passwd"), "is no file"),
        (link("base-amd64/index.json", "../../x", tarfile.LNKTYPE), "is no file"),
    ],
)
def test_a_member_that_leaves_its_place_is_refused(
    tmp_path: Path, store: Store, name: str | tarfile.TarInfo, said: str
) -> None:
    path = archive(tmp_path / "x.tar", [(DESCRIPTION, description()), (name, b"")])
    with pytest.raises(BadInput, match=said):
        open_bundle(path, store=store)
    assert sorted(entry.name for entry in tmp_path.iterdir()) in (["store", "x.tar"], ["x.tar"])


def test_a_blob_under_a_wrong_hash_is_refused_or_not_found(tmp_path: Path, store: Store) -> None:
    wrong = description(blobs={SHA256: 5})
    with pytest.raises(HashMismatch):
        open_bundle(
            archive(tmp_path / "x.tar", [(DESCRIPTION, wrong), (f"blobs/sha256/{SHA256}", b"wrong")]), store=store
        )
    place = folder(tmp_path / "folder", wrong)
    (place / "blobs/sha256").mkdir(parents=True)
    (place / "blobs/sha256" / SHA256).write_bytes(b"wrong")
    open_bundle(place, store=store)
    assert store.find(SHA256) is None
    (place / "blobs/sha256" / SHA256).write_bytes(b"blob")
    assert store.find(SHA256) is not None


def test_a_pack_that_lacks_what_it_promises_makes_no_commit(tmp_path: Path, store: Store) -> None:
    commit = make_repository(tmp_path / "repository", {"a": "text"})
    name = "0" * 64
    described = description(repositories=[{"name": name, "commits": [commit], "shallow": ["1" * 40]}])
    empty = subprocess.run(
        [need.tool("git"), "-C", str(tmp_path / "repository"), "pack-objects", "--stdout", "--quiet"],
        stdin=subprocess.DEVNULL, capture_output=True, check=True,
    ).stdout  # fmt: skip
    for pack in (b"", b"PACK nonsense", empty):
        path = archive(tmp_path / "x.tar", [(DESCRIPTION, described), (f"git/{name}.pack", pack)])
        with pytest.raises(BadInput, match="has a damaged pack"):
            open_bundle(path, store=store)
    assert not has_commit(store.root / "git" / name, commit)
    assert not (store.root / "git" / name / "shallow").exists(), "nor does what it says of the history stay"


def test_a_folder_with_something_else_is_not_written_to(tmp_path: Path, store: Store) -> None:
    from cpack_build.fetch.http import Sources

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(UsageError, match="no bundle"):
        write_bundle([], tmp_path / "mine", documents={}, store=store, sources=Sources())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
