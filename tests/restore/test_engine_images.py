"""An image that lies in a real engine of this machine, and nowhere else, becomes the workspace again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpack_build.oci.engines import DockerEngine, Engine, PodmanEngine
from cpack_build.oci.reference import parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from tests.cli.calling import Caller
from tests.engines import Docker, Podman
from tests.oci.images import small_image
from tests.restore.images import World
from tests.restore.test_restore import check_packages, check_workspace

NAME = "small:v1"
"""The workspace's workflow is called as the image is."""


def check_restore(engine: Engine, name: str, world: World, call: Caller, tmp_path: Path) -> None:
    """From *engine* alone, twice; and what it lacks or did not get from us is said."""
    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)
    engine.load(image, parse_reference(NAME))
    root = tmp_path / "w"
    outcome = call("restore", f"{name}:{NAME}", "-d", root, "--offline", "--json")
    check_workspace(root, outcome)
    check_packages(root)
    assert {part["origin"] for part in outcome.document["parts"] if part["kind"] in ("comfyui", "node")} == {"image"}
    assert call("restore", "--verify", root).code == 0
    again = call("restore", f"{name}:{NAME}", "-d", root, "--offline", "--json")
    assert (again.code, again.document["made"]) == (0, 0)
    exported = call("export", f"{name}:{NAME}", "-o", tmp_path / "again.cpack.zip", "--json")
    assert exported.code == 0, exported
    assert (tmp_path / "again.cpack.zip").read_bytes() == world.pack.read_bytes()

    missing = call("restore", f"{name}:nobody/has-this:1", "-d", tmp_path / "x", "--offline")
    assert missing.code in (4, 7), missing
    assert "nobody/has-this:1" in missing.err
    assert "Traceback" not in missing.err
    assert not (tmp_path / "x").exists()
    engine.load(small_image(), parse_reference("cpack-foreign:v1"))
    foreign = call("restore", f"{name}:cpack-foreign:v1", "-d", tmp_path / "x", "--offline")
    assert foreign.code == 3, foreign
    assert "--best-effort" in foreign.err
    assert not (tmp_path / "x").exists()


@pytest.mark.docker
def test_from_docker_alone(docker: Docker, world: World, call: Caller, tmp_path: Path) -> None:
    try:
        check_restore(DockerEngine(), "docker", world, call, tmp_path)
    finally:
        docker("rmi", "--force", NAME, "cpack-foreign:v1", check=False)


@pytest.mark.podman
def test_from_podman_alone(podman: Podman, world: World, call: Caller, tmp_path: Path) -> None:
    try:
        check_restore(PodmanEngine(), "podman", world, call, tmp_path)
    finally:
        podman("rmi", "--force", NAME, "cpack-foreign:v1", check=False)
