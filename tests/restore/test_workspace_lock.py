"""A pack without a lock becomes a workspace on any machine: with neither apt nor a base, and not only on Linux."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest

from cpack_build.errors import NetworkError, Unresolvable, UsageError
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.python import lock_environment
from cpack_build.lock.resolve import host_platform
from cpack_build.lock.schema import HostInterpreter, load_lock
from cpack_build.lock.tags import Target
from cpack_build.lock.target import elsewhere, retarget
from cpack_build.lock.uv import found_python
from cpack_build.lock.wheels import wheels_of
from tests import need
from tests.cli.calling import Caller
from tests.example import system_python
from tests.restore.images import World


@pytest.fixture
def alone(world: World, tmp_path: Path) -> Path:
    """The pack as somebody is given it: without its lock."""
    return Path(shutil.copy(world.pack, tmp_path / "small.cpack.zip"))


@pytest.fixture
def no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with git and Python, and no package manager."""
    tools = tmp_path / "bin"
    tools.mkdir()
    python = found_python(system_python())
    assert python is not None
    (tools / "git").symlink_to(need.tool("git"))
    (tools / python.name).symlink_to(python)
    monkeypatch.setenv("PATH", str(tools))


def flags_of(world: World) -> list[str]:
    flags = [f"--mirror={url}={place}" for url, place in world.mirrors.items()]
    return [*flags, "--models-dir", str(world.folder / "models"), "--find-links", str(world.wheels)]


@pytest.mark.network
@pytest.mark.usefixtures("no_apt")
def test_a_pack_without_a_lock_needs_no_apt_and_stays_what_it_was_resolved_to(
    world: World, alone: Path, call: Caller, tmp_path: Path
) -> None:
    root = tmp_path / "workspace"
    done = call("restore", alone, "-d", root, *flags_of(world), "--json")
    if done.code == NetworkError.exit_code:
        need.missing(f"the package registries ({done.out})")
    assert done.code == 0, done.out
    lock = load_lock(root / ".cpack/cpack.lock")
    assert (lock.interpreter.kind, lock.system, wheels_of(lock.service)) == ("host", (), ())
    assert {"one", "two"} <= {wheel.name for wheel in wheels_of(lock.python)}
    assert call("restore", "--verify", root).code == 0
    assert not list(tmp_path.glob("*.cpack.lock")), "what is beside a pack is for images"
    again = call("restore", alone, "-d", root, *flags_of(world), "--offline", "--json")
    assert (again.code, again.document["made"]) == (0, 0), again

    refused = call("image", alone, "--lock", root / ".cpack/cpack.lock", "--frozen", "--output", f"oci:{tmp_path}/x")
    assert refused.code == Unresolvable.exit_code
    assert "The lock is a workspace's" in refused.err
    assert not (tmp_path / "x").exists()


def test_where_a_workspace_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for system, machine, expected in (
        ("Linux", "x86_64", "linux/amd64"), ("Darwin", "arm64", "darwin/arm64"), ("Windows", "AMD64", "windows/amd64"),
    ):  # fmt: skip
        monkeypatch.setattr(platform, "system", lambda system=system: system)
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert host_platform() == expected
    monkeypatch.setattr(platform, "system", lambda: "FreeBSD")
    with pytest.raises(UsageError, match="FreeBSD"):
        host_platform()


@pytest.mark.network
@pytest.mark.parametrize(
    ("system", "numpy"),
    [("darwin/arm64", "macosx_14_0_arm64"), ("darwin/amd64", "macosx_14_0_x86_64"), ("windows/amd64", "win_amd64")],
)
def test_packages_are_those_of_the_system(system: str, numpy: str, tmp_path: Path) -> None:
    wanted = ["numpy==2.1.3", 'colorama==0.4.6; sys_platform == "win32"', 'six==1.17.0; os_name == "posix"']
    target = Target("3.11", system)  # type: ignore[arg-type]
    try:
        environment = lock_environment(wanted, target=target, store=Store(tmp_path), sources=Sources())
    except NetworkError as error:
        need.missing(f"the package registries ({error})")
    files = {wheel.name: wheel.filename for wheel in wheels_of(environment)}
    assert numpy in files["numpy"]
    assert set(files) == {"numpy", "colorama" if system == "windows/amd64" else "six"}


def test_a_pack_from_linux_leaves_its_accelerator_where_it_cannot_be() -> None:
    packed = ["torch==2.9.1", "triton==3.5.1", "nvidia-cudnn-cu12==9.10", "six==1.17"]
    assert elsewhere(packed, platform="linux/arm64") is None
    assert elsewhere(packed, platform="darwin/arm64") == "cpu"
    assert elsewhere(packed, platform="windows/amd64") == "cuda12.8"
    assert retarget(packed, "cpu", platform="darwin/arm64").requirements == ("torch==2.9.1", "six==1.17")
    onto_windows = retarget(packed, "cuda12.8", platform="windows/amd64").requirements
    assert onto_windows == ("torch==2.9.1+cu128", "six==1.17")
    labelled = ["torch==2.9.1+cu128", "torchvision==0.24.1+cu128"]
    on_a_mac = retarget(labelled, "cpu", platform="darwin/arm64").requirements
    assert on_a_mac == ("torch==2.9.1,!=2.9.1+cpu", "torchvision==0.24.1,!=0.24.1+cpu")


def test_a_workspaces_lock_is_read_as_any(world: World, tmp_path: Path) -> None:
    lock = world.lock.model_copy(
        update={"interpreter": HostInterpreter(version="3.11"), "platform": "windows/amd64", "system": ()}
    )
    (tmp_path / "cpack.lock").write_bytes(lock.to_bytes())
    assert load_lock(tmp_path / "cpack.lock") == lock
    assert json.loads(lock.to_bytes())["interpreter"] == {"kind": "host", "version": "3.11"}
