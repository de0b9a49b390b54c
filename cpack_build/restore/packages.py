"""The packages of a workspace: whether its environment has them, and making it where it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cpack_build.errors import NetworkError, Unresolvable
from cpack_build.fetch.store import Store
from cpack_build.lock.resolve import host_platform
from cpack_build.lock.schema import Lock
from cpack_build.lock.wheels import wheels_of
from cpack_build.progress import Progress
from cpack_build.restore.environment import (
    VENV,
    are_wheels_stored,
    check_files,
    fetch_wheels,
    install_content,
    install_wheels,
    installed_in,
    new_environment,
)
from cpack_build.restore.folder import Folder
from cpack_build.restore.origins import Origins
from cpack_build.restore.state import State

if TYPE_CHECKING:
    from cpack_build.restore.goal import Options

__all__ = ["Packages"]


class Packages:
    """The environment of one workspace."""

    def __init__(self, lock: Lock, folder: Folder, *, origins: Origins, store: Store, progress: Progress) -> None:
        self._lock, self._folder, self._origins = lock, folder, origins
        self._store, self._progress = store, progress
        self._wheels = wheels_of(lock.python)

    @property
    def count(self) -> int:
        return len(self._wheels)

    def is_foreign(self, state: State) -> bool:
        """Whether something that no restore of ours made lies at the environment's place and lacks packages."""
        return self._folder.status(VENV) is not None and state.environment == "" and not self._is_whole()

    def is_missing(self, state: State) -> bool:
        """Whether the environment is to be made: it is not there, was never finished, or lacks files."""
        return state.environment == "making" or not self._is_whole()

    def _is_whole(self) -> bool:
        installed = installed_in(self._folder.root)
        if installed is None:
            return False
        return not any(line for wheel in self._wheels for line in check_files(installed, wheel, deep=False))

    def discard(self) -> None:
        """Remove an environment that a killed run had begun to make."""
        path: Path = self._folder.root / VENV
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def make(self, options: Options) -> Literal["wheels", "image"]:
        """Make the environment, and say from what.

        Raises :class:`Unresolvable`, :class:`NetworkError`, :class:`ToolMissing`, :class:`NeedsTrust`.
        """
        lock, store = self._lock, self._store
        if lock.platform != host_platform():
            raise Unresolvable(
                f"The packages are for {lock.platform}, and this machine is {host_platform()}.",
                hint="Leave the environment out with --no-venv, or lock the pack anew here.",
            )
        new_environment(self._folder, lock.interpreter.version, offline=options.offline)
        try:
            if not are_wheels_stored(lock, store=store) and self._origins.artifact is not None:
                raise Unresolvable("The image has the packages, and the store does not.")
            wheels = fetch_wheels(
                lock, store=store, sources=self._origins.outside, find_links=options.find_links,
                index_urls=options.index_urls, trust=options.trust, progress=self._progress,
            )  # fmt: skip
        except (Unresolvable, NetworkError):
            if self._origins.artifact is None:
                raise
            with self._progress.task("Laying out the packages", unit="files"):
                install_content(self._folder, self._origins.packages(), lock=lock)
            return "image"
        install_wheels(self._folder, wheels, lock=lock, store=store, progress=self._progress)
        return "wheels"
