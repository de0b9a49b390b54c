"""``cpack-build deliver RESULT``: what Nix has built goes to an engine, a folder, a file or a registry.

Models are not in Nix's result; they are streamed from where they lie, as for any other image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cpack_build.cli.delivery import choose, named, places_of_base
from cpack_build.cli.delivery import deliver as deliver_to
from cpack_build.cli.options import access_options, registry_options, terminal_options
from cpack_build.cli.push import PushOptions, access_for, tell_of_zstd
from cpack_build.cli.terminal import Terminal, amount

__all__ = ["deliver"]


@click.command(
    epilog="Example: cpack-build deliver result --push registry.example/team/upscale:1    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("result", type=click.Path(path_type=Path, file_okay=False))
@click.option("-t", "--tag", metavar="NAME[:TAG]", default="workflow", show_default=True, help="The image's name.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="WHERE",
    help="docker, podman, oci:DIR, oci-archive:FILE or docker-archive:FILE; may be given several times.",
)
@click.option("--push", "pushes", multiple=True, metavar="REF", help="A registry to push it to.")
@click.option("--archive", is_flag=True, help="Write an archive that every engine loads to stdout.")
@click.option(
    "--models", "folders", multiple=True, metavar="DIR", help="A folder with model files, besides cpack-build's store."
)
@click.option("--offline", is_flag=True, help="Ask nobody for models: they are on this machine.")
@registry_options
@access_options
@terminal_options
def deliver(
    result: Path,
    tag: str,
    outputs: tuple[str, ...],
    pushes: tuple[str, ...],
    archive: bool,
    folders: tuple[str, ...],
    offline: bool,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Give the image that `nix build .#image` left at RESULT to an engine, a folder, a file or a registry."""
    from cpack_build.backends.nix.result import lock_in, open_image
    from cpack_build.errors import UsageError
    from cpack_build.fetch.http import Offline, RequestsTransport, Sources
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.image.models import found_layer
    from cpack_build.lock.form import compression_of
    from cpack_build.oci.archive import stream_archive
    from cpack_build.oci.compressed import compressed_image
    from cpack_build.oci.reference import Reference

    if archive and (terminal.json or sys.stdout.isatty()):
        raise UsageError("--archive writes the archive to stdout.", hint="Send it to a file or a program.")
    if archive and (outputs or pushes):
        raise UsageError("--archive is an output of its own.", hint="Give it alone.")
    destinations = () if archive else choose(outputs, tag=tag, pack=result, pushes=pushes)
    targets = [destination.place for destination in destinations if isinstance(destination.place, Reference)]
    options = PushOptions(**flags)
    access = access_for([*targets, *options.places], insecure=insecure, ca=ca)
    store = Store()
    sources = Sources(Mirrors({}, offline), Offline() if offline else RequestsTransport(), registries=access)
    image = open_image(
        result,
        lambda pin: found_layer(pin, folders=folders, store=store, sources=sources, progress=terminal.progress),
    )
    if archive:
        for chunk in stream_archive(image, name=named(tag)):
            sys.stdout.buffer.write(chunk)
        return
    for destination in destinations:
        if destination.place not in targets:
            deliver_to(image, destination, progress=terminal.progress)
    packed, lock = image, lock_in(result)
    if targets:
        packed = compressed_image(image, compression_of(lock), store=store, progress=terminal.progress)
        tell_of_zstd(packed, terminal)
    bases = places_of_base(lock, sources) if targets else []
    done = options.push(packed, targets, access=access, mount_from=bases, terminal=terminal)
    terminal.result(
        {
            "image_id": image.id,
            "digest": image.digest,
            "outputs": [{"name": item.shown, "run": item.run_line} for item in destinations],
            **done.document(),
        }
    )
    terminal.say(f"{image.id}  {amount(image.size, None, 'B')} in {len(image.layers)} layers, {image.platform}")
    done.say(terminal)
    for destination in destinations:
        terminal.say(f"{destination.shown}\n  {destination.run_line}")
