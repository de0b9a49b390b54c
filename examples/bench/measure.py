"""What a bench row is, and the stopwatch: a command's wall and CPU time and peak memory, as the kernel counts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BenchError", "Row", "Run", "cpack_build", "run", "timed", "unmount"]


class BenchError(Exception):
    """A bench cannot go on; the message says why."""


@dataclass(frozen=True)
class Row:
    """One line of the table: something of ours beside a peer that did the same in this very run."""

    subject: str
    what: str
    seconds: float
    """Ours: wall time, in seconds."""
    peer: str
    """Who did the same; empty for a goal in seconds."""
    peer_seconds: float | None = None
    goal: float | None = None
    """The ratio to the peer (or, without a peer, the seconds) that ours should not exceed."""
    peak_mb: float | None = None
    """Peak resident memory of our process in MB (10^6 bytes)."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Our seconds over the peer's: below 1 is faster than the peer."""
        return self.seconds / self.peer_seconds if self.peer_seconds else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; ``None`` without one."""
        measured = self.ratio if self.peer else self.seconds
        return None if self.goal is None or measured is None else measured <= self.goal


@dataclass(frozen=True)
class Run:
    """What one command cost."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    stdout: str
    written_mb: float = 0
    """What it gave the disk to write (getrusage(2), ``ru_oublock``), in MB."""


def run(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Run:
    """Run *command*; its costs. Raises :class:`BenchError` with what it said when it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        list(map(str, command)),
        env={**_environment(), **(environment or {})},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode:
        raise BenchError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{said[-2000:]}")
    return Run(
        seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, said, usage.ru_oublock * 512 / 1e6
    )


def _environment() -> dict[str, str]:
    """This process's, but with bytecode kept from run to run, as for an installed program."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def cpack_build(*arguments: str | Path, home: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Run our own command line as a user would, with its store at *home*; its costs."""
    command = [sys.executable, "-m", "cpack_build", *arguments]
    return run(command, environment={"CPACK_HOME": str(home), **(environment or {})})


def timed(work: Callable[[], object]) -> float:
    """How long *work* takes, in seconds."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def unmount(place: Path) -> None:
    """Unmount what is mounted below *place*, as a builder that was stopped leaves it; the last mounted first."""
    with suppress(FileNotFoundError):  # no Linux, no mounts
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed(points):
            path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
            if Path(path).is_relative_to(place.absolute()) and path != str(place.absolute()):
                subprocess.run(["umount", "--lazy", path], capture_output=True)
