"""``cpack-build run IMAGE``: an image, run by Docker or podman with the flags that it needs, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cpack_build.cli.options import access_of, access_options, terminal_options
from cpack_build.cli.terminal import Terminal

__all__ = ["run"]


@click.command(
    epilog="Example: cpack-build run oci:upscale.oci --port 8080    (exit codes: docs/exit-codes.md)",
)
@click.argument("image")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE OPTIONS]")
@click.option("--engine", type=click.Choice(["docker", "podman"]), help="By default Docker if it answers, else podman.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of this machine; by default 3000, or a free one.")
@click.option("--gpu/--no-gpu", default=None, help="By default if the image wants one and there is one.")
@click.option("-d", "--detach", is_flag=True, help="Return as soon as it is ready, and let it run.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Until it must be ready.",
)
@access_options
@terminal_options
def run(
    image: str,
    extra: tuple[str, ...],
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Run IMAGE: docker:NAME, podman:NAME, or one that is loaded first: oci:DIR, oci-archive:FILE, docker-archive:FILE,
    a registry's reference. Its address is printed as soon as it is ready. Ctrl-C stops and removes it.

    What follows -- goes to the engine's own run: -- -e NAME=VALUE -v DIR:/data
    """
    from cpack_build.cli.container import RunOptions, run_image
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import Reference, parse_image_name

    if Path(image).is_file():
        raise UsageError(
            f"{image} is a file.",
            hint=f"Build its image with `cpack-build image {image}`; an archive is named docker-archive:FILE.",
        )
    name = parse_image_name(image)
    own = name.registry if isinstance(name, Reference) else None
    run_image(name, RunOptions(extra=extra, **flags), access=access_of(insecure, ca, own=own), terminal=terminal)
