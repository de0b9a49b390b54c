"""The service as a Bento has it: the same server, under BentoML's own ``bentoml serve``.

A Bento's ``service.py`` calls :func:`bento_service` in three kinds of process. Where the Bento is built and in the
parent of ``bentoml serve`` only the interface is wanted, so nothing is started or written there; the parent also runs
:func:`_prepare`, which restores a workspace unless the environment names a ComfyUI (as a container's does). The worker
has the server, with the front before BentoML's routes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpack_build.errors import BadInput, ToolMissing
from cpack_build.serve.__main__ import hide_secrets
from cpack_build.serve.comfyui import make_engines
from cpack_build.serve.folders import folders_at, prepare_folders
from cpack_build.serve.front import Front
from cpack_build.serve.routes import make_routes
from cpack_build.serve.service import Server, make_service, without_timers
from cpack_build.serve.settings import Settings
from cpack_build.workflow import read_workflow

if TYPE_CHECKING:
    import bentoml

__all__ = ["ABOUT", "MODEL_FILE", "bento_service"]

ABOUT = "cpack.json"
"""The file beside ``service.py`` that says what the Bento is made of."""
MODEL_FILE = "model.bin"
"""What the file of a BentoML model is called, as in comfy-pack's."""
_GRACE = 60
"""Seconds that BentoML and BentoCloud wait longer than the service, which answers 504 itself."""


def bento_service(folder: Path) -> bentoml.Service[Any]:
    """The service of the Bento whose ``src`` is *folder*. Raises :class:`BadInput`, and what the settings raise."""
    import bentoml

    about = _about(folder / ABOUT)
    is_worker = bentoml.server_context.worker_index is not None
    workspace = _workspace(about)
    # A folder that nobody else can have made, or can read; where nothing is written it is only named.
    own = tempfile.mkdtemp(prefix="cpack-bento-") if is_worker and not os.environ.get("CPACK_DATA") else None
    given = {
        "CPACK_APP": str(folder / "app"),
        "CPACK_DATA": own or tempfile.gettempdir(),
        "COMFYUI_DIR": str(workspace),
        "COMFYUI_PYTHON": str(workspace / ".venv" / "bin" / "python"),
    }
    settings = Settings.from_environment(given | {k: v for k, v in os.environ.items() if v}, pid=os.getpid())
    workflow = read_workflow(settings.workflow_file.read_bytes(), name=settings.workflow_file.name)
    if is_worker:
        hide_secrets()
        folders = prepare_folders(settings.data, settings.app / "input")
        engines = make_engines(settings, folders, log=_log)
    else:
        folders, engines = folders_at(settings.data), []
    server = Server(workflow, engines, settings, folders, log=_log)
    service = make_service(
        server,
        name=about["name"],
        workers=1,  # one ComfyUI, however many processors
        traffic={"timeout": settings.timeout + _GRACE, "concurrency": 1, "external_queue": True},
        **({"resources": {"gpu": 1}} if about["gpu"] else {}),
    )
    service.add_asgi_middleware(
        Front, routes=make_routes(server), settings=settings, gate=server.gate, metrics=server.metrics, log=_log
    )
    service.inner.prepare = bentoml.on_deployment(partial(_prepare, folder, about))
    if own is not None:  # after `end`, for hooks run by name
        service.inner.tidy = bentoml.on_shutdown(partial(shutil.rmtree, own, ignore_errors=True))
    service.__class__ = _untimed(type(service))
    return service


def _untimed(kind: type[Any]) -> type[Any]:
    """BentoML's class of services, whose applications are without its timers."""

    def to_asgi(self: Any, is_main: bool = True) -> Any:
        return without_timers(kind.to_asgi(self, is_main=is_main))

    return type(kind.__name__, (kind,), {"__slots__": (), "to_asgi": to_asgi})


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_bytes())
        if about["format"] != 1:
            raise ValueError(f"format {about['format']}")
        return {key: about[key] for key in ("name", "version", "image", "models", "gpu")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} cannot be used: {error}.", hint="Make the Bento again with `cpack-build bento`."
        ) from None


def _workspace(about: Mapping[str, Any]) -> Path:
    from bentoml._internal.configuration.containers import BentoMLContainer

    return Path(BentoMLContainer.bentoml_home.get()) / "cpack" / str(about["name"]) / str(about["version"])


def _prepare(folder: Path, about: Mapping[str, Any]) -> None:
    """Restore the workspace, unless the environment names a ComfyUI. Raises :class:`ToolMissing` if that fails."""
    hide_secrets()
    if os.environ.get("COMFYUI_SERVER") or os.environ.get("COMFYUI_DIR"):
        return
    import bentoml

    layout = folder.parent / "image"
    source = f"oci:{layout}" if layout.is_dir() else about["image"]
    models = [bentoml.models.get(tag).path_of(MODEL_FILE) for tag in about["models"].values()]
    _log(f"There is no ComfyUI here: its workspace is restored from {source}.")
    if models:
        _cpack_build("store", "add", *models)
    _cpack_build("restore", source, "-d", str(_workspace(about)))


def _cpack_build(*arguments: str) -> None:
    command = [sys.executable, "-m", "cpack_build", *arguments]
    if (code := subprocess.run(command, check=False).returncode) != 0:
        raise ToolMissing(
            f"`cpack-build {' '.join(arguments[:2])}` ended with {code}, so there is no ComfyUI to serve with.",
            hint="Its own words are above. Or set COMFYUI_SERVER=host:port to use a ComfyUI that runs.",
        )


def _log(message: str) -> None:
    print(f"[cpack] {message}", flush=True)
