"""What a page sends with a job, checked: a name that is to be a file's, lists of names, a port.

Nothing here is ever used as a path before it was found to be one plain name; what is only compared with names (the
models that were ticked) is left as it is, and goes to the tool in a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import Refused

__all__ = ["choice", "flag", "name_of", "names_in", "number", "pick", "secret", "text", "write_choice"]

_NAME = re.compile(r"[^\W_][\w .()+=,@-]{0,98}", re.UNICODE)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,99}(:[a-z0-9]+)?")
_NAMES_LIMIT = 100_000


def name_of(params: Mapping[str, Any], key: str = "name", *, default: str | None = None) -> str:
    """The plain name *key*: letters, digits and a few signs; no separator, nothing that a shell or ``..`` could be."""
    given = params.get(key, default)
    if not isinstance(given, str) or not _NAME.fullmatch(given) or given != given.strip(" .") or ".." in given:
        raise Refused(
            "bad_name", f"{key} {given!r:.120} is no name for a file.",
            next="Use letters, digits, spaces and . _ - + ( ), beginning with a letter or digit.",
        )  # fmt: skip
    return given


def text(
    params: Mapping[str, Any], key: str, *, default: str | None = None, pattern: str = r"[^\x00-\x1f\x7f]{1,500}"
) -> str:
    """The text *key*, all of which *pattern* describes, and which no program would take for an option."""
    given = params.get(key, default)
    if not isinstance(given, str) or (given and (given.startswith("-") or not re.fullmatch(pattern, given))):
        raise Refused("bad_value", f"{key} {given!r:.120} cannot be used.", next="Correct it.")
    if not given and default is None:
        raise Refused("bad_value", f"{key} is missing.", next="Fill it in.")
    return given


def secret(params: Mapping[str, Any], key: str, *, longest: int) -> str:
    """The token *key* without the spaces of a careless copy, or nothing; no error shows what was given."""
    given = params.get(key, "")
    token = given.strip() if isinstance(given, str) else "\n"
    if not re.fullmatch(rf"[\x21-\x7e]{{0,{longest}}}", token):
        raise Refused("bad_value", f"The {key} cannot be used: it is none.", next="Copy it again, all of it.")
    return token


def pick(params: Mapping[str, Any], key: str, *allowed: str, default: str | None = None) -> str:
    """One of *allowed*."""
    given = params.get(key, default)
    if given not in allowed:
        raise Refused("bad_value", f"{key} {given!r:.120} is none of {', '.join(allowed)}.", next="Choose one.")
    return str(given)


def flag(params: Mapping[str, Any], key: str) -> bool:
    """Whether *key* is set; by default not."""
    given = params.get(key, False)
    if not isinstance(given, bool):
        raise Refused("bad_value", f"{key} {given!r:.120} is neither true nor false.", next="Correct it.")
    return given


def number(params: Mapping[str, Any], key: str, *, default: int, low: int, high: int) -> int:
    """The whole number *key* from *low* to *high*."""
    given = params.get(key, default)
    if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
        raise Refused("bad_value", f"{key} {given!r:.120} is no number from {low} to {high}.", next="Correct it.")
    return given


def names_in(params: Mapping[str, Any], key: str) -> list[str] | None:
    """The list of texts *key*; None where it is not given."""
    given = params.get(key)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > _NAMES_LIMIT or not all(isinstance(name, str) for name in given):
        raise Refused("bad_value", f"{key} is no list of names.", next="Correct it.")
    return given


def choice(params: Mapping[str, Any]) -> dict[str, list[str]]:
    """What was ticked: ``models`` and ``inputs`` by name, as far as they are given."""
    given = {key: names_in(params, key) for key in ("models", "inputs")}
    return {key: names for key, names in given.items() if names is not None}


def write_choice(params: Mapping[str, Any], folder: Path) -> list[str]:
    """The tool's flags for what was ticked: exactly these models and inputs, and these system packages."""
    flags: list[str] = []
    if ticked := choice(params):
        file = folder / "choice.json"
        file.write_text(json.dumps(ticked), "utf-8")
        flags += ["--choice", str(file)]
    if packages := names_in(params, "system"):
        for package in packages:
            if not _PACKAGE.fullmatch(package):
                raise Refused("bad_value", f"{package!r:.120} is no name of a system package.", next="Correct it.")
        file = folder / "cpack.yaml"
        file.write_text(json.dumps({"system": {"packages": packages}}), "utf-8")  # JSON is YAML
        flags += ["--config", str(file)]
    return flags
