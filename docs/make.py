"""Writes the reference pages that the program itself knows best: each verb's help, and the schema of ``cpack.lock``.

``make docs`` runs it; the pages lie beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from cpack_build.cli import VERBS, cli
from cpack_build.lock.schema import Lock

DOCS = Path(__file__).resolve().parent


def main() -> None:
    """Write ``commands.md`` and ``cpack.lock.schema.json``."""
    pages = ["# Commands", "", "Written by `make docs`. Exit codes: [exit-codes.md](exit-codes.md)."]
    settings = {**cli.context_settings, "max_content_width": 100, "terminal_width": 100}
    group = click.Context(cli, info_name="cpack-build", **settings)
    pages += ["", "```", cli.get_help(group), "```"]
    for verb in VERBS:
        command = cli.get_command(group, verb)
        assert command is not None
        context = click.Context(command, info_name=verb, parent=group, **settings)
        pages += ["", f"## {verb}", "", "```", command.get_help(context), "```"]
    (DOCS / "commands.md").write_text("\n".join(line.rstrip() for line in pages) + "\n")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Lock.model_json_schema()}
    (DOCS / "cpack.lock.schema.json").write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")
    print("docs/commands.md and docs/cpack.lock.schema.json are written")


if __name__ == "__main__":
    main()
