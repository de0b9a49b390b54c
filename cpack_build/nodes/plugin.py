"""What the routes share: this ComfyUI, the tool, the jobs, and a private folder for everything that is half-made.

One :class:`Plugin` lives for as long as ComfyUI does. Its folder is made when it is first needed, locked while this
process lives, and removed at the end; what a killed ComfyUI left behind is removed by the next one.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..filesystem import lock
from .asked import Asked
from .comfyui import Comfyui
from .jobs import Job, Jobs, Stage
from .tool import Tool
from .uploads import Uploads

__all__ = ["Plugin"]

EVENT = "cpack.job"
_PREFIX = "cpack-comfyui-"
_ROOT = Path(__file__).resolve().parents[2]


class Plugin:
    """The plugin's state."""

    def __init__(self, comfyui: Comfyui, *, tool: Tool | None = None) -> None:
        self.comfyui = comfyui
        self.tool = tool or Tool(_ROOT)
        self.folder, self._held = _private_folder()
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="cpack")
        """Where requests wait for the tool, so that ComfyUI's own pool is left alone."""
        self.jobs = Jobs(self.folder / "jobs", lambda job: comfyui.send(EVENT, job))
        self.uploads = Uploads(self.folder / "uploads")
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
            folder = self.folder / "requests" / str(self._requests)
        folder.mkdir(parents=True, mode=0o700)
        return folder

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

        def whole(job: Job) -> Mapping[str, Any]:
            try:
                return work(job)
            finally:
                shutil.rmtree(asked.folder, ignore_errors=True)

        return self.jobs.start(kind, title, stages, whole, secrets=secrets, without=without)

    def close(self) -> None:
        """End all work and leave no file."""
        if os.getpid() != self._pid:  # a fork of ComfyUI ends, not ComfyUI
            return
        self.jobs.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _private_folder() -> tuple[Path, BinaryIO]:
    """A new private folder with its lock, after those of processes that are gone were removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (old / "lock").open("r+b") as file:  # other users' folders cannot be opened
            if not old.is_symlink() and lock(file, wait=False):
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    held = (folder / "lock").open("w+b")
    lock(held)
    return folder, held
