"""A restore that is killed at any moment leaves only whole files, and the next run completes the workspace."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

from cpack_build.cli import run
from cpack_build.restore.verify import verify
from tests.restore.images import COMFYUI_FILES, World

MOMENTS = 30


def begin(arguments: list[str]) -> int:
    """A child of this process that runs the command line; its id. Nothing is imported anew, which would take longer
    than the restore itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside pytest's own threads
        child = os.fork()
    if child == 0:
        code = 99
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            code = run(arguments)
        finally:
            os._exit(code)
    return child


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_restore_killed_at_thirty_moments_and_run_again_is_whole(world: World, tmp_path: Path) -> None:
    def command(root: Path) -> list[str]:
        return ["restore", f"oci:{world.layout}", "-d", str(root), "--offline"]

    assert run([*command(tmp_path / "first"), "-q"]) == 0
    whole = verify(tmp_path / "first")
    assert whole[0] == ()
    begun = time.monotonic()
    assert end_of(begin(command(tmp_path / "second"))) == 0
    needed = time.monotonic() - begun
    moments = random.Random(8)
    killed = 0
    for number in range(MOMENTS):
        root = tmp_path / f"w{number}"
        child = begin(command(root))
        time.sleep((number + moments.random()) / MOMENTS * needed)  # one moment in each thirtieth of the time
        os.kill(child, signal.SIGKILL)
        killed += end_of(child) == -signal.SIGKILL
        for path, content in COMFYUI_FILES.items():
            if (root / path).exists():
                assert (root / path).read_text() == content, "a file under its name is whole"
        assert end_of(begin(command(root))) == 0
        assert verify(root) == whole
        assert not list((root / ".cpack/partial").iterdir()), "nothing half-made stays"
        shutil.rmtree(root)
    assert killed > MOMENTS / 3, "most of the runs were killed before their end"
