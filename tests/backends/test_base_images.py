"""A base image under BuildKit: from a registry, from a folder, and through what ``--print`` writes; each answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import Image
from tests.backends.conftest import Built, Run, bake, root_in
from tests.backends.roots import differences
from tests.backends.test_buildkit import KNOWN
from tests.engines import Docker, Registry
from tests.test_first_light import check_answers

OF_DPKG = re.compile(
    r"var/lib/(dpkg|python)(/|$)|var/log/(dpkg|alternatives)\.log$|var/cache/ldconfig/aux-cache$|etc/ld\.so\.cache$|"
    r"etc/inputrc$|usr/local/lib/python3\.\d+(/|$)"
)
"""What docs/backends.md lists for a base image: records, and what the packages' own scripts make."""

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("builders")]


@pytest.fixture(scope="module")
def published(debian: tuple[Path, Image], registry: Registry) -> str:
    """The same in a registry."""
    name = f"{registry.host}/debian:12"
    push(debian[1], [parse_reference(name)])
    return name


@pytest.fixture(scope="module")
def locks(
    built: Built, published: str, debian: tuple[Path, Image], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Base → the lock over it."""
    folder = tmp_path_factory.mktemp("locks")
    made = {published: folder / "registry.lock", f"oci:{debian[0]}": folder / "folder.lock"}
    for base, lock in made.items():
        locked = built.call("lock", built.example.pack, "--base", base, "-o", lock, environment={})
        assert locked.code == 0, locked.said
    return made


def _built(built: Built, base: str, locks: dict[str, Path], *arguments: object, docker: Docker) -> Run:
    over = ("--base", base, "--lock", locks[base])
    return built.image(*over, "--backend", "buildkit", *arguments, environment=docker.environment)


def _check_debian(docker: Docker, image: str) -> None:
    """The image answers, its packages are configured, and it has the base's variables."""
    check_answers(docker, image)
    said = docker("run", "--rm", "--entrypoint", "/usr/bin/dpkg", image, "--audit").stdout
    assert said == "", "every package is configured"
    assert "BASE=debian" in docker("inspect", "--format", "{{.Config.Env}}", image).stdout


def test_an_image_over_a_base_from_a_registry_answers(
    built: Built, old_docker: Docker, published: str, locks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the old BuildKit; the new one has it in what is printed, below."""
    run = _built(built, published, locks, "-t", "example:base", "--output", "docker", docker=old_docker)
    assert run.code == 0, run.said
    for key, value in old_docker.environment.items():
        monkeypatch.setenv(key, value)
    _check_debian(old_docker, "example:base")


def test_an_image_over_a_base_from_a_folder_has_the_embedded_root_but_for_what_dpkg_writes(
    built: Built,
    new_docker: Docker,
    debian: tuple[Path, Image],
    locks: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = f"oci:{debian[0]}"
    both = ("--output", f"oci:{tmp_path / 'buildkit.oci'}", "-t", "example:folder", "--output", "docker")
    run = _built(built, base, locks, *both, docker=new_docker)
    assert run.code == 0, run.said
    locked = ("--base", base, "--lock", locks[base])
    embedded = built.image(*locked, "--output", f"oci:{tmp_path / 'embedded.oci'}", environment={})
    assert embedded.code == 0, embedded.said
    ours, theirs = root_in(tmp_path / "embedded.oci"), root_in(tmp_path / "buildkit.oci")
    unknown = [path for path in differences(ours, theirs) if not (KNOWN.fullmatch(path) or OF_DPKG.match(path))]
    assert unknown == []
    for key, value in new_docker.environment.items():
        monkeypatch.setenv(key, value)
    check_answers(new_docker, "example:folder")


def test_a_base_from_a_folder_wants_named_contexts(
    built: Built, old_docker: Docker, debian: tuple[Path, Image], locks: dict[str, Path], tmp_path: Path
) -> None:
    run = _built(built, f"oci:{debian[0]}", locks, "--output", f"oci:{tmp_path / 'layout'}", docker=old_docker)
    assert run.code == 4, run.said
    assert "folder" in run.result["error"]["message"]
    assert "registry" in run.result["error"]["hint"]


@pytest.mark.parametrize("place", ["registry", "folder"])
def test_what_is_printed_builds_over_a_base_and_answers(
    built: Built,
    new_docker: Docker,
    debian: tuple[Path, Image],
    published: str,
    locks: dict[str, Path],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = published if place == "registry" else f"oci:{debian[0]}"
    run = _built(built, base, locks, "--print", tmp_path / "printed", docker=new_docker)
    assert run.code == 0, run.said
    text = (tmp_path / "printed" / "Dockerfile").read_text()
    (first,) = [line for line in text.splitlines() if line.endswith(" AS ground")]
    assert first == f"FROM {'cpack-base' if place == 'folder' else published.removesuffix(':12')}" + (
        " AS ground" if place == "folder" else f"@{debian[1].digest} AS ground"
    )
    bake(new_docker, tmp_path / "printed", "output=type=docker", f"tags=printed:{place}")
    for key, value in new_docker.environment.items():
        monkeypatch.setenv(key, value)
    _check_debian(new_docker, f"printed:{place}")
