"""How downloads use the network: how many connections, how often to try again, and how fast at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cpack_build.fetch.partial import PART
from cpack_build.progress import pause

__all__ = ["RateLimit", "Tuning"]


class RateLimit:
    """No more than so many *bytes* a second, of all who share it."""

    def __init__(self, bytes_a_second: int, *, sleep: Callable[[float], object] = pause) -> None:
        self._rate = bytes_a_second
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait until *count* bytes may have come."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + count / self._rate
        if begin > now:
            self._sleep(begin - now)


@dataclass(frozen=True)
class Tuning:
    """How downloads use the network. *connections* are for one file, *all* of them for all files together."""

    connections: int = 4
    retries: int = 5
    """Failures in a row, without progress, after which a source is given up."""
    limit: RateLimit | None = None
    part: int = PART
    sleep: Callable[[float], object] = pause
    all: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(16))
