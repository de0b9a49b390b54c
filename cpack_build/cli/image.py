"""``cpack-build image PACK``: a pack becomes an image, somewhere it can be run from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.backend import BackendChoice, backend_options
from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.lockfile import LockFile, lock_beside
from cpack_build.cli.lockfile import lock_file as locks_at
from cpack_build.cli.options import (
    Chosen,
    documents_of,
    form_options,
    in_settings,
    pack_argument,
    registry_options,
    settings_options,
    terminal_options,
)
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.lock.schema import Lock

__all__ = ["find_locks", "image"]


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
    "--frozen", is_flag=True, help="Build what the lock says, whatever the settings are now; the pack must be its own."
)
@click.option(
    "--trust",
    is_flag=True,
    help="Run here what others wrote: the Python of a lock that was made elsewhere, to compile bytecode with it, and "
    "the build of packages that have no wheel.",
)
@backend_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@form_options
@settings_options
@download_options
@registry_options
@terminal_options
def image(
    pack: Path,
    tag: str | None,
    outputs: tuple[str, ...],
    pushes: tuple[str, ...],
    lock_file: Path | None,
    locked: bool,
    frozen: bool,
    trust: bool,
    dry_run: bool,
    compression: str | None,
    format_revision: int | None,
    backend: BackendChoice,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Build the image of PACK, and give it to Docker, podman, a folder, a file or a registry.

    Locks first when there is no lock. Without --output and --push the image goes to Docker if it answers, else to
    podman, else to NAME.oci/ beside PACK.
    """
    from cpack_build.errors import UsageError, together
    from cpack_build.fetch.store import Store

    if backend.print_to is not None and (outputs or pushes):
        raise UsageError("--print builds nothing that --output and --push could take.", hint="Leave one of them out.")
    store = Store()
    if not dry_run:
        from cpack_build.lock.headstart import begin

        # Before what takes its time to import, as is what would tell where the settings are (`settings_beside`).
        begin(
            lock_file or lock_beside(pack),
            chosen.config or lock_beside(pack).with_suffix(".yaml"),
            folders=chosen.overrides.get("models", ()),
            store=store,
        )
    from cpack_build.backends.protocol import Request
    from cpack_build.cli.delivery import choose, deliver, places_of_base
    from cpack_build.cli.lock import make_locks
    from cpack_build.cli.push import PushOptions, access_for, compressed, image_document, tell_of_zstd
    from cpack_build.cli.receipt import Recorder
    from cpack_build.cpack.reader import read_pack
    from cpack_build.cpack.settings import settings_beside
    from cpack_build.lock.form import compression_of, in_form
    from cpack_build.lock.freshness import check_all_fresh
    from cpack_build.lock.schema import read_locks
    from cpack_build.oci.reference import EngineName, Reference
    from cpack_build.oci.types import ImageIndex

    beside = [lock_file or lock_beside(pack), chosen.config or settings_beside(pack)]
    recorder = Recorder.of_run(store, [pack, *beside])
    read = read_pack(pack)
    read.served()
    builder = backend.opened(dry_run=dry_run)
    settings = chosen.settings(read)
    path = locks_at(read, lock_file)
    form = in_settings(settings, compression=compression, format_revision=format_revision)
    bundle = downloads.opened(store, dry_run=dry_run, progress=terminal.progress)
    must = frozen or lock_file is not None or (locked and bundle is None)
    found = find_locks(read, settings, path, must=must, frozen=frozen)
    every = path.locks() if path.data is not None else ()
    if found is None and bundle is not None and (carried := bundle.lock()) is not None:
        every = read_locks(carried, name=bundle.path)
        found = check_all_fresh(every, read, settings, name=bundle.path)
        if not dry_run:
            path.write(every)
    if found is not None:
        found = tuple(in_form(lock, revision=format_revision) for lock in found)
    destinations = choose(outputs, tag=tag, pack=pack, pushes=pushes)
    targets = [destination.place for destination in destinations if isinstance(destination.place, Reference)]
    options = PushOptions(**flags)
    if (options.attach or options.models_to or options.sbom or options.provenance) and not targets:
        raise UsageError("--attach, --sbom, --provenance and --push-models go with a push.", hint="Add --push REF.")
    access = access_for([*targets, *options.places], insecure=chosen.insecure, ca=chosen.ca)
    for destination in destinations:
        # An engine that does not answer is better known now than after the build.
        if outputs and isinstance(destination.place, EngineName) and not dry_run:
            from cpack_build.oci.engines import open_engine

            open_engine(destination.place).require()

    def asked(locks: tuple[Lock, ...]) -> Request:
        """For the backend, once it has said that it can. Raises what it refuses."""
        request = Request(
            locks,
            documents=documents_of(read, locks),
            pack=read,
            places={lock.platform: downloads.places(settings, bundle, lock) for lock in locks},
            store=store,
            sources=downloads.sources(settings, chosen),
            siblings=every or locks,
            trust=trust,
            base_stays=all(destination.place in targets for destination in destinations),
            progress=recorder.noting(terminal.progress),
            gathered=recorder.made_of,
        )
        if refusals := builder.refusals(request):
            raise together(refusals)
        return request

    if dry_run:
        if found is not None:
            asked(found)
        places = [destination.shown for destination in destinations]
        terminal.result({"dry_run": True, "lock": str(path), "locked": found is not None, "outputs": places})
        terminal.say(f"{path} would be {'used' if found else 'made'}, and the image given to {', '.join(places)}.")
        return
    chose_docker = isinstance(destinations[0].place, EngineName) and destinations[0].place.engine == "docker"
    if found is None or bundle is not None or not (outputs or pushes or chose_docker):
        recorder.is_whole = False  # It would be asked again which engine is here.
    if found is None:
        sources = downloads.sources(settings, chosen)
        workshop = backend.workshop(form, store=store, sources=sources)
        made = make_locks(
            read, form, store=store, sources=sources, trust=trust, workshop=workshop, terminal=terminal
        )  # fmt: skip
        found = tuple(in_form(lock, revision=format_revision) for lock in made)
        path.write(found)
    how = compression_of(found[0], instead=compression) if targets else None
    request = asked(found)
    if backend.print_to is not None:
        line = builder.written(request, backend.print_to)
        terminal.result({"printed": str(backend.print_to), "lock": str(path), "build": line})
        terminal.say(f"{backend.print_to} has all that the build needs. Build it with:\n  {line}")
        return
    with builder.built(request) as built:
        images = built.images if isinstance(built, ImageIndex) else (built,)
        for destination in destinations:
            if destination.place not in targets:
                deliver(built, destination, progress=terminal.progress)
            recorder.delivered(built, destination)
        packed = built
        if how is not None:
            packed = compressed(built, how, progress=terminal.progress)
            tell_of_zstd(packed, terminal)
        bases = [base for lock in found for base in places_of_base(lock, request.sources)]
        own = backend.name != "buildkit"  # which has a cache that others fill, and provenance of its own
        done = options.push(packed, targets, access=access, mount_from=bases, built_here=own, terminal=terminal)
        terminal.result(
            {
                **image_document(built),
                "lock": str(path),
                "outputs": [{"name": item.shown, "run": item.run_line} for item in destinations],
                **({"compression": str(how), **done.document()} if targets else {}),
            }
        )
        for one in images:
            terminal.say(f"{one.id}  {amount(one.size, None, 'B')} in {len(one.layers)} layers, {one.platform}")
        if isinstance(built, ImageIndex):
            terminal.say(f"{built.digest}  {amount(built.size, None, 'B')}, the index of all of them")
    done.say(terminal)
    for destination in destinations:
        terminal.say(f"{destination.shown}\n  {destination.run_line}")
    recorder.keep(terminal, images=len(images))


def find_locks(
    pack: Pack, settings: Settings, file: LockFile, *, must: bool, frozen: bool = False
) -> tuple[Lock, ...] | None:
    """The wanted locks in *file*, if it is there and they are fresh; ``None`` if it is not there and need not be."""
    from cpack_build.lock.freshness import check_all_fresh

    if file.data is None and not must:
        return None
    return check_all_fresh(file.locks(), pack, settings, frozen=frozen, name=file)
