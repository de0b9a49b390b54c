"""A running stand-in with the plugin's routes, and a caller that speaks to them as the plugin's own page does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import requests

from tests import need
from tests.serve.running import DEADLINE, ROOT, free_port, wait_for
from tests.standin.repository import make_model
from tests.workspace.installs import HUB, WORKFLOW, make_git_node, make_install, publish

Kind = Literal["standin", "comfyui"]
PAGE = {"X-CPack": "1", "Sec-Fetch-Site": "same-origin"}
_DOOR = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("cpack_door", {str(ROOT / "__init__.py")!r})
door = sys.modules["cpack_door"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(door)
NODE_CLASS_MAPPINGS = door.NODE_CLASS_MAPPINGS
WEB_DIRECTORY = {str(ROOT / "cpack_build" / "web")!r}
"""
FAKE_TOOL = f"#!{sys.executable}\n" + (Path(__file__).with_name("fake_tool.py")).read_text()
"""A tool that does as its workflow says; for what the real one cannot be made to do on demand."""


@dataclass(frozen=True)
class Comfyui:
    """A ComfyUI that runs, with the plugin."""

    url: str
    folder: Path
    pid: int
    temporary: Path

    @property
    def log(self) -> str:
        return (self.temporary.parent / "log").read_text(errors="replace")

    @property
    def saved(self) -> Path:
        return self.folder / "output" / "cpack"

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", headers={**PAGE, **headers}, timeout=DEADLINE)

    def post(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        return requests.post(
            f"{self.url}{path}", json={} if body is None else body, headers={**PAGE, **headers}, timeout=DEADLINE
        )

    def start(self, kind: str, **params: Any) -> str:
        """Start a job; its id."""
        answer = self.post("/cpack/jobs", {"kind": kind, "params": params, "client_id": "test"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"]["id"])

    def job(self, key: str) -> dict[str, Any]:
        answer = self.get(f"/cpack/jobs/{key}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["job"])

    def until(self, key: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The job once *condition* holds."""

        def holds() -> dict[str, Any] | None:
            job = self.job(key)
            return job if condition(job) else None

        return wait_for(holds, "the job", log=lambda: json.dumps(self.job(key), indent=1) + self.log) or {}

    def over(self, key: str) -> dict[str, Any]:
        """The job once it has ended."""
        return self.until(key, lambda job: job["state"] in ("done", "failed", "cancelled"))

    def done(self, kind: str, **params: Any) -> dict[str, Any]:
        """The result of a job that is done well."""
        job = self.over(self.start(kind, **params))
        assert job["state"] == "done", json.dumps(job, indent=1)
        return dict(job["result"])


@contextmanager
def running(
    folder: Path,
    *,
    kind: Kind = "standin",
    arguments: tuple[str, ...] = (),
    install: Path | None = None,
    python: str = "",
    **environment: str,
) -> Iterator[Comfyui]:
    """ComfyUI, laid out in *folder* as an install with git, nodes, a model and inputs (or the *install* that there is),
    run by *python* or by the one that its *kind* has; ended afterwards."""
    root = install or make_comfyui(folder / "ComfyUI", kind=kind)
    if kind == "comfyui":
        python = python or os.environ["CPACK_TEST_COMFYUI_PYTHON"]
        arguments += ("--cpu", "--disable-auto-launch", "--database-url", f"sqlite:///{folder / 'comfyui.db'}")
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    port = free_port()
    variables = {
        **os.environ,
        "TMPDIR": str(temporary),
        "CPACK_HOME": str(folder / "store"),
        "CPACK_BUILD": str(Path(sys.executable).with_name("cpack-build")),
        "CPACK_PACK_FLAGS": "--offline",
        **environment,
    }
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [python or sys.executable, "main.py", "--port", str(port), *arguments],
            cwd=root, stdout=log, stderr=log, env=variables, start_new_session=True,
        )  # fmt: skip
    comfyui = Comfyui(f"http://127.0.0.1:{port}", root, process.pid, temporary)

    def answers() -> bool:
        assert process.poll() is None, comfyui.log
        try:
            return requests.get(f"{comfyui.url}/system_stats", timeout=DEADLINE).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(answers, "ComfyUI", log=lambda: comfyui.log)
        yield comfyui
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_comfyui(root: Path, *, kind: Kind = "standin") -> Path:
    """An install whose plugin is a clone with a remote, as a user's is; of the stand-in or of the ComfyUI that the
    environment names."""
    if kind == "standin":
        make_install(root)
    else:
        shutil.copytree(os.environ["CPACK_TEST_COMFYUI"], root, symlinks=True)
        publish(root, "https://github.com/comfyanonymous/ComfyUI.git")
        make_model(root / "models/upscale_models/tiny.safetensors", size=64)
        (root / "input/example.png").write_bytes(b"not really a picture")
    make_git_node(root / "custom_nodes" / "cpack-build", url=f"{HUB}/cpack-build", files={"__init__.py": _DOOR})
    return root


def workflow() -> dict[str, Any]:
    """A workflow that uses one model and one input file."""
    return dict(json.loads(json.dumps(WORKFLOW)))


def fake_tool(folder: Path) -> Path:
    """The program of :data:`FAKE_TOOL`."""
    program = folder / "cpack-build"
    program.write_text(FAKE_TOOL)
    program.chmod(0o755)
    return program


def listening(port: int) -> set[str]:
    """The addresses on which *port* is listened to, as Linux has them."""
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
                found.add(socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)))
    return found


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            need.missing("a network address besides loopback")


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> None:
    """Wait until the process has ended."""
    wait_for(lambda: not alive(pid), f"process {pid} to end")


def settled(seconds: float = 0.3) -> None:
    """Give what must not happen the time to happen."""
    time.sleep(seconds)


def values(job: Mapping[str, Any]) -> str:
    """The whole snapshot as text, to look for what must not be in it."""
    return json.dumps(job)
