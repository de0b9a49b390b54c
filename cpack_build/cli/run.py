"""``cpack-build run SOURCE``: a workflow, run once here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cpack_build.cli.export import image_options
from cpack_build.cli.options import terminal_options
from cpack_build.cli.restore import restore_options, sources_of
from cpack_build.cli.running import run_pack
from cpack_build.cli.terminal import Terminal

__all__ = ["run"]


class _Run(click.Command):
    """``--help`` after SOURCE is the workflow's, not the verb's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and set(args) & {"--help", "-h"}:
            args = [*(word for word in args if word not in ("--help", "-h")), "--help-of-workflow"]
        return super().parse_args(ctx, args)


@click.command(
    cls=_Run,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Example: cpack-build run upscale.cpack.zip --photo cat.png -o results    (exit codes: docs/exit-codes.md)",
)
@click.argument("source")
@click.argument("values", nargs=-1, type=click.UNPROCESSED, metavar="[--NAME VALUE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=".",
    metavar="DIR",
    help="Where its files go; by default here.",
)
@click.option("--trust", is_flag=True, help="Run the install.py of custom nodes.")
@click.option("--offline", is_flag=True, help="Use what the pack, the image and this machine have; ask nobody.")
@click.option("--help-of-workflow", is_flag=True, hidden=True)
@restore_options
@image_options
@terminal_options
def run(
    source: str,
    values: tuple[str, ...],
    output: Path,
    trust: bool,
    offline: bool,
    help_of_workflow: bool,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Run the workflow of SOURCE, a pack or an image, once: with its parameters as flags, its files into DIR.

    Its workspace is restored to a place that is kept, so the next run only starts ComfyUI. `cpack-build run SOURCE
    --help` lists the workflow's own flags.
    """
    arguments = [*values, "--help"] if help_of_workflow else list(values)
    chosen = sources_of(**flags)
    run_pack(source, arguments, chosen=chosen, output=output, trust=trust, offline=offline, terminal=terminal)
