"""``run --engine`` loads an image, starts it with the flags that it needs, tells its address, and cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpack_build.oci.layout import write_layout
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import Image
from tests.cli.calling import Caller
from tests.engines import Docker, Podman, Registry, served_at
from tests.oci.images import image_of, text_layer, web_image

ENGINE = """#!/bin/sh
echo "$@" >> "$ASKED"
case "$1 $2" in
"image inspect") printf '[{"Config": %s}]' "$CONFIG" ;;
"run "*) exit 3 ;;
esac
"""


def service_image(text: str = "hello", *, ready: bool = True) -> Image:
    """A web server on port 3000 that says it is ready."""
    web = web_image()
    files = {"www/index.html": text, **({"www/readyz": "ok"} if ready else {})}
    # As the first process of its container it would not hear of SIGTERM.
    config = {**json.loads(web.config.data)["config"], "StopSignal": "SIGKILL"}
    return image_of([web.layers[0], text_layer(files)], config=config)


def running(place: str, *words: str, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cpack_build", "run", place, "--engine", "auto", *words]
    environment = os.environ | {"CPACK_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate(timeout=30)[1])
    return line


@pytest.mark.docker
def test_docker_runs_a_layout_until_ctrl_c(docker: Docker, tmp_path: Path) -> None:
    write_layout(service_image(), tmp_path / "web.oci", tag="v1")
    process = running(f"oci:{tmp_path}/web.oci:v1", home=tmp_path / "store")
    url = first_line(process).strip()
    assert served_at(f"{url}/index.html") == b"hello"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "docker run --rm --name cpack-" in err
    assert docker("ps", "-aq").stdout == ""
    assert "web" in docker("image", "ls").stdout


@pytest.mark.docker
def test_docker_runs_what_lies_in_a_registry_detached(
    call: Caller, docker: Docker, registry: Registry, tmp_path: Path
) -> None:
    name = f"{registry.host}/cli/run:v1"
    push(service_image("from the registry"), [parse_reference(name)])
    done = call("run", name, "--engine", "auto", "-d", "--json", "--", "-e", "A=b")
    assert done.code == 0, done.err
    document = done.document
    assert served_at(f"{document['url']}/index.html") == b"from the registry"
    environment = docker("inspect", "--format", "{{json .Config.Env}}", document["container"]).stdout
    assert "A=b" in environment
    # It is there now: nothing is pulled or loaded again.
    assert call("run", f"docker:{name}", "--engine", "docker", "-d", "--json").code == 0
    for container in docker("ps", "-q").stdout.split():
        docker("stop", "--time", "1", container)


@pytest.mark.podman
def test_podman_runs_a_layout_detached(call: Caller, podman: Podman, tmp_path: Path) -> None:
    write_layout(service_image(), tmp_path / "web.oci")
    done = call("run", f"oci:{tmp_path}/web.oci", "--engine", "podman", "-d", "--json")
    assert done.code == 0, done.err
    assert served_at(f"{done.document['url']}/index.html") == b"hello"
    podman("stop", "--time", "1", done.document["container"])


@pytest.mark.docker
def test_what_ends_or_is_never_ready_is_said_and_nothing_stays(call: Caller, docker: Docker, tmp_path: Path) -> None:
    write_layout(service_image(ready=False), tmp_path / "slow.oci")
    done = call("run", f"oci:{tmp_path}/slow.oci", "--engine=auto", "--wait", "0.5", "-q")
    assert (done.code, "was not ready within" in done.err) == (7, True)
    broken = image_of(web_image().layers[:1], config={"Entrypoint": ["/bin/cat", "/nowhere"]})
    write_layout(broken, tmp_path / "broken.oci")
    done = call("run", f"oci:{tmp_path}/broken.oci", "--engine", "auto", "-q")
    assert (done.code, "ended before it was ready (exit code 1)" in done.err) == (7, True), done.err
    assert "/nowhere" in done.err
    assert docker("ps", "-aq").stdout == ""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs in the place of docker and podman that write down what they are asked."""
    program = tmp_path / "engine"
    program.write_text(ENGINE)
    program.chmod(0o755)
    for name in ("CPACK_DOCKER", "CPACK_PODMAN"):
        monkeypatch.setenv(name, str(program))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    return tmp_path / "asked"


def asked(engine: Path) -> str:
    return next(line for line in engine.read_text().splitlines() if line.startswith("run "))


@pytest.mark.parametrize(
    ("place", "words", "config", "flags"),
    [
        ("docker:x:1", ["--gpu"], {}, "--gpus all"),
        ("podman:x:1", ["--gpu"], {}, "--device nvidia.com/gpu=all"),
        ("docker:x:1", ["--no-gpu"], {"Env": ["NVIDIA_REQUIRE_CUDA=driver>=525"]}, ""),
        ("docker:x:1", ["--port", "8123"], {"ExposedPorts": {"9000/tcp": {}}}, "-p 127.0.0.1:8123:9000"),
        ("docker:x:1", ["--", "-v", "/a:/data"], {}, "-v /a:/data x:1"),
    ],
)
def test_the_engine_is_given_the_flags_that_the_image_needs(
    call: Caller,
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    words: list[str],
    config: dict[str, Any],
    flags: str,
) -> None:
    monkeypatch.setenv("CONFIG", json.dumps(config))
    done = call("run", "-q", "--engine", "auto", place, *words)
    assert done.code == 7, done.err
    assert flags in asked(engine)
    assert ("gpu" in asked(engine)) == ("gpu" in flags)


@pytest.mark.parametrize("flag", [["-e", "A_TOKEN=secret"], ["--env=A_TOKEN=secret"], ["-eA_TOKEN=secret"]])
def test_the_engine_is_told_the_value_of_a_variable_and_nobody_else(
    call: Caller, engine: Path, monkeypatch: pytest.MonkeyPatch, flag: list[str]
) -> None:
    monkeypatch.setenv("CONFIG", "{}")
    done = call("run", "docker:x:1", "--engine", "auto", "--", "-e", "PLAIN", *flag, "-v", "/a=b:/data")
    assert "A_TOKEN=secret" in asked(engine)
    assert "secret" not in done.err + done.out
    assert "A_TOKEN=…" in done.err
    assert "-e PLAIN" in done.err
    assert "/a=b:/data" in done.err


def test_a_gpu_that_is_wanted_and_not_here_is_noted(
    call: Caller, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIG", json.dumps({"Env": ["NVIDIA_REQUIRE_CUDA=driver>=525"]}))
    monkeypatch.setattr("cpack_build.cli.container._has_gpu", lambda: False)
    done = call("run", "docker:x:1", "--engine", "auto")
    assert "none is seen here" in done.err
    assert "gpu" not in asked(engine)
    engine.unlink()
    monkeypatch.setattr("cpack_build.cli.container._has_gpu", lambda: True)
    call("run", "docker:x:1", "--engine", "auto")
    assert "--gpus all" in asked(engine)


def test_what_cannot_be_run_is_said(call: Caller, engine: Path, tmp_path: Path) -> None:
    (tmp_path / "x.cpack.zip").write_bytes(b"PK")
    for arguments, code in (
        ((str(tmp_path / "x.cpack.zip"),), 2),
        (("docker",), 2),
        (("docker:x:1", "--engine", "podman"), 2),
        ((f"oci:{tmp_path}/nowhere",), 4),
    ):
        chosen = () if "--engine" in arguments else ("--engine", "auto")
        assert call("run", *arguments, *chosen).code == code, arguments
