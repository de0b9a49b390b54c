"""JSON and YAML from a stranger: bounded, UTF-8, without the values that would break whoever writes it again.

Beyond :func:`json.loads` this refuses nesting deeper than 100, NaN and infinities, and lone surrogates, because the
same document is later written as canonical JSON, walked recursively, and sent to ComfyUI.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from cpack_build.errors import BadField, BadInput

__all__ = ["DEPTH_LIMIT", "Field", "parse_json", "parse_yaml"]

DEPTH_LIMIT = 100


def parse_json(data: bytes, *, name: str) -> Any:
    """The document in *data*; *name* is what errors call it. Raises :class:`BadInput`."""
    hint = "Make the pack again."
    try:
        document = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not UTF-8 text (byte {error.start}).", hint=hint) from error
    except RecursionError as error:
        raise BadInput(f"{name} is nested deeper than {DEPTH_LIMIT} levels.", hint=hint) from error
    except ValueError as error:
        raise BadInput(f"{name} is not JSON: {error}.", hint=hint) from error
    _check(document, name)
    return document


def parse_yaml(data: bytes, *, name: str) -> Any:
    """The YAML document in *data*, with JSON's types only; a date is its text. Raises :class:`BadInput`.

    Anchors and aliases are refused: they make a document of a few lines as big as one likes.
    """
    import yaml

    # libyaml is many times faster; a wheel of PyYAML has it, a build of one's own perhaps not
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    hint = "Save it again from the program that wrote it."
    try:
        text = data.decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_LIMIT:
                raise BadInput(f"{name} is nested deeper than {DEPTH_LIMIT} levels.", hint=hint)
            if (anchor := getattr(event, "anchor", None)) is not None:
                raise BadInput(f"{name} has a YAML anchor or alias, {anchor!r:.40}.", hint="Write it out in full.")
        document = _plain(yaml.load(text, Loader=loader), name)  # noqa: S506 - a safe one, both of them
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not UTF-8 text (byte {error.start}).", hint=hint) from error
    except RecursionError as error:
        raise BadInput(f"{name} is nested deeper than {DEPTH_LIMIT} levels.", hint=hint) from error
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{name} is not YAML: {str(error).splitlines()[0]}.", hint=hint) from error
    _check(document, name)
    return document


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise BadInput(f"{name} has the key {key!r:.40}, which is no text.", hint="Put it into quotes.")
        return {key: _plain(below, name) for key, below in value.items()}
    if isinstance(value, list):
        return [_plain(below, name) for below in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _check(document: Any, name: str) -> None:
    level: list[Any] = [document]
    for _ in range(DEPTH_LIMIT):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise BadInput(f"{name} holds half a character ({value!a:.60}).", hint="Make it again.") from error
            elif isinstance(value, float) and not math.isfinite(value):
                raise BadInput(f"{name} holds a number that is too big.", hint="Make it again.")
        if not below:
            return
        level = below
    raise BadInput(f"{name} is nested deeper than {DEPTH_LIMIT} levels.", hint="Make the pack again.")


class Field:
    """A value within a document that knows its path, so that an error can name it.

    >>> Field({"models": [{"size": "1"}]}, "snapshot.json").get("models").items()[0].get("size").integer()
    Traceback (most recent call last):
    cpack_build.errors.BadField: snapshot.json: models[0].size: must be a whole number from 0 on, not text ...
    """

    def __init__(self, value: Any, document: str, path: str = "") -> None:
        self.value = value
        self.document = document
        self.path = path

    def get(self, key: str) -> Field:
        """The member *key* of an object; its value is ``None`` when it is absent."""
        return Field(self.object().get(key), self.document, f"{self.path}.{key}" if self.path else key)

    def members(self) -> list[tuple[str, Field]]:
        """The members of an object, in the document's order."""
        return [(key, Field(value, self.document, f"{self.path}[{key!r}]")) for key, value in self.object().items()]

    def items(self) -> list[Field]:
        """The items of a list; none when it is absent."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            self.wrong("a list")
        return [Field(value, self.document, f"{self.path}[{index}]") for index, value in enumerate(self.value)]

    def object(self) -> dict[str, Any]:
        """The value as an object; an empty one when it is absent."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            self.wrong("an object")
        return self.value

    def text(self, default: str | None = None) -> str:
        """The value as text, *default* when it is absent."""
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str):
            self.wrong("text")
        return self.value

    def boolean(self) -> bool:
        """The value as true or false; false when it is absent."""
        if self.value is None:
            return False
        if not isinstance(self.value, bool):
            self.wrong("true or false")
        return self.value

    def integer(self) -> int | None:
        """The value as a whole number from 0 up to 2^63, ``None`` when it is absent."""
        if self.value is None:
            return None
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not 0 <= self.value < 2**63:
            self.wrong("a whole number from 0 on")
        return self.value

    def number(self) -> int | float | None:
        """The value as a number, ``None`` when it is absent."""
        if self.value is None:
            return None
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            self.wrong("a number")
        return self.value

    def wrong(self, wanted: str) -> NoReturn:
        """Raise :class:`BadField`: this must be *wanted*."""
        shown = {type(None): "nothing", dict: "an object", list: "a list", bool: "true or false"}.get(type(self.value))
        if shown is None:
            shown = f"text {self.value!r:.60}" if isinstance(self.value, str) else f"{self.value!r:.60}"
        self.refuse(f"must be {wanted}, not {shown}")

    def refuse(self, problem: str) -> NoReturn:
        """Raise :class:`BadField` with *problem*."""
        raise BadField(self.document, self.path or "the document", problem)
