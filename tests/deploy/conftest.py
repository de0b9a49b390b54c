"""What these tests share: one small image of ours in a registry, with its lock."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cpack_build.lock.schema import Lock
from cpack_build.oci.modelimage import model_images, push_models
from cpack_build.oci.push import push
from cpack_build.oci.reference import LayoutName, parse_reference
from cpack_build.oci.sources import open_source
from tests.cli.calling import Caller
from tests.engines import Registry
from tests.restore.images import World, make_world

HEX = "a" * 64


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    """Runs a command line with an empty store, and no kubeconfig."""
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none.kubeconfig"))
    before = signal.getsignal(signal.SIGTERM)
    yield Caller(capsys)
    signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Published:
    """The image at *tag* and, by digest, *reference*; its models at *models*."""

    tag: str
    reference: str
    models: str
    world: World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small image and its lock."""
    return make_world(tmp_path_factory.mktemp("deployed"))


@pytest.fixture(scope="session")
def published(world: World, registry: Registry) -> Published:
    """The same, pushed."""
    tag, models = f"{registry.host}/team/up.scale:v1", f"{registry.host}/team/models"
    image = open_source(LayoutName(world.layout)).as_image(world.lock.platform)
    push(image, [parse_reference(tag)])
    push_models(model_images(image), parse_reference(models))
    return Published(tag, f"{tag.removesuffix(':v1')}@{image.digest}", models, world)


@pytest.fixture
def lock(world: World, tmp_path: Path) -> Path:
    """Its lock in a file."""
    path = tmp_path / "own.cpack.lock"
    path.write_bytes(world.lock.to_bytes())
    return path


def written(lock: Lock, path: Path, **changes: object) -> Path:
    """*lock* with *changes*, in a file."""
    path.write_bytes(lock.model_copy(update=changes).to_bytes())
    return path
