"""ComfyUI installs made for a test: the stand-in's files, nodes of every kind, an environment, models and inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fetch.repositories import git, make_repository
from tests.standin.repository import COMFYUI, make_model

HUB = "https://hub.example/someone"

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "CPackInputImage", "inputs": {"image": "example.png"}, "_meta": {"title": "photo"}},
    "2": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "tiny.safetensors"}},
    "3": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["2", 0], "image": ["1", 0]}},
    "4": {"class_type": "CPackOutputImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
}
"""Uses ``input/example.png`` and ``models/upscale_models/tiny.safetensors``."""


def make_install(root: Path, *, with_git: bool = True) -> Path:
    """A ComfyUI at *root*: a commit of which the remote knows, ``venv``, one model, one input."""
    shutil.copytree(COMFYUI, root, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    if with_git:
        git(root, "init", "--quiet", "--initial-branch=master")
        (root / ".gitignore").write_text("/models/\n/input/\n/output/\n/custom_nodes/\n/venv/\n__pycache__/\n")
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", "ComfyUI")
        publish(root, "https://github.com/comfyanonymous/ComfyUI.git")
    make_environment(root / "venv", {"torch": "2.3.0+cpu", "PyYAML": "6.0"})
    make_model(root / "models/upscale_models/tiny.safetensors", size=64)
    (root / "input").mkdir(exist_ok=True)
    (root / "input/example.png").write_bytes(b"\x89PNG\r\n\x1a\n not really a picture")
    return root


def publish(folder: Path, url: str, *, remote: str = "origin") -> str:
    """Have the repository believe that *remote* is at *url* and has its commit; returns the commit."""
    commit = git(folder, "rev-parse", "HEAD")
    git(folder, "config", f"remote.{remote}.url", url)
    git(folder, "update-ref", f"refs/remotes/{remote}/main", commit)
    return commit


def make_git_node(folder: Path, *, url: str = "", files: Mapping[str, str | bytes] | None = None) -> str:
    """A custom node that is a clone, its files checked out; returns the commit. Without *url* it has no remote."""
    make_repository(folder, files or {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"})
    git(folder, "checkout", "--quiet", "--force", "HEAD")
    return publish(folder, url) if url else git(folder, "rev-parse", "HEAD")


def make_registry_node(folder: Path, *, name: str = "some-node", version: str = "1.2.3") -> None:
    """A custom node as ComfyUI-Manager installs it from the registry."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "{version}"\n[tool.comfy]\nPublisherId = "someone"\n'
    )
    (folder / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (folder / ".tracking").write_text("pyproject.toml\n__init__.py\n")


def make_environment(folder: Path, packages: Mapping[str, str], *, version: str = "3.11") -> Path:
    """A virtual environment with *packages* (name → version), none of which has any code; its site-packages."""
    library = folder / f"lib/python{version}/site-packages"
    library.mkdir(parents=True, exist_ok=True)
    (folder / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}.7\n"
    )
    for name, of in packages.items():
        add_package(library, name, of)
    return library


def add_package(library: Path, name: str, version: str, *, direct_url: Any = None) -> None:
    """A ``dist-info`` folder in *library*; *direct_url* is its PEP 610 document."""
    info = library / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nWords.\n")
    if direct_url is not None:
        (info / "direct_url.json").write_text(json.dumps(direct_url))
