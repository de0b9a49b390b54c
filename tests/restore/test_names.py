"""Names that the file system of a workspace cannot all have, and links that lead out: refused before anything is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cpack_build.errors import UnsafeInput
from cpack_build.restore.folder import escapes
from cpack_build.restore.names import Folding, check_names, folding_of, windows_problem


@pytest.mark.parametrize(
    "path", ["con", "a/NUL.txt", "COM1", "a/lpt9.py", "a:b", "x/what?.png", "end.", "end ", "a/" + "ä" * 256, "conin$"]
)
def test_what_windows_cannot_have_is_named(path: str) -> None:
    assert windows_problem(path)
    with pytest.raises(UnsafeInput, match="Linux"):
        check_names([path], windows=True, folding=Folding(), what="it")
    check_names([path], windows=False, folding=Folding(), what="it")


@pytest.mark.parametrize("path", ["console.py", "a/comma.txt", "models/x.safetensors", ".gitignore", "com10"])
def test_what_windows_can_have_is_not_refused(path: str) -> None:
    assert windows_problem(path) == ""


_CASE, _COMPOSITION = Folding(case=True), Folding(composition=True)
_BOTH = Folding(case=True, composition=True)


@pytest.mark.parametrize(
    ("twins", "folding", "others"),
    [
        (("A.py", "a.py"), _CASE, _COMPOSITION),
        (("Dir/x", "dir/y"), _CASE, _COMPOSITION),
        (("straße", "STRASSE"), _CASE, _COMPOSITION),
        (("é", "e\u0301"), _COMPOSITION, _CASE),
        (("é/x", "e\u0301/y"), _COMPOSITION, _CASE),
        (("É", "e\u0301"), _BOTH, _CASE),
    ],
)
def test_names_that_one_file_system_takes_for_one_are_refused_there(
    twins: tuple[str, str], folding: Folding, others: Folding
) -> None:
    for one in (folding, _BOTH):
        with pytest.raises(UnsafeInput, match="would be one file"):
            check_names(twins, windows=False, folding=one, what="it")
    for other in (Folding(), others):
        check_names(twins, windows=False, folding=other, what="it")


class _FoldedPath(type(Path())):  # type: ignore[misc]  # the path of this system, whichever it is
    """A path on a file system that takes names for one: each name is stored folded. (No such file system can be mounted
    everywhere: ext4 and tmpfs need a kernel with ``CONFIG_UNICODE``, and ZFS one with ZFS.)"""

    folding = Folding()

    def _stored(self) -> Path:
        return Path(self.parent, self.folding(self.name))

    def touch(self, *arguments: object, **more: object) -> None:
        self._stored().touch()

    def exists(self, **more: object) -> bool:
        return self._stored().exists()

    def unlink(self, *arguments: object) -> None:
        self._stored().unlink()


@pytest.mark.parametrize("folding", [Folding(), _CASE, _COMPOSITION, _BOTH])
def test_what_a_file_system_takes_for_one_is_found_by_trying(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folding: Folding
) -> None:
    monkeypatch.setattr(_FoldedPath, "folding", folding)
    assert folding_of(_FoldedPath(tmp_path)) == folding
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_such_names_takes_none_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Plain(_FoldedPath):
        def touch(self, *arguments: object, **more: object) -> None:
            if not self.name.isascii():
                raise OSError(errno.EILSEQ, "Invalid or incomplete multibyte or wide character")
            super().touch()

    assert folding_of(Plain(tmp_path)) == Folding()


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("a", "b", False),
        ("a/b", "../c", False),
        ("a", "../c", True),
        ("a", "/c", True),
        ("a", "C:/x", True),
        ("a", "", True),
    ],
)
def test_links_are_judged_by_where_they_stand(path: str, target: str, out: bool) -> None:
    assert escapes(path, target) is out
