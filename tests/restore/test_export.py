"""``export``: the pack and the lock that made an image, from wherever the image lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cpack_build.cpack.reader import read_pack
from cpack_build.errors import HashMismatch
from cpack_build.fetch.store import Store
from cpack_build.lock.schema import load_lock
from cpack_build.oci.archive import write_archive
from cpack_build.oci.engines import open_engine
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import EngineName, parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.restore.artifact import read_artifact
from cpack_build.restore.export import export
from tests.cli.calling import Caller
from tests.engines import Docker, Podman
from tests.oci.images import small_image
from tests.restore.images import MODEL, World, make_image


def test_the_pack_comes_back_byte_for_byte_and_its_lock_makes_the_same_image(
    world: World, call: Caller, tmp_path: Path
) -> None:
    pack = tmp_path / "again.cpack.zip"
    outcome = call("export", f"oci:{world.layout}", "-o", pack, "--json")
    assert outcome.code == 0, outcome
    assert pack.read_bytes() == world.pack.read_bytes()
    lock = load_lock(tmp_path / "again.cpack.lock")
    assert lock == world.lock
    with make_image(
        read_pack(pack), lock, world.folder / MODEL, wheels=world.built, store=Store(tmp_path), mirrors=world.mirrors
    ) as image:
        assert image.id == world.image_id
    assert outcome.document["image_id"] == world.image_id


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_it_comes_from_archives(world: World, call: Caller, tmp_path: Path, kind: str) -> None:
    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)
    archive = tmp_path / "small.tar"
    write_archive(image, archive, name=parse_reference("small:1"))
    assert call("export", f"{kind}:{archive}", "-o", tmp_path / "a.cpack.zip").code == 0
    assert (tmp_path / "a.cpack.zip").read_bytes() == world.pack.read_bytes()


@pytest.mark.docker
def test_it_comes_from_docker(world: World, call: Caller, docker: Docker, tmp_path: Path) -> None:
    _from_engine("docker", world, call, tmp_path)


@pytest.mark.podman
def test_it_comes_from_podman(world: World, call: Caller, podman: Podman, tmp_path: Path) -> None:
    _from_engine("podman", world, call, tmp_path)


def _from_engine(engine: str, world: World, call: Caller, tmp_path: Path) -> None:
    name = parse_image_name(f"{engine}:exported:1")
    assert isinstance(name, EngineName)
    assert name.reference is not None
    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)
    open_engine(name).load(image, name.reference)
    outcome = call("export", f"{engine}:exported:1", "-o", tmp_path / "a.cpack.zip")
    assert outcome.code == 0, outcome
    assert (tmp_path / "a.cpack.zip").read_bytes() == world.pack.read_bytes()
    assert (tmp_path / "a.cpack.lock").read_bytes() == world.lock_path.read_bytes()


def test_an_image_without_a_lock_says_so(call: Caller, tmp_path: Path) -> None:
    write_layout(small_image(), tmp_path / "other")
    outcome = call("export", f"oci:{tmp_path / 'other'}", "-o", tmp_path / "a.cpack.zip", "--platform", "linux/amd64")
    assert outcome.code == 3
    assert "carries no lock" in outcome.err
    assert "--best-effort" in outcome.err


def test_documents_that_are_not_the_lock_s_are_refused(world: World, tmp_path: Path) -> None:
    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)
    artifact = read_artifact(image, name="it")
    documents = {**artifact.documents, "input/sample.png": b"another picture"}
    forged = dataclasses.replace(artifact, documents=documents)
    with pytest.raises(HashMismatch, match="The pack in it"):
        export(forged, tmp_path / "a.cpack.zip", tmp_path / "a.cpack.lock")
    assert not list(tmp_path.glob("a.*"))


def test_a_file_that_is_there_is_not_replaced_without_a_word(world: World, call: Caller, tmp_path: Path) -> None:
    (tmp_path / "a.cpack.lock").write_text("mine")
    outcome = call("export", f"oci:{world.layout}", "-o", tmp_path / "a.cpack.zip")
    assert outcome.code == 8
    assert (tmp_path / "a.cpack.lock").read_text() == "mine"
    assert call("export", f"oci:{world.layout}", "-o", tmp_path / "a.cpack.zip", "--force").code == 0
