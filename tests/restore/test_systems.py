"""Windows and macOS, as far as they can be had here: links that are refused, long paths, no executable bit."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from cpack_build import filesystem
from cpack_build.errors import UnsafeInput
from cpack_build.fetch.store import Store
from cpack_build.restore import folder as folders
from cpack_build.restore import models, verify
from cpack_build.restore.folder import Folder, extended
from tests.cli.calling import Caller
from tests.restore.images import MODEL, NODE_FILES, WEIGHTS, World, make_world

NODE = "custom_nodes/fancy"


class NoPrivilegeError(OSError):
    """What Windows without Developer Mode raises: its own number, and errno EINVAL."""

    winerror = 1314

    def __init__(self) -> None:
        super().__init__(errno.EINVAL, "A required privilege is not held by the client")


REFUSALS = [PermissionError(errno.EPERM, "no"), OSError(errno.EOPNOTSUPP, "no"), NoPrivilegeError()]


def refuse_links(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refused(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(os, "symlink", refused)


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> World:
    links = {"again.py": "tools/run.py", "tools/second.py": "../again.py"}
    return make_world(tmp_path_factory.mktemp("linked"), node_links=links)


@pytest.mark.parametrize("error", REFUSALS, ids=["vfat", "smb", "windows"])
def test_where_links_are_refused_a_copy_stands_in_for_a_tree_s_link(
    linked: World, call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: OSError
) -> None:
    root, flags = tmp_path / "w", ("--no-venv", "--offline", "--json")
    with monkeypatch.context() as without:
        refuse_links(without, error)
        outcome = call("restore", f"oci:{linked.layout}", "-d", root, *flags)
        assert outcome.code == 0, outcome
        for name in ("again.py", "tools/second.py"):
            assert not (root / NODE / name).is_symlink()
            assert (root / NODE / name).read_text() == NODE_FILES["tools/run.py"]
        assert call("restore", f"oci:{linked.layout}", "-d", root, *flags).document["made"] == 0
    assert call("restore", "--verify", root).code == 0
    (root / NODE / "again.py").write_text("changed")
    changed = call("restore", "--verify", root)
    assert (changed.code, "again.py has changed" in changed.out) == (1, True)
    outcome = call("restore", f"oci:{linked.layout}", "-d", root, *flags)
    assert outcome.code == 8, "what its owner wrote there is not replaced"
    (root / NODE / "again.py").unlink()
    assert call("restore", f"oci:{linked.layout}", "-d", root, *flags).code == 0
    assert (root / NODE / "again.py").is_symlink(), "now that links can be made"
    assert call("restore", "--verify", root).code == 0


def test_a_file_in_the_place_of_a_link_is_no_stand_in_by_itself(linked: World, call: Caller, tmp_path: Path) -> None:
    root, flags = tmp_path / "w", ("--no-venv", "--offline")
    assert call("restore", f"oci:{linked.layout}", "-d", root, *flags).code == 0
    (root / NODE / "again.py").unlink()
    (root / NODE / "again.py").write_text(NODE_FILES["tools/run.py"])
    assert call("restore", "--verify", root).code == 1


@pytest.mark.parametrize("target", ["tools", "nothing"])
def test_a_link_that_nothing_can_stand_in_for_is_told(
    call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    world = make_world(tmp_path / "world", node_links={"aside": target})
    refuse_links(monkeypatch, REFUSALS[0])
    outcome = call("restore", f"oci:{world.layout}", "-d", tmp_path / "w", "--no-venv", "--offline")
    assert outcome.code == 9, outcome
    assert f"aside is a link to '{target}'" in outcome.err
    assert "Developer Mode" in outcome.err
    assert not json.loads((tmp_path / "w/.cpack/state.json").read_text())["complete"]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_a_model_is_copied_where_no_link_of_any_kind_can_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str
) -> None:
    store = Store(tmp_path / "store")
    file = store.put([WEIGHTS], what="a model")

    def refused(*arguments: object, **named: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(filesystem, "share_blocks", lambda source, target: False)
    monkeypatch.setattr(os, "link", refused)
    refuse_links(monkeypatch, REFUSALS[0])
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(folders, "extended", lambda path, windows: path)  # a path of Windows is none here
    folder = Folder(tmp_path / "w", below_handles=system != "win32")
    assert models.place_model(folder, MODEL, file, how="link", store=store) == "copy"
    folder.close()
    assert (tmp_path / "w" / MODEL).read_bytes() == WEIGHTS
    assert not (tmp_path / "w" / MODEL).is_symlink()


def test_on_windows_a_model_is_hard_linked_where_that_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    file = store.put([WEIGHTS], what="a model")
    refuse_links(monkeypatch, NoPrivilegeError())
    monkeypatch.setattr(filesystem, "share_blocks", lambda source, target: False)
    folder = Folder(tmp_path / "w", below_handles=False)
    assert models.place_model(folder, MODEL, file, how="link", store=store) == "hard link"
    assert (tmp_path / "w" / MODEL).samefile(file.path)


@pytest.mark.parametrize(
    ("path", "long"),
    [
        ("C:\\w", "\\\\?\\C:\\w"),
        ("\\\\server\\share\\w", "\\\\?\\UNC\\server\\share\\w"),
        ("\\\\?\\C:\\w", "\\\\?\\C:\\w"),
    ],
)
def test_windows_is_given_paths_that_may_be_long(path: str, long: str) -> None:
    assert extended(path, windows=True) == long
    assert extended("/w", windows=False) == "/w"


def test_paths_longer_than_windows_usual_260_are_written_below_handles_or_without(tmp_path: Path) -> None:
    for below_handles in (True, False):
        folder = Folder(tmp_path / f"w{below_handles}", below_handles=below_handles)
        path = "/".join(["a" * 200] * 4) + "/x"
        folder.write(path, [b"1"])
        assert folder.read(path) == b"1"
        folder.close()


def test_names_as_long_as_a_file_system_takes_are_restored_and_longer_ones_refused(
    call: Caller, tmp_path: Path
) -> None:
    files = {"__init__.py": "", "n" * 255: "one", "sub/" + "ä" * 127: "two"}
    world = make_world(tmp_path / "world", node_files=files)
    outcome = call("restore", f"oci:{world.layout}", "-d", tmp_path / "w", "--no-venv", "--offline")
    assert outcome.code == 0, outcome
    assert {(tmp_path / "w" / NODE / name).read_text() for name in files} == {"", "one", "two"}
    folder = Folder(tmp_path / "v")
    with pytest.raises(UnsafeInput, match="too long"):
        folder.write("n" * 256, [b"1"])
    folder.close()


@pytest.mark.parametrize(("name", "drifts"), [("posix", 1), ("nt", 0)])
def test_the_executable_bit_counts_where_there_is_one(
    linked: World, call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, drifts: int
) -> None:
    root = tmp_path / "w"
    assert call("restore", f"oci:{linked.layout}", "-d", root, "--no-venv", "--offline").code == 0
    (root / "main.py").chmod(0o755)

    class System:
        """``os`` of another system, for what ``verify`` asks of it."""

    System.name = name  # type: ignore[attr-defined]
    monkeypatch.setattr(verify, "os", System)
    assert call("restore", "--verify", root).code == drifts
