"""Every error that a caller of the plugin's routes can see: a code for programs, what happened, and what to do next.

The plugin runs in ComfyUI's own environment, so nothing of :mod:`cpack_build.errors` is used here; what the
command-line tool tells is passed on in its own words.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Failed", "Refused", "Stopped"]


class Refused(Exception):
    """A request that is answered with *status* and not obeyed."""

    def __init__(self, code: str, message: str, *, next: str = "", status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.next = next
        self.status = status

    @property
    def document(self) -> dict[str, str]:
        """As it is answered below ``error``."""
        return {"code": self.code, "message": self.message, "next": self.next}


class Failed(Refused):
    """The command-line tool could not do what it was asked to; *code* is the name of its error."""

    def __init__(self, code: str, message: str, *, next: str = "") -> None:
        super().__init__(code, message, next=next, status=502)

    @classmethod
    def told(cls, error: Any) -> Failed:
        """From the tool's own object (docs/exit-codes.md)."""
        parts = error if isinstance(error, dict) else {}
        return cls(str(parts.get("type", "failed")), str(parts.get("message", "")), next=str(parts.get("hint", "")))


class Stopped(Exception):
    """Somebody cancelled it."""
