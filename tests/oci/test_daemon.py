"""Docker is found where its command would find it, and spoken to over its socket: what containerd's store lacks is
sent, what it says is heard, and a load that breaks off leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import pytest

from cpack_build.errors import EngineFailed, StorageError, ToolMissing
from cpack_build.oci.daemon import Daemon, docker_socket
from cpack_build.oci.engines import DockerEngine
from cpack_build.oci.reference import ArchiveName, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Blob
from tests.engines import Docker
from tests.oci.containerdstore import ContainerdStore, run_containerd_store
from tests.oci.images import image_of, small_image, text_layer, with_top_layer

NAME = parse_reference("registry.example/team/cpack-api:v1")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ContainerdStore]:
    with TemporaryDirectory(prefix="cpd", dir="/tmp") as folder, run_containerd_store(Path(folder)) as store:
        monkeypatch.setenv("DOCKER_HOST", store.host)
        monkeypatch.delenv("CPACK_DOCKER", raising=False)
        yield store


def digests(*blobs: Blob) -> set[str]:
    return {blob.descriptor.digest for blob in blobs}


def test_layers_that_containerds_store_has_are_not_sent_wherever_they_lie(store: ContainerdStore) -> None:
    model, top = text_layer({"model": "m"}), text_layer({"top": "one"})
    DockerEngine().load(image_of([model, top]), NAME)
    image = image_of([text_layer({"below": "new"}), model])
    DockerEngine().load(image, NAME)
    assert DockerEngine().image_id(NAME) == image.digest
    assert digests(*image.layers) - store.loads[-1] == digests(model)
    assert len(store.loads) == 2


@pytest.mark.parametrize("with_manifests", [True, False])
def test_everything_is_sent_when_containerds_store_lacks_a_blob_or_cannot_tell(
    store: ContainerdStore, with_manifests: bool
) -> None:
    model = text_layer({"model": "m"})
    DockerEngine().load(image_of([model, text_layer({"top": "one"})]), NAME)
    # As when it was pulled: the same layer, in a compressed blob.
    del store.blobs[model.descriptor.digest]
    store.with_manifests = with_manifests
    image = image_of([model, text_layer({"top": "two"})])
    DockerEngine().load(image, NAME)
    assert store.loads[-1] == digests(image.manifest, image.config, *image.layers)
    assert digests(*image.layers) <= set(store.blobs)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("write /x: no space left on device", StorageError), ("invalid tar header", EngineFailed), ("", EngineFailed)],
)
def test_a_refusal_is_heard_though_the_daemon_hangs_up_before_the_end(
    store: ContainerdStore, said: str, expected: type[Exception]
) -> None:
    store.refuses = said or " "
    with pytest.raises(expected, match=said or "did not load"):
        DockerEngine().load(image_of([text_layer({"big": os.urandom(8 << 20)})]), NAME)


def test_an_archive_that_breaks_off_is_never_taken_for_a_whole_one(store: ContainerdStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        DockerEngine().load(with_top_layer(small_image(), b"x" * 100, error=KeyboardInterrupt()), NAME)
    assert store.loads == []


def test_a_daemon_that_goes_away_is_said(tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="cpd", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listening:
        path = f"{folder}/s"
        listening.bind(path)
        listening.listen()
        thread = threading.Thread(target=lambda: listening.accept()[0].close(), daemon=True)
        thread.start()
        with pytest.raises(ToolMissing, match="Docker stopped answering"):
            Daemon(path).load([b"x" * 10], 10)
        thread.join()
    assert not Daemon(str(tmp_path / "none")).answers()


@pytest.mark.docker
def test_docker_is_loaded_asked_and_saved_without_its_command(
    docker: Docker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    image, engine = small_image("without"), DockerEngine()
    engine.load(image, NAME)
    with (tmp_path / "saved.tar").open("wb") as file:
        engine.save(NAME, file)
    saved = open_source(ArchiveName(tmp_path / "saved.tar", "docker")).as_image(image.platform)
    assert saved.id == image.id
    assert engine.config_of(NAME) is not None
    assert not engine.is_running("cpack-none")
    with pytest.raises(ToolMissing, match="no program 'docker'"):
        engine.command("run")


@pytest.mark.docker
def test_docker_has_the_same_by_its_command(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPACK_DOCKER", docker.command)
    below = text_layer({"by": "command"})
    for text in ("one", "two"):
        image = image_of([below, text_layer({"top": text})])
        DockerEngine().load(image, NAME)
        assert DockerEngine().image_id(NAME) == image.id
    with TemporaryFile() as file:
        DockerEngine().save(NAME, file)
        assert file.tell() > 0


def test_the_socket_is_the_one_that_the_command_would_use(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert docker_socket(home) == "/var/run/docker.sock"
    folder = tmp_path / ".docker"
    for name, host in (("desktop", "unix:///run/desktop.sock"), ("far", "ssh://far.example")):
        meta = folder / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
        meta.mkdir(parents=True)
        (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    (folder / "config.json").write_text('{"currentContext": "desktop"}')
    read: list[Path] = []
    assert docker_socket(home, reads=read.append) == "/run/desktop.sock"
    assert read == [
        folder / "config.json",
        folder / f"contexts/meta/{hashlib.sha256(b'desktop').hexdigest()}/meta.json",
    ]
    assert docker_socket(home | {"DOCKER_CONTEXT": "default"}) == "/var/run/docker.sock"
    # What is no socket of this machine, or is not known, is left to the command.
    assert docker_socket(home | {"DOCKER_CONTEXT": "far"}) is None
    assert docker_socket(home | {"DOCKER_CONTEXT": "unknown"}) is None
    assert docker_socket(home | {"DOCKER_HOST": "tcp://far.example:2376"}) is None
    assert docker_socket(home | {"DOCKER_HOST": "unix:///run/own.sock"}) == "/run/own.sock"
