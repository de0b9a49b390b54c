"""A base image under BuildKit: from a registry, from a folder, and through what ``--print`` writes; each answers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import Image
from tests.backends.conftest import Built, Run, root_in
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


@pytest.fixture
def published(debian: tuple[Path, Image], registry: Registry) -> str:
    """The same in a registry."""
    name = f"{registry.host}/debian:12"
    push(debian[1], [parse_reference(name)])
    return name


def _built(built: Built, base: str, folder: Path, *arguments: object, docker: Docker) -> Run:
    lock = ("--base", base, "-o", folder / "x.lock")
    locked = built.call("lock", built.example.pack, *lock, environment={})
    assert locked.code == 0, locked.said
    return built.image(
        "--base", base, "--lock", folder / "x.lock", "--backend", "buildkit", *arguments, environment=docker.environment
    )


def test_an_image_over_a_base_from_a_registry_answers(
    built: Built, builder: Docker, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _built(built, published, tmp_path, "-t", "example:base", "--output", "docker", docker=builder)
    assert run.code == 0, run.said
    for key, value in builder.environment.items():
        monkeypatch.setenv(key, value)
    check_answers(builder, "example:base")
    said = builder("run", "--rm", "--entrypoint", "/usr/bin/dpkg", "example:base", "--audit").stdout
    assert said == "", "every package is configured"
    variables = builder("inspect", "--format", "{{.Config.Env}}", "example:base").stdout
    assert "BASE=debian" in variables


def test_an_image_over_a_base_from_a_folder_has_the_embedded_root_but_for_what_dpkg_writes(
    built: Built, new_docker: Docker, debian: tuple[Path, Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"oci:{debian[0]}"
    both = ("--output", f"oci:{tmp_path / 'buildkit.oci'}", "-t", "example:folder", "--output", "docker")
    run = _built(built, base, tmp_path, *both, docker=new_docker)
    assert run.code == 0, run.said
    locked = ("--base", base, "--lock", tmp_path / "x.lock")
    embedded = built.image(*locked, "--output", f"oci:{tmp_path / 'embedded.oci'}", environment={})
    assert embedded.code == 0, embedded.said
    ours, theirs = root_in(tmp_path / "embedded.oci"), root_in(tmp_path / "buildkit.oci")
    unknown = [path for path in differences(ours, theirs) if not (KNOWN.fullmatch(path) or OF_DPKG.match(path))]
    assert unknown == []
    for key, value in new_docker.environment.items():
        monkeypatch.setenv(key, value)
    check_answers(new_docker, "example:folder")


def test_a_base_from_a_folder_wants_named_contexts(
    built: Built, old_docker: Docker, debian: tuple[Path, Image], tmp_path: Path
) -> None:
    run = _built(built, f"oci:{debian[0]}", tmp_path, "--output", f"oci:{tmp_path / 'layout'}", docker=old_docker)
    assert run.code == 4, run.said
    assert "folder" in run.result["error"]["message"]
    assert "registry" in run.result["error"]["hint"]


@pytest.mark.parametrize("place", ["registry", "folder"])
def test_what_is_printed_builds_over_a_base_and_answers(
    built: Built,
    new_docker: Docker,
    debian: tuple[Path, Image],
    published: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = published if place == "registry" else f"oci:{debian[0]}"
    run = _built(built, base, tmp_path, "--print", tmp_path / "printed", docker=new_docker)
    assert run.code == 0, run.said
    text = (tmp_path / "printed" / "Dockerfile").read_text()
    (first,) = [line for line in text.splitlines() if line.endswith(" AS ground")]
    assert first == f"FROM {'cpack-base' if place == 'folder' else published.removesuffix(':12')}" + (
        " AS ground" if place == "folder" else f"@{debian[1].digest} AS ground"
    )
    subprocess.run(
        [new_docker.command, "buildx", "bake", "--set=image.output=type=docker", f"--set=image.tags=printed:{place}",
         "--set=image.attest=type=provenance,disabled=true"],
        cwd=tmp_path / "printed", env={**os.environ, **new_docker.environment}, check=True, capture_output=True,
    )  # fmt: skip
    for key, value in new_docker.environment.items():
        monkeypatch.setenv(key, value)
    check_answers(new_docker, f"printed:{place}")
