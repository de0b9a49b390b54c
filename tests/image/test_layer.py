"""What every layer promises: sorted, complete with parents, safe names, one timestamp, digests remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.store import Store
from cpack_build.image.layer import MTIME, Recipe, arrange, directory, key_of, symlink, text
from cpack_build.oci import tar
from tests.making import read_back


def test_entries_are_sorted_and_have_every_parent_once() -> None:
    arranged = arrange([text("b/c/d.txt", "x"), text("a", "y"), directory("b", 0o700), text("b/c/a.txt", "z")])
    assert [entry.path for entry in arranged] == ["a", "b", "b/c", "b/c/a.txt", "b/c/d.txt"]
    assert arranged[1].mode == 0o700
    assert {entry.mtime for entry in arranged} == {MTIME}


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "a//b", "a/./b", "", "a\\..\\b", "a\0b", "a/"])
def test_a_name_that_leaves_its_place_is_refused(path: str) -> None:
    with pytest.raises(UnsafeInput):
        arrange([text(path, "x")])


def test_a_file_below_a_link_is_refused() -> None:
    with pytest.raises(UnsafeInput, match="no directory"):
        arrange([symlink("lib", "/etc"), text("lib/passwd", "x")])


def test_a_hard_link_comes_after_the_file_that_it_links_to() -> None:
    hard = tar.Entry("a/first", "hardlink", 0o755, MTIME, target="z/last")
    members = read_back(arrange([hard, tar.Entry("z/last", "file", 0o755, MTIME, tar.BytesContent(b"data"))]))
    assert members["a/first"].kind == "file"
    assert members["a/first"].data == b"data"
    assert members["z/last"].kind == "hardlink"
    assert members["z/last"].target == "a/first"


def test_a_hard_link_to_nothing_is_refused() -> None:
    with pytest.raises(UnsafeInput, match="hard link"):
        arrange([tar.Entry("a", "hardlink", 0o755, MTIME, target="etc/shadow")])


def test_a_measured_layer_is_not_read_again(tmp_path: Path) -> None:
    reads = []

    def entries() -> Iterator[tar.Entry]:
        reads.append(1)
        yield text("a", "content")

    recipe = Recipe("test", "a", key_of("test", "a"), entries)
    store = Store(tmp_path)
    first = recipe.measured(store)
    again = recipe.measured(Store(tmp_path))
    assert first == again
    assert len(reads) == 1
    assert first.descriptor.digest == "sha256:" + hashlib.sha256(b"".join(first.chunks())).hexdigest()
    assert first.descriptor.size == len(b"".join(first.chunks()))
