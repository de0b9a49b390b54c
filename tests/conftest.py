"""Fixtures that every room's tests share: real engines and a real registry, each started once per session when first
used.

``CPACK_TEST_DOCKER_HOST`` names a Docker daemon to use instead of a private one.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import need
from tests.engines import Docker, Podman, Registry, run_docker, run_podman, run_registry

NEXT = Path(os.environ.get("CPACK_TEST_DOCKER_NEXT", "/opt/cpack-docker-next"))
"""Where ``.ci/docker-next`` has put a newer Docker."""


def pytest_configure() -> None:
    """A shell that runs us in the background has us ignore Ctrl-C, and so would each program that a test interrupts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of an engine share one worker, so that each engine is started once (pytest-xdist, ``--dist loadgroup``).

    Those of builders name a group of their own: either takes long, and the other worker has it.
    """
    for item in items:
        is_grouped = item.get_closest_marker("xdist_group") is not None
        if not is_grouped and {"docker", "new_docker", "podman"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("engines"))


@pytest.fixture(scope="session")
def _docker() -> Iterator[Docker]:
    if host := os.environ.get("CPACK_TEST_DOCKER_HOST"):
        need.tool("docker")
        yield Docker(host)
        return
    with run_docker() as docker:
        yield docker


@pytest.fixture(scope="session")
def _podman() -> Iterator[Podman]:
    with run_podman() as podman:
        yield podman


@pytest.fixture
def docker(_docker: Docker, monkeypatch: pytest.MonkeyPatch) -> Docker:
    """A Docker daemon; the test's own environment points at it."""
    for key, value in _docker.environment.items():
        monkeypatch.setenv(key, value)
    return _docker


@pytest.fixture
def docker_host(docker: Docker) -> str:
    """The daemon's address, for ``DOCKER_HOST`` (which is set)."""
    return docker.host


@pytest.fixture
def podman(_podman: Podman, monkeypatch: pytest.MonkeyPatch) -> Podman:
    """Podman; the test's own environment points at its storage."""
    for key, value in _podman.environment.items():
        monkeypatch.setenv(key, value)
    return _podman


@pytest.fixture(scope="session")
def new_docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A Docker with buildx, its images in containerd's store."""
    plugin = NEXT / "usr/libexec/docker/cli-plugins/docker-buildx"
    if not plugin.exists():
        need.missing(f"a newer Docker in {NEXT} (.ci/docker-next makes it)")
    config = tmp_path_factory.mktemp("new-docker")
    (config / "cli-plugins").mkdir()
    (config / "cli-plugins" / "docker-buildx").symlink_to(plugin)
    client = str(NEXT / "usr/bin/docker")
    path = f"{NEXT}/usr/sbin:{NEXT}/usr/bin:{os.environ['PATH']}:/usr/sbin"
    with run_docker(
        path=path,
        config=json.dumps({"features": {"containerd-snapshotter": True}}),
        client=client,
        settings={"DOCKER_CONFIG": str(config), "CPACK_DOCKER": client},
    ) as docker:
        yield docker


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A registry on loopback."""
    with run_registry() as running:
        yield running
