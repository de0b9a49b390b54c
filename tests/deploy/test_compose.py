"""``deploy compose`` writes files that docker-compose and Caddy take, hardened and without a secret."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpack_build.deploy.compose import Options, Proxy, compose_files
from cpack_build.deploy.subject import Subject
from tests import need
from tests.cli.calling import Caller
from tests.deploy.conftest import HEX, Published, written
from tests.restore.images import World

PINNED = f"registry.example/team/up.scale@sha256:{HEX}"
CADDY = f"registry.example/caddy@sha256:{HEX}"
WITH_PROXY = ("--host", "upscale.example.com", "--proxy-image", CADDY)


def config_of(folder: Path, **environment: str) -> dict[str, Any]:
    """What docker-compose makes of the file."""
    done = subprocess.run(
        [need.tool("docker-compose"), "-f", folder / "compose.yaml", "config"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = yaml.safe_load(done.stdout)
    assert isinstance(document, dict)
    return document


def check_service(service: dict[str, Any]) -> None:
    assert "@sha256:" in service["image"] or service["image"].startswith("sha256:")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["pids_limit"]
    assert service["logging"]["options"]["max-size"]
    assert not service.get("privileged")
    assert service.get("network_mode") != "host"


@pytest.fixture
def gpu_lock(world: World, tmp_path: Path) -> Path:
    return written(world.lock, tmp_path / "gpu.lock", target="cuda12.8")


def test_docker_compose_takes_the_service_with_its_gpu_and_limits(call: Caller, gpu_lock: Path, tmp_path: Path) -> None:
    done = call("deploy", "compose", PINNED, "--lock", gpu_lock, "-o", tmp_path / "up", "--cpus", "2", "--json",
                "--env", "CPACK_OUTPUT_URL=s3://bucket/$HOME")  # fmt: skip
    assert done.code == 0, done.err
    (service,) = config_of(tmp_path / "up")["services"].values()
    check_service(service)
    assert service["image"] == PINNED
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert (service["mem_limit"], service["cpus"]) == ("4608m", 2.0)
    assert [str(port) for port in service["ports"]] == ["127.0.0.1:3000:3000/tcp"]
    # docker-compose prints the dollar as it wants it back
    assert service["environment"]["CPACK_OUTPUT_URL"] == "s3://bucket/$$HOME"
    assert "NVIDIA_VISIBLE_DEVICES" not in service["environment"]
    assert done.document["secrets"] == []


def test_a_service_with_a_name_has_a_proxy_and_a_token(call: Caller, lock: Path, tmp_path: Path) -> None:
    done = call("deploy", "compose", PINNED, "--lock", lock, "-o", tmp_path / "up", *WITH_PROXY)
    assert done.code == 0, done.err
    assert f"Write CPACK_TOKEN=… into {tmp_path}/up/.env first." in done.out
    missing = subprocess.run(
        [need.tool("docker-compose"), "-f", tmp_path / "up/compose.yaml", "config"],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert missing.returncode != 0
    assert "into .env" in missing.stderr
    (tmp_path / "up/.env").write_text("CPACK_TOKEN=from-the-file\n")
    services = config_of(tmp_path / "up")["services"]
    for service in services.values():
        check_service(service)
    assert services["up-scale"]["environment"]["CPACK_TOKEN"] == "from-the-file"
    assert "ports" not in services["up-scale"]
    assert list(services["up-scale"]["networks"]) == ["inner"]
    assert "from-the-file" not in (tmp_path / "up/compose.yaml").read_text()


@pytest.mark.parametrize("flags", [(), ("--tls", "internal"), ("--no-token",)])
def test_caddy_takes_its_file(call: Caller, lock: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    caddy = need.tool("caddy")
    done = call("deploy", "compose", PINNED, "--lock", lock, "-o", tmp_path / "up", *WITH_PROXY, *flags)
    assert done.code == 0, done.err
    file = tmp_path / "up/Caddyfile"
    command = [caddy, "validate", "--adapter", "caddyfile", "--config", file]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    formatted = subprocess.run([caddy, "fmt", file], check=False, capture_output=True, text=True).stdout
    assert formatted.split() == file.read_text().split()
    assert ("respond /metrics 404" in file.read_text()) == ("--no-token" in flags)


def test_the_tag_in_a_registry_becomes_its_digest(call: Caller, published: Published, tmp_path: Path) -> None:
    done = call("deploy", "compose", published.tag, "-o", tmp_path / "up", "--json")
    assert done.code == 0, done.err
    assert done.document["image"] == published.reference
    assert published.tag not in (tmp_path / "up/compose.yaml").read_text()


def test_an_amd_gpu_is_its_devices() -> None:
    subject = Subject(PINNED, "x", ("linux/amd64",), "rocm6.4")
    service = yaml.safe_load(compose_files(subject, Options("x", gpus=1))["compose.yaml"])["services"]["x"]
    assert service["devices"] == ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
    assert "deploy" not in service


def test_a_host_that_may_go_out_is_in_both_networks() -> None:
    subject = Subject(PINNED, "x", ("linux/amd64",), "cpu")
    options = Options("x", egress=True, proxy=Proxy("a.example", CADDY))
    document = yaml.safe_load(compose_files(subject, options)["compose.yaml"])
    assert document["services"]["x"]["networks"] == ["inner", "outer"]
    assert document["networks"]["inner"] == {"internal": True}


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--name", "A b"], 2, "which Compose refuses"),
        ([*WITH_PROXY, "--name", "proxy"], 2, "'proxy'"),
        (["--memory", "8Gi"], 2, "'8Gi'"),
        (["--address", "localhost"], 2, "no IP address"),
        (["--egress"], 2, "is for the proxy"),
        (["--host", "a b", "--proxy-image", CADDY], 2, "no host name"),
        (["--host", "a.example{", "--proxy-image", CADDY], 2, "no host name"),
        (["--host", "a.example", "--proxy-image", "localhost:9/caddy:2"], 2, "NAME@sha256:"),
        (["--env", "CPACK_TOKEN=hush-hush"], 8, "--env-secret CPACK_TOKEN"),
        (["--env-secret", "A B"], 2, "no name of an environment variable"),
        (["--gpus", "1"], 2, "is for cpu"),
        (["--platform", "linux/arm64"], 4, "not for linux/arm64"),
    ],
)
def test_what_cannot_work_is_refused(
    call: Caller, lock: Path, tmp_path: Path, flags: list[str], code: int, told: str
) -> None:
    done = call("deploy", "compose", PINNED, "--lock", lock, "-o", tmp_path / "up", *flags)
    assert (done.code, told in done.err) == (code, True), done.err
    assert "hush-hush" not in done.err
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize("image", ["oci:somewhere", "podman:upscale", "docker-archive:x.tar"])
def test_what_docker_does_not_have_is_refused(call: Caller, image: str) -> None:
    done = call("deploy", "compose", image)
    assert done.code == 2, done.err
