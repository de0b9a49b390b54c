"""What the routes share: this ComfyUI, the tool, the jobs, and a private folder for everything that is half-made.

One :class:`Plugin` lives for as long as ComfyUI does. Its folder is made when it is first needed, locked while this
process lives, and removed at the end; what a killed ComfyUI left behind is removed by the next one (:mod:`.private`).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from .asked import Asked
from .comfyui import Comfyui
from .errors import Failed, Stopped
from .jobs import Job, Jobs, Stage
from .private import PrivateFolder
from .tool import Process, Tool, command_of
from .uploads import Uploads

__all__ = ["Plugin"]

EVENT = "cpack.job"
_AT_ONCE = 4
_SECONDS = 120.0
T = TypeVar("T")
_ROOT = Path(__file__).resolve().parents[2]


class Plugin:
    """The plugin's state."""

    def __init__(self, comfyui: Comfyui, *, tool: Tool | None = None, seconds: float = _SECONDS) -> None:
        self.comfyui = comfyui
        self.tool = tool or Tool(_ROOT)
        self.private = PrivateFolder()
        self.jobs = Jobs(self.private, lambda news: comfyui.send(EVENT, news))
        self.uploads = Uploads(self.private)
        self._seconds = seconds
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._asked: set[Process] = set()
        self._tokens: dict[str, str] = {}
        self._lock = threading.Lock()
        self._requests = 0
        self._pid = os.getpid()
        atexit.register(self.close)

    @property
    def pack_flags(self) -> list[str]:
        """Further flags of ``pack``, for places with mirrors or no network: words in ``CPACK_PACK_FLAGS``."""
        return shlex.split(os.environ.get("CPACK_PACK_FLAGS", ""))

    @property
    def build_flags(self) -> list[str]:
        """Further flags of ``lock``, ``plan`` and ``image``, such as mirrors: words in ``CPACK_BUILD_FLAGS``."""
        return shlex.split(os.environ.get("CPACK_BUILD_FLAGS", ""))

    @property
    def restore_flags(self) -> list[str]:
        """Further flags of ``restore``: words in ``CPACK_RESTORE_FLAGS``."""
        return shlex.split(os.environ.get("CPACK_RESTORE_FLAGS", ""))

    def keep_token(self, endpoint: str, token: str) -> None:
        """Remember the token of *endpoint* for as long as this process lives; only here."""
        with self._lock:
            self._tokens[endpoint.rstrip("/")] = token

    def token_for(self, endpoint: str) -> str | None:
        """The token that was given for *endpoint*, and for no other."""
        with self._lock:
            return self._tokens.get(endpoint.rstrip("/"))

    @property
    def knows_a_token(self) -> bool:
        """Whether any was given."""
        return bool(self._tokens)

    def request_folder(self) -> Path:
        """A folder for the files of one more request."""
        with self._lock:
            self._requests += 1
            number = self._requests
        return self.private.below("requests", str(number))

    async def wait_for(self, work: Callable[[], T]) -> T:
        """What *work* returns, done in a thread: one that ComfyUI's own pool does not lack, nor its end waits for."""
        future: Future[T] = Future()

        def do() -> None:
            with self._places:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(work())
                except BaseException as error:  # it is raised where the future is waited for
                    future.set_exception(error)

        threading.Thread(target=do, name="cpack-ask", daemon=True).start()
        return await asyncio.wrap_future(future)

    def ask(self, *arguments: object) -> dict[str, Any]:
        """The tool's answer to *arguments*, which must come soon. Raises :class:`Failed`."""
        process = Process(command_of(self.tool.require(), *arguments), environment=self.tool.environment())
        with self._lock:
            self._asked.add(process)
        timer = threading.Timer(self._seconds, process.cancel)
        timer.daemon = True
        timer.start()
        try:
            return process.result(lambda line: None)
        except Stopped:
            message = f"The tool did not answer within {self._seconds:.0f} seconds."
            raise Failed("too_slow", message, next="Try again when this machine has less to do.") from None
        finally:
            timer.cancel()
            with self._lock:
                self._asked.discard(process)

    def start(
        self,
        asked: Asked,
        kind: str,
        title: str,
        stages: Sequence[Stage],
        work: Callable[[Job], Mapping[str, Any]],
        *,
        secrets: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> Job:
        """Start a job for *asked*, whose folder goes when it ends."""
        return self.jobs.start(kind, title, stages, work, request=asked.folder, secrets=secrets, without=without)

    def close(self) -> None:
        """End all work and leave no file."""
        if os.getpid() != self._pid:  # a fork of ComfyUI ends, not ComfyUI
            return
        with self._lock:
            asked = list(self._asked)
        for process in asked:
            process.cancel()
        self.jobs.close()
        self.private.remove()
