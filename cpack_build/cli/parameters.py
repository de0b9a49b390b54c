"""A workflow's parameters as flags: ``--name VALUE``, typed as its interface says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cpack_build.filesystem import expanded

if TYPE_CHECKING:
    from cpack_build.workflow.interface import Input, Workflow

__all__ = ["parse_values", "print_help"]

_TYPES = {
    "image": "FILE", "file": "FILE", "string": "TEXT", "int": "INTEGER", "float": "NUMBER", "number": "NUMBER",
    "boolean": "true|false", "any": "JSON|TEXT",
}  # fmt: skip


def parse_values(workflow: Workflow, arguments: Sequence[str]) -> dict[str, Any]:
    """``--name VALUE`` and ``--name=VALUE`` as values of *workflow*'s parameters. Raises :class:`UsageError`."""
    import difflib

    from cpack_build.errors import UsageError

    inputs = {item.name: item for item in workflow.interface.inputs}
    values: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise UsageError(f"{word!r} is no flag of the workflow.", hint="Values are given as --name VALUE.")
        name, equals, text = word[2:].partition("=")
        item = inputs.get(name) or inputs.get(name.replace("-", "_"))
        if item is None:
            near = difflib.get_close_matches(name, inputs, n=1)
            have = f"It has: {', '.join(f'--{one}' for one in inputs) or 'none'}."
            hint = f"Did you mean --{near[0]}?" if near else have
            raise UsageError(f"The workflow has no parameter {name!r}.", hint=hint)
        if not equals:
            if not words:
                raise UsageError(f"--{name} needs a value.", hint=f"Write --{name} {_metavar(item)}.")
            text = words.pop(0)
        values[item.name] = _value(item, text)
    if missing := [item.name for item in inputs.values() if item.required and item.name not in values]:
        raise UsageError(
            f"The workflow needs {', '.join(f'--{name}' for name in missing)}.",
            hint="It has no value of its own for it.",
        )
    return values


def _value(item: Input, text: str) -> Any:
    from cpack_build.errors import UsageError

    wrong = UsageError(f"--{item.name} {text!r:.80} is not {_metavar(item)}.", hint="See --help after the pack.")
    if item.type in ("image", "file"):
        path = expanded(text)
        if not path.is_file():
            raise UsageError(f"--{item.name} {text!r:.200} is no file.", hint="Name an existing file.")
        return path
    if item.choices:
        for choice in item.choices:
            if text == str(choice):
                return choice
        raise wrong
    if item.type == "string":
        return text
    if item.type == "boolean":
        if text.lower() not in ("true", "false"):
            raise wrong
        return text.lower() == "true"
    try:
        value = json.loads(text)
    except ValueError:
        if item.type == "any":
            return text
        raise wrong from None
    if item.type == "any":
        return value
    if isinstance(value, bool) or not isinstance(value, int if item.type == "int" else int | float):
        raise wrong
    if (item.minimum is not None and value < item.minimum) or (item.maximum is not None and value > item.maximum):
        raise wrong
    return value


def _metavar(item: Input) -> str:
    if item.choices:
        return "|".join(str(choice) for choice in item.choices[:8]) + ("|…" if len(item.choices) > 8 else "")
    bounds = ""
    if item.minimum is not None or item.maximum is not None:
        low = "" if item.minimum is None else f"{item.minimum:g}"
        high = "" if item.maximum is None else f"{item.maximum:g}"
        bounds = f"[{low}..{high}]"
    return _TYPES.get(item.type, "VALUE") + bounds


def print_help(source: str, workflow: Workflow) -> None:
    formatter = click.HelpFormatter(max_width=100)
    formatter.write_usage("cpack-build run", f"{source} [-o DIR] [--NAME VALUE]...")
    rows = []
    for item in workflow.interface.inputs:
        told = item.description or (item.title if item.title and item.title != item.name else "")
        default = "required" if item.required else f"default: {item.default}" if item.default is not None else ""
        rows.append((f"--{item.name} {_metavar(item)}", f"{told} [{default}]".strip() if default else told))
    with formatter.section("The workflow's parameters"):
        formatter.write_dl(rows or [("none", "")])
    with formatter.section("Its results"):
        formatter.write_dl([(output.name, output.kind) for output in workflow.interface.outputs])
    click.echo(formatter.getvalue(), nl=False)
