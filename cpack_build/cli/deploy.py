"""``cpack-build deploy WHERE OBJECT``: one machine's image becomes a service that somebody else's engine scales."""

from __future__ import annotations

import click

from cpack_build.cli import LazyGroup

__all__ = ["PLACES", "deploy"]

PLACES: dict[str, tuple[str, str]] = {
    "kubernetes": ("cpack_build.cli.deploying.kubernetes:kubernetes", "Manifests, or the objects in a cluster."),
}
"""Place → where its command is, and its one line of help."""


@click.group(
    cls=LazyGroup,
    table=PLACES,
    kind="place",
    subcommand_metavar="PLACE [ARGS]...",
    epilog="Example: cpack-build deploy PLACE --help    (exit codes: docs/exit-codes.md)",
)
def deploy() -> None:
    """Give an image to an engine that scales it."""
