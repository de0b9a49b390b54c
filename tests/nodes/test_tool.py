"""The command-line tool is found where it may be, asked once, and named in words where it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpack_build import __version__
from cpack_build.nodes.errors import Failed
from cpack_build.nodes.tool import Tool
from cpack_build.workspace.place import find_comfyui
from cpack_build.workspace.plugin import install_plugin
from tests.nodes.routing import Comfyui, fake_tool, running, workflow
from tests.serve.running import wait_for
from tests.workspace.installs import make_install


def test_it_is_found_by_its_variable_beside_the_plugin_and_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "clone/.venv/bin").mkdir(parents=True)
    fake_tool(tmp_path / "bin")
    on_path = {"PATH": str(tmp_path / "bin")}
    if not Path(sys.executable).with_name("cpack-build").exists():
        assert Tool(tmp_path, on_path).require().path == str(tmp_path / "bin/cpack-build")
    fake_tool(tmp_path / "clone/.venv/bin")
    assert Tool(tmp_path / "clone", on_path).require().path == str(tmp_path / "clone/.venv/bin/cpack-build")
    named = Tool(tmp_path / "clone", {**on_path, "CPACK_BUILD": str(tmp_path / "bin/cpack-build")})
    assert named.require().path == str(tmp_path / "bin/cpack-build")
    assert named.require().version == "9.9.9"


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho 1\n", "#!/bin/sh\necho '[]'\n", "no program"])
def test_a_program_that_is_something_else_is_not_taken(tmp_path: Path, text: str) -> None:
    program = tmp_path / "cpack-build"
    program.write_text(text)
    program.chmod(0o755)
    tool = Tool(tmp_path, {"CPACK_BUILD": str(program)})
    with pytest.raises(Failed) as caught:
        tool.require()
    assert caught.value.code == "tool_missing"
    assert str(program) in caught.value.message
    assert "pip install" in caught.value.next


def test_its_environment_is_not_that_of_comfyui_s_python(tmp_path: Path) -> None:
    given = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/y", "HTTPS_PROXY": "http://proxy.example"}
    made = Tool(tmp_path, given).environment(TOKEN="x")
    assert "PYTHONPATH" not in made
    assert "VIRTUAL_ENV" not in made
    assert made["HTTPS_PROXY"] == "http://proxy.example"
    assert made["TOKEN"] == "x"


def test_a_registry_s_password_goes_to_no_other_that_a_page_names(tmp_path: Path) -> None:
    login = {"CPACK_REGISTRY_USER": "u", "CPACK_REGISTRY_PASSWORD": "p"}
    assert not login.keys() & Tool(tmp_path, login).environment().keys()
    bound = login | {"CPACK_REGISTRY": "registry.example"}
    assert bound.items() <= Tool(tmp_path, bound).environment().items()


def test_the_status_tells_the_tool_and_this_comfyui(comfyui: Comfyui) -> None:
    told = wait_for(lambda: (found := comfyui.get("/cpack/status").json())["tool"]["found"] and found, "the tool")
    assert told["version"] == __version__
    assert told["tool"]["version"] == __version__
    assert told["comfyui"]["version"]
    assert told["folder"] == "ComfyUI"
    assert told["serve"] is None


def test_without_the_tool_comfyui_works_and_the_status_says_how_to_get_it(tmp_path: Path) -> None:
    with running(tmp_path, CPACK_BUILD=str(tmp_path / "nowhere")) as comfyui:
        told = wait_for(
            lambda: (found := comfyui.get("/cpack/status").json())["tool"]["problem"] and found, "the search"
        )
        assert told["tool"]["found"] is False
        assert "CPACK_BUILD" in told["tool"]["how"]
        job = comfyui.over(comfyui.start("pack", name="x", prompt=workflow()))
        assert job["error"]["code"] == "tool_missing"
        assert "pip install" in job["error"]["next"]


def test_a_copy_needs_nothing_that_comfyui_s_python_lacks(tmp_path: Path) -> None:
    """Every module of the plugin, from a copy that was put into a workspace, by a Python without any package."""
    install_plugin(find_comfyui(make_install(tmp_path / "ComfyUI")))
    door = tmp_path / "ComfyUI/custom_nodes/cpack-build"
    script = f"""
import importlib, importlib.util, pathlib, sys
door = pathlib.Path({str(door)!r})
spec = importlib.util.spec_from_file_location("door", door / "__init__.py", submodule_search_locations=[str(door)])
sys.modules["door"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["door"])
for file in sorted((door / "cpack_build/nodes").glob("*.py")):
    importlib.import_module(f"door.cpack_build.nodes.{{file.stem}}")
print(sorted(name for name in sys.modules if name.startswith("door."))[-1])
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("door.cpack_build.nodes.")
