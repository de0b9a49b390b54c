"""What the widgets of a node hold, by name: a drawing keeps their values in the order in which the editor made them.

That order is the declared one, with what the editor adds by itself: a control after a seed, the button of an upload,
and behind a combo that chooses inputs (``COMFY_DYNAMICCOMBO_V3``) the inputs of what is chosen. Each value is held
against its input's type; a misfit means that the places cannot be trusted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Declared", "Misfit", "Read", "declared_inputs", "protected", "read_values"]

_CONTROLS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
_KINDS: Mapping[str, tuple[type, ...]] = {
    "INT": (int, float),
    "FLOAT": (int, float),
    "STRING": (str, int, float),
    "BOOLEAN": (bool,),
    "COMBO": (str, int, float, bool, list),
    "COLOR": (str,),
}
_CHOOSING, _GROWING, _REPEATING = "COMFY_DYNAMICCOMBO", "COMFY_AUTOGROW", "COMFY_DYNAMICGROUP"
_NESTING = 8


class Misfit(Exception):
    """The values cannot be told apart; the message says what about the node is in the way."""


@dataclass(frozen=True)
class Declared:
    """An input that a class declares: *kind* is its type, ``COMBO`` for a list of choices."""

    name: str
    kind: str
    options: Mapping[str, Any]
    required: bool = True

    @property
    def is_widget(self) -> bool:
        """Whether the editor makes a widget for it, and not only a place for a link."""
        is_known = self.kind in _KINDS or self.kind == "UPLOAD" or self.kind.startswith((_CHOOSING, _REPEATING))
        return is_known and self.options.get("forceInput") is not True


@dataclass(frozen=True)
class Read:
    """Values by input, and how many were left over."""

    values: dict[str, Any]
    more: int = 0


def declared_inputs(info: Mapping[str, Any]) -> list[Declared]:
    """The inputs that a class declares (an entry of ``object_info``), in order."""
    return _declared(info.get("input"), info.get("input_order"), "")


def _declared(groups: object, order: object, prefix: str) -> list[Declared]:
    found: list[Declared] = []
    for group in ("required", "optional"):
        specs = groups.get(group) if isinstance(groups, Mapping) else None
        if not isinstance(specs, Mapping):
            continue
        listed = order.get(group) if isinstance(order, Mapping) else None
        names = [name for name in listed if name in specs] if isinstance(listed, list) else []
        for name in [*names, *(name for name in specs if name not in names)]:
            kind, options = _spec(specs[name])
            found.append(Declared(f"{prefix}{name}", kind, options, group == "required"))
        uploads = any(
            str(key).endswith("_upload") and item.options[key] is True for item in found for key in item.options
        )
        if group == "required" and uploads and not prefix:
            found.append(Declared("upload", "UPLOAD", {}))  # the button that the editor adds has a value, too
    return found


def _spec(spec: Any) -> tuple[str, Mapping[str, Any]]:
    kind = spec[0] if isinstance(spec, list | tuple) and spec else spec
    options = spec[1] if isinstance(spec, list | tuple) and len(spec) > 1 else {}
    options = options if isinstance(options, Mapping) else {}
    if isinstance(kind, list | tuple):
        kind, options = "COMBO", {"options": list(kind), **options}
    return str(options.get("widgetType", kind)), options


def read_values(declared: Iterable[Declared], values: Any, *, linked: frozenset[str] | set[str] = frozenset()) -> Read:
    """What the inputs of *declared* hold by *values*, a list in the editor's order or an object by name; defaults for
    those that it does not reach. Values of *linked* inputs are not looked at. Raises :class:`Misfit`."""
    if isinstance(values, Mapping):
        return Read(_by_name(declared, values))
    listed = values if isinstance(values, list) else []
    queue = deque(item for item in declared if item.is_widget or item.kind.startswith(_GROWING))
    found: dict[str, Any] = {}
    position = 0
    while queue:
        item = queue.popleft()
        if item.kind.startswith(_GROWING):
            grown = _template(item)
            if not grown or any(inner.is_widget for inner in grown):
                raise Misfit("whose inputs the editor makes by code")
            continue
        if item.kind.startswith(_REPEATING):
            raise Misfit("whose inputs the editor makes by code")
        if item.kind == "UPLOAD":
            position += 1
            continue
        is_choice = item.kind.startswith(_CHOOSING)
        kind = "COMBO" if is_choice else item.kind
        value: Any = None
        if position < len(listed):
            value = listed[position]
            position += 1
            after = queue[0].kind if queue else ""
            position += _controls(item, kind, listed[position : position + 2], after)
        if value is None:
            value = _default(item, kind)
        if is_choice:
            queue.extendleft(reversed([inner for inner in _chosen(item, value) if inner.is_widget]))
        if value is None:
            continue
        if item.name not in linked and not _fits(value, kind):
            raise Misfit(
                f"with {value!r:.60} where its input {item.name} is {item.kind}, so its values cannot be told apart"
            )
        found[item.name] = value
    rest = listed[position:]
    return Read(found, len(rest) if any(value not in (None, "") for value in rest) else 0)


def _by_name(declared: Iterable[Declared], values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    queue = deque(declared)
    while queue:
        item = queue.popleft()
        if item.kind.startswith((_GROWING, _REPEATING)):
            inner = {key: value for key, value in values.items() if _is_below(key, item.name) and value is not None}
            found |= inner
            continue
        value = values.get(item.name)
        if value is None and item.is_widget and item.kind != "UPLOAD":
            value = _default(item, "COMBO" if item.kind.startswith(_CHOOSING) else item.kind)
        if value is None or item.kind == "UPLOAD":
            continue
        found[item.name] = value
        if item.kind.startswith(_CHOOSING):
            queue.extendleft(reversed(_chosen(item, value)))
    return found


def _is_below(key: object, name: str) -> bool:
    return isinstance(key, str) and key.startswith(f"{name}.") and not key.rpartition(".")[2].startswith("$")


def _chosen(item: Declared, value: object) -> list[Declared]:
    """The inputs that a choosing combo brings with *value*."""
    if item.name.count(".") >= _NESTING:
        raise Misfit("whose choices are nested without end")
    options = item.options.get("options")
    for option in options if isinstance(options, list) else []:
        if isinstance(option, Mapping) and option.get("key") == value:
            return _declared(option.get("inputs"), None, f"{item.name}.")
    return []


def _template(item: Declared) -> list[Declared]:
    template = item.options.get("template")
    return _declared(template.get("input"), None, f"{item.name}.") if isinstance(template, Mapping) else []


def _controls(item: Declared, kind: str, following: list[Any], after: str) -> int:
    """How many values after this one are those of its ``control_after_generate`` (a combo's has a filter, too).

    *after* is the type of the next input: where that could not be such a word, the word is a control whatever is
    declared, for declarations change and drawings stay. The first frontends wrote true or false.
    """
    controlled = item.options.get("control_after_generate")
    if controlled is None:
        controlled = kind == "INT" and item.name in ("seed", "noise_seed")
    if not following:
        return 0
    if isinstance(following[0], bool):
        return int(bool(controlled) and kind == "INT" and after != "BOOLEAN")
    if following[0] not in tuple(_CONTROLS) or not (controlled or (kind == "INT" and after in ("INT", "FLOAT", ""))):
        return 0
    return 2 if kind == "COMBO" and len(following) > 1 and isinstance(following[1], str) else 1


def _default(item: Declared, kind: str) -> Any:
    if "default" in item.options:
        return item.options["default"]
    listed = item.options.get("options")
    if kind == "COMBO":
        first = listed[0] if isinstance(listed, list) and listed else None
        return first.get("key") if isinstance(first, Mapping) else first
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(kind)


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind in ("BOOLEAN", "COMBO")
    return isinstance(value, _KINDS[kind])


def protected(value: Any) -> Any:
    """*value* as a prompt may hold it: a list would be taken for a link."""
    return {"__value__": value} if isinstance(value, list) else value
