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

_LOOK_EVERY = 1.0
"""Seconds between two looks whether the parent is still there."""


def main(command: list[str]) -> int:
    """Run *command*; its exit code, or 128 and the number of the signal that ended it."""
    parent = os.getppid()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    threading.Thread(target=_watch, args=(parent, ended), daemon=True).start()
    threading.Thread(target=_end, args=(child, ended), daemon=True).start()
    code = child.wait()
    if sys.platform != "win32":
        _send(child, signal.SIGKILL)  # to what it left behind in its group
    return code if code >= 0 else 128 - code


def _watch(parent: int, ended: threading.Event) -> None:
    if sys.platform == "win32":  # where a pipe cannot be waited for with a limit, nor is a parent's end seen
        sys.stdin.buffer.read()
    while os.getppid() == parent and sys.platform != "win32":
        readable, _, _ = select.select([0], [], [], _LOOK_EVERY)
        if readable:  # nothing is ever sent but the end
            break
    ended.set()


def _end(child: subprocess.Popen[bytes], ended: threading.Event) -> None:
    """Once *ended* is set, send one signal after the other: after the first the tool leaves nothing half-made."""
    ended.wait()
    if sys.platform == "win32":
        child.terminate()
        return
    for number, seconds in ((signal.SIGINT, 10.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        _send(child, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return


def _send(child: subprocess.Popen[bytes], number: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
