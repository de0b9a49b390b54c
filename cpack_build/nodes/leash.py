"""Runs a command for as long as somebody holds the other end of its standard input: a program of its own.

ComfyUI may end in any way, by ``kill -9`` too, and may not have a chance to end what the plugin began. So the plugin
starts each command through this one: when its standard input ends, or its parent is gone, the command's whole process
group is asked to stop as with Ctrl-C, then told to, then killed. Standard library only; run as ``python -I -S leash.py
COMMAND…``, and ends with the command's exit code.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading

__all__ = ["main"]

_PATIENCE = ((signal.SIGINT, 10.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))
"""What is sent, and seconds until the next: the tool leaves nothing half-made after the first."""
_LOOK_EVERY = 1.0


def main(command: list[str]) -> int:
    """Run *command*; its exit code, or 128 and the number of the signal that ended it."""
    parent = os.getppid()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    threading.Thread(target=_watch, args=(parent, ended), daemon=True).start()
    threading.Thread(target=_end, args=(child, ended), daemon=True).start()
    code = child.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what it left behind in its group
        os.killpg(child.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _watch(parent: int, ended: threading.Event) -> None:
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _LOOK_EVERY)
        if readable:  # nothing is ever sent but the end
            break
    ended.set()


def _end(child: subprocess.Popen[bytes], ended: threading.Event) -> None:
    ended.wait()
    for number, seconds in _PATIENCE:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
