"""``cpack-build run IMAGE --engine auto``: the image's service, in a container of a local engine, until Ctrl-C.

It is loaded if it is elsewhere, started with the flags that it needs, waited for, and stopped again: a convenience over
the engine's own ``run``. What is done is one command, which is shown.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Literal

import click

from cpack_build.cli.options import access_of, access_options, terminal_options
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.oci.engines import Engine
    from cpack_build.oci.reference import ImageName, Reference
    from cpack_build.oci.transport import Access
    from cpack_build.oci.types import Image

__all__ = ["RunOptions", "contained", "run_image"]

_PORT = 3000
_POLL = 0.25
"""Seconds between two looks at whether the service is ready."""
_STOP_SECONDS = 15
_STDERR = 2
"""The file descriptor, whatever this program's own stream is: stdout has the result alone."""
_KEPT_OUTPUT = 4 << 10


@dataclass(frozen=True)
class RunOptions:
    """How an image is to be run. *gpu* ``None`` means: if it wants one and there is one. *extra* goes to the engine."""

    engine: Literal["auto", "docker", "podman"] = "auto"
    port: int | None = None
    gpu: bool | None = None
    detach: bool = False
    wait: float = 600
    """Seconds until the service must be ready."""
    extra: tuple[str, ...] = ()


@click.command(
    epilog="Example: cpack-build run oci:upscale.oci --engine auto --port 8080    (exit codes: docs/exit-codes.md)",
)
@click.argument("image")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE OPTIONS]")
@click.option(
    "--engine", type=click.Choice(["auto", "docker", "podman"]), default="auto", help="auto: Docker if it answers."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Of this machine; by default 3000, or a free one.")
@click.option("--gpu/--no-gpu", default=None, help="By default if the image wants one and there is one.")
@click.option("-d", "--detach", is_flag=True, help="Return as soon as it is ready, and let it run.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Until it must be ready.",
)
@access_options
@terminal_options
def contained(
    image: str, extra: tuple[str, ...], insecure: tuple[str, ...], ca: Path | None, terminal: Terminal, **flags: Any
) -> None:
    """Run the service of IMAGE in a container: docker:NAME, podman:NAME, or one that is loaded first: oci:DIR,
    oci-archive:FILE, docker-archive:FILE, a registry's reference. Its address is printed as soon as it is ready.
    Ctrl-C stops and removes it.

    What follows -- goes to the engine's own run: -- -e NAME=VALUE -v DIR:/data
    """
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import Reference, parse_image_name

    if Path(image).is_file():
        raise UsageError(
            f"{image} is a file.",
            hint=f"Build its image with `cpack-build image {image}`; an archive is named docker-archive:FILE.",
        )
    name = parse_image_name(image)
    own = name.registry if isinstance(name, Reference) else None
    run_image(name, RunOptions(extra=extra, **flags), access=access_of(insecure, ca, own=own), terminal=terminal)


def run_image(name: ImageName, options: RunOptions, *, access: Access, terminal: Terminal) -> None:
    """Run the image called *name*, until Ctrl-C or its own end; with ``detach`` until it is ready.

    Raises :class:`ToolMissing`, :class:`EngineFailed` (it ended, or was not ready in time) and what loading raises.
    """
    engine, stored, config = _in_engine(name, options, access=access, terminal=terminal)
    port = options.port if options.port is not None else _free_port()
    container = f"cpack-{token_hex(4)}"
    url = f"http://127.0.0.1:{port}"
    words = (
        *("run", "--rm", *(["--detach"] if options.detach else []), "--name", container),
        *("-p", f"127.0.0.1:{port}:{_inner_port(config)}"),
        *_gpu_flags(engine.program, config, options.gpu, terminal),
        *options.extra,
        stored,
    )
    command = engine.command(*words)
    shown = _without_values(command)
    terminal.progress.note(shlex.join(shown))
    with _started(engine, command, container, options, terminal=terminal) as (process, output):
        with terminal.progress.task(f"Starting {stored}"):
            _until_ready(engine, process, output, container, f"{url}/readyz", seconds=options.wait, what=stored)
        terminal.result(
            {"url": url, "container": container, "engine": engine.program, "image": stored, "command": shown}
        )
        terminal.say(f"{url}\n  " + (f"{engine.program} stop {container}" if options.detach else "Ctrl-C stops it."))
        if not options.detach:
            _until_end(process, output, stored)


def _without_values(command: Sequence[str]) -> list[str]:
    """*command* as it may be shown, and stand in a log: of variables that it sets only the names."""
    shown = []
    is_variable = False
    for word in command:
        flag = re.match(r"--env=|-e(?=[A-Za-z_])", word) if not is_variable else None
        start = flag.end() if flag is not None else 0
        name, equals, _ = word[start:].partition("=")
        shown.append(f"{word[:start]}{name}=…" if (is_variable or flag) and equals else word)
        is_variable = word in ("-e", "--env")
    return shown


# -- the image in the engine -------------------------------------------------------------------------------------------


def _in_engine(
    name: ImageName, options: RunOptions, *, access: Access, terminal: Terminal
) -> tuple[Engine, str, dict[str, Any]]:
    """The engine, what the image is called there, and its config; it is loaded if it is elsewhere."""
    import json

    from cpack_build.errors import Unresolvable, UsageError
    from cpack_build.oci.engines import open_engine
    from cpack_build.oci.reference import EngineName

    if isinstance(name, EngineName):
        if name.reference is None:
            raise UsageError(f"{name} names no image.", hint=f"Write {name.engine}:NAME.")
        if options.engine not in ("auto", name.engine):
            raise UsageError(f"{name} is an image of {name.engine}, not of {options.engine}.")
        engine = open_engine(name)
        engine.require()
        config = engine.config_of(name.reference)
        if config is None:
            raise Unresolvable(
                f"{engine.title} has no image {name.reference.familiar}.",
                hint="Build it with `cpack-build image`, or name where it lies: oci:DIR, or a registry's reference.",
            )
        return engine, name.reference.familiar, config
    engine = _engine(options.engine)
    image, reference = _image(name, access=access, terminal=terminal)
    if engine.image_id(reference) not in (image.id, image.digest):
        engine.load(image, reference, progress=terminal.progress)
    section = json.loads(image.config.data).get("config")
    return engine, reference.familiar, section if isinstance(section, dict) else {}


def _engine(wanted: str) -> Engine:
    from cpack_build.errors import ToolMissing
    from cpack_build.oci.engines import find_engine, open_engine
    from cpack_build.oci.reference import EngineName

    if wanted != "auto":
        engine = open_engine(EngineName("docker" if wanted == "docker" else "podman"))
        engine.require()
        return engine
    found = find_engine()
    if found is None:
        raise ToolMissing("Neither Docker nor podman answers.", hint="Install or start one of them.")
    return found


def _image(name: ImageName, *, access: Access, terminal: Terminal) -> tuple[Image, Reference]:
    """The image that lies outside of engines, and what it is to be called in one."""
    from cpack_build.cli.delivery import default_reference
    from cpack_build.cli.push import own_platform
    from cpack_build.fetch.store import Store
    from cpack_build.oci.pull import pull
    from cpack_build.oci.reference import LayoutName, Reference
    from cpack_build.oci.sources import open_source

    source = open_source(name, store=Store(), access=access)
    image = pull(source, own_platform(), progress=terminal.progress).image
    if isinstance(name, Reference):
        return image, Reference(name.registry, name.repository, name.tag or image.digest[7:19])
    path: Path = getattr(name, "path")  # noqa: B009 - a folder or an archive; an engine's was dealt with
    stem = path.name.removesuffix(".oci").removesuffix(".tar")
    reference = default_reference(Path(stem))
    tag = name.tag if isinstance(name, LayoutName) else None
    return image, Reference(reference.registry, reference.repository, tag or reference.tag)


# -- flags -------------------------------------------------------------------------------------------------------------


def _inner_port(config: dict[str, Any]) -> int:
    """The port that the image says it listens on."""
    exposed = config.get("ExposedPorts")
    for entry in sorted(exposed) if isinstance(exposed, dict) else ():
        number, _, kind = str(entry).partition("/")
        if number.isdecimal() and kind in ("", "tcp") and 0 < int(number) < 1 << 16:
            return int(number)
    return _PORT


def _gpu_flags(engine: str, config: dict[str, Any], gpu: bool | None, terminal: Terminal) -> tuple[str, ...]:
    """What gives the container the GPUs: NVIDIA's runtime in Docker, its CDI devices in podman (NVIDIA Container
    Toolkit, "Running a Sample Workload")."""
    variables = config.get("Env")
    wants = any(str(item).startswith("NVIDIA_REQUIRE_CUDA=") for item in variables or ())
    if gpu is None:
        gpu = wants and _has_gpu()
        if wants and not gpu:
            terminal.progress.note(
                "The image wants an NVIDIA GPU, and none is seen here; --gpu asks for one all the same."
            )
    if not gpu:
        return ()
    return ("--gpus", "all") if engine == "docker" else ("--device", "nvidia.com/gpu=all")


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is not None


def _free_port() -> int:
    """3000, or where that is taken another."""
    for wanted in (_PORT, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
    raise AssertionError("the system always has a free port")


# -- the container -----------------------------------------------------------------------------------------------------


@contextmanager
def _started(
    engine: Engine, command: Sequence[str], container: str, options: RunOptions, *, terminal: Terminal
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The engine's ``run`` under way; the container is gone at the end of the context, unless it was detached and all
    went well. It has a session of its own: Ctrl-C is for us, and we tell the engine."""
    with TemporaryFile() as log:
        # What the service says is shown as the engine's run would; a program that wants JSON does not want it.
        sink = log if terminal.json or terminal.quiet or options.detach else _STDERR
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True)
        stay = False
        try:
            yield process, log
            stay = options.detach
        finally:
            if stay:
                process.wait()  # The engine's own command has done its part by now.
            else:
                terminal.progress.note(f"Stopping {container}.")
                stop = engine.command("stop", "--time", str(_STOP_SECONDS), container)
                subprocess.run(stop, capture_output=True, check=False)
                try:
                    process.wait(timeout=2 * _STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _until_ready(
    engine: Engine,
    process: subprocess.Popen[bytes],
    output: IO[bytes],
    container: str,
    url: str,
    *,
    seconds: float,
    what: str,
) -> None:
    from cpack_build.errors import EngineFailed

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        status = process.poll()
        # A detached run ends with 0 as soon as the container has begun; then the engine knows whether it still runs.
        if status or (status == 0 and not engine.is_running(container)):
            problem = f"{what} ended before it was ready{_last_words(process, output)}."
            raise EngineFailed(problem, hint="See its output.")
        try:
            with opener.open(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (OSError, ValueError):
            pass  # Not there yet. An HTTP status that is an error is an OSError, too.
        if time.monotonic() > deadline:
            raise EngineFailed(
                f"{what} was not ready within {seconds:.0f} seconds.", hint="Give it more with --wait SECONDS."
            )
        time.sleep(_POLL)


def _until_end(process: subprocess.Popen[bytes], output: IO[bytes], what: str) -> None:
    from cpack_build.errors import EngineFailed

    try:
        status = process.wait()
    except KeyboardInterrupt:
        return  # Which is how it is meant to end.
    if status:
        raise EngineFailed(f"{what} ended{_last_words(process, output)}.", hint="See its output.")


def _last_words(process: subprocess.Popen[bytes], output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - _KEPT_OUTPUT))
    lines = [line for line in output.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f" (exit code {process.returncode})" + (f": {lines[-1][:500]}" if lines else "")
