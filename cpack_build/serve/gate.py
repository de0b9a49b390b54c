"""How many requests may be under way at once: one more is told to come back, before its body is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cpack_build.errors import RunError

__all__ = ["Gate"]


class Gate:
    """At most *most* at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0

    @contextlib.contextmanager
    def pass_through(self) -> Iterator[None]:
        """Count the block as one. Raises :class:`RunError` (429) when there are *most* already."""
        if self.inside >= self.most:
            raise RunError(
                f"{self.inside} requests are under way, and no more are taken.",
                hint="Try again later, as Retry-After says.",
                status=429,
            )
        with self.count():
            yield

    @contextlib.contextmanager
    def count(self) -> Iterator[None]:
        """Count the block as one, however many there are: it was let in before."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
