"""The image's entrypoint: ``python -m cpack_build.serve``, made to be process 1 of a container.

One process serves HTTP and keeps ComfyUI as its child. SIGTERM and SIGINT let the requests under way end for a few
seconds, then end ComfyUI with all that it started; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cpack_build.errors import BadInput, CpackError
from cpack_build.serve.folders import Folders, prepare_folders
from cpack_build.serve.settings import Settings

_PR_SET_DUMPABLE = 4  # prctl(2)


def main() -> int:
    """Serve until told to stop; returns the exit code of :mod:`cpack_build.errors`."""
    # Process 1 gets only the signals that it asks for, and starting takes seconds.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    hide_secrets()
    try:
        settings = Settings.from_environment(os.environ, pid=os.getpid())
        folders = prepare_folders(settings.data, settings.app / "input")
        _point_at(folders)
        return asyncio.run(_serve(settings, folders))
    except CpackError as error:
        print(f"cpack-serve: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except asyncio.CancelledError:
        return 0  # told to stop before it served


def hide_secrets() -> None:
    """Have no other process of this user read our environment or memory, which hold tokens and keys.

    Custom nodes are third-party code and run as the same user, so leaving the keys out of ComfyUI's own environment is
    not enough (prctl(2), "PR_SET_DUMPABLE"; ptrace(2), "Ptrace access mode checking").
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def _point_at(folders: Folders) -> None:
    """Have Python's temporary files and BentoML's home lie in *folders*, and its metrics in memory."""
    os.environ["TMPDIR"] = str(folders.scratch)
    os.environ["BENTOML_HOME"] = str(folders.bentoml)
    # Counters of several processes would lie in mapped files, and a disk that is full would end this one (SIGBUS).
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    if not os.access(os.environ.get("HOME", "/nonexistent"), os.W_OK):
        os.environ["HOME"] = str(folders.root)


async def _serve(settings: Settings, folders: Folders) -> int:
    from cpack_build.serve.comfyui import make_engines
    from cpack_build.serve.service import Server
    from cpack_build.workflow import read_workflow

    try:
        document = settings.workflow_file.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{settings.workflow_file} cannot be read: {error.strerror}.",
            hint="Set CPACK_APP to the folder that holds it.",
        ) from None
    workflow = read_workflow(document, name=settings.workflow_file.name)
    starting = asyncio.current_task()
    assert starting is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, starting.cancel)
    engines = make_engines(settings, folders, log=_log)
    try:
        for engine in engines:
            await engine.start()  # ComfyUI takes seconds to start; BentoML is imported meanwhile
        server = await asyncio.to_thread(Server, workflow, engines, settings, folders, log=_log)
        return await _serve_http(server, settings)
    finally:
        for engine in engines:
            await engine.stop()


async def _serve_http(server: Any, settings: Settings) -> int:
    import uvicorn

    from cpack_build.serve.front import Front
    from cpack_build.serve.routes import make_routes
    from cpack_build.serve.service import make_service, without_timers

    _keep_metrics_in_memory()
    service = await asyncio.to_thread(make_service, server, name="cpack")
    _configure_logging(quiet=settings.json_log)
    app = Front(
        without_timers(service.to_asgi()),
        make_routes(server),
        settings=settings,
        gate=server.gate,
        metrics=server.metrics,
        log=_log_as_json if settings.json_log else _log,
    )

    class Uvicorn(uvicorn.Server):
        """Leaves the signals to this module: uvicorn would raise them again at the end, and skip what follows."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        def install_signal_handlers(self) -> None:  # versions before 0.29
            pass

    http = Uvicorn(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="none",
            lifespan="on",
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(settings.shutdown),
        )
    )
    loop = asyncio.get_running_loop()

    def stop(name: str) -> None:
        _log(f"{name}: stopping.")
        if http.should_exit:
            http.force_exit = True
        http.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    reaper = asyncio.create_task(_reap()) if os.getpid() == 1 else None
    _log(f"Serving {settings.workflow_file.name} on http://{settings.host}:{settings.port} (POST /generate).")
    try:
        await http.serve()
    except SystemExit as error:  # uvicorn's way to say that the port is taken
        return int(error.code or 1)
    finally:
        if reaper is not None:
            reaper.cancel()
    return 0 if http.started else 1


async def _reap() -> None:
    """As process 1, collect what ComfyUI's own children left behind; a zombie keeps its process id."""
    children: dict[int, float] = {}
    while True:
        await asyncio.sleep(5)
        now = time.monotonic()
        for pid in _zombies():
            # Our own children are collected by asyncio at once: a zombie seen twice is nobody's.
            if now - children.setdefault(pid, now) > 4:
                if sys.platform != "win32":
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
                del children[pid]


def _zombies() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state == "Z" and int(parent) == os.getpid():
                    found.append(int(entry.name))
    return found


def _keep_metrics_in_memory() -> None:
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.server.metrics.prometheus import PrometheusClient

    BentoMLContainer.metrics_client.set(PrometheusClient(multiproc=False))


def _configure_logging(*, quiet: bool) -> None:
    import logging

    from bentoml._internal.log import configure_server_logging

    configure_server_logging()  # type: ignore[no-untyped-call]
    if quiet:  # one line a request, and that is ours
        logging.getLogger("bentoml.access").setLevel(logging.WARNING)


def _log_as_json(line: str) -> None:
    print(line, flush=True)


def _log(message: str) -> None:
    print(f"[cpack] {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
