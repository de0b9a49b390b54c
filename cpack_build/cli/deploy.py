"""``cpack-build deploy WHERE OBJECT``: one machine's image becomes a service that somebody else's engine scales."""

from __future__ import annotations

import click

from cpack_build.cli import LazyGroup

__all__ = ["PLACES", "deploy"]

PLACES: dict[str, tuple[str, str]] = {
    "bentocloud": (
        "cpack_build.cli.deploying.bentocloud:bentocloud",
        "BentoCloud: pushed as a Bento, and scaled there.",
    ),
    "kubernetes": ("cpack_build.cli.deploying.kubernetes:kubernetes", "Manifests, or the objects in a cluster."),
    "compose": ("cpack_build.cli.deploying.compose:compose", "One host with Docker, with TLS before it if wanted."),
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
