"""An index goes whole from a folder to a registry and back, byte for byte; ``--platform`` takes one image of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpack_build.oci.layout import write_layout
from cpack_build.oci.push import push, push_index
from cpack_build.oci.reference import parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import INDEX, BytesBlob, Image, ImageIndex, canonical_json, digest_of
from tests.cli.calling import Caller
from tests.engines import Docker, Registry
from tests.oci.images import image_of, machine, text_layer

SHARED = text_layer({"models/x": "the same on every platform" * 100})


def images() -> tuple[Image, ...]:
    return tuple(
        image_of([SHARED, text_layer({"bin/x": f"for {architecture}"})], architecture=architecture)
        for architecture in ("amd64", "arm64")
    )


def foreign() -> ImageIndex:
    """As BuildKit writes one: in another order, with spaces, annotations and an attestation that is for no platform."""
    made = images()
    papers = image_of([text_layer({"x": "papers"})], architecture="unknown")
    entries = [
        {**image.manifest.descriptor.to_json(), "platform": {"os": "linux", "architecture": image.platform[6:]}}
        for image in made[::-1]
    ]
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries.append({**papers.manifest.descriptor.to_json(), "platform": unknown, "annotations": {"a": "b"}})
    text = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, indent=3)
    return ImageIndex((*made[::-1], papers), BytesBlob(INDEX, text.encode()))


@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_there_and_back_it_is_the_same_index(call: Caller, registry: Registry, tmp_path: Path, kind: str) -> None:
    index = ImageIndex(images()) if kind == "ours" else foreign()
    write_layout(index, tmp_path / "x.oci", tag="v1")
    name = f"{registry.host}/indexes/{kind}:v1"
    done = call("push", f"oci:{tmp_path}/x.oci:v1", name, "--json")
    assert (done.code, done.document["digest"]) == (0, index.digest), done.err
    assert [image["digest"] for image in done.document["images"]] == [image.digest for image in index.images]
    assert open_source(parse_reference(name)).digest == index.digest
    again = call("push", f"oci:{tmp_path}/x.oci:v1", name, "--json").document
    assert [(one["changed"], one["requests"]) for one in again["pushed"]] == [(False, 1)]

    for place in (f"oci:{tmp_path}/y.oci:v1", f"oci-archive:{tmp_path}/y.tar"):
        pulled = call("pull", name, "-o", place, "--json")
        assert (pulled.code, pulled.document["digest"]) == (0, index.digest), pulled.err
        back = open_source(parse_image_name(place)).index()
        assert back is not None
        assert (back.digest, back.manifest.data) == (index.digest, index.manifest.data)
        for image in index.images:
            path = tmp_path / "y.oci/blobs/sha256" / image.layers[-1].descriptor.digest[7:]
            assert digest_of(path.read_bytes()) == image.layers[-1].descriptor.digest


def test_platform_takes_one_of_them(call: Caller, registry: Registry, tmp_path: Path) -> None:
    index = ImageIndex(images())
    write_layout(index, tmp_path / "x.oci", tag="v1")
    name = f"{registry.host}/indexes/one:v1"
    arm = index.image_for("linux/arm64")
    assert arm is not None
    assert call("push", f"oci:{tmp_path}/x.oci", name, "--platform", "linux/arm64").code == 0
    assert open_source(parse_reference(name)).digest == arm.digest
    push_index(index, [parse_reference(f"{registry.host}/indexes/all:v1")])
    words = ("pull", f"{registry.host}/indexes/all:v1", "-o", f"oci:{tmp_path}/y.oci", "--platform", "linux/arm64")
    assert call(*words, "--json").document["digest"] == arm.digest
    assert len(list((tmp_path / "y.oci/blobs/sha256").iterdir())) == 4


@pytest.mark.docker
def test_an_engine_is_sent_its_own_alone(call: Caller, registry: Registry, docker: Docker) -> None:
    index = ImageIndex(images())
    name = f"{registry.host}/indexes/engine:v1"
    push_index(index, [parse_reference(name)])
    own = index.image_for(f"linux/{machine()}")
    assert own is not None
    assert call("pull", name, "-o", "docker", "--json").document["image_id"] == own.id


def test_an_index_in_an_index_is_refused_and_each_image_can_be_named(
    call: Caller, registry: Registry, tmp_path: Path
) -> None:
    one, other = images()
    inner = ImageIndex((one, other))
    outer = BytesBlob(
        INDEX,
        canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner.manifest.descriptor.to_json()]}),
    )
    for image in (one, other):
        push(image, [parse_reference(f"{registry.host}/indexes/nested@{image.digest}")])
    push_index(inner, [parse_reference(f"{registry.host}/indexes/nested:inner")])
    push_index(ImageIndex((), outer), [parse_reference(f"{registry.host}/indexes/nested:outer")])
    words = ("pull", f"{registry.host}/indexes/nested:outer", "-o", f"oci:{tmp_path}/x.oci")
    done = call(*words)
    assert (done.code, "--platform" in done.err) == (3, True), done.err
    assert not (tmp_path / "x.oci").exists()
    assert call(*words, "--platform", "linux/arm64", "--json").document["digest"] == other.digest
