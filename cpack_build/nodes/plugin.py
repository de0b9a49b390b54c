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
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..filesystem import lock
from .asked import Asked
from .comfyui import Comfyui
from .jobs import Job, Jobs, Stage
from .tool import Tool

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
        self.jobs = Jobs(self.folder / "jobs", lambda job: comfyui.send(EVENT, job))
        self._lock = threading.Lock()
        self._requests = 0
        self._pid = os.getpid()
        atexit.register(self.close)

    @property
    def pack_flags(self) -> list[str]:
        """Further flags of ``pack``, for places with mirrors or no network: words in ``CPACK_PACK_FLAGS``."""
        return shlex.split(os.environ.get("CPACK_PACK_FLAGS", ""))

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
    ) -> Job:
        """Start a job for *asked*, whose folder goes when it ends."""

        def whole(job: Job) -> Mapping[str, Any]:
            try:
                return work(job)
            finally:
                shutil.rmtree(asked.folder, ignore_errors=True)

        return self.jobs.start(kind, title, stages, whole, secrets=secrets)

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
