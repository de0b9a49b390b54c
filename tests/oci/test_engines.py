"""An image given to a real engine is the image that it has then, under the name that was asked for, and it runs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cpack_build.errors import EngineFailed, HashMismatch, StorageError, ToolMissing
from cpack_build.fetch.store import Store
from cpack_build.oci.archive import stream_archive
from cpack_build.oci.compressed import compressed_image, parse_compression
from cpack_build.oci.engines import DockerEngine, PodmanEngine, find_engine, open_engine
from cpack_build.oci.layout import write_layout
from cpack_build.oci.push import push
from cpack_build.oci.reference import EngineName, parse_reference
from cpack_build.oci.types import Blob
from tests.engines import Docker, Podman, Registry, free_port, run_docker, served_at
from tests.oci.images import BrokenBlob, image_of, small_image, text_layer, web_image, with_top_layer

NAME = parse_reference("cpack-web:v1")
OTHER = parse_reference("registry.example/team/cpack-other:v1")


@pytest.mark.docker
def test_docker_runs_what_it_was_given(docker: Docker) -> None:
    image = web_image()
    engine = DockerEngine()
    engine.load(image, NAME)
    assert engine.image_id(NAME) == image.id
    assert docker("run", "--rm", "--entrypoint", "id", "cpack-web:v1").stdout.startswith("uid=1000 gid=1000")
    port = free_port()
    container = docker("run", "-d", "--read-only", "-p", f"127.0.0.1:{port}:3000", "cpack-web:v1").stdout.strip()
    try:
        assert served_at(f"http://127.0.0.1:{port}/index.html") == b"hello\n"
    finally:
        docker("rm", "--force", container)


@pytest.mark.podman
def test_podman_runs_what_it_was_given(podman: Podman) -> None:
    image = web_image()
    engine = PodmanEngine()
    engine.load(image, NAME)
    assert engine.image_id(NAME) == image.id
    assert podman("run", "--rm", "--entrypoint", "id", "cpack-web:v1").stdout.startswith("uid=1000 gid=1000")
    port = free_port()
    container = podman("run", "-d", "--read-only", "-p", f"127.0.0.1:{port}:3000", "cpack-web:v1").stdout.strip()
    try:
        assert served_at(f"http://127.0.0.1:{port}/index.html") == b"hello\n"
    finally:
        podman("rm", "--force", "--time", "0", container)


@pytest.mark.podman
def test_podman_runs_an_image_straight_from_a_layout(podman: Podman, tmp_path: Path) -> None:
    write_layout(web_image(), tmp_path / "web.oci", name=parse_reference("cpack-layout:v2"))
    ran = podman("run", "--rm", "--entrypoint", "id", f"oci:{tmp_path}/web.oci:v2")
    assert ran.stdout.startswith("uid=1000 gid=1000")


@pytest.mark.docker
@pytest.mark.xdist_group("builders")  # Who have that Docker running.
def test_containerds_store_runs_what_it_was_given_and_what_it_pulled_by_digest(
    new_docker: Docker, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a real Docker, at its socket. Before 28.0 it does not tell what it has, and is sent everything in the end."""
    web, name = web_image(), parse_reference("cpack-containerd:v1")
    monkeypatch.setenv("DOCKER_HOST", new_docker.host)
    monkeypatch.setenv("PATH", str(tmp_path))  # There is no command.
    monkeypatch.delenv("CPACK_DOCKER", raising=False)
    config = json.loads(web.config.data)["config"]
    for text in ("one", "two"):  # The second has all but its top layer there.
        engine = DockerEngine()
        image = image_of([*web.layers, text_layer({"www/top": text})], config=config)
        engine.load(image, name)
        assert engine.image_id(name) == image.digest  # As only that store shows it.
        said = new_docker("run", "--rm", "--network=none", "--entrypoint", "cat", "cpack-containerd:v1", "/www/top")
        assert said.stdout == text
    [pushed] = push(web, [parse_reference(f"{registry.host}/containerd:v1")])
    by_digest = f"{registry.host}/containerd@{pushed.reference.digest}"
    new_docker("pull", "--quiet", by_digest)
    said = new_docker("run", "--rm", "--network=none", "--entrypoint", "cat", by_digest, "/www/index.html")
    assert said.stdout == "hello\n"


@pytest.mark.docker
def test_a_name_in_docker_moves_to_the_new_image(docker: Docker) -> None:
    engine = DockerEngine()
    for text in ("one", "two"):
        engine.load(small_image(text), OTHER)
        assert engine.image_id(OTHER) == small_image(text).id


@pytest.mark.docker
def test_layers_that_docker_has_are_not_read_again(docker: Docker) -> None:
    engine = DockerEngine()
    below, middle, top = (text_layer({f"known/{name}": name}) for name in ("below", "middle", "top"))
    name = parse_reference("cpack-known:v1")
    engine.load(image_of([below, middle, top]), name)
    changed = text_layer({"known/top": "changed"})
    unread = [BrokenBlob(blob.descriptor, b"", AssertionError("read again")) for blob in (below, middle)]
    image = image_of([*unread, changed])
    engine.load(image, name)
    assert engine.image_id(name) == image.id
    # Above another layer it is another layer to Docker, and must be sent.
    image = image_of([changed, below, middle])
    engine.load(image, name)
    assert engine.image_id(name) == image.id
    docker("run", "--rm", "--entrypoint", "id", _with_layers(below, middle))


@pytest.mark.podman
def test_layers_that_podman_has_are_not_read_again_wherever_they_are_in_the_image(podman: Podman) -> None:
    engine = PodmanEngine()
    below, middle, top = (text_layer({f"known/{name}": name}) for name in ("below", "middle", "top"))
    name = parse_reference("cpack-known:v1")
    engine.load(image_of([below, middle, top]), name)
    changed = text_layer({"known/top": "changed"})
    unread = [BrokenBlob(blob.descriptor, b"", AssertionError("read again")) for blob in (below, middle)]
    for layers in ([*unread, changed], [changed, *unread]):
        image = image_of(layers)
        engine.load(image, name)
        assert engine.image_id(name) == image.id
    web = web_image()
    config = json.loads(web.config.data)["config"]
    engine.load(image_of([*web.layers, *reversed(unread)], config=config), name)
    said = podman("run", "--rm", "--entrypoint", "cat", "cpack-known:v1", "/known/below", "/known/middle").stdout
    assert said == "belowmiddle"


@pytest.mark.podman
def test_a_layer_that_podman_lost_meanwhile_is_sent_after_all(podman: Podman, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PodmanEngine()
    image = image_of([text_layer({"lost/below": "below"}), text_layer({"lost/top": "top"})])
    monkeypatch.setattr(engine, "_present", lambda image: frozenset(blob.descriptor.digest for blob in image.layers))
    name = parse_reference("cpack-lost:v1")
    engine.load(image, name)
    assert engine.image_id(name) == image.id


@pytest.mark.podman
def test_a_layer_that_podman_pulled_compressed_is_not_sent(podman: Podman, registry: Registry, tmp_path: Path) -> None:
    below = text_layer({"pulled/below": "below"})
    small = compressed_image(image_of([below]), parse_compression("gzip"), store=Store(tmp_path))
    push(small, [parse_reference(f"{registry.host}/pulled:v1")])
    podman("pull", "--quiet", "--tls-verify=false", f"{registry.host}/pulled:v1")
    unread = BrokenBlob(below.descriptor, b"", AssertionError("read again"))
    image = image_of([unread, text_layer({"pulled/top": "top"})])
    engine = PodmanEngine()
    engine.load(image, NAME)
    assert engine.image_id(NAME) == image.id


def _with_layers(*layers: Blob) -> str:
    """A web image over *layers*, which Docker has, loaded; its name."""
    web = web_image()
    image = image_of([*layers, *web.layers], config=json.loads(web.config.data)["config"])
    DockerEngine().load(image, parse_reference("cpack-above:v1"))
    return "cpack-above:v1"


@pytest.mark.podman
def test_a_name_in_podman_moves_to_the_new_image(podman: Podman) -> None:
    engine = PodmanEngine()
    for text in ("one", "two"):
        engine.load(small_image(text), OTHER)
        assert engine.image_id(OTHER) == small_image(text).id


@pytest.mark.docker
def test_a_broken_layer_is_said_and_docker_keeps_nothing_of_it(docker: Docker) -> None:
    name = parse_reference("cpack-broken:v1")
    with pytest.raises(HashMismatch):
        DockerEngine().load(with_top_layer(small_image("broken"), b"other"), name)
    assert DockerEngine().image_id(name) is None


@pytest.mark.podman
def test_a_broken_layer_is_said_and_podman_keeps_nothing_of_it(podman: Podman) -> None:
    name = parse_reference("cpack-broken:v1")
    with pytest.raises(HashMismatch):
        PodmanEngine().load(with_top_layer(small_image("broken"), b"other"), name)
    assert PodmanEngine().image_id(name) is None


@pytest.mark.docker
def test_a_full_disk_of_docker_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_docker(space=24) as small:
        for key, value in small.environment.items():
            monkeypatch.setenv(key, value)
        big = image_of([text_layer({"big": os.urandom(40 << 20)})])
        with pytest.raises(StorageError, match="Docker has no space left"):
            DockerEngine().load(big, NAME)
        assert DockerEngine().image_id(NAME) is None


@pytest.mark.docker
def test_docker_is_found_before_podman(docker: Docker) -> None:
    found = find_engine()
    assert found is not None
    assert found.title == "Docker"


def test_without_any_engine_none_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_engine() is None
    with pytest.raises(ToolMissing, match=r"no program 'podman'.*--output oci:DIR"):
        open_engine(EngineName("podman")).require()


def test_a_daemon_that_is_not_there_is_said_before_a_layer_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _program(monkeypatch, tmp_path, 'echo "Cannot connect to the Docker daemon at unix:///x." >&2; exit 1')
    with pytest.raises(ToolMissing, match=r"Docker does not answer: Cannot connect.*Start its daemon"):
        DockerEngine().load(with_top_layer(small_image(), b"", error=AssertionError("read")), NAME)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Error processing tar file(exit status 1): write /x: no space left on device", StorageError),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", ToolMissing),
        ("invalid manifest", EngineFailed),
        ("", EngineFailed),
    ],
)
def test_an_engine_that_gives_up_half_way_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, expected: type[Exception]
) -> None:
    _program(monkeypatch, tmp_path, f'[ "$1" = load ] || exit 0; head -c 100 >/dev/null; echo "{said}" >&2; exit 1')
    with pytest.raises(expected) as error:
        DockerEngine().load(web_image(), NAME)
    assert (said or "it said nothing") in str(error.value)


def test_all_is_sent_when_a_layer_that_docker_had_is_gone_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = small_image()
    layers = [layer.descriptor.digest for layer in image.layers]
    known = json.dumps([{"Id": image.id, "RootFS": {"Layers": layers}}])
    script = f"""
case "$*" in
  info*) echo '[[Backing Filesystem extfs]]' ;;
  "image ls"*) echo sha256:{"c" * 64} ;;
  "image inspect"*) echo '{known}' ;;
  load) cat >"{tmp_path}/sent$(ls {tmp_path} | grep -c sent)"; [ -e {tmp_path}/sent1 ] || exit 1 ;;
esac
"""
    _program(monkeypatch, tmp_path, script)
    DockerEngine().load(image, NAME)
    whole = b"".join(stream_archive(image, name=NAME))
    assert (tmp_path / "sent1").read_bytes() == whole
    assert len((tmp_path / "sent0").read_bytes()) < len(whole)


def test_an_engine_that_has_another_image_then_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = "sha256:" + "b" * 64
    known = json.dumps([{"Id": other}])
    _program(monkeypatch, tmp_path, f"case $1 in load) cat >/dev/null;; image) echo '{known}';; esac")
    with pytest.raises(HashMismatch, match="b" * 64):
        DockerEngine().load(small_image(), NAME)


def test_no_engine_process_is_left_behind_by_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(monkeypatch, tmp_path, f'[ "$1" = load ] || exit 0; echo $$ >{tmp_path}/pid; exec cat >/dev/null')
    image = with_top_layer(small_image(), b"x" * 100, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        DockerEngine().load(image, NAME)
    pid = tmp_path / "pid"
    if pid.exists():  # It may have been stopped before it could say who it is.
        assert subprocess.run(["kill", "-0", pid.read_text().strip()], check=False, capture_output=True).returncode


def _program(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CPACK_DOCKER", str(program))
    assert os.access(program, os.X_OK)
