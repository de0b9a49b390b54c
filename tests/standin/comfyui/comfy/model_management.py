"""What nodes use to be stoppable: ComfyUI's interrupt flag."""

from __future__ import annotations

import threading

_interrupted = threading.Event()


class InterruptProcessingException(Exception):
    """The prompt was interrupted."""


def interrupt_current_processing(value: bool = True) -> None:
    """Set the flag, or clear it."""
    (_interrupted.set if value else _interrupted.clear)()


def throw_exception_if_processing_interrupted() -> None:
    """Raise :class:`InterruptProcessingException` once if the flag is set."""
    if _interrupted.is_set():
        _interrupted.clear()
        raise InterruptProcessingException
