"""A running ComfyUI with the plugin among its custom nodes: the stand-in, or the one that the environment names."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests import need
from tests.serve.running import DEADLINE, ROOT, Engine, free_port, real_comfyui, standin, wait_for

PLUGIN = "cpack-build.dev"
"""The plugin's folder name in ``custom_nodes``: with a dash and a dot, as ComfyUI allows."""


@dataclass(frozen=True)
class Comfy:
    """It answers at *url*; *folder* has ``input``, ``output``, ``temp``, ``user`` and ``custom_nodes``."""

    url: str
    folder: Path
    kind: str
    pid: int

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=DEADLINE, **options)

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", json=body, timeout=DEADLINE, **options)

    def run(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """The history entry of *prompt*, run to its end."""
        answer = self.post("/prompt", {"prompt": prompt})
        assert answer.status_code == 200, answer.text
        prompt_id = answer.json()["prompt_id"]

        def ended() -> Any:
            return self.get(f"/history/{prompt_id}").json().get(prompt_id)

        return dict(wait_for(ended, "the prompt to run", log=lambda: self.log))


def newest_frontend() -> Path:
    """The page of the ``comfyui-frontend-package`` among the tests' requirements."""
    found = importlib.util.find_spec("comfyui_frontend_package")
    if found is None or not found.submodule_search_locations:
        need.missing("the Python package comfyui-frontend-package")
    return Path(next(iter(found.submodule_search_locations))) / "static"


def engine_of(kind: str, folder: Path) -> tuple[Engine, list[str]]:
    """The ComfyUI called *kind*, its files in *folder*, and the arguments that choose its page.

    ``standin`` and ``comfyui-newest`` show the newest frontend; ``comfyui`` shows the one that it requires itself.
    """
    page = [] if kind == "comfyui" else ["--front-end-root", str(newest_frontend())]
    if kind == "standin":
        return standin(folder / "comfyui"), page
    return real_comfyui(folder / "comfyui", plugin=False), page


@contextmanager
def running(
    kind: str,
    folder: Path,
    *,
    plugin: Path | None = ROOT,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Comfy]:
    """ComfyUI with the folder *plugin* linked into its custom nodes, and its folders of its own; ended afterwards."""
    engine, page = engine_of(kind, folder)
    for name in ("input", "output", "temp", "user", "custom_nodes"):
        (folder / name).mkdir(exist_ok=True)
    if plugin is not None:
        (folder / "custom_nodes" / PLUGIN).symlink_to(plugin)
    shutil.copy(Path(__file__).with_name("sound_node.py"), folder / "custom_nodes")
    config = folder / "nodes.yaml"
    config.write_text(f"plugin:\n  custom_nodes: {folder / 'custom_nodes'}\n")
    port = free_port()
    command = [
        engine.python, "main.py", "--port", str(port), "--disable-auto-launch", "--cpu",
        "--input-directory", str(folder / "input"), "--output-directory", str(folder / "output"),
        "--temp-directory", str(folder / "temp"), "--user-directory", str(folder / "user"),
        *engine.arguments, "--extra-model-paths-config", str(config), *page, *arguments,
    ]  # fmt: skip
    if kind != "standin":
        command += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=engine.folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        )  # fmt: skip
    comfy = Comfy(f"http://127.0.0.1:{port}", folder, kind, process.pid)

    def answers() -> bool:
        assert process.poll() is None, comfy.log
        try:
            return comfy.get("/system_stats").ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(answers, "ComfyUI", log=lambda: comfy.log)
        yield comfy
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def import_seconds(comfy: Comfy) -> float:
    """How long ComfyUI says that the plugin took to load, to a tenth of a second."""
    found = re.search(rf"([\d.]+) seconds: \S*{re.escape(PLUGIN)}", comfy.log)
    assert found, comfy.log
    return float(found[1])
