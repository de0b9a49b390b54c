"""The same lock gives the same image wherever and by whomever it is built: each build differs from the first in one
thing that must not matter, and each is a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import need
from tests.image.golden.building import INPUTS

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Way:
    """One way to build. *command* goes before Python, *inputs* makes a copy of the inputs in a folder."""

    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    umask: int = 0o022
    workers: int = 2
    folder: str = "plain"
    inputs: Callable[[Path], object] = lambda folder: shutil.copytree(INPUTS, folder)
    shared_memory: bool = False


def backwards(folder: Path) -> None:
    """The inputs, written in the other order, with other times and modes."""
    folder.mkdir()
    for number, path in enumerate(sorted(INPUTS.iterdir(), reverse=True)):
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        os.utime(copy, (number, number))


WAYS = {
    "another directory": Way(folder="elsewhere, with spaces/ü/" + "x" * 60),
    "another umask": Way(umask=0o077),
    "another locale": Way({"LC_ALL": "C", "LANG": "tr_TR.UTF-8", "PYTHONUTF8": "0"}),
    "another time zone": Way({"TZ": "Pacific/Chatham"}),
    "another host": Way(
        command=("unshare", "--map-root-user", "--uts", "sh", "-c", 'hostname else.where.example; exec "$@"', "sh")
    ),
    "another user": Way({"HOME": "/nonexistent", "USER": "x"}, ("unshare", "--user", "--map-user=4321")),
    "another hash seed": Way({"PYTHONHASHSEED": "4242"}),
    "one worker": Way(workers=1),
    "many workers": Way(workers=16),
    "another order of files, on another file system": Way(inputs=backwards, shared_memory=True),
}


def build(place: Path, way: Way, *, python: str = sys.executable) -> dict[str, Any]:
    if way.command:
        need.tool(way.command[0])
        if subprocess.run([*way.command, "true"], check=False, capture_output=True).returncode:
            need.missing("permission to unshare namespaces")
    folder = place / way.folder
    folder.mkdir(parents=True)
    way.inputs(folder / "inputs")
    done = subprocess.run(
        [
            *way.command,
            python,
            "-m",
            "tests.image.golden",
            "build",
            folder / "inputs",
            folder / "store",
            str(way.workers),
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", **way.environment},
        umask=way.umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build(tmp_path_factory.mktemp("first"), Way())


@pytest.mark.parametrize("name", WAYS)
def test_a_build_gives_the_same_image(name: str, first: dict[str, Any], tmp_path: Path) -> None:
    way = WAYS[name]
    place = tmp_path
    if way.shared_memory:
        place = Path("/dev/shm") / f"cpack-{os.getpid()}"
        if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
            need.missing("a second file system at /dev/shm")
    try:
        assert build(place, way) == first
    finally:
        if way.shared_memory:
            shutil.rmtree(place, ignore_errors=True)


def interpreter(version: str) -> str | None:
    """A Python of that minor version on PATH, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))):
        if path and not subprocess.run([path, "-c", "import venv"], check=False, capture_output=True).returncode:
            return str(path)
    return None


@pytest.mark.network
@pytest.mark.parametrize("minor", range(10, 15))
def test_every_python_that_is_here_builds_the_same_image(minor: int, first: dict[str, Any], tmp_path: Path) -> None:
    """The packages are installed for it first; one that is not here is skipped also where all tools must be."""
    from uv import find_uv_bin

    if minor == sys.version_info.minor:
        pytest.skip(f"python3.{minor} has built the others")
    python = interpreter(f"3.{minor}")
    if python is None:
        pytest.skip(f"needs python3.{minor}")
    uv = find_uv_bin()
    subprocess.run([uv, "venv", "--quiet", "--python", python, tmp_path / "venv"], check=True)
    own = str(tmp_path / "venv/bin/python")
    subprocess.run([uv, "pip", "install", "--quiet", "--python", own, "--editable", str(ROOT), "pytest"], check=True)
    found = build(tmp_path / "x", Way(), python=own)
    for name, image in found["images"].items():
        same = {*image["manifests"]} & {*first["images"][name]["manifests"]}
        assert image["id"] == first["images"][name]["id"]
        assert [image["manifests"][form] for form in sorted(same)] == [
            first["images"][name]["manifests"][form] for form in sorted(same)
        ]
    assert found["layers"] == first["layers"]
