"""The progress bar that nodes tell their steps to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PROGRESS_BAR_HOOK: Callable[[int, int, Any], None] | None = None


def set_progress_bar_global_hook(function: Callable[[int, int, Any], None]) -> None:
    """*function* is told each step: value, total, preview."""
    global PROGRESS_BAR_HOOK
    PROGRESS_BAR_HOOK = function


class ProgressBar:
    """Counts the steps of one node."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.current = 0

    def update(self, value: int) -> None:
        """*value* more steps are done."""
        self.current = min(self.current + value, self.total)
        if PROGRESS_BAR_HOOK is not None:
            PROGRESS_BAR_HOOK(self.current, self.total, None)
