"""Images for several platforms are one index: in a layout, an archive and a registry, each blob once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cpack_build.cli.delivery import own_image
from cpack_build.errors import UsageError
from cpack_build.oci.archive import write_archive
from cpack_build.oci.layout import write_layout
from cpack_build.oci.push import push_index
from cpack_build.oci.reference import parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import INDEX, ImageIndex
from tests import need
from tests.engines import Registry
from tests.oci.images import image_of, machine, text_layer
from tests.oci.misbehaving import run_misbehaving

SHARED = text_layer({"models/x": "the same on every platform" * 100})


def index() -> ImageIndex:
    return ImageIndex(
        tuple(
            image_of([SHARED, text_layer({"bin/x": f"for {architecture}"})], architecture=architecture)
            for architecture in ("arm64", "amd64")
        )
    )


def skopeo(*arguments: str) -> str:
    done = subprocess.run(
        [need.tool("skopeo"), *arguments], check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    return done.stdout


def test_a_layout_has_the_index_that_other_tools_read_and_shared_blobs_once(tmp_path: Path) -> None:
    made = index()
    written = write_layout(made, tmp_path / "x.oci", tag="v1")
    assert written.written == made.size
    assert len(list((tmp_path / "x.oci" / "blobs" / "sha256").iterdir())) == 3 + 2 + 2 + 1
    raw = json.loads(skopeo("inspect", "--raw", f"oci:{tmp_path}/x.oci:v1"))
    assert raw["mediaType"] == INDEX
    assert [entry["platform"]["architecture"] for entry in raw["manifests"]] == ["amd64", "arm64"]
    for image in made.images:
        name = f"oci:{tmp_path}/x.oci:v1"
        architecture = image.platform.partition("/")[2]
        assert json.loads(skopeo("inspect", "--override-arch", architecture, name))["Architecture"] == architecture
        assert open_source(parse_image_name(name)).as_image(image.platform).id == image.id


def test_the_bytes_of_an_index_do_not_depend_on_the_order_of_its_images() -> None:
    assert index().digest == ImageIndex(index().images[::-1]).digest


def test_an_archive_holds_all_and_names_amd64_for_engines_that_know_no_index(tmp_path: Path) -> None:
    made = index()
    write_archive(made, tmp_path / "x.tar", name=parse_reference("example.test/x:1"))
    source = open_source(parse_image_name(f"oci-archive:{tmp_path}/x.tar"))
    assert [source.as_image(image.platform).id for image in made.images] == [image.id for image in made.images]
    amd64 = made.image_for("linux/amd64")
    assert amd64 is not None
    listed = subprocess.run(
        ["tar", "-xOf", str(tmp_path / "x.tar"), "manifest.json"], check=True, capture_output=True
    ).stdout
    assert [entry["Config"] for entry in json.loads(listed)] == [f"blobs/sha256/{amd64.id.removeprefix('sha256:')}"]


def test_an_engine_gets_the_image_of_this_machine_or_none() -> None:
    made = index()
    assert own_image(made).platform == f"linux/{machine()}"
    other = ImageIndex(tuple(image for image in made.images if image.platform != f"linux/{machine()}"))
    with pytest.raises(UsageError, match="No engine here runs"):
        own_image(other)


@pytest.mark.xdist_group("engines")
def test_a_registry_gets_every_image_and_the_index_under_the_name(registry: Registry) -> None:
    made = index()
    reference = parse_reference(f"{registry.host}/team/index:v1")
    (pushed,) = push_index(made, [reference])
    assert pushed.reference.digest == made.digest
    # the layer that both have is sent once
    assert pushed.sent == made.size - sum(image.manifest.descriptor.size for image in made.images) - len(
        made.manifest.data
    )
    raw = skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{registry.host}/team/index:v1")
    assert raw.encode() == made.manifest.data
    source = open_source(reference)
    assert [source.as_image(image.platform).id for image in made.images] == [image.id for image in made.images]
    (again,) = push_index(made, [reference])
    assert (again.changed, again.requests) == (False, 1)


def test_what_a_registry_does_not_take_of_any_image_is_told_before_any_byte_of_the_first() -> None:
    small = image_of([SHARED], architecture="amd64")
    large = image_of([SHARED, text_layer({"large": b"0" * (2 << 20)})], architecture="arm64")
    with run_misbehaving() as fake:
        places = [parse_reference(f"{fake.host}/x:1"), parse_reference("public.ecr.aws/x/y:1")]
        for limits in ({"blob_limit": 1 << 20}, {"layer_limit": 1}):
            with pytest.raises(UsageError, match="takes 1"):
                push_index(ImageIndex((small, large)), places[:1], **limits)
        many = image_of([text_layer({f"{number}": ""}) for number in range(501)], architecture="arm64")
        with pytest.raises(UsageError, match="Amazon ECR Public takes 500"):
            push_index(ImageIndex((small, many)), places)
        assert not fake.seen
        push_index(ImageIndex((small, large)), places[:1], blob_limit=3 << 20, layer_limit=2)
        assert ("x", "1") in fake.manifests


def test_an_index_is_not_pushed_under_another_digest() -> None:
    with pytest.raises(UsageError, match="another digest"):
        push_index(index(), [parse_reference(f"registry.example/x@sha256:{'0' * 64}")])
