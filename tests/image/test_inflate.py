"""What comes out of a zip member is the same whoever inflates it, and broken ones are told."""

from __future__ import annotations

import random
import sys
import zipfile
from pathlib import Path

import pytest

from cpack_build.image.inflate import member_chunks

NOISE = random.Random(1)
CONTENTS = {
    "empty": b"",
    "small": b"x",
    "zeros": bytes(2 << 20),
    "noise": NOISE.randbytes((1 << 20) + 17),
    "text": b"".join(b"%d: a line of text\n" % number for number in range(100_000)),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("has_isal", [True, False])
def test_members_come_out_as_they_went_in(
    tmp_path: Path, compression: int, has_isal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_isal:
        monkeypatch.setitem(sys.modules, "isal", None)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as archive:
        for name, data in CONTENTS.items():
            archive.writestr(name, data)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        for info in archive.infolist():
            chunks = list(member_chunks(archive, info))
            assert b"".join(chunks) == CONTENTS[info.filename]
            assert max(map(len, chunks), default=0) <= 1 << 20


def test_what_is_cut_short_or_grows_beyond_what_was_announced_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", CONTENTS["zeros"])
    for change, error in (
        ({"compress_size": 100}, EOFError),
        ({"file_size": 1 << 20}, zipfile.BadZipFile),
        ({"header_offset": 7}, zipfile.BadZipFile),
        ({"header_offset": 1 << 20}, EOFError),
    ):
        with zipfile.ZipFile(path) as archive:
            (info,) = archive.infolist()
            for name, value in change.items():
                setattr(info, name, value)
            with pytest.raises(error):
                list(member_chunks(archive, info))
