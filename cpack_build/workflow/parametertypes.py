"""What kind of value a parameter takes, and within which bounds: by the class of its node, else by the value itself."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cpack_build.errors import WorkflowError

__all__ = ["InputType", "Typed", "choices_of", "type_of"]

InputType = Literal["image", "file", "string", "int", "float", "number", "boolean", "choice", "any"]

# 2**63 as JavaScript rounds it is 9223372036854776000; a bound out there (or 2**64 - 1, that of seeds) is none.
_NO_BOUND = 2**63 - 2**12


@dataclass(frozen=True)
class Typed:
    """A parameter's type, the workflow's own value for it, and what bounds it."""

    type: InputType
    default: Any
    minimum: int | float | None = None
    maximum: int | float | None = None
    choices: tuple[Any, ...] = ()


def choices_of(text: object) -> tuple[str, ...]:
    """The choices that a ``CPackInputChoice`` holds: the lines of *text*, each once."""
    lines = text.splitlines() if isinstance(text, str) else []
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def type_of(class_type: str, value: Any, inputs: Mapping[str, Any], options: object, *, where: str) -> Typed:
    """The type of a parameter whose own value is *value* (None where another node gives it), and its bounds."""
    if class_type in ("CPackInputImage", "CPackInputMask"):
        return Typed("image", _file_name(value))
    if class_type == "CPackInputFile":
        return Typed("file", _file_name(value))
    if class_type == "CPackInputString":
        return Typed("string", value if value is None or isinstance(value, str) else json.dumps(value))
    if class_type == "CPackInputInt":
        return Typed("int", _whole(value, where=where), _bound(inputs.get("min")), _bound(inputs.get("max")))
    if class_type == "CPackInputFloat":
        return Typed("float", _number(value, where=where), _bound(inputs.get("min")), _bound(inputs.get("max")))
    if class_type == "CPackInputBoolean":
        return Typed("boolean", _truth(value, where=where))
    if class_type == "CPackInputChoice":
        text = value if value is None or isinstance(value, str) else json.dumps(value)
        choices = choices_of(inputs.get("choices"))
        if choices and text == "":
            text = None  # nothing is chosen yet
        if choices and text is not None and text not in choices:
            raise WorkflowError(
                f"{where} is {text!a}, which is none of its choices: {', '.join(choices)}.",
                hint="Choose one of them in ComfyUI and export the workflow again.",
            )
        return Typed("choice" if choices else "string", text, choices=choices)
    kind, choices_there = _any_type(value, options)
    if kind in ("int", "float") and isinstance(options, Mapping):
        return Typed(kind, value, _bound(options.get("min")), _bound(options.get("max")))
    return Typed(kind, value, choices=choices_there)


def _file_name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _bound(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= _NO_BOUND:
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(value: object, *, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int):
        raise WorkflowError(
            f"{where} is {value!a}, not a whole number.", hint="Set it in ComfyUI and export the workflow again."
        )
    return value


def _number(value: object, *, where: str) -> int | float | None:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise WorkflowError(f"{where} is {value!a}, not a number.", hint="Set it in ComfyUI and export the workflow again.")


def _truth(value: object, *, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise WorkflowError(
        f"{where} is {value!a}, neither true nor false.", hint="Set it in ComfyUI and export the workflow again."
    )


def _any_type(value: object, options: object) -> tuple[InputType, tuple[Any, ...]]:
    """The type of a ``CPackInputAny``: that of the widget it stands for if the export kept it, else its value's."""
    if isinstance(options, Mapping):
        choices = options.get("values")
        if isinstance(choices, list) and choices and all(isinstance(c, str | int | float | bool) for c in choices):
            return "choice", tuple(choices)
        is_number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if is_number and any(key in options for key in ("min", "max", "round", "precision", "step")):
            return ("float" if _is_fractional(value, options) else "int"), ()
    if isinstance(value, bool):
        return "boolean", ()
    if isinstance(value, int):  # JavaScript writes 8.0 as 8: it cannot be told whether fractions are meant
        return "number", ()
    if isinstance(value, float):
        return "float", ()
    return ("string" if isinstance(value, str) else "any"), ()


def _is_fractional(value: object, options: Mapping[str, Any]) -> bool:
    if isinstance(value, float) and not value.is_integer():
        return True
    rounding, precision = options.get("round"), options.get("precision")
    if isinstance(rounding, int | float) and not isinstance(rounding, bool) and 0 < rounding < 1:
        return True
    return isinstance(precision, int | float) and not isinstance(precision, bool) and precision > 0
