"""The ComfyUI behind the service: a child process that is kept running, or a server that was there before.

Either tells where it answers (:attr:`Engine.address`), or why it does not (:attr:`Engine.trouble`), and wakes whoever
waits for :meth:`Engine.changed`. The child listens on loopback only, on a port that was free; its lines go to our own
standard output; when it ends it is started again, later each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cpack_build.errors import UsageError
from cpack_build.serve.device import choose_device
from cpack_build.serve.folders import Folders
from cpack_build.serve.settings import Settings

__all__ = ["AttachedComfyUI", "ChildComfyUI", "Engine", "command_line", "make_engines"]

_PROBE_SECONDS = 0.1
_BACKOFF_SECONDS = (0.5, 1, 2, 4, 8, 15, 30)
_HINT_AFTER = 2  # failures in a row
_HEALTHY_SECONDS = 60  # a child that lived this long starts the backoff anew
_TERM_SECONDS = 3
_LONGEST_LINE = 1 << 16  # characters
_OWN_SECRETS = frozenset(
    {"CPACK_TOKEN", "CPACK_WEBHOOK_SECRET", "CPACK_REGISTRY_USER", "CPACK_REGISTRY_PASSWORD"}
)  # fmt: skip
_STORAGE_KEYS = frozenset(
    {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    }
)  # fmt: skip
"""What gives boto3 credentials (its documentation, "Credentials")."""
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Engine:
    """A ComfyUI that may come and go.

    *input_dir* and *output_dir* are its folders where this process can use them too, else None; *input_path* is how
    ComfyUI itself names its input folder.
    """

    def __init__(self, *, log: Callable[[str], None]) -> None:
        self.log = log
        self.address: str | None = None
        self.trouble = "it is starting"
        self.losses = 0  # how often it was there and then was not
        self.input_dir: Path | None = None
        self.output_dir: Path | None = None
        self.temp_dir: Path | None = None
        self.input_path = "input"
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to start or to watch it; returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it, if it is ours, with all that it started."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._tell(None, "the service is stopping")

    async def changed(self) -> None:
        """Wait until :attr:`address` or :attr:`trouble` changes."""
        await self._changed.wait()

    def _tell(self, address: str | None, trouble: str) -> None:
        self.losses += self.address is not None and address is None
        self.address, self.trouble = address, trouble
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _keep(self) -> None:
        raise NotImplementedError


def make_engines(settings: Settings, folders: Folders, *, log: Callable[[str], None]) -> list[Engine]:
    """The engines that *settings* name. Raises :class:`UsageError` when there is no ComfyUI where they say."""
    if settings.server is not None:
        return [AttachedComfyUI(server, log=log) for server in settings.server.replace(",", " ").split()]
    return [ChildComfyUI(settings, folders, log=log)]


class ChildComfyUI(Engine):
    """A ComfyUI that this process starts, watches and ends."""

    def __init__(self, settings: Settings, folders: Folders, *, log: Callable[[str], None]) -> None:
        super().__init__(log=log)
        if settings.comfyui_dir is None or not (settings.comfyui_dir / "main.py").is_file():
            raise UsageError(
                f"There is no ComfyUI at {settings.comfyui_dir}: it has no main.py.",
                hint="Set COMFYUI_DIR to a ComfyUI folder.",
            )
        python = shutil.which(str(settings.comfyui_python))
        if python is None:
            raise UsageError(
                f"COMFYUI_PYTHON is {settings.comfyui_python}, which is no program.",
                hint="Set it to the Python of ComfyUI's environment.",
            )
        self._python = Path(python)
        self._settings = settings
        self._folders = folders
        self._folder = settings.comfyui_dir
        self.input_dir, self.output_dir, self.temp_dir = folders.input, folders.output, folders.temp
        self.input_path = str(folders.input)

    async def _keep(self) -> None:
        device = choose_device(self._python, self._settings.comfyui_args, environ=os.environ)
        self.log(f"ComfyUI runs {device.why}.")
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            try:
                why = await self._run(cpu=device.cpu)
            except OSError as error:  # no memory or no process left; the next try may find some
                why = f"it cannot be started ({error.strerror})"
            failures = 0 if loop.time() - started > _HEALTHY_SECONDS else failures + 1
            delay = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1] if failures else 0
            self._tell(None, why)
            self.log(f"ComfyUI: {why}. It is started again in {delay:g} s.")
            if failures == _HINT_AFTER and not device.cpu and not self.losses:
                self.log(
                    "ComfyUI has never answered. If the lines above blame the GPU, its driver may not fit this image's "
                    "PyTorch; CPACK_COMFYUI_ARGS='[\"--cpu\"]' does without the GPU."
                )
            await asyncio.sleep(delay)

    async def _run(self, *, cpu: bool) -> str:
        """Start it once, and keep it until it has ended; returns how it ended. Raises :class:`OSError`."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            *command_line(self._python, self._folder, self._settings, self._folders, port=port, cpu=cpu),
            cwd=self._folder,
            env=_child_environment(os.environ, self._folders),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
        assert process.stdout is not None
        lines = asyncio.create_task(_forward(process.stdout))
        try:
            address = f"http://127.0.0.1:{port}"
            if await _answers(address, process):
                self.log(f"ComfyUI is ready after {loop.time() - started:.1f} s.")
                self._tell(address, "")
            return _cause(await process.wait())
        finally:
            await _end_group(process)
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(lines, 1)


class AttachedComfyUI(Engine):
    """A ComfyUI that runs without us, at ``host:port``; it is asked every two seconds whether it is there."""

    def __init__(self, server: str, *, log: Callable[[str], None]) -> None:
        super().__init__(log=log)
        url = urlsplit(server if "//" in server else f"http://{server}")
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
            raise UsageError(f"COMFYUI_SERVER is {server!r}.", hint="Set it to host:port or to an http(s) URL.")
        self._url = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"
        self._is_local = url.hostname in ("localhost", "127.0.0.1", "::1")
        self.trouble = f"{self._url} does not answer"

    async def _keep(self) -> None:
        import aiohttp

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while True:
                try:
                    async with session.get(f"{self._url}/system_stats") as response:
                        response.raise_for_status()
                        stats = await response.json()
                except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
                    if self.address is not None:
                        self.log(f"{self._url} does not answer: {type(error).__name__}.")
                        self._tell(None, f"{self._url} does not answer")
                else:
                    if self.address is None:
                        self._learn(stats)
                        self.log(f"ComfyUI at {self._url} answers.")
                        self._tell(self._url, "")
                await asyncio.sleep(2)

    def _learn(self, stats: Mapping[str, Any]) -> None:
        """Where its folders are, from its own command line; they are used directly when it runs on this machine."""
        argv = (stats.get("system") or {}).get("argv") or []
        given = {name: value for name, value in itertools.pairwise(argv) if isinstance(value, str)}
        self.input_path = given.get("--input-directory", "input")
        if self._is_local:
            for name, option in (("input_dir", "--input-directory"), ("output_dir", "--output-directory")):
                folder = Path(given.get(option, ""))
                usable = folder.is_absolute() and folder.is_dir() and os.access(folder, os.W_OK)
                setattr(self, name, folder if usable else None)


_GPU_MEMORY = frozenset({"--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram"})


def command_line(
    python: Path, folder: Path, settings: Settings, folders: Folders, *, port: int, cpu: bool
) -> list[str]:
    """The command that starts the ComfyUI in *folder*; options that its version does not know are left out."""
    known = _known_options(folder)
    options = {
        "--listen": "127.0.0.1",
        "--port": str(port),
        "--input-directory": str(folders.input),
        "--output-directory": str(folders.output),
        "--temp-directory": str(folders.temp.parent),  # ComfyUI makes `temp` in it, and empties that
        "--user-directory": str(folders.user),
        "--database-url": f"sqlite:///{folders.user / 'comfyui.db'}",
        "--max-upload-size": str(settings.max_upload_mib),
        "--preview-method": "auto",
    }
    command = [str(python), "-u", "main.py"]
    for option, value in options.items():
        if option in known:
            command += [option, value]
    command += [option for option in ("--disable-auto-launch",) if option in known]
    if not cpu:
        return [*command, *settings.comfyui_args]
    # ComfyUI refuses --cpu beside its ways of using a GPU's memory, which mean nothing without one.
    return [*command, "--cpu", *(argument for argument in settings.comfyui_args if argument not in _GPU_MEMORY)]


def _known_options(folder: Path) -> frozenset[str]:
    found: set[str] = set()
    for name in ("comfy/cli_args.py", "main.py"):
        path = folder / name
        if path.is_file():
            found.update(re.findall(r"""['"](--[a-z][a-z0-9-]+)['"]""", path.read_text(errors="replace")))
    return frozenset(found)


def _child_environment(environ: Mapping[str, str], folders: Folders) -> dict[str, str]:
    """*environ* for ComfyUI: what it writes goes under our folders, and nothing is installed while it runs."""
    left_out = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", *_OWN_SECRETS}
    if environ.get("CPACK_OUTPUT_URL"):
        left_out |= _STORAGE_KEYS  # custom nodes are third-party code
    child = {name: value for name, value in environ.items() if name not in left_out}
    child["TMPDIR"] = str(folders.scratch)
    child["PYTHONUNBUFFERED"] = "1"
    child["CPACK_SERVED"] = "1"  # the plugin's routes are for people at an editor
    if not os.access(child.get("HOME", "/nonexistent"), os.W_OK):
        child["HOME"] = str(folders.root)
    child.setdefault("USER", "cpack")  # a user id without a name: getpass.getuser() would fail
    # Custom nodes that run pip when they are loaded meet one that installs nothing: what the lock does not have does
    # not enter the container, with a network or without.
    if environ.get("CPACK_ALLOW_INSTALL") != "1":
        child["PYTHONPATH"] = str(Path(__file__).parent / "frozen")
        child |= {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}  # for those who start pip or uv in other ways
    return child


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_with_parent() -> Callable[[], None] | None:
    """What the child calls before it becomes ComfyUI, to be killed when the service is, however that ends; Linux knows
    how.

    The library is loaded here: between fork and exec, with other threads about, little may be done.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


async def _answers(address: str, process: asyncio.subprocess.Process) -> bool:
    """Wait until ComfyUI answers at *address* (True) or has ended (False)."""
    import aiohttp

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async with session.get(f"{address}/system_stats") as response:
                    if response.status == 200:
                        return True
            await asyncio.sleep(_PROBE_SECONDS)
    return False


async def _forward(stream: asyncio.StreamReader) -> None:
    """Copy ComfyUI's lines to standard output under a prefix; a progress bar's redrawn lines count as lines.

    It reads on whatever becomes of what it writes: ComfyUI would stop at a pipe that is full.
    """
    rest = ""
    while chunk := await stream.read(1 << 16):
        *lines, rest = re.split(r"[\r\n]+", rest + chunk.decode(errors="replace"))
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], ""
        _print_lines(lines)
    _print_lines([rest])


def _print_lines(lines: Iterable[str]) -> None:
    text = "".join(f"[comfyui] {line}\n" for line in lines if line.strip())
    encoding = sys.stdout.encoding or "utf-8"
    with contextlib.suppress(OSError, ValueError):  # nobody reads the log any more
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End the child and whatever else is in its process group: asked first, then forced. Windows has no such groups."""
    if sys.platform == "win32":
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return
    group = process.pid
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            os.killpg(group, signal.SIGTERM)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), _TERM_SECONDS)
        os.killpg(group, signal.SIGKILL)
    await process.wait()


def _cause(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    often = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"it was ended by {name}{often}"
