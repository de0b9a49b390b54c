"""The house is as its papers say: rooms, arrows, the files in the wheel, the door for ComfyUI, Makefile and README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from tests import need

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted(path.parent.name for path in (ROOT / "cpack_build").glob("*/__init__.py"))


def _table() -> dict[str, set[str]]:
    """Room → what it may import, from CONTRIBUTING.md."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\| ([^|]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {room: set(may.split(", ")) - {"–"} for room, may in rows}


def test_the_map_has_every_room() -> None:
    assert sorted(_table()) == ROOMS


def test_the_contracts_are_the_arrows_of_the_map() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    forbidden = {
        tuple(contract["source_modules"]): set(contract["forbidden_modules"])
        for contract in project["tool"]["importlinter"]["contracts"]
    }
    for room, may in _table().items():
        if may == {"everything"}:
            continue
        others = {f"cpack_build.{other}" for other in ROOMS if other != room and other not in may}
        assert forbidden.pop((f"cpack_build.{room}",)) == others, room
    assert forbidden == {
        ("cpack_build.errors", "cpack_build.filesystem", "cpack_build.progress"): {
            f"cpack_build.{room}" for room in ROOMS
        }
    }


def test_every_module_begins_by_saying_what_it_is_for() -> None:
    for path in (ROOT / "cpack_build").rglob("*.py"):
        assert path.read_text().startswith('"""'), path


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Built as a release would be; what is in it is what git has (or would take) below cpack_build, and its papers."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    listed = subprocess.run(
        [need.tool("git"), "ls-files", "--cached", "--others", "--exclude-standard", "cpack_build"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    papers = {name for name in names if ".dist-info/" in name}
    added = {f"cpack_build/nix-expressions/{path.name}" for path in (ROOT / "nix").glob("*.nix")}
    added |= {f"cpack_build/{path.relative_to(ROOT)}" for path in (ROOT / "locales").rglob("*.json")}
    assert names - papers == {name for name in listed if (ROOT / name).is_file()} | added
    assert {name.split("/", 1)[1] for name in papers} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert {"cpack_build/py.typed", "cpack_build/serve/requirements.txt"} <= names


def test_make_has_the_targets_that_a_newcomer_would_guess() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert {"setup", "demo", "demo-comfyui", "test", "lint", "bench", "docs", "clean"} <= targets
    for name in re.findall(r"\$\(VENV\)/python (\S+\.py)", text):
        assert (ROOT / name).is_file(), name


def test_make_parses_and_explains_itself() -> None:
    done = subprocess.run([need.tool("make"), "-C", str(ROOT)], check=True, capture_output=True, text=True)
    assert "make demo" in done.stdout


@pytest.mark.parametrize("script", [".ci/run", ".ci/venv", ".ci/docker-next"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    shell = path.read_text().splitlines()[0].removeprefix("#!")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_papers_name_only_files_that_exist() -> None:
    for paper in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", paper.read_text()):
            assert (paper.parent / target).exists(), f"{paper.name} links to {target}"


def test_the_readme_names_only_verbs_and_flags_that_exist() -> None:
    from cpack_build.cli import VERBS, cli

    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"(?:^\$ |`)(?:\S*/)?cpack-build ([^`\n]+)", text, re.MULTILINE):
        words = line.split()
        if words[0].startswith("-"):
            continue
        assert words[0] in VERBS, line
        command = cli.get_command(None, words[0])  # type: ignore[arg-type]
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.get_command(None, words[1])  # type: ignore[arg-type]
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words[1:] if word.startswith("-")} <= known, line


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "APPENDIX" in text


def test_no_file_names_this_machine_or_a_package_registry() -> None:
    """Registries are the user's choice, by pip's and uv's settings; a path of one machine means nothing elsewhere."""
    words = ["pypi" + ".org", "python" + "hosted.org", "deb." + "debian.org", "archive." + "ubuntu.com", "/work" + "/"]
    listed = subprocess.run(
        [need.tool("git"), "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        path = ROOT / name
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        for word in words:
            assert word.encode() not in data, f"{name} names {word}"


@pytest.mark.xdist_group("house")
def test_the_runner_finds_groups_of_tests(request: pytest.FixtureRequest) -> None:
    """Else each worker starts engines of its own; pytest 9.2 took from xdist 3.8 what it tells groups by."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@house")
