"""``cpack-build image PACK``: a pack becomes an image, somewhere it can be run from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.delivery import choose, deliver
from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.lock import carried_lock, lock_beside, make_locks, write_locks
from cpack_build.cli.options import (
    Chosen,
    documents_of,
    form_options,
    in_settings,
    pack_argument,
    settings_options,
    terminal_options,
)
from cpack_build.cli.push import access_for, push_document, push_line, registry_options, tell_of_zstd
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.compressed import Compression
    from cpack_build.oci.types import Image, ImageIndex
    from cpack_build.progress import Progress

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
    trust: bool,
    dry_run: bool,
    compression: str | None,
    format_revision: int | None,
    chosen: Chosen,
    downloads: Downloads,
    jobs: int,
    blob_limit: int | None,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
) -> None:
    """Build the image of PACK, and give it to Docker, podman, a folder, a file or a registry.

    Locks first when there is no lock. Without --output and --push the image goes to Docker if it answers, else to
    podman, else to NAME.oci/ beside PACK.
    """
    from cpack_build.cpack.reader import read_pack
    from cpack_build.fetch.store import Store
    from cpack_build.lock.form import compression_of, in_form
    from cpack_build.oci.engines import open_engine
    from cpack_build.oci.push import push as push_image
    from cpack_build.oci.push import push_index
    from cpack_build.oci.reference import EngineName, Reference
    from cpack_build.oci.types import ImageIndex

    read = read_pack(pack)
    read.served()
    settings = chosen.settings(read)
    path = lock_file or lock_beside(pack)
    form = in_settings(settings, compression=compression, format_revision=format_revision)
    found = find_locks(read, settings, path, must=locked or lock_file is not None)
    if found is None:
        found = _carried(read, settings, downloads, terminal)
        if found is not None and not dry_run:
            write_locks(found, path)
    if found is not None:
        found = tuple(in_form(lock, revision=format_revision) for lock in found)
    destinations = choose(outputs, tag=tag, pack=pack, pushes=pushes)
    targets = [destination.place for destination in destinations if isinstance(destination.place, Reference)]
    access = access_for(targets, insecure=insecure, ca=ca)
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
        made = make_locks(read, form, downloads=downloads, terminal=terminal)
        found = tuple(in_form(lock, revision=format_revision) for lock in made)
        write_locks(found, path)
    how = compression_of(found[0], instead=compression) if targets else None
    with _built(found, read, settings, downloads=downloads, trust=trust, terminal=terminal) as built:
        for destination in destinations:
            if destination.place not in targets:
                deliver(built, destination, progress=terminal.progress)
        packed = built
        if how is not None:
            packed = _compressed(built, how, progress=terminal.progress)
            tell_of_zstd(packed, terminal)
        options: dict[str, Any] = {
            "jobs": jobs,
            "blob_limit": None if blob_limit is None else blob_limit << 20,
            "access": access,
            "memo": Store(),
            "progress": terminal.progress,
        }
        if isinstance(packed, ImageIndex):
            pushed = push_index(packed, targets, **options)
        else:
            pushed = push_image(packed, targets, **options)
        terminal.result(
            {
                **_document(built),
                "lock": str(path),
                "outputs": [{"name": item.shown, "run": item.run_line} for item in destinations],
                **({"compression": str(how), "pushed": [push_document(one) for one in pushed]} if pushed else {}),
            }
        )
        for one in built.images if isinstance(built, ImageIndex) else (built,):
            terminal.say(f"{one.id}  {amount(one.size, None, 'B')} in {len(one.layers)} layers, {one.platform}")
        if isinstance(built, ImageIndex):
            terminal.say(f"{built.digest}  {amount(built.size, None, 'B')}, the index of all of them")
    for line in pushed:
        terminal.say(push_line(line))
    for destination in destinations:
        terminal.say(f"{destination.shown}\n  {destination.run_line}")


def _compressed(built: Image | ImageIndex, how: Compression, *, progress: Progress) -> Image | ImageIndex:
    from cpack_build.fetch.store import Store
    from cpack_build.oci.compressed import compressed_image
    from cpack_build.oci.types import ImageIndex

    store = Store()
    if not isinstance(built, ImageIndex):
        return compressed_image(built, how, store=store, progress=progress)
    return ImageIndex(tuple(compressed_image(image, how, store=store, progress=progress) for image in built.images))


def _document(built: Image | ImageIndex) -> dict[str, Any]:
    """What was built, for ``--json``: of an index, each of its images below ``images``."""
    from cpack_build.oci.types import ImageIndex

    if isinstance(built, ImageIndex):
        return {"digest": built.digest, "size": built.size, "images": [_document(image) for image in built.images]}
    return {
        "image_id": built.id,
        "digest": built.digest,
        "platform": built.platform,
        "size": built.size,
        "layers": len(built.layers),
    }


def find_locks(pack: Pack, settings: Settings, path: Path, *, must: bool) -> tuple[Lock, ...] | None:
    """The wanted locks at *path*, if it is there and they are fresh; ``None`` if it is not there and need not be."""
    from cpack_build.lock.resolve import check_all_fresh
    from cpack_build.lock.schema import load_locks

    if not path.exists() and not must:
        return None
    return check_all_fresh(load_locks(path), pack, settings, name=path)


def _carried(pack: Pack, settings: Settings, downloads: Downloads, terminal: Terminal) -> tuple[Lock, ...] | None:
    """The locks in the bundle of ``--from``, if they are *pack*'s."""
    from cpack_build.lock.resolve import check_all_fresh
    from cpack_build.lock.schema import read_locks

    data = carried_lock(downloads, terminal=terminal)
    if data is None:
        return None
    locks = read_locks(data, name=downloads.bundle)
    return check_all_fresh(locks, pack, settings, name=f"The lock in {downloads.bundle}")


@contextmanager
def _built(
    locks: Sequence[Lock], pack: Pack, settings: Settings, *, downloads: Downloads, trust: bool, terminal: Terminal
) -> Iterator[Image | ImageIndex]:
    """The image, or for several platforms the index of images, for as long as the context lasts."""
    from cpack_build.fetch.store import Store
    from cpack_build.image.build import build
    from cpack_build.image.gather import gather
    from cpack_build.oci.types import ImageIndex

    store = Store()
    bundle = downloads.opened(store, progress=terminal.progress)
    sources = downloads.sources(settings)
    with ExitStack() as stack:
        images = []
        for lock in locks:
            materials = gather(
                lock,
                documents=documents_of(pack),
                pack=pack,
                places=downloads.places(settings, bundle, lock),
                store=store,
                sources=sources,
                trust=trust,
                progress=terminal.progress,
            )
            images.append(stack.enter_context(build(lock, materials, store=store, progress=terminal.progress)))
        yield images[0] if len(images) == 1 else ImageIndex(tuple(images))
