"""A model in an image of its own is the same layer as in the workflow's image, for every platform and registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_bytes

import pytest

from cpack_build.cli.push import PushOptions
from cpack_build.cli.terminal import Terminal
from cpack_build.errors import UsageError
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modelimage import model_images
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.reference import LayoutName, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.transport import Access
from cpack_build.oci.types import Image
from tests.cli.calling import Caller
from tests.engines import Podman, Registry
from tests.oci.images import image_of, machine, small_image, text_layer, web_image
from tests.oci.misbehaving import Misbehaving, run_misbehaving
from tests.oci.specification import check


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(capsys)


@pytest.fixture
def fake() -> Iterator[Misbehaving]:
    with run_misbehaving() as running:
        yield running


def model_layer(folder: Path, name: str = "some model.safetensors", size: int = 200_000) -> ModelLayer:
    path = folder / name
    data = token_bytes(size)
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return ModelLayer(path, sha256, size, hash_model(path, sha256, size), f"models/checkpoints/{name}")


def workflow_image(folder: Path) -> tuple[Image, ModelLayer]:
    layer = model_layer(folder)
    return image_of([text_layer({"a": "1"}), layer, text_layer({"b": "2"})]), layer


def test_a_models_image_is_made_of_the_same_layer_and_costs_no_byte_of_it(
    call: Caller, fake: Misbehaving, tmp_path: Path
) -> None:
    image, layer = workflow_image(tmp_path)
    write_layout(image, tmp_path / "x.oci")
    done = call(
        "push", f"oci:{tmp_path}/x.oci", f"{fake.host}/team/x:1", "--models", f"{fake.host}/team/models", "--json"
    )
    assert done.code == 0, done.err
    [model] = done.document["models"]
    assert model["tag"] == f"some-model.safetensors-{layer.sha256[:12]}"
    assert (model["sent"] < 2000, model["mounted"]) == (True, layer.descriptor.size)
    for platform in ("linux/amd64", "linux/arm64"):
        name = parse_reference(f"{fake.host}/team/models:{model['tag']}")
        found = open_source(name).as_image(platform)
        assert [one.descriptor.digest for one in found.layers] == [layer.digest]
        check(found.manifest.data, "image-manifest-schema.json")
        check(found.config.data, "config-schema.json")
        [annotated] = json.loads(found.manifest.data)["layers"]
        assert annotated["annotations"]["org.cncf.model.filepath"] == f"models/sha256/{layer.sha256}"
    check(fake.manifests["team/models", model["tag"]][1], "image-index-schema.json")
    again = call("push", f"oci:{tmp_path}/x.oci", "--models", f"{fake.host}/team/models", "--json").document
    assert ("pushed" in again, again["models"][0]["changed"], again["models"][0]["requests"]) == (False, False, 1)


def test_the_same_model_gets_the_same_image_from_wherever_it_is_pushed(
    call: Caller, fake: Misbehaving, tmp_path: Path
) -> None:
    image, layer = workflow_image(tmp_path)
    other = image_of([layer, text_layer({"another": "workflow"})])
    write_layout(image, tmp_path / "x.oci")
    stored = open_source(LayoutName(tmp_path / "x.oci")).as_image(f"linux/{machine()}")
    digests = {model_images(each)[0].index.digest for each in (image, other, stored)}
    assert len(digests) == 1


def test_models_go_nowhere_unless_there_are_some(call: Caller, fake: Misbehaving, tmp_path: Path) -> None:
    write_layout(small_image(), tmp_path / "x.oci")
    for place, code in ((f"{fake.host}/models", 2), (f"{fake.host}/models:tag", 2), ("oci:x y", 2)):
        assert call("push", f"oci:{tmp_path}/x.oci", "--models", place).code == code
    assert call("push", f"oci:{tmp_path}/x.oci").code == 2
    assert not fake.manifests


def test_what_the_models_place_does_not_take_is_told_before_the_image_goes(
    call: Caller, fake: Misbehaving, tmp_path: Path
) -> None:
    image, _ = workflow_image(tmp_path)
    large = image_of(
        [replace(layer, size=11_000 << 20) if isinstance(layer, ModelLayer) else layer for layer in image.layers]
    )
    access = Access()
    with pytest.raises(UsageError, match="has 11000 MiB, and Amazon ECR Public takes 10000"):
        PushOptions(4, None, None, models_to="public.ecr.aws/team/models").push(
            large, [parse_reference(f"{fake.host}/x:1")], access=access, terminal=Terminal()
        )
    write_layout(image, tmp_path / "x.oci")
    done = call("push", f"oci:{tmp_path}/x.oci", f"{fake.host}/x:1", "--models", f"{fake.host}/models:tag")
    assert (done.code, "each model gets a tag of its own" in done.err) == (2, True)
    assert not fake.seen


@pytest.mark.podman
def test_podman_mounts_a_models_image_into_a_container(
    call: Caller, registry: Registry, podman: Podman, tmp_path: Path
) -> None:
    """As Kubernetes does with an image volume: the model is there, and it is the model."""
    image, layer = workflow_image(tmp_path)
    write_layout(image, tmp_path / "x.oci")
    done = call("push", f"oci:{tmp_path}/x.oci", "--models", f"{registry.host}/volumes/models", "--json")
    assert done.code == 0, done.err
    tag = done.document["models"][0]["tag"]
    name = f"{registry.host}/volumes/models:{tag}"
    podman("pull", "--tls-verify=false", name)
    write_layout(web_image(), tmp_path / "web.oci", tag="v1")
    mounted = f"type=image,source={name},destination=/volume"
    got = podman(
        *("run", "--rm", "--mount", mounted, "--entrypoint", "ls", f"oci:{tmp_path}/web.oci:v1"),
        *("-l", "/volume/models/sha256"),
    )
    assert layer.sha256 in got.stdout
    assert str(layer.size) in got.stdout
    podman("rmi", name)
