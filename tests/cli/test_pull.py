"""``pull`` into a folder, a file and an engine, told to people and to programs; and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from cpack_build.oci.push import push
from cpack_build.oci.reference import LayoutName, parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from tests.cli.calling import Caller
from tests.engines import Docker, Registry
from tests.oci.images import image_of, machine, small_image, text_layer
from tests.oci.misbehaving import Fault, Request, run_misbehaving

PLATFORM = f"linux/{machine()}"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def test_an_image_is_pulled_into_every_kind_of_place(call: Caller, registry: Registry, tmp_path: Path) -> None:
    image = image_of([text_layer({"cli/pull": "1" * 3000})])
    name = f"{registry.host}/cli/pull:v1"
    push(image, [parse_reference(name)])
    places = [f"oci:{tmp_path}/x.oci", f"oci-archive:{tmp_path}/x.tar", f"docker-archive:{tmp_path}/y.tar"]
    done = call("pull", name, *(word for place in places for word in ("-o", place)), "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document.pop("outputs")[0]["name"] == places[0]
    assert document == {
        "reference": f"{registry.host}/cli/pull@{image.digest}",
        "tag": "v1",
        "image_id": image.id,
        "digest": image.digest,
        "platform": PLATFORM,
        "size": image.size,
        "layers": 1,
        "received": image.layers[0].descriptor.size,
        "present": image.size - image.layers[0].descriptor.size,
    }
    for place in places:
        read = open_source(parse_image_name(place)).as_image(PLATFORM)
        assert (read.id, read.digest) == (image.id, image.digest)
    done = call("pull", name, "-o", places[0])
    assert done.code == 0
    assert "here already" in done.out
    assert " came" not in done.out


@pytest.mark.docker
def test_a_pull_into_docker_does_not_wait_for_what_reads_packs(
    registry: Registry, docker: Docker, tmp_path: Path
) -> None:
    name = f"{registry.host}/cli/light:v1"
    push(small_image(), [parse_reference(name)])
    words = ["pull", name, "-o", "docker:cpack-light"]
    program = (
        "import sys; from cpack_build.cli import run; run(sys.argv[1:]);"
        "print(sorted({'pydantic', 'cpack_build.lock'} & set(sys.modules)))"
    )
    environment = os.environ | {"CPACK_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_pulled_and_pushed_again_it_is_the_same_image(call: Caller, registry: Registry, tmp_path: Path) -> None:
    image = small_image("round")
    push(image, [parse_reference(f"{registry.host}/cli/round:v1")])
    place = f"oci:{tmp_path}/x.oci"
    assert call("pull", f"{registry.host}/cli/round@{image.digest}", "-o", place).code == 0
    done = call("push", place, f"{registry.host}/cli/round-again:v1", "--json")
    assert done.document["digest"] == image.digest
    assert open_source(LayoutName(tmp_path / "x.oci")).as_image(PLATFORM).digest == image.digest


@pytest.mark.docker
def test_docker_gets_it_unless_something_else_is_said(call: Caller, registry: Registry, docker: Docker) -> None:
    image = small_image("docker-pull")
    name = f"{registry.host}/cli/docker:v1"
    push(image, [parse_reference(name)])
    done = call("pull", name)
    assert done.code == 0, done.err
    assert docker("image", "inspect", "--format", "{{.Id}}", name).stdout.strip() == image.id
    assert f"docker run --rm -p 3000:3000 {name}" in done.out


def test_a_dry_run_writes_nothing(call: Caller, registry: Registry, tmp_path: Path) -> None:
    push(small_image("dry-pull"), [parse_reference(f"{registry.host}/cli/dry:v1")])
    done = call("pull", f"{registry.host}/cli/dry:v1", "-o", f"oci:{tmp_path}/x.oci", "--dry-run")
    assert (done.code, "would come" in done.out) == (0, True)
    assert not (tmp_path / "x.oci").exists()


def test_what_cannot_be_is_said_before_anything_is_asked(call: Caller, tmp_path: Path) -> None:
    for arguments, code in (
        (("oci:somewhere",), 2),
        (("r.example/x:1", "-o", f"oci:{tmp_path}/a", "-o", "r.example/y:1"), 2),
        (("r.example/x:1", "-o", f"oci:{tmp_path}/a", "-o", f"oci:{tmp_path}/a"), 2),
        (("r.example/x:1", "--insecure-registry", "http://r.example/"), 2),
        (("https://r.example/x:1",), 2),
    ):
        assert call("pull", *arguments).code == code, arguments


def test_an_image_is_written_to_no_plain_file(call: Caller, tmp_path: Path) -> None:
    with run_misbehaving() as fake:
        fake.hold(small_image())
        done = call("pull", f"{fake.host}/x:v1", "-o", tmp_path / "x")
        assert done.code == 2, done.err
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(spoil=True), 5),
        (Fault(status=404), 4),
        (Fault(status=403, body=b'{"errors":[{"code":"DENIED","message":"\x1b[2J"}]}'), 6),
        (Fault(status=307, headers={"Location": "ftp://localhost/x"}), 8),
    ],
)
def test_each_failure_names_registry_repository_and_digest(
    call: Caller, tmp_path: Path, fault: Fault, code: int
) -> None:
    image = small_image("failing")
    digest = image.layers[0].descriptor.digest
    with run_misbehaving() as fake:
        fake.hold(image, "team/x")
        fake.fault = lambda request: fault if digest in request.path else None
        done = call("pull", f"{fake.host}/team/x:v1", "-o", f"oci:{tmp_path}/x.oci")
        assert done.code == code, done.err
        assert fake.host in done.err
        assert digest.removeprefix("sha256:") in done.err
        assert "team/x" in done.err
        assert "\x1b" not in done.err
        assert not (tmp_path / "x.oci").exists()


def test_ctrl_c_keeps_what_came_and_the_next_run_goes_on(call: Caller, tmp_path: Path) -> None:
    image = image_of([text_layer({"large": os.urandom(8 << 20)})])
    digest = image.layers[0].descriptor.digest
    with run_misbehaving() as fake:
        fake.hold(image)
        begun = Event()

        def interrupt(request: Request) -> Fault | None:
            if digest in request.path and not begun.is_set():
                begun.set()
                return Fault(headers={"Content-Length": str(len(fake.blobs["x", digest]))}, send=4 << 20, stall=True)
            return None

        fake.fault = interrupt
        command = [sys.executable, "-m", "cpack_build", "pull", f"{fake.host}/x:v1", "-o", f"oci:{tmp_path}/x.oci"]
        environment = os.environ | {"CPACK_HOME": str(tmp_path / "store")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        assert begun.wait(30)
        partial = tmp_path / "store/pulled" / digest.removeprefix("sha256:")
        while not (partial.exists() and partial.stat().st_size >= 1 << 20):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert not (tmp_path / "x.oci").exists()
        here = partial.stat().st_size
        assert here >= 1 << 20
        done = call("pull", f"{fake.host}/x:v1", "-o", f"oci:{tmp_path}/x.oci", "--json")
        assert done.code == 0, done.err
        assert done.document["received"] == image.layers[0].descriptor.size - here


def test_progress_as_events_names_every_blob(call: Caller, tmp_path: Path) -> None:
    image = small_image("events")
    with run_misbehaving() as fake:
        fake.hold(image)
        done = call("pull", f"{fake.host}/x:v1", "-o", f"oci:{tmp_path}/x.oci", "--progress", "json")
        events = [json.loads(line) for line in done.err.splitlines()]
        started = {event["title"] for event in events if event["event"] == "start"}
        assert {layer.descriptor.digest for layer in image.layers} <= started
        ended = [event for event in events if event["event"] == "end"]
        assert all(event["complete"] and event["done"] == event["total"] for event in ended)
