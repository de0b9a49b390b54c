"""`cpack-build store` tells what the store holds, finds what is broken, and removes what can go."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cpack_build.cli.store import parse_size
from cpack_build.errors import UsageError
from cpack_build.fetch.store import Store
from tests.cli.calling import Caller


def test_a_model_is_added_listed_and_forgotten_when_it_goes(call: Caller, tmp_path: Path) -> None:
    model = tmp_path / "models/a.safetensors"
    model.parent.mkdir()
    model.write_bytes(b"model")
    assert call("store", "add", tmp_path / "models", "--dry-run", "--json").document["files"] == [str(model)]
    assert call("store", "ls", "--json").document["entries"] == []

    (added,) = call("store", "add", tmp_path / "models", "--json").document["added"]
    assert added["sha256"] == hashlib.sha256(b"model").hexdigest()
    (entry,) = call("store", "ls", "--json").document["entries"]
    assert (entry["place"], entry["path"], entry["kind"]) == ("adopted", str(model), "model")
    assert "a.safetensors" in call("store", "ls").out

    model.unlink()
    call("store", "gc")
    assert call("store", "ls", "--json").document["entries"] == []


def test_a_broken_blob_is_exit_code_5_and_named(call: Caller, tmp_path: Path) -> None:
    blob = Store(tmp_path / "store").put([b"right"], what="x").path
    assert call("store", "verify").code == 0
    blob.chmod(0o644)
    blob.write_bytes(b"wrong")
    done = call("store", "verify", "--json")
    assert done.code == 5
    assert done.document["broken"][0]["path"] == str(blob)
    assert call("store", "verify", "--json").document == {"files": 0, "broken": []}


def test_gc_says_first_what_it_would_do(call: Caller, tmp_path: Path) -> None:
    blob = Store(tmp_path / "store").put([b"x" * 100], what="x", name="a.whl").path
    would = call("store", "gc", "--all", "--dry-run")
    assert "would go" in would.out
    assert blob.exists()
    done = call("store", "gc", "--max-size", "10B", "--json").document
    assert done["freed"] == 100
    assert not blob.exists()


def test_path_is_where_it_is(call: Caller, tmp_path: Path) -> None:
    assert call("store", "path").out.splitlines()[0] == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("text", "size"), [("500M", 500_000_000), ("1.5TiB", 3 << 39), ("10", 10), ("2 GB", 2 * 10**9)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(UsageError):
        parse_size("a lot")
