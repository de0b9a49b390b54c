"""Packages are read from whatever environment a workspace has; nothing of this machine is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpack_build.errors import BadInput, Unresolvable
from cpack_build.workspace.packages import find_environment, read_packages
from cpack_build.workspace.place import find_comfyui
from tests.workspace.installs import HUB, add_package, make_git_node, make_install


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_install(tmp_path / "portable/ComfyUI", with_git=False)


def test_a_virtual_environment_is_found_and_read(root: Path) -> None:
    library = root / "venv/lib/python3.11/site-packages"
    add_package(library, "bentoml", "1.4")
    add_package(library, "nvidia-cublas-cu12", "12.1")
    add_package(library, "Some.Name_x", "1.0.0")
    (library / "~orch-1.dist-info").mkdir()
    environment = find_environment(find_comfyui(root))
    assert (environment.kind, environment.version) == ("virtual environment", "3.11")
    packages = read_packages(environment)
    assert packages.pins == {"pyyaml==6.0": "", "some-name-x==1.0.0": "", "torch==2.3.0+cpu": ""}
    assert len(packages.notes) == 1


def test_a_portable_windows_folder(root: Path) -> None:
    (root / "venv").rename(root / "elsewhere")
    library = root.parent / "python_embeded/Lib/site-packages"
    library.mkdir(parents=True)
    (root.parent / "python_embeded/python312._pth").write_text("python312.zip\n.\nimport site\n")
    add_package(library, "torch", "2.6.0+cu126")
    environment = find_environment(find_comfyui(root.parent))
    assert (environment.kind, environment.version) == ("embedded Python", "3.12")
    assert read_packages(environment).pins == {"torch==2.6.0+cu126": ""}


def test_a_conda_environment_named_by_its_python(root: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "conda"
    library = prefix / "lib/python3.10/site-packages"
    library.mkdir(parents=True)
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta/python-3.10.14-h955ad1f_1.json").write_text("{}")
    (prefix / "bin").mkdir()
    (prefix / "bin/python").write_text("")
    add_package(library, "numpy", "1.26.4")
    environment = find_environment(find_comfyui(root), prefix / "bin/python")
    assert (environment.kind, environment.version) == ("conda environment", "3.10")
    assert read_packages(environment).pins == {"numpy==1.26.4": ""}


def test_a_system_python_of_debian(root: Path, tmp_path: Path) -> None:
    for below, name in (("lib/python3/dist-packages", "pillow"), ("local/lib/python3.11/dist-packages", "torch")):
        (tmp_path / "usr" / below).mkdir(parents=True)
        add_package(tmp_path / "usr" / below, name, "1.0")
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/python3").write_text("")
    environment = find_environment(find_comfyui(root), tmp_path / "usr/bin/python3")
    assert (environment.kind, environment.version) == ("system Python", "3.11")
    assert set(read_packages(environment).pins) == {"pillow==1.0", "torch==1.0"}


def test_what_came_from_elsewhere_keeps_its_origin_without_secrets(root: Path, tmp_path: Path) -> None:
    library = root / "venv/lib/python3.11/site-packages"
    commit = make_git_node(tmp_path / "clone", url=f"{HUB}/editable.git")
    (tmp_path / "plain").mkdir()
    documents = {
        "vcs": {"url": "https://me:tok@hub.example/vcs.git", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}},
        "ssh": {"url": "git@hub.example:me/ssh.git", "vcs_info": {"vcs": "git", "commit_id": "b" * 40}},
        "archive": {
            "url": "https://me:tok@hub.example/archive-1.0.whl?token=t",
            "archive_info": {"hashes": {"sha256": "c" * 64}},
        },
        "editable": {"url": (tmp_path / "clone").as_uri(), "dir_info": {"editable": True}},
        "plain": {"url": (tmp_path / "plain").as_uri(), "dir_info": {"editable": True}},
        "wheel": {"url": "file:///home/alice/wheel-1.0.whl", "archive_info": {}},
    }
    for name, document in documents.items():
        add_package(library, name, "1.0", direct_url=document)
    (library / "old.egg-link").write_text(f"{tmp_path / 'clone'}\n.")
    packages = read_packages(find_environment(find_comfyui(root)))
    assert packages.pins == {
        "archive": f"https://hub.example/archive-1.0.whl#sha256={'c' * 64}",
        "editable": f"git+{HUB}/editable.git@{commit}",
        "old": f"git+{HUB}/editable.git@{commit}",
        "plain==1.0": "",
        "pyyaml==6.0": "",
        "ssh": f"git+ssh://git@hub.example/me/ssh.git@{'b' * 40}",
        "torch==2.3.0+cpu": "",
        "vcs": f"git+https://hub.example/vcs.git@{'a' * 40}",
        "wheel==1.0": "",
    }
    assert str(tmp_path) not in json.dumps([packages.pins, packages.notes])
    assert "alice" not in json.dumps([packages.pins, packages.notes])


def test_broken_metadata_is_named(root: Path) -> None:
    library = root / "venv/lib/python3.11/site-packages"
    add_package(library, "odd", "1.0")
    (library / "odd-1.0.dist-info/direct_url.json").write_text("{")
    (library / "bad-1.0.dist-info").mkdir()
    (library / "bad-1.0.dist-info/METADATA").write_bytes(b"\xff\xfe\0")
    packages = read_packages(find_environment(find_comfyui(root)))
    assert "odd==1.0" in packages.pins
    assert len(packages.notes) == 2


def test_no_environment_is_an_error_that_says_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "venv").rename(root / "elsewhere")
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unresolvable, match="--python"):
        find_environment(find_comfyui(root))
    with pytest.raises(BadInput, match="is no Python environment"):
        find_environment(find_comfyui(root), root / "models")
