"""``push`` from a folder, a file and a registry, told to people and to programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from cpack_build.oci.archive import write_archive
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import parse_reference
from tests.cli.calling import Caller
from tests.engines import Registry
from tests.oci.images import image_of, small_image, text_layer
from tests.oci.misbehaving import Fault, Request, run_misbehaving


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def test_every_kind_of_image_is_pushed_with_its_digest(call: Caller, registry: Registry, tmp_path: Path) -> None:
    image = image_of([text_layer({"cli/push": "1" * 3000})])
    write_layout(image, tmp_path / "x.oci", tag="v1")
    write_archive(image, tmp_path / "x.tar", name=parse_reference("x:v1"))
    blobs = image.size - image.manifest.descriptor.size
    first = f"{registry.host}/cli/a:v1"
    done = call("push", f"oci:{tmp_path}/x.oci:v1", first, "--also", f"{registry.host}/cli/a:v2", "--json")
    assert done.code == 0, done.err
    document = done.document
    assert (document["digest"], document["image_id"]) == (image.digest, image.id)
    assert document["pushed"] == [
        {
            "reference": f"{registry.host}/cli/a@{image.digest}",
            "tag": "v1",
            "changed": True,
            "sent": blobs,
            "mounted": 0,
            "present": 0,
            "requests": 9,
        },
        {
            "reference": f"{registry.host}/cli/a@{image.digest}",
            "tag": "v2",
            "changed": True,
            "sent": 0,
            "mounted": 0,
            "present": blobs,
            "requests": 3,
        },
    ]
    for source in (f"oci-archive:{tmp_path}/x.tar", f"docker-archive:{tmp_path}/x.tar", first):
        done = call("push", source, f"{registry.host}/cli/{source.partition(':')[0].replace('localhost', 'r')}:v1")
        assert done.code == 0, done.err
        assert f"@{image.digest}  " in done.out
        assert "mounted" in done.out
    assert call("push", first, first).out == f"{first}@{image.digest}  unchanged\n"


def test_a_dry_run_asks_and_sends_nothing(call: Caller, tmp_path: Path) -> None:
    write_layout(small_image("dry"), tmp_path / "x.oci")
    with run_misbehaving() as fake:
        done = call("push", f"oci:{tmp_path}/x.oci", f"{fake.host}/x:v1", "--dry-run")
        assert done.code == 0
        assert "would be sent" in done.out
        assert set(fake.methods()) == {"HEAD"}


def test_a_refusal_is_an_error_with_registry_and_digest(call: Caller, tmp_path: Path) -> None:
    image = small_image("refused")
    write_layout(image, tmp_path / "x.oci")
    with run_misbehaving() as fake:
        body = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[2J"}]}).encode()
        fake.fault = lambda request: Fault(status=403, body=body) if request.method == "POST" else None
        done = call("push", f"oci:{tmp_path}/x.oci", f"{fake.host}/x:v1", "--jobs", "1")
        assert done.code == 6
        assert f"Pushing {fake.host}/x:v1: blob sha256:" in done.err
        assert "refuses (HTTP 403, DENIED)" in done.err
        assert f"cpack-build login {fake.host}" in done.err
        assert "\x1b" not in done.err


def test_the_password_in_the_environment_is_for_one_registry(
    call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(small_image("ci"), tmp_path / "x.oci")
    monkeypatch.setenv("CPACK_REGISTRY_USER", "ci")
    monkeypatch.setenv("CPACK_REGISTRY_PASSWORD", "secret")
    with run_misbehaving() as mine, run_misbehaving() as other:
        basic = {"WWW-Authenticate": 'Basic realm="x"'}
        for fake in (mine, other):
            fake.fault = lambda request: (
                None if "authorization" in request.headers else Fault(status=401, headers=basic)
            )
        names = (f"{mine.host}/x:v1", "--also", f"{other.host}/x:v1")
        done = call("push", f"oci:{tmp_path}/x.oci", *names)
        assert done.code == 2
        assert "CPACK_REGISTRY" in done.err
        assert not mine.seen
        monkeypatch.setenv("CPACK_REGISTRY", mine.host)
        done = call("push", f"oci:{tmp_path}/x.oci", *names)
        assert done.code == 6
        assert mine.manifests
        assert not any("authorization" in request.headers for request in other.seen)
        assert "secret" not in done.out + done.err
        monkeypatch.delenv("CPACK_REGISTRY")
        assert call("push", f"oci:{tmp_path}/x.oci", f"{other.host}/x:v1").code == 0


def test_ctrl_c_gives_the_upload_up(tmp_path: Path) -> None:
    image = image_of([text_layer({"large": b"\0" * (32 << 20)})])
    write_layout(image, tmp_path / "x.oci")
    with run_misbehaving() as fake:
        command = [sys.executable, "-m", "cpack_build", "push", f"oci:{tmp_path}/x.oci", f"{fake.host}/x:v1"]
        environment = os.environ | {"CPACK_HOME": str(tmp_path / "store")}
        started = Event()

        sent: list[int] = []

        def interrupt(request: Request) -> None:
            if int(request.headers.get("content-length", "0")) > 1 << 20 and not sent:
                sent.append(request.number)
                started.wait(10)
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)  # Its buffers fill, and it waits to send more.

        fake.fault = interrupt
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        started.set()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Stopped." in err
        assert sent
        assert not fake.uploads
        assert not fake.manifests


def test_progress_as_events_tells_of_every_blob_and_of_all_and_quiet_of_none(call: Caller, tmp_path: Path) -> None:
    image = small_image("events")
    write_layout(image, tmp_path / "x.oci")
    with run_misbehaving() as fake:
        done = call("push", f"oci:{tmp_path}/x.oci", f"{fake.host}/x:v1", "--progress", "json", "--json")
        assert done.document["digest"] == image.digest  # stdout has the result alone
        events = [json.loads(line) for line in done.err.splitlines()]
        started = {event["title"]: event for event in events if event["event"] == "start"}
        blobs = (image.config, *image.layers)
        assert set(started) == {f"Pushing {fake.host}/x:v1", *(blob.descriptor.digest for blob in blobs)}
        ended = {event["task"]: event for event in events if event["event"] == "end"}
        for blob in blobs:
            size = blob.descriptor.size
            end = ended[started[blob.descriptor.digest]["task"]]
            assert (end["done"], end["total"], end["complete"]) == (size, size, True)
        whole = ended[started[f"Pushing {fake.host}/x:v1"]["task"]]
        assert whole["done"] == whole["total"] == sum(blob.descriptor.size for blob in blobs)
        done = call("push", f"oci:{tmp_path}/x.oci", f"{fake.host}/y:v1", "-q")
        assert (done.code, done.err) == (0, "")
