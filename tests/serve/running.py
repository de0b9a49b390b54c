"""Runs the real service on a real engine in processes of their own, and asks the same engine directly.

The engine is the stand-in, or ComfyUI itself where ``CPACK_TEST_COMFYUI`` names its folder (with comfy-pack's nodes in
``custom_nodes``) and ``CPACK_TEST_COMFYUI_PYTHON`` its Python.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests
from PIL import Image

from tests.standin.repository import COMFYUI, make_model

ROOT = Path(__file__).parents[2]
DEADLINE = 180  # seconds until a test gives up; never what it measures
MODEL = "tiny_esrgan_4x.safetensors"
FIXTURES = ROOT.parent / "shared" / "fixtures"
FIXTURE_MODEL = FIXTURES / MODEL
FIXTURE_PACK = FIXTURES / "upscale.cpack.zip"
T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """A ComfyUI to start: its folder and its Python; *arguments* make it load the nodes that fail on request."""

    folder: Path
    python: str
    arguments: tuple[str, ...] = ()
    has_model: bool = True


def standin(folder: Path) -> Engine:
    """The stand-in, laid out in *folder* with a model."""
    shutil.copytree(COMFYUI, folder, ignore=shutil.ignore_patterns("__pycache__"))
    make_model(folder / "models" / "upscale_models" / MODEL)
    return Engine(folder, sys.executable)


def real_comfyui(folder: Path, *, plugin: bool = True) -> Engine:
    """The ComfyUI of the environment; *folder* is for what is added to it by its command line, with the *plugin*."""
    where, python = os.environ["CPACK_TEST_COMFYUI"], os.environ["CPACK_TEST_COMFYUI_PYTHON"]
    nodes, models = folder / "nodes", folder / "models" / "upscale_models"
    nodes.mkdir(parents=True)
    models.mkdir(parents=True)
    shutil.copy(COMFYUI / "failing_nodes.py", nodes)
    if plugin:
        (nodes / "cpack-build").symlink_to(ROOT)
    has_model = FIXTURE_MODEL.is_file()
    if has_model:  # ComfyUI loads no model but a real one
        shutil.copy(FIXTURE_MODEL, models / MODEL)
    config = folder / "extra.yaml"
    config.write_text(f"test:\n  custom_nodes: {nodes}\n  upscale_models: {models}\n")
    return Engine(Path(where), python, ("--extra-model-paths-config", str(config)), has_model=has_model)


@dataclass
class Service:
    """The service under test."""

    process: subprocess.Popen[bytes]
    url: str
    data: Path
    log_file: Path
    engine_address: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def generate(self, /, *, accept: str = "*/*", files: Mapping[str, Any] | None = None, **values: Any) -> Any:
        """``POST /generate`` with a form."""
        parts = [(name, (None, str(value))) for name, value in values.items()] + list((files or {}).items())
        return requests.post(f"{self.url}/generate", files=parts or None, headers={"Accept": accept}, timeout=DEADLINE)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=DEADLINE)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def comfyui(self) -> str:
        """Where the child ComfyUI answers: what it said last."""
        if self.engine_address is not None:
            return self.engine_address
        return re.findall(r"To see the GUI go to: (http://\S+)", self.log)[-1]

    def wait_ready(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log
            try:
                return self.get("/readyz").status_code == 200
            except requests.ConnectionError:
                return False

        wait_for(answers, "the service to be ready", log=lambda: self.log)

    def leftovers(self) -> list[str]:
        """The files of requests that are still there, relative to the data folder."""
        found = []
        for folder in ("scratch", "output/cpack", "input/cpack"):
            found += [str(path.relative_to(self.data)) for path in (self.data / folder).rglob("*") if path.is_file()]
        return sorted(found)


def wait_for(condition: Callable[[], T], what: str, *, log: Callable[[], str] = lambda: "") -> T:
    """The first true value of *condition*."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}\n{log()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_app(folder: Path, workflow: Mapping[str, Any], *, inputs: Mapping[str, bytes] | None = None) -> Path:
    """An application folder as an image has it: the workflow and its inputs."""
    (folder / "input").mkdir(parents=True)
    (folder / "workflow_api.json").write_text(json.dumps(workflow))
    for name, data in (inputs or {}).items():
        (folder / "input" / name).write_bytes(data)
    return folder


@contextmanager
def serving(
    app: Path, folder: Path, *, engine: Engine | None = None, wait: bool = True, **environment: str
) -> Iterator[Service]:
    """The service for *app* on *engine*, its data under *folder*; ended afterwards, however the test ended."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CPACK_", "COMFYUI", "BENTOML"))},
        "PYTHONPATH": str(ROOT),
        "CPACK_APP": str(app),
        "CPACK_DATA": str(folder / "data"),
        "PORT": str(port),
        **environment,
    }
    if engine is not None:
        variables["COMFYUI_DIR"] = str(engine.folder)
        variables["COMFYUI_PYTHON"] = engine.python
        variables.setdefault("CPACK_COMFYUI_ARGS", json.dumps(engine.arguments))
    log_file = folder / "service.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cpack_build.serve"],
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
        service = Service(process, f"http://127.0.0.1:{port}", folder / "data", log_file)
        try:
            if wait:
                service.wait_ready()
            yield service
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def ask_directly(address: str, prompt: Mapping[str, Any], *, image: bytes | None = None) -> list[Image.Image]:
    """The pictures that ComfyUI at *address* gives for *prompt*, without the service; *image* is uploaded for it."""
    if image is not None:
        name = f"{uuid.uuid4().hex}.png"
        requests.post(f"{address}/upload/image", files={"image": (name, image)}, timeout=DEADLINE).raise_for_status()
        prompt = json.loads(json.dumps(prompt).replace("DIRECT_IMAGE", name))
    answer = requests.post(f"{address}/prompt", json={"prompt": prompt}, timeout=DEADLINE)
    assert answer.status_code == 200, answer.text
    prompt_id = answer.json()["prompt_id"]

    def ended() -> Any:
        return requests.get(f"{address}/history/{prompt_id}", timeout=DEADLINE).json().get(prompt_id)

    entry = wait_for(ended, "ComfyUI to run the prompt")
    found = []
    for output in entry["outputs"].values():
        for reference in output.get("images", []):
            picture = requests.get(f"{address}/view", params=reference, timeout=DEADLINE)
            found.append(Image.open(io.BytesIO(picture.content)))
    return found


def children(pid: int) -> list[int]:
    """The processes that descend from *pid*."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
