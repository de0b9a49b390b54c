"""Real engines and a real registry for the tests, each private: its own folders, sockets and ports, and nothing of it
stays.

A daemon is started for a session and stopped by the process id that it was started with; what it mounted is unmounted
and its folder removed. The folder's name is short because a Unix socket's path may have 107 bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from tempfile import mkdtemp
from urllib.error import HTTPError

from tests import need

__all__ = ["Docker", "Podman", "Registry", "free_port", "run_docker", "run_podman", "run_registry", "served_at"]

_START_SECONDS = 60


@dataclass(frozen=True)
class Docker:
    """A running dockerd."""

    host: str
    """For ``DOCKER_HOST``: ``unix://…``."""
    command: str = "docker"
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further variables, for a client that is not the system's."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this daemon and no other."""
        return {"DOCKER_HOST": self.host, **self.settings}

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the docker command; *check* raises with its words when it fails."""
        return _run([self.command, *arguments], self.environment, check)


@dataclass(frozen=True)
class Podman:
    """Podman with its own storage."""

    environment: Mapping[str, str]

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman; *check* raises with its words when it fails."""
        return _run(["podman", *arguments], self.environment, check)


@dataclass(frozen=True)
class Registry:
    """A running registry, plain HTTP on loopback."""

    host: str
    """``localhost:PORT``."""
    root: Path
    """Where it keeps its blobs."""


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def served_at(url: str, *, seconds: float = 30) -> bytes:
    """What *url* answers with, once it answers; fails after *seconds*."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        try:
            with opener.open(url, timeout=5) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def run_docker(
    *,
    path: str | None = None,
    space: int | None = None,
    arguments: tuple[str, ...] = (),
    config: str = "{}",
    client: str = "docker",
    settings: Mapping[str, str] | None = None,
) -> Iterator[Docker]:
    """A private dockerd; needs root.

    *path* replaces its PATH (for a stub runtime, or another release), *space* is how many MiB it has for images,
    *arguments* are added, *config* is its ``daemon.json``. *client* speaks to it, with *settings* as variables.
    """
    if os.geteuid():
        need.missing("root (for a private dockerd)")
    dockerd = shutil.which("dockerd", path=path) if path else None
    dockerd = dockerd or need.tool("dockerd")
    need.tool(client)
    environment = dict(os.environ, **({"PATH": path} if path else {}))
    with _folder("cpd") as folder, _bridge() as bridge:
        docker = Docker(f"unix://{folder}/s", client, settings or {})
        (folder / "daemon.json").write_text(config)
        command = [
            dockerd,
            *("--config-file", f"{folder}/daemon.json", "--host", docker.host, "--pidfile", f"{folder}/pid"),
            *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
            # A daemon empties the firewall chains of every other; ports of loopback are published without them.
            *("--bridge", bridge, "--iptables=false", "--ip6tables=false", "--ip-masq=false"),
            *arguments,
        ]
        (folder / "data").mkdir()
        if space is not None:
            small = ["mount", "-t", "tmpfs", "-o", f"size={space}m", "none", f"{folder}/data"]
            subprocess.run(small, check=True)
        try:
            with _process(command, folder / "log", environment=environment) as alive:
                _wait(lambda: docker("version", check=False).returncode == 0, alive, folder / "log")
                try:
                    yield docker
                finally:
                    if containers := docker("ps", "-aq", check=False).stdout.split():
                        docker("rm", "--force", *containers, check=False)
        finally:
            _unmount_below(folder)


@contextmanager
def run_podman() -> Iterator[Podman]:
    """Podman as root with its own storage and settings that also work where limits cannot be raised."""
    if os.geteuid():
        need.missing("root (for podman with its own storage)")
    need.tool("podman")
    with _folder("cpp") as folder:
        (folder / "containers.conf").write_text(
            "[containers]\n"
            'default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n'
            "[engine]\n"
            'cgroup_manager = "cgroupfs"\n'
            'events_logger = "file"\n'
            'runtime = "runc"\n'
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        (folder / "auth.json").write_text("{}")
        podman = Podman(
            {
                "CONTAINERS_CONF": f"{folder}/containers.conf",
                "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
                "REGISTRY_AUTH_FILE": f"{folder}/auth.json",
            }
        )
        try:
            yield podman
        finally:
            podman("rm", "--all", "--force", "--time", "0", check=False)
            podman("rmi", "--all", "--force", check=False)
            _unmount_below(folder)


@contextmanager
def run_registry(*, auth: str = "") -> Iterator[Registry]:
    """A private registry (distribution) on a free port of loopback; *auth* is that part of its configuration."""
    program = need.tool("docker-registry")
    with _folder("cpr") as folder:
        port = free_port()
        (folder / "config.yml").write_text(
            "version: 0.1\n"
            "log: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{port}', headers: {{X-Content-Type-Options: [nosniff]}}}}\n"
            f"{auth}"
        )
        (folder / "data").mkdir()
        with _process([program, "serve", f"{folder}/config.yml"], folder / "log") as alive:
            _wait(lambda: _answers(f"http://127.0.0.1:{port}/v2/"), alive, folder / "log")
            yield Registry(f"localhost:{port}", folder / "data")


@contextmanager
def run_buildkitd(binaries: Path, *arguments: str) -> Iterator[str]:
    """A private buildkitd out of the folder *binaries* with nothing in its cache, and its address; needs root."""
    need.tool("runc")
    with _folder("cpb") as folder:
        address = f"unix://{folder}/s"
        command = [
            str(binaries / "buildkitd"),
            *("--root", f"{folder}/root", "--addr", address, "--containerd-worker=false", "--oci-worker-net=host"),
            *arguments,
        ]
        ask = [str(binaries / "buildctl"), "--addr", address, "debug", "workers"]
        try:
            (folder / "tmp").mkdir()
            environment = {**os.environ, "TMPDIR": f"{folder}/tmp"}  # where it forgets folders
            with _process(command, folder / "log", environment=environment) as alive:
                _wait(
                    lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0, alive, folder / "log"
                )
                yield address
        finally:
            _unmount_below(folder)


# -- processes, folders, mounts ----------------------------------------------------------------------------------------


def _run(command: list[str], extra: Mapping[str, str], check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, env={**os.environ, **extra}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


@contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    folder = Path(mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)  # several times as quick as rmtree


@contextmanager
def _bridge() -> Iterator[str]:
    """A network bridge with a subnet of its own: two daemons on one bridge would give out the same addresses."""
    ip = need.tool("ip")
    name = f"cpd{token_hex(4)}"
    for attempt in range(256):
        address = f"10.213.{(os.getpid() + attempt) % 256}.1/24"
        routes = subprocess.run([ip, "-4", "route", "show"], check=True, capture_output=True, text=True).stdout
        if address.removesuffix("1/24") not in routes:
            break
    subprocess.run([ip, "link", "add", name, "type", "bridge"], check=True)
    try:
        subprocess.run([ip, "address", "add", address, "dev", name], check=True)
        subprocess.run([ip, "link", "set", name, "up"], check=True)
        yield name
    finally:
        subprocess.run([ip, "link", "delete", name], check=False)


@contextmanager
def _process(
    command: list[str], log: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[[], bool]]:
    """Run *command* for as long as the context lasts; the value tells whether it still runs.

    The kernel ends it also when the tests are killed and can end nothing themselves.
    """
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "TERM", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    try:
        yield lambda: process.poll() is None
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(ready: Callable[[], bool], alive: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if not alive() or time.monotonic() > deadline:
            raise AssertionError(f"It did not start:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        served_at(url, seconds=0)
    except HTTPError:
        return True  # It wants to know who we are.
    except OSError:
        return False
    return True


def _unmount_below(folder: Path) -> None:
    """Whatever an engine still has mounted there, innermost first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if Path(mount).is_relative_to(folder)), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)
