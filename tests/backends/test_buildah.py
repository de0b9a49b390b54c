"""What is printed is a Dockerfile, and buildah builds it as well: Debian 12's, which can little, and a newer one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpack_build.lock.machine import this_platform
from cpack_build.oci.reference import ArchiveName
from cpack_build.oci.sources import open_source
from tests import need
from tests.backends.conftest import Built
from tests.backends.roots import differences, root_of
from tests.backends.test_buildkit import KNOWN
from tests.engines import Docker, Podman, run_podman
from tests.test_first_light import check_answers

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("builders")]

NEXT = Path(os.environ.get("CPACK_TEST_BUILDAH_NEXT", "/opt/cpack-buildah-next"))
"""Where ``.ci/buildah-next`` has put a newer buildah."""
OWN = re.compile(r"cpack|etc/hostname")
"""What buildah leaves besides: the folder on which it mounted what a step sees, and the build's host name, empty."""


@pytest.fixture(scope="module")
def storage() -> Iterator[Podman]:
    """Images of buildah's own; what is podman's is buildah's."""
    with run_podman() as podman:
        with (Path(podman.environment["CONTAINERS_CONF"])).open("a") as file:
            file.write(f'helper_binaries_dir = ["{NEXT}/usr/lib/podman", "/usr/lib/podman", "/usr/libexec/podman"]\n')
        yield podman


@pytest.fixture(params=["debian", "next"])
def buildah(request: pytest.FixtureRequest) -> str:
    """The program."""
    if request.param == "debian":
        return need.tool("buildah")
    program = NEXT / "usr/bin/buildah"
    return str(program) if program.exists() else need.missing(f"a newer buildah in {NEXT} (.ci/buildah-next makes it)")


def test_buildah_makes_the_same_root_and_the_image_answers(
    built: Built, buildah: str, storage: Podman, docker: Docker, tmp_path: Path
) -> None:
    said = subprocess.run([buildah, "--version"], check=True, capture_output=True, text=True).stdout
    version = said.split()[2]
    run = built.image(
        "--backend", "buildkit", "--builder", f"buildah-{version}", "--print", tmp_path / "printed",
        environment={"CPACK_DOCKER": "/nonexistent"},
    )  # fmt: skip
    assert run.code == 0, run.said
    program, verb, *words = shlex.split(run.result["build"].replace(" NAME ", " example:buildah "))
    assert (program, verb) == ("buildah", "build")
    environment = {**os.environ, **storage.environment, "BUILDAH_ISOLATION": "oci"}
    archive = tmp_path / "image.tar"
    for command in (
        [verb, *words],
        ["push", "--quiet", "example:buildah", f"docker-archive:{archive}:example:buildah"],
    ):
        done = subprocess.run([buildah, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    root = root_of(open_source(ArchiveName(archive, "docker")).as_image(this_platform()))
    found = differences(dict(built.root), root)
    assert not [path for path in found if not KNOWN.fullmatch(path) and not OWN.fullmatch(path)]
    assert len(root) > 10_000
    docker("load", "--input", str(archive))
    check_answers(docker, "example:buildah")


def test_what_is_printed_for_an_old_builder_has_no_word_that_it_does_not_know(built: Built, tmp_path: Path) -> None:
    for number, (builder, unknown) in enumerate(
        [
            ("buildah-1.28.2", ("--link", "--checksum", "--network")),
            ("buildah-1.39", ("--link",)),
            ("buildah-1.41.0+ds1", ()),
            ("buildkit-0.8", ("--link", "--checksum", "--network")),
            ("buildkit-0.11", ("--checksum",)),
        ]
    ):
        printed = tmp_path / str(number)
        run = built.image("--backend", "buildkit", "--builder", builder, "--print", printed, environment={})
        assert run.code == 0, run.said
        text = (printed / "Dockerfile").read_text()
        every = {"--link", "--checksum", "--network"}
        assert {word for word in every if re.search(rf" {word}[ =]", text)} == every - set(unknown), builder
        assert (printed / "docker-bake.json").exists() == builder.startswith("buildkit")


def test_a_builder_that_is_named_for_what_is_printed_is_asked_what_it_can(built: Built, tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    run = built.image(
        "--backend", "buildkit", "--builder", "farm", "--print", printed, environment={"CPACK_DOCKER": "/nonexistent"}
    )
    assert (run.code, run.result["error"]["type"]) == (7, "ToolMissing")
    assert not printed.exists() or not list(printed.iterdir())
