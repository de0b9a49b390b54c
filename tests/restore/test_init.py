"""``init``: a new workspace with its parts at pinned commits, locked like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import need
from tests.cli.calling import Caller
from tests.fetch.repositories import git, make_repository
from tests.restore.images import COMFYUI_FILES, COMFYUI_URL, NODE_FILES

_NODE = "https://nodes.example/team/fancy"


@pytest.mark.network
def test_a_new_workspace_has_what_was_asked_for_and_is_locked(call: Caller, tmp_path: Path) -> None:
    need.tool("apt-get")
    commit = make_repository(tmp_path / "ComfyUI", {**COMFYUI_FILES, "requirements.txt": "# none\nsix==1.17.0\n"})
    git(tmp_path / "ComfyUI", "tag", "v1")
    node = make_repository(tmp_path / "fancy", {**NODE_FILES, "requirements.txt": "idna==3.10\n-e .\n"})
    mirrors = ["--mirror", f"{COMFYUI_URL}={tmp_path / 'ComfyUI'}", "--mirror", f"{_NODE}={tmp_path / 'fancy'}"]
    root = tmp_path / "new"
    flags = ["--comfyui", "v1", "--no-manager", "--node", f"{_NODE}@{node}", *mirrors]
    outcome = call("init", root, *flags, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["comfyui"] == commit
    assert git(root / "custom_nodes/fancy", "rev-parse", "HEAD") == node
    names = {path.name.split("-")[0] for path in root.glob(".venv/lib/*/site-packages/*.dist-info")}
    assert {"six", "idna", "requests"} <= names
    assert call("plugin", "status", root, "--json").document["state"] == "current"
    assert call("restore", "--verify", root).code == 0
    again = call("init", root, *flags, "--json")
    assert again.code == 0, again
    assert again.document["made"] == 0


def test_a_node_without_a_version_is_refused(call: Caller, tmp_path: Path) -> None:
    make_repository(tmp_path / "ComfyUI", COMFYUI_FILES)
    git(tmp_path / "ComfyUI", "tag", "v1")
    mirror = f"{COMFYUI_URL}={tmp_path / 'ComfyUI'}"
    outcome = call("init", tmp_path / "n", "--comfyui", "v1", "--mirror", mirror, "--no-manager", "--node", _NODE)
    assert outcome.code == 2
    assert "URL@COMMIT" in outcome.err


_MANAGER_URL = "https://github.com/ltdrdata/ComfyUI-Manager"
_COMFYUI_AS_INIT_NAMES_IT = "https://github.com/comfyanonymous/ComfyUI"


@pytest.mark.network
def test_comfyui_manager_is_a_node_like_any_other(call: Caller, tmp_path: Path) -> None:
    """Its repository is a mirror's; of its files there are those that we read."""
    need.tool("apt-get")
    make_repository(tmp_path / "ComfyUI", COMFYUI_FILES)
    git(tmp_path / "ComfyUI", "tag", "v1")
    manager = tmp_path / "ComfyUI-Manager"
    files = {"__init__.py": "", "requirements.txt": "six==1.17.0\n", "pyproject.toml": "[project]\nname='m'\n"}
    commit = make_repository(manager, files)
    git(manager, "tag", "3.37")
    mirrors = [f"--mirror={_COMFYUI_AS_INIT_NAMES_IT}={tmp_path / 'ComfyUI'}", f"--mirror={_MANAGER_URL}={manager}"]
    root = tmp_path / "new"
    outcome = call("init", root, "--comfyui", "v1", "--manager", "3.37", "--no-plugin", *mirrors, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["nodes"] == {_MANAGER_URL: commit}
    installed = root / "custom_nodes/ComfyUI-Manager"
    assert git(installed, "rev-parse", "HEAD") == commit
    assert git(installed, "remote", "get-url", "origin") == _MANAGER_URL
    assert list(root.glob(".venv/lib/*/site-packages/six-1.17.0.dist-info"))
    assert call("restore", "--verify", root).code == 0


def test_without_a_word_it_is_the_manager_tested_with_and_one_that_is_not_there_is_named(
    call: Caller, tmp_path: Path
) -> None:
    make_repository(tmp_path / "ComfyUI", COMFYUI_FILES)
    git(tmp_path / "ComfyUI", "tag", "v1")
    make_repository(tmp_path / "ComfyUI-Manager", {"__init__.py": ""})
    mirrors = [
        f"--mirror={_COMFYUI_AS_INIT_NAMES_IT}={tmp_path / 'ComfyUI'}",
        f"--mirror={_MANAGER_URL}={tmp_path / 'ComfyUI-Manager'}",
    ]
    outcome = call("init", tmp_path / "n", "--comfyui", "v1", *mirrors)
    assert outcome.code == 4, outcome
    assert "3f030a2121d1ad42fcabac67946f2a67afe4cc31" in outcome.err
    assert "ComfyUI-Manager" in outcome.err
    outcome = call("init", tmp_path / "n", "--comfyui", "v1", "--manager", "no-such-tag", *mirrors)
    assert outcome.code == 4, outcome
    assert "no-such-tag" in outcome.err
    assert not (tmp_path / "n").exists()
