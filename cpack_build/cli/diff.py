"""``cpack-build diff A B``: how two packs differ, by meaning; exit code 1 when they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.cpack.comparison import Change

__all__ = ["diff"]

_LENGTH = 60


@click.command(
    epilog="Example: cpack-build diff old.cpack.zip new.cpack.zip --json    (exit codes: docs/exit-codes.md)"
)
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@terminal_options
@click.pass_context
def diff(context: click.Context, before: Path, after: Path, terminal: Terminal) -> None:
    """Show how pack B differs from pack A: nodes by commit, packages by version, models by hash, files, the workflow's
    parameters and results, and settings. Exit code 0 when they mean the same, 1 when they differ."""
    from dataclasses import asdict

    from cpack_build.cpack.comparison import compare
    from cpack_build.cpack.reader import read_pack

    changes = compare(read_pack(before), read_pack(after))
    terminal.result(
        {"a": str(before), "b": str(after), "differ": bool(changes), "changes": [asdict(c) for c in changes]}
    )
    for section in dict.fromkeys(change.section for change in changes):
        terminal.say(_titles.get(section, section))
        for change in changes:
            if change.section == section:
                terminal.say(f"  {_line(change)}")
    if not changes:
        terminal.say("The packs mean the same.")
    context.exit(1 if changes else 0)


_titles = {
    "python": "Python",
    "comfyui": "ComfyUI",
    "node": "custom nodes",
    "registry node": "registry nodes",
    "single-file node": "single-file nodes",
    "package": "Python packages",
    "model": "models",
    "input file": "input files",
    "parameter": "parameters",
    "result": "results",
    "setting": "settings",
    "record": "other records of snapshot.json",
    "file": "other files",
}


def _line(change: Change) -> str:
    if not change.field and change.before is None:
        return f"+ {change.name}{_what(change.after)}"
    if not change.field and change.after is None:
        return f"- {change.name}{_what(change.before)}"
    name = f"{change.name}: {change.field}" if change.field else change.name
    return f"~ {name}  {_shown(change.before)} → {_shown(change.after)}"


def _what(value: Any) -> str:
    if isinstance(value, dict):
        wanted = ("url", "commit", "sha256", "type", "kind", "class")
        return "".join(f"  {_shown(value[key])}" for key in wanted if value.get(key))
    return f"  {_shown(value)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"
