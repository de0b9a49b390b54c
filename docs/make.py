"""Writes the reference pages that the program itself knows best: each verb's help, and the schemas of its documents.

``make docs`` runs it; the pages lie beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from cpack_build.cli import VERBS, cli
from cpack_build.cli.schema import schema_of

DOCS = Path(__file__).resolve().parent
SCHEMAS = {"pack": "cpack.zip.schema.json", "lock": "cpack.lock.schema.json", "config": "cpack.yaml.schema.json"}


def main() -> None:
    """Write ``commands.md`` and the schemas of a pack, of ``cpack.lock`` and of ``cpack.yaml``."""
    pages = ["# Commands", "", "Written by `make docs`. Exit codes: [exit-codes.md](exit-codes.md)."]
    settings = {**cli.context_settings, "max_content_width": 100, "terminal_width": 100}
    group = click.Context(cli, info_name="cpack-build", **settings)
    pages += ["", "```", cli.get_help(group), "```"]
    for verb in VERBS:
        command = cli.get_command(group, verb)
        assert command is not None
        context = click.Context(command, info_name=verb, parent=group, **settings)
        pages += ["", f"## {verb}", "", "```", command.get_help(context), "```"]
        for name in command.list_commands(context) if isinstance(command, click.Group) else ():
            inner = command.get_command(context, name)  # type: ignore[union-attr]
            assert inner is not None
            below = click.Context(inner, info_name=name, parent=context, **settings)
            pages += ["", f"### {verb} {name}", "", "```", inner.get_help(below), "```"]
    (DOCS / "commands.md").write_text("\n".join(line.rstrip() for line in pages) + "\n")
    for name, file in SCHEMAS.items():
        (DOCS / file).write_text(json.dumps(schema_of(name), indent=1, sort_keys=True) + "\n")
    print(f"docs/commands.md and docs/{{{','.join(SCHEMAS.values())}}} are written")


if __name__ == "__main__":
    main()
