"""The door: ComfyUI loads the plugin from its folder, in an environment that has neither cpack-build nor its needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from cpack_build import __version__
from tests.nodes.comfy import PLUGIN
from tests.serve.running import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# As ComfyUI's nodes.py loads a custom node; `-I -S` leaves out every installed package.
LOAD = """
import importlib.util, json, sys, time
path = sys.argv[1]
before, began = set(sys.modules), time.perf_counter()
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
seconds = time.perf_counter() - began
print(json.dumps({
    "seconds": seconds,
    "nodes": sorted(module.NODE_CLASS_MAPPINGS),
    "named": sorted(module.NODE_DISPLAY_NAME_MAPPINGS),
    "web": module.WEB_DIRECTORY,
    "foreign": sorted(m for m in set(sys.modules) - before
                      if m.split(".")[0] not in sys.stdlib_module_names and not m.startswith(name)),
}))
"""


def test_the_door_opens_with_the_standard_library_alone(tmp_path: Path) -> None:
    (tmp_path / PLUGIN).symlink_to(ROOT)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOAD, str(tmp_path / PLUGIN)], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout)
    assert loaded["foreign"] == []
    assert len(loaded["nodes"]) == 17
    assert loaded["named"] == loaded["nodes"]
    assert (ROOT / loaded["web"] / "cpack.js").is_file()
    assert done.stderr == ""


def test_a_tool_may_read_the_door_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "__init__.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == ""


def test_the_plugins_modules_import_each_other_by_relative_names_alone() -> None:
    """Another `cpack_build` may be installed beside ComfyUI, of another version."""
    for path in (ROOT / "cpack_build" / "nodes").glob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("import cpack_build", "from cpack_build")), f"{path.name}: {line}"


def test_comfyuis_registry_is_told_what_it_asks_for() -> None:
    """ComfyUI-Manager knows an installed node by name and version, so the version stands there as it is."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, comfy = document["project"], document["tool"]["comfy"]
    assert project["version"] == __version__
    assert re.fullmatch(r"[a-z](?:[a-z0-9]|[-_.](?![-_.])){0,98}", project["name"])
    assert project["urls"]["Repository"]
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    assert "web" not in comfy  # the door names the folder, and ComfyUI would load it under two names
    icon = re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/main/(.+)", comfy["Icon"])
    assert icon is not None
    assert (ROOT / icon[1]).is_file()
    assert not (ROOT / "requirements.txt").exists()  # which ComfyUI-Manager would install into ComfyUI's environment
    assert not (ROOT / "install.py").exists()
