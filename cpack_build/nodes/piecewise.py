"""Large JSON documents, read and written piece by piece: Python's own reader and writer hold the interpreter's lock
from beginning to end, and ComfyUI's event loop would stand still for as long as a list of thousands of models takes.
Between the pieces the lock is given away: left to itself a busy thread keeps it for 5 ms each time that another one
asks, and one turn of the loop asks several times.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["read", "written"]

_decode = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\n\r]*")
_PIECE = 64  # items: about a fifth of a millisecond
_LARGE = 16 << 10  # characters; what is shorter takes no time worth splitting


def written(document: Mapping[str, Any]) -> bytes:
    """*document* as JSON, its lists item by item."""
    parts = []
    for key, value in document.items():
        text = f"[{','.join(map(_item, range(len(value)), value))}]" if isinstance(value, list) else json.dumps(value)
        parts.append(f"{json.dumps(key)}:{text}")
    return f"{{{','.join(parts)}}}".encode()


def _item(number: int, item: Any) -> str:
    _let_others(number)
    return json.dumps(item)


def _let_others(number: int) -> None:
    if number % _PIECE == 0:
        time.sleep(0)


def read(text: str) -> Any:
    """The JSON *text*, as ``json.loads`` reads it: an object value by value, its lists item by item.

    Raises :class:`ValueError`.
    """
    at = _next(text, 0)
    if len(text) < _LARGE or not text.startswith("{", at):
        return json.loads(text)
    found: dict[str, Any] = {}
    at = _next(text, at + 1)
    while not text.startswith("}", at):
        key, at = _decode(text, at)
        if not isinstance(key, str):
            raise ValueError(f"no key at character {at}")
        at = _next(text, _after(text, at, ":"))
        found[key], at = _items(text, at) if text.startswith("[", at) else _decode(text, at)
        at = _on(text, at, "}")
    if _next(text, at + 1) != len(text):
        raise ValueError(f"more than one document at character {at}")
    return found


def _items(text: str, at: int) -> tuple[list[Any], int]:
    found = []
    at = _next(text, at + 1)
    while not text.startswith("]", at):
        item, at = _decode(text, at)
        found.append(item)
        _let_others(len(found))
        at = _on(text, at, "]")
    return found, at + 1


def _next(text: str, at: int) -> int:
    """Where something else than a space stands."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _after(text: str, at: int, sign: str) -> int:
    at = _next(text, at)
    if not text.startswith(sign, at):
        raise ValueError(f"no {sign} at character {at}")
    return at + len(sign)


def _on(text: str, at: int, end: str) -> int:
    """Where the next of a sequence begins, or its *end* stands."""
    at = _next(text, at)
    if text.startswith(end, at):
        return at
    at = _next(text, _after(text, at, ","))
    if text.startswith(end, at):
        raise ValueError(f"a comma before the end at character {at}")
    return at
