"""The example pack with its embedded image, and BuildKits: Debian 12's own, a newer Docker's with buildx, and, where
``CPACK_TEST_BUILDKITD`` names a folder with it, buildkitd itself."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cpack_build.oci.types import Image
from tests import need
from tests.backends.debian import make_debian
from tests.backends.roots import Entry, root_of
from tests.engines import Docker, run_buildkitd, run_docker
from tests.example import Example, make_example


@dataclass(frozen=True)
class Run:
    """A command line's end: its exit code, its JSON result, and all that it said on stderr."""

    code: int
    result: Mapping[str, Any]
    said: str


@dataclass(frozen=True)
class Built:
    """The example, locked, with the image that the embedded backend makes of it."""

    example: Example
    home: Path
    layout: Path
    root: Mapping[str, Entry]

    def image(self, *arguments: object, environment: Mapping[str, str]) -> Run:
        """``cpack-build image`` of it."""
        return self.call("image", self.example.pack, *arguments, environment=environment)

    def call(self, verb: str, *arguments: object, environment: Mapping[str, str]) -> Run:
        """Another verb, with the same store."""
        command = [sys.executable, "-m", "cpack_build", verb, *arguments, "--json"]
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, "CPACK_HOME": str(self.home), **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return Run(done.returncode, json.loads(done.stdout or "{}"), done.stderr)


def root_in(layout: Path) -> dict[str, Entry]:
    """The root of the one image in *layout*."""
    from cpack_build.lock.resolve import this_platform
    from cpack_build.oci.reference import LayoutName
    from cpack_build.oci.sources import open_source

    return root_of(open_source(LayoutName(layout)).as_image(this_platform()))


def bake(docker: Docker, folder: Path, *changes: str) -> None:
    """Build the image of the printed *folder* without attestations; *changes* are of its target."""
    words = [f"--set=image.{change}" for change in (*changes, "attest=type=provenance,disabled=true")]
    environment = {**os.environ, **docker.environment}
    done = subprocess.run(
        [docker.command, "buildx", "bake", *words], cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    need.tool("apt-get")
    folder = tmp_path_factory.mktemp("backends")
    picture = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), (200, 100, 50)).save(picture, "PNG")
    example = make_example(folder, sample=picture.getvalue())
    layout = folder / "embedded.oci"
    made = Built(example, folder / "store", layout, {})
    run = made.image("--output", f"oci:{layout}", environment={})
    assert run.code == 0, run.said
    return Built(example, made.home, layout, root_in(layout))


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Image]:
    """A Debian, as a layout."""
    layout = tmp_path_factory.mktemp("debian") / "base.oci"
    return layout, make_debian(layout)


def _old_client() -> str:
    """A Docker client that has BuildKit without buildx."""
    for path in ("/usr/bin/docker", shutil.which("docker") or ""):
        if path and Path(path).exists():
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            if (found := re.search(r"version (\d+)\.", said)) and int(found[1]) < 23:
                return path
    need.missing("Docker's client before 23.0")


@pytest.fixture(scope="session")
def old_docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """Debian 12's Docker 20.10: BuildKit 0.8, no buildx."""
    client = _old_client()
    config = tmp_path_factory.mktemp("old-docker")
    with run_docker(client=client, settings={"DOCKER_CONFIG": str(config), "CPACK_DOCKER": client}) as docker:
        yield docker


@pytest.fixture(scope="session")
def remote_docker(new_docker: Docker) -> Iterator[Docker]:
    """The newer Docker, which leaves building to a buildkitd (buildx's driver ``remote``)."""
    with run_buildkitd(Path(os.environ["CPACK_TEST_BUILDKITD"])) as address:
        new_docker("buildx", "create", "--name", "remote", "--driver", "remote", address)
        try:
            yield replace(new_docker, settings={**new_docker.settings, "BUILDX_BUILDER": "remote"})
        finally:
            new_docker("buildx", "rm", "remote", check=False)


BUILDERS = ["old_docker", "new_docker"]
if "CPACK_TEST_BUILDKITD" in os.environ:  # no package registry has it; CONTRIBUTING.md tells how to build it
    BUILDERS.append("remote_docker")


@pytest.fixture(params=BUILDERS)
def builder(request: pytest.FixtureRequest) -> Docker:
    """Each of them."""
    docker = request.getfixturevalue(request.param)
    assert isinstance(docker, Docker)
    return docker


@pytest.fixture(params=BUILDERS[1:])
def buildx(request: pytest.FixtureRequest) -> Docker:
    """Those with buildx."""
    docker = request.getfixturevalue(request.param)
    assert isinstance(docker, Docker)
    return docker
