"""What custom nodes ask to be run once they lie there: ``install.py``, somebody's program, run only with consent.

An image never runs it, and a workspace has exactly the locked packages without it; some nodes fetch or compile things
in it all the same. What would be run is shown first, and what was run is remembered by its hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import Unresolvable
from cpack_build.restore.environment import python_of
from cpack_build.restore.folder import Folder
from cpack_build.restore.state import State, save_state

__all__ = ["Consent", "Script", "run_scripts", "run_shown"]


@dataclass(frozen=True)
class Script:
    """A node's program at *path* (relative to the workspace), with its *sha256*."""

    node: str
    path: str
    sha256: str


Consent = Callable[[Sequence[Script]], bool]


def run_scripts(
    folder: Folder, places: Sequence[tuple[str, str]], state: State, *, consent: Consent
) -> tuple[str, ...]:
    """Run what was not run before, if *consent* says so; the paths of what was not run.

    Raises :class:`Unresolvable` when one fails.
    """
    waiting = []
    for node, prefix in places:
        path = f"{prefix}install.py"
        data = folder.read(path)
        if data is not None:
            script = Script(node, path, hashlib.sha256(data).hexdigest())
            if state.scripts.get(node) != script.sha256:
                waiting.append(script)
    if not waiting or not consent(waiting):
        return tuple(script.path for script in waiting)
    for script in waiting:
        place = folder.root / script.path
        code = run_shown([str(python_of(folder.root)), "-s", place.name], place.parent)
        if code:
            raise Unresolvable(
                f"{script.path} ended with exit code {code}.",
                hint="See what it said above. Everything else is restored; run it again to go on.",
            )
        state.scripts[script.node] = script.sha256
        save_state(folder, state)
    return ()


def run_shown(command: Sequence[str], folder: Path) -> int:
    """Run *command* in *folder* with nothing to read, its words on our standard error; its exit code."""
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="backslashreplace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
    return process.returncode
