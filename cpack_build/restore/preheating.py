"""Starting the restored ComfyUI once, as far as it loads its nodes: what is broken shows now, not at the first use."""

from __future__ import annotations

from pathlib import Path

from cpack_build.errors import Unresolvable
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.environment import python_of
from cpack_build.restore.scripts import run_shown

__all__ = ["preheat"]


def preheat(root: Path, *, progress: Progress = SILENT) -> None:
    """Run ``main.py --quick-test-for-ci``, which ends when everything is loaded.

    Raises :class:`Unresolvable` when it fails.
    """
    command = [str(python_of(root)), "main.py", "--cpu", "--quick-test-for-ci"]
    with progress.task("Starting ComfyUI once", unit="starts"):
        code = run_shown(command, root)
    if code:
        raise Unresolvable(
            f"ComfyUI does not start: it ended with exit code {code}.",
            hint="See what it said above. The workspace is restored all the same.",
        )
