"""Variables of a service that is deployed: plain ones are written down, and secrets never."""

from __future__ import annotations

import re

from cpack_build.errors import UnsafeInput, UsageError

__all__ = ["check_variable"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"token|secret|passw(or)?d|credential|(api|access|private)_?key", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/@\s]+:[^/@\s]+@")


def check_variable(name: str, value: str | None, *, instead: str) -> None:
    """Raise :class:`UsageError` when *name* is no variable, :class:`UnsafeInput` when *value* would be a secret that is
    written down; *instead* says where it may be kept. ``None`` is a value that is not written."""
    if _VARIABLE.fullmatch(name) is None:
        raise UsageError(f"{name!r} is no name of an environment variable.", hint="Write NAME=VALUE.")
    if value is not None and (_SECRET.search(name) or _PASSWORD.search(value)):
        raise UnsafeInput(f"The value of {name} would be written into files.", hint=instead)
