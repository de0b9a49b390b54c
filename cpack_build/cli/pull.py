"""``cpack-build pull REF``: what lies in a registry comes here: an image, or a pack that was pushed as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.options import access_of, access_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cli.delivery import Destination
    from cpack_build.oci.reference import Reference

__all__ = ["pull"]


@click.command(
    epilog="Example: cpack-build pull registry.example/team/upscale:1 -o oci:upscale.oci    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("reference", metavar="REF")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="WHERE",
    help="docker, podman, oci:DIR, oci-archive:FILE or docker-archive:FILE; may be given several times.",
)
@click.option(
    "--platform",
    type=click.Choice(["linux/amd64", "linux/arm64"]),
    help="Which image of REF; by default this machine's.",
)
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Blobs to receive at once.")
@click.option(
    "--mirror", metavar="PREFIX=PREFIX", help="Take what begins with the first from the second.", multiple=True
)
@click.option("--dry-run", is_flag=True, help="Say what would come, and fetch no layer.")
@access_options
@terminal_options
def pull(
    reference: str,
    outputs: tuple[str, ...],
    platform: str | None,
    jobs: int,
    mirror: tuple[str, ...],
    dry_run: bool,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
) -> None:
    """Pull REF, with every byte proved, and give the image to Docker, podman, a folder or a file.

    Without -o it goes to Docker if it answers, else to podman, else to NAME.oci/ here. Blobs and models that are here
    already are not asked for; a pull that was cut goes on where it was. Logins are those of docker and podman, and of
    `cpack-build login`.
    """
    from cpack_build.cli.delivery import deliver
    from cpack_build.cli.push import own_platform
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.oci.pull import pull as pull_image
    from cpack_build.oci.sources import open_source

    name = _registry_name(reference)
    destinations = _destinations(outputs, name)
    source = open_source(
        name,
        mirrors=Mirrors.parse(mirror),
        store=Store(),
        access=access_of(insecure, ca, own=name.registry),
    )
    pulled = pull_image(source, platform or own_platform(), jobs=jobs, dry_run=dry_run, progress=terminal.progress)
    image = pulled.image
    if not dry_run:
        for destination in destinations:
            deliver(image, destination, progress=terminal.progress)
    terminal.result(
        {
            "reference": f"{name.name}@{image.digest}",
            "tag": name.tag,
            "image_id": image.id,
            "digest": image.digest,
            "platform": image.platform,
            "size": image.size,
            "received": pulled.received,
            "present": pulled.present,
            "outputs": [{"name": item.shown, "run": item.run_line} for item in destinations],
            **({"dry_run": True} if dry_run else {}),
        }
    )
    came = "would come" if dry_run else "came"
    parts = [f"{amount(pulled.received, None, 'B')} {came}"] if pulled.received else []
    parts += [f"{amount(pulled.present, None, 'B')} here already"] if pulled.present else []
    terminal.say(f"{name.name}@{image.digest}  {', '.join(parts)}")
    for destination in destinations:
        terminal.say(f"{destination.shown}\n  {destination.run_line}")


def _registry_name(text: str) -> Reference:
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import Reference, parse_image_name

    name = parse_image_name(text)
    if not isinstance(name, Reference):
        raise UsageError(f"{text} is here and in no registry.", hint="Write a reference: registry.example/name:tag.")
    return name


def _destinations(outputs: tuple[str, ...], name: Reference) -> tuple[Destination, ...]:
    """Where the image goes. By a digest alone it is called after that: ``latest`` may be another image."""
    from cpack_build.cli.delivery import choose
    from cpack_build.errors import UsageError
    from cpack_build.oci.engines import open_engine
    from cpack_build.oci.reference import EngineName, Reference

    tag = name.tag or (name.digest or "")[7:19] or "latest"
    chosen = choose(outputs, tag=f"{name.name}:{tag}", pack=Path(name.repository.rpartition("/")[2]))
    for destination in chosen:
        if isinstance(destination.place, Reference):
            raise UsageError(
                f"--output {destination.shown} is a registry's.",
                hint=f"Copy it there with `cpack-build push {name} {destination.shown}`.",
            )
        if outputs and isinstance(destination.place, EngineName):
            open_engine(destination.place).require()  # Better known now than after the download.
    return chosen
