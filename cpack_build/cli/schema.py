"""``cpack-build schema NAME``: the JSON Schema of a document, for editors and validators."""

from __future__ import annotations

import json
from typing import Any

import click

from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal

__all__ = ["schema", "schema_of"]


@click.command(epilog="Example: cpack-build schema config > cpack.schema.json    (exit codes: docs/exit-codes.md)")
@click.argument("name", type=click.Choice(["pack", "lock", "config"]))
@terminal_options
def schema(name: str, terminal: Terminal) -> None:
    """Print the JSON Schema of a pack's documents, of cpack.lock, or of cpack.yaml (config)."""
    document = schema_of(name)
    terminal.result(document)
    terminal.say(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False))


def schema_of(name: str) -> dict[str, Any]:
    """The schema called *name*: ``pack``, ``lock`` or ``config``."""
    from pydantic import TypeAdapter

    from cpack_build.cpack.published import pack_schema, settings_schema
    from cpack_build.lock.schema import Lock, LockIndex

    if name == "pack":
        return pack_schema()
    if name == "config":
        return settings_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(Lock | LockIndex).json_schema()}
