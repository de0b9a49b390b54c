"""``plugin install|status|remove``: this version's plugin in a workspace, and nothing of anybody else's touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpack_build import __version__
from cpack_build.cpack.reader import read_pack
from cpack_build.workspace.plugin import DOOR
from tests.cli.calling import Caller
from tests.nodes.test_door import LOAD
from tests.serve.running import ROOT
from tests.workspace.installs import WORKFLOW, make_install


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_install(tmp_path / "ComfyUI")


def test_the_copys_door_is_the_repositorys(root: Path) -> None:
    assert (ROOT / "__init__.py").read_text() == DOOR


def test_a_copy_is_put_there_seen_kept_and_taken_away(call: Caller, root: Path) -> None:
    place = root / "custom_nodes" / "cpack-build"
    before = sorted(root.rglob("*"))
    planned = call("plugin", "install", root, "--dry-run", "--json")
    assert (planned.code, planned.document["done"]) == (0, "installed")
    assert not place.exists()
    assert call("plugin", "status", root, "--json").document["state"] == "absent"
    done = call("plugin", "install", root, "--json")
    assert done.document == {
        "path": str(place), "state": "current", "version": __version__, "changed": [],
        "done": "installed", "dry_run": False,
    }  # fmt: skip
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", LOAD, place], capture_output=True, text=True, check=True)
    assert len(json.loads(loaded.stdout)["nodes"]) == 17  # and Python left its bytecode there
    assert call("plugin", "install", root, "--json").document["done"] == "kept"
    assert call("plugin", "status", root, "--json").document["state"] == "current"
    assert call("plugin", "remove", root, "--dry-run", "--json").document["done"] == "removed"
    assert place.is_dir()
    assert call("plugin", "remove", root, "--json").document["done"] == "removed"
    assert call("plugin", "remove", root, "--json").document["done"] == "kept"
    assert sorted(root.rglob("*")) == before


def test_another_version_is_replaced(call: Caller, root: Path) -> None:
    call("plugin", "install", root)
    place = root / "custom_nodes" / "cpack-build"
    listed = json.loads((place / "cpack-plugin.json").read_text())
    name = next(name for name in listed["files"] if name.endswith("places.py"))
    (place / name).rename(place / "old.py")  # as a version that had other files
    listed["files"]["old.py"] = listed["files"].pop(name)
    (place / "cpack-plugin.json").write_text(json.dumps({**listed, "version": "0.0.1"}))
    assert call("plugin", "status", root, "--json").document["state"] == "outdated"
    assert call("plugin", "install", root, "--json").document["done"] == "updated"
    assert call("plugin", "status", root, "--json").document["state"] == "current"
    assert not (place / "old.py").exists()


@pytest.mark.parametrize("kind", ["foreign", "edited", "added", "linked within", "clone", "elsewhere", "file"])
def test_what_is_not_our_copy_is_never_touched(call: Caller, root: Path, tmp_path: Path, kind: str) -> None:
    place = root / "custom_nodes" / "cpack-build"
    if kind in ("edited", "added", "linked within"):
        call("plugin", "install", root)
        if kind == "edited":
            (place / "cpack_build" / "web" / "cpack.js").write_text("mine")
        elif kind == "added":
            (place / "cpack_build" / "mine.py").write_text("mine")
        else:
            shutil.copy(place / "__init__.py", tmp_path / "same")
            (place / "__init__.py").unlink()
            (place / "__init__.py").symlink_to(tmp_path / "same")
    elif kind == "foreign":
        place.mkdir(parents=True)
        (place / "__init__.py").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    elif kind == "elsewhere":
        place.symlink_to(tmp_path)
    else:
        place = place.with_name("my.clone")
        (place / "cpack_build" / "nodes").mkdir(parents=True)
        (place / "cpack_build" / "nodes" / "registration.py").write_text("mine")
    before = sorted(path for path in root.rglob("*"))
    for verb in ("install", "remove"):
        refused = call("plugin", verb, root)
        assert refused.code == 8, refused
        assert str(place) in refused.err
    assert sorted(path for path in root.rglob("*")) == before


def test_a_link_leads_to_the_clone_and_is_all_that_is_removed(call: Caller, root: Path) -> None:
    assert call("plugin", "install", root, "--link", "--json").document["state"] == "linked"
    place = root / "custom_nodes" / "cpack-build"
    assert place.resolve() == ROOT
    assert call("plugin", "install", root, "--json").document["done"] == "kept"
    assert call("plugin", "remove", root, "--json").document["done"] == "removed"
    assert (ROOT / "__init__.py").is_file()
    assert not place.is_symlink()


def test_a_pack_has_the_plugin_without_asking_and_nothing_of_this_machine(
    call: Caller, root: Path, tmp_path: Path
) -> None:
    call("plugin", "install", root)
    place = root / "custom_nodes" / "cpack-build"
    (place / ".cpack-tool").write_text("/home/somebody/bin/cpack-build\n")
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))
    done = call("pack", root, "-w", tmp_path / "w.json", "--offline", "-o", tmp_path / "w.cpack.zip")
    assert done.code == 0, done.err
    names = set(read_pack(tmp_path / "w.cpack.zip").other)
    listed = json.loads((place / "cpack-plugin.json").read_text())["files"]
    assert names == {f"nodes/cpack-build/{name}" for name in (*listed, "cpack-plugin.json")}
    (place / "cpack_build" / "nodes" / "places.py").write_text("# mine\n")
    refused = call("pack", root, "-w", tmp_path / "w.json", "--offline", "-o", tmp_path / "x.cpack.zip")
    assert refused.code == 8  # somebody's own code, like any other


def test_a_folder_without_comfyui_is_refused(call: Caller, tmp_path: Path) -> None:
    assert call("plugin", "install", tmp_path).code == 3
