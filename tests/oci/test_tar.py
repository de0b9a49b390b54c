"""The tar writer's bytes depend on its entries alone, and every reader sees those entries."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpack_build.oci import tar

_NAMES = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x1F64F, exclude_characters="/", exclude_categories=("Cs", "Cc")),
    min_size=1,
    max_size=120,
).filter(lambda name: name not in (".", ".."))
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map("/".join)
_TARGETS = st.lists(_NAMES | st.just(".."), min_size=1, max_size=5).map("/".join)
_MODES = st.integers(0, 0o7777)
_TIMES = st.integers(0, 8**11 - 1)
_ENTRIES = st.one_of(
    st.builds(
        lambda path, mode, mtime, data: tar.Entry(path, "file", mode, mtime, tar.BytesContent(data)),
        _PATHS,
        _MODES,
        _TIMES,
        st.binary(max_size=1500),
    ),
    st.builds(lambda path, mode, mtime: tar.Entry(path, "directory", mode, mtime), _PATHS, _MODES, _TIMES),
    st.builds(
        lambda path, kind, target: tar.Entry(path, kind, 0o777, target=target),
        _PATHS,
        st.sampled_from(["symlink", "hardlink"]),
        _TARGETS,
    ),
)
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
}


@given(st.lists(_ENTRIES, max_size=6))
def test_what_is_written_is_what_tarfile_reads(entries: list[tar.Entry]) -> None:
    data = b"".join(tar.stream(entries))
    assert len(data) == tar.size_of(entries)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = archive.getmembers()
        assert len(members) == len(entries)
        for entry, member in zip(entries, members, strict=True):
            assert member.name == entry.path.rstrip("/")
            assert _KINDS[member.type] == entry.kind
            assert (member.mode, member.mtime) == (entry.mode, entry.mtime)
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert member.linkname == entry.target
            if entry.kind == "file":
                file = archive.extractfile(member)
                assert file is not None
                assert entry.content is not None
                assert file.read() == b"".join(entry.content.chunks())


@dataclass(frozen=True)
class Announced:
    size: int

    def chunks(self) -> Iterator[bytes]:
        raise AssertionError("only announced")


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 5 * 8**11 + 7])
def test_sizes_around_and_above_8_gib_are_read_back(size: int) -> None:
    head = tar.header(tar.Entry("big", "file", content=Announced(size)))
    with tarfile.open(fileobj=io.BytesIO(head + tar.trailer()), mode="r|") as archive:
        member = archive.next()
        assert member is not None
        assert (member.name, member.size) == ("big", size)
    assert (b"PaxHeader" in head) is (size >= 8**11), "a pax record only where ustar cannot hold the size"


def test_content_shorter_or_longer_than_announced_is_refused() -> None:
    class Lying:
        size = 5

        def chunks(self) -> Iterator[bytes]:
            yield b"1234"

    with pytest.raises(ValueError, match="4 bytes where 5"):
        list(tar.stream([tar.Entry("f", "file", content=Lying())]))


def test_the_bytes_are_those_of_image_format_revision_1() -> None:
    """If this fails, images built from old locks change: make a new revision instead (docs/image-format.md)."""
    entries = [
        tar.Entry("opt", "directory", 0o755, 1_700_000_000),
        tar.Entry("opt/a", "file", 0o644, 1_700_000_000, tar.BytesContent(b"a" * 513)),
        tar.Entry("opt/link", "symlink", 0o777, 1_700_000_000, target="../opt/a"),
        tar.Entry("opt/again", "hardlink", 0o644, 1_700_000_000, target="opt/a"),
        tar.Entry("opt/" + "long/" * 30 + "file", "file", 0o755, 1_700_000_000, tar.BytesContent(b"")),
        tar.Entry("opt/" + "x" * 200, "file", 0o755, 1_700_000_000, tar.BytesContent(b"x")),
        tar.Entry("opt/grün", "symlink", 0o777, 1_700_000_000, target="t" * 101),
    ]
    assert (
        hashlib.sha256(b"".join(tar.stream(entries))).hexdigest()
        == "018d2f17ec5020eee064b21b32efea0f86dcb224fd7ce2fe6c6ce242a92de380"
    )
