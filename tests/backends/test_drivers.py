"""What buildx says of its drivers' builders: several nodes, of several ages, not all of them up.

The ``docker`` here is a script, for there is no cluster and no image of buildkitd: it says what ``docker buildx
inspect`` says, and leaves a prepared image where a build is told to leave one. It knows nothing but buildx, so whatever
else is asked of it fails as it does without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpack_build.backends import buildkit
from cpack_build.backends.builder import find_builder
from cpack_build.backends.buildkit import BuildKit
from cpack_build.backends.protocol import Farm, Request
from cpack_build.backends.workshop import BuildKitWorkshop
from cpack_build.cpack.settings import Settings
from cpack_build.errors import ToolMissing
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.gather import Places
from cpack_build.lock.building import Project
from cpack_build.lock.schema import PinnedWheels, SourceArchive
from cpack_build.lock.tags import Target
from cpack_build.oci.layout import write_layout
from cpack_build.oci.types import Image, ImageIndex
from cpack_build.progress import SILENT
from tests.image.small import CODE, DEBS, make_parts
from tests.oci.images import image_of, text_layer

SCRIPT = """#!/bin/sh
echo "$*" >> "$0.asked"
case "$1 $2" in
"buildx version") echo "github.com/docker/buildx v0.17.1 257815a" ;;
"buildx inspect") [ ! -e "$0.fails" ] || { cat "$0.fails" >&2; exit 1; }; cat "$0.said" ;;
"buildx build")
    for word; do case "$word" in linux/*) platform=${word#linux/} ;; --output=*) out=${word#*dest=} ;; esac; done
    cp -R "$0.$platform" "${out%%,*}" ;;
*) echo "Cannot connect to the Docker daemon. Is the docker daemon running?" >&2; exit 1 ;;
esac
"""
HEAD = """Name:          farm
Driver:        kubernetes
Last Activity: 2026-11-01 10:00:00 +0000 UTC

Nodes:
"""
AMD = """Name:                  farm0
Endpoint:              kubernetes:///farm?deployment=farm0&kubeconfig=
Driver Options:        namespace="builds" replicas="2"
Status:                running
BuildKit daemon flags: --allow-insecure-entitlement=network.host
BuildKit version:      v0.17.3
Platforms:             linux/amd64*, linux/amd64/v2, linux/386
Labels:
 org.mobyproject.buildkit.worker.executor:    oci
 org.mobyproject.buildkit.worker.hostname:    farm0-7f9d
GC Policy rule#0:
 All:            false
 Keep Duration:  48h0m0s
"""
ARM = """
Name:             farm1
Endpoint:         kubernetes:///farm?deployment=farm1&kubeconfig=
Status:           running
BuildKit version: {version}
Platforms:        linux/arm64*
"""
DOWN = """
Name:     farm1
Endpoint: kubernetes:///farm?deployment=farm1&kubeconfig=
Error:    expected 1 replicas to be ready, got 0
"""
IMAGES = {name: image_of([text_layer({"for": name})], architecture=name) for name in ("amd64", "arm64")}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script; beside it ``.said`` is what inspect says, ``.fails`` why it fails, ``.asked`` what it was asked."""
    script = tmp_path / "docker"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    for name, image in IMAGES.items():
        write_layout(image, tmp_path / f"docker.{name}")
    monkeypatch.setenv("CPACK_DOCKER", str(script))
    return script


def _says(docker: Path, *nodes: str) -> None:
    Path(f"{docker}.said").write_text(HEAD + "".join(nodes))


def _asked(docker: Path) -> list[str]:
    return Path(f"{docker}.asked").read_text().splitlines()


def _request(folder: Path, *platforms: str) -> Request:
    """A small lock for each platform; the tools of a build are none of this test's."""
    (folder / "parts").mkdir()
    lock = make_parts(folder / "parts", models=[100])
    locks = tuple(lock.model_copy(update={"platform": platform}) for platform in platforms)
    place = Places(f"oci:{folder}/parts/base.oci", [f"{folder}/parts/models"], [f"{folder}/parts/wheels"])
    sources = Sources(Mirrors({CODE: f"{folder}/parts/", DEBS: f"{folder}/parts/"}))
    places: dict[str, Places] = {one.platform: place for one in locks}
    return Request(locks, documents={}, pack=None, places=places, store=Store(folder / "store"), sources=sources)


def _build(request: Request, monkeypatch: pytest.MonkeyPatch) -> Image | ImageIndex:
    def uv(lock: Any, request: Request) -> PinnedWheels:
        return lock.service  # type: ignore[no-any-return]

    monkeypatch.setattr(buildkit, "pinned_uv", uv)
    with BuildKit(Farm(builder="farm")).built(request) as built:
        return built


def test_a_cluster_builds_each_platform_on_its_node_and_no_daemon_is_asked(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _says(docker, AMD, ARM.format(version="v0.17.3"))
    built = _build(_request(tmp_path, "linux/amd64", "linux/arm64"), monkeypatch)
    assert isinstance(built, ImageIndex)
    assert [image.id for image in built.images] == [IMAGES["amd64"].id, IMAGES["arm64"].id]
    version, inspect, *builds = _asked(docker)
    assert (version, inspect) == ("buildx version", "buildx inspect --bootstrap farm")
    assert [line.partition("--platform ")[2].split()[0] for line in builds] == ["linux/amd64", "linux/arm64"]
    for line in builds:
        assert line.startswith("buildx build --builder farm ")
        assert "--output=type=oci," in line
        assert "rewrite-timestamp=true" in line, "no daemon keeps what a cluster makes"
        assert "--load" not in line


def test_what_the_oldest_node_lacks_is_not_used(docker: Path) -> None:
    _says(docker, AMD, ARM.format(version="v0.11.6"))
    builder = find_builder("farm")
    assert (builder.features.version, builder.features.fetches, builder.stores) == ((0, 11), False, False)
    _says(docker, ARM.format(version="v0.11.6"), AMD)
    assert find_builder("farm").features.version == (0, 11)


def test_a_node_that_is_down_takes_its_platform_with_it_and_nothing_else(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _says(docker, AMD, DOWN)
    request = _request(tmp_path, "linux/amd64", "linux/arm64")
    with pytest.raises(ToolMissing, match=r"nothing for linux/arm64.*Its node farm1 does not answer: expected 1 repl"):
        _build(request, monkeypatch)
    assert not [line for line in _asked(docker) if line.startswith("buildx build")]
    assert not (tmp_path / "store").exists(), "refused before anything is fetched for the other"
    alone = Request(request.locks[:1], {}, None, request.places, request.store, request.sources)
    built = _build(alone, monkeypatch)
    assert isinstance(built, Image)
    assert built.id == IMAGES["amd64"].id


@pytest.mark.parametrize(
    ("nodes", "fails", "words"),
    [
        ([DOWN], None, "farm does not answer: expected 1 replicas to be ready, got 0"),
        ([], "#1 booting buildkit\nERROR: expected 2 replicas to be ready, got 0\n", "expected 2 replicas"),
        ([], "ERROR: cannot determine Kubernetes namespace, specify manually: no configuration\n", "namespace"),
        ([], "ERROR: failed to pull https://user:hunter2@images.example/buildkit: denied\n", "denied"),
    ],
    ids=["its only node", "no pods", "no cluster", "no image"],
)
def test_a_cluster_that_does_not_come_up_is_named_with_the_reason(
    docker: Path, nodes: list[str], fails: str | None, words: str
) -> None:
    _says(docker, *nodes)
    if fails:
        Path(f"{docker}.fails").write_text(fails)
    with pytest.raises(ToolMissing, match="farm") as caught:
        find_builder("farm")
    assert words in caught.value.message
    assert "docker buildx ls" in str(caught.value.hint)
    assert "hunter2" not in caught.value.message


def test_a_package_and_a_script_for_a_platform_that_no_node_runs_are_refused_before_any_work(
    docker: Path, tmp_path: Path
) -> None:
    """Without an emulator or a node of that platform; Debian's packages are not asked for either."""
    _says(docker, AMD)
    request = _request(tmp_path, "linux/arm64")
    shop = BuildKitWorkshop(Farm(builder="farm"), Settings(), Places("scratch", [], []), request.store, Sources())
    source = SourceArchive(filename="x-1.0.tar.gz", url=None, sha256="a" * 64, size=1)
    (lock,) = request.locks

    def nobody(*arguments: Any) -> PinnedWheels:
        raise AssertionError("resolved in spite of the platform")

    with pytest.raises(ToolMissing, match="nothing for linux/arm64"):
        shop.built(
            Project("x", source), tmp_path, tmp_path / "out", target=Target("3.11", "linux/arm64"), resolve=nobody,
            progress=SILENT,
        )  # fmt: skip
    with pytest.raises(ToolMissing, match="nothing for linux/arm64"):
        shop.installed(lock, lock.custom_nodes[0], None, tmp_path / "out", progress=SILENT)
    with pytest.raises(ToolMissing, match="nothing for linux/arm64"):
        shop.apt(lock.base, "linux/arm64")  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()
