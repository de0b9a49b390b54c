"""``cpack-build image PACK``: a pack becomes an image, somewhere it can be run from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.delivery import choose, deliver
from cpack_build.cli.lock import lock_beside, make_lock, write_lock
from cpack_build.cli.options import (
    Chosen,
    documents_of,
    form_options,
    in_settings,
    pack_argument,
    places_of,
    settings_options,
    terminal_options,
)
from cpack_build.cli.push import PushOptions, access_for, registry_options, tell_of_zstd
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.http import Sources
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.reference import Reference
    from cpack_build.oci.types import Image

__all__ = ["image"]


@click.command(
    epilog="Example: cpack-build image upscale.cpack.zip -t team/upscale:1 --output oci:upscale.oci    "
    "(exit codes: docs/exit-codes.md)"
)
@pack_argument
@click.option("-t", "--tag", metavar="NAME[:TAG]", help="The image's name; by default that of PACK.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="WHERE",
    help="docker, podman, oci:DIR, oci-archive:FILE, docker-archive:FILE or a registry's; may be given several times.",
)
@click.option("--push", "pushes", multiple=True, metavar="REF", help="A registry to push it to; as --output REF.")
@click.option(
    "--push-models",
    "models_to",
    metavar="REF",
    help="A repository where each model gets an image of its own, made of the same layer; with --push.",
)
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="By default NAME.cpack.lock beside PACK.",
)
@click.option("--locked", is_flag=True, help="Fail rather than lock when there is no lock.")
@click.option(
    "--trust", is_flag=True, help="Run the Python of a lock that was made elsewhere, here, to compile bytecode with it."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@form_options
@settings_options
@registry_options
@terminal_options
def image(
    pack: Path,
    tag: str | None,
    outputs: tuple[str, ...],
    pushes: tuple[str, ...],
    lock_file: Path | None,
    locked: bool,
    trust: bool,
    dry_run: bool,
    compression: str | None,
    format_revision: int | None,
    chosen: Chosen,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Build the image of PACK, and give it to Docker, podman, a folder, a file or a registry.

    Locks first when there is no lock. Without --output and --push the image goes to Docker if it answers, else to
    podman, else to NAME.oci/ beside PACK.
    """
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.lock.form import compression_of, in_form
    from cpack_build.oci.compressed import compressed_image
    from cpack_build.oci.engines import open_engine
    from cpack_build.oci.reference import EngineName, Reference

    read = read_pack(pack)
    read.served()
    settings = chosen.settings(read)
    path = lock_file or lock_beside(pack)
    form = in_settings(settings, compression=compression, format_revision=format_revision)
    found = _find_lock(read, settings, path, must=locked or lock_file is not None)
    if found is not None:
        found = in_form(found, revision=format_revision)
    destinations = choose(outputs, tag=tag, pack=pack, pushes=pushes)
    targets = [destination.place for destination in destinations if isinstance(destination.place, Reference)]
    options = PushOptions(**flags)
    if (options.attach or options.models_to) and not targets:
        raise UsageError("--attach and --push-models go with a push.", hint="Add --push REF.")
    access = access_for([*targets, *options.places], insecure=chosen.insecure, ca=chosen.ca)
    for destination in destinations:
        # An engine that does not answer is better known now than after the build.
        if outputs and isinstance(destination.place, EngineName) and not dry_run:
            open_engine(destination.place).require()
    if dry_run:
        places = [destination.shown for destination in destinations]
        terminal.result({"dry_run": True, "lock": str(path), "locked": found is not None, "outputs": places})
        terminal.say(f"{path} would be {'used' if found else 'made'}, and the image given to {', '.join(places)}.")
        return
    if found is None:
        made = make_lock(read, form, sources=chosen.sources(settings), terminal=terminal)
        found = in_form(made, revision=format_revision)
        write_lock(found, path)
    how = compression_of(found, instead=compression) if targets else None
    sources = chosen.sources(settings)
    with _built(found, read, settings, sources=sources, trust=trust, terminal=terminal) as built:
        for destination in destinations:
            if destination.place not in targets:
                deliver(built, destination, progress=terminal.progress)
        packed = built
        if how is not None:
            packed = compressed_image(built, how, store=Store(), progress=terminal.progress)
            tell_of_zstd(packed, terminal)
        done = options.push(packed, targets, access=access, mount_from=_base_of(found), terminal=terminal)
        terminal.result(
            {
                "image_id": built.id,
                "digest": built.digest,
                "platform": built.platform,
                "size": built.size,
                "layers": len(built.layers),
                "lock": str(path),
                "outputs": [{"name": item.shown, "run": item.run_line} for item in destinations],
                **({"compression": str(how), **done.document()} if targets else {}),
            }
        )
        terminal.say(f"{built.id}  {amount(built.size, None, 'B')} in {len(built.layers)} layers, {built.platform}")
    done.say(terminal)
    for destination in destinations:
        terminal.say(f"{destination.shown}\n  {destination.run_line}")


def _find_lock(pack: Pack, settings: Settings, path: Path, *, must: bool) -> Lock | None:
    """The lock at *path* if it is there and fresh; ``None`` if it is not there and need not be."""
    from cpack_build.lock.resolve import check_fresh
    from cpack_build.lock.schema import load_lock

    if not path.exists() and not must:
        return None
    lock = load_lock(path)
    check_fresh(lock, pack, settings, name=path)
    return lock


def _base_of(lock: Lock) -> list[Reference]:
    """Where the base's blobs lie, as the base has them: a push to the same registry has them mounted from there."""
    from cpack_build.lock.schema import BaseImage
    from cpack_build.oci.reference import Reference, parse_image_name

    if not isinstance(lock.base, BaseImage) or lock.base.reference == "layout":
        return []
    name = parse_image_name(lock.base.reference)
    return [name] if isinstance(name, Reference) else []


@contextmanager
def _built(
    lock: Lock, pack: Pack, settings: Settings, *, sources: Sources, trust: bool, terminal: Terminal
) -> Iterator[Image]:
    """The image, for as long as the context lasts."""
    from cpack_build.fetch.store import Store
    from cpack_build.image.build import build
    from cpack_build.image.gather import gather

    store = Store()
    materials = gather(
        lock,
        documents=documents_of(pack),
        places=places_of(settings),
        store=store,
        sources=sources,
        trust=trust,
        progress=terminal.progress,
    )
    with build(lock, materials, store=store, progress=terminal.progress) as image:
        yield image
