"""``cpack-build image PACK``: a pack becomes an image, somewhere it can be run from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.delivery import choose, deliver
from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.lock import carried_lock, lock_beside, make_lock, write_lock
from cpack_build.cli.options import Chosen, documents_of, pack_argument, settings_options, terminal_options
from cpack_build.cli.push import access_for, push_document, push_line, registry_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.types import Image

__all__ = ["find_lock", "image"]


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
    from cpack_build.oci.engines import open_engine
    from cpack_build.oci.push import push as push_image
    from cpack_build.oci.reference import EngineName, Reference

    read = read_pack(pack)
    read.served()
    settings = chosen.settings(read)
    path = lock_file or lock_beside(pack)
    found = find_lock(read, settings, path, must=locked or lock_file is not None)
    if found is None:
        found = _carried(read, settings, downloads, terminal)
        if found is not None and not dry_run:
            write_lock(found, path)
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
        found = make_lock(read, settings, downloads=downloads, terminal=terminal)
        write_lock(found, path)
    with _built(found, read, settings, downloads=downloads, trust=trust, terminal=terminal) as built:
        for destination in destinations:
            if destination.place not in targets:
                deliver(built, destination, progress=terminal.progress)
        pushed = push_image(
            built,
            targets,
            jobs=jobs,
            blob_limit=None if blob_limit is None else blob_limit << 20,
            access=access,
            memo=Store(),
            progress=terminal.progress,
        )
        terminal.result(
            {
                "image_id": built.id,
                "digest": built.digest,
                "platform": built.platform,
                "size": built.size,
                "layers": len(built.layers),
                "lock": str(path),
                "outputs": [{"name": item.shown, "run": item.run_line} for item in destinations],
                **({"pushed": [push_document(one) for one in pushed]} if pushed else {}),
            }
        )
        terminal.say(f"{built.id}  {amount(built.size, None, 'B')} in {len(built.layers)} layers, {built.platform}")
    for one in pushed:
        terminal.say(push_line(one))
    for destination in destinations:
        terminal.say(f"{destination.shown}\n  {destination.run_line}")


def find_lock(pack: Pack, settings: Settings, path: Path, *, must: bool) -> Lock | None:
    """The lock at *path* if it is there and fresh; ``None`` if it is not there and need not be."""
    from cpack_build.lock.resolve import check_fresh
    from cpack_build.lock.schema import load_lock

    if not path.exists() and not must:
        return None
    lock = load_lock(path)
    check_fresh(lock, pack, settings, name=path)
    return lock


def _carried(pack: Pack, settings: Settings, downloads: Downloads, terminal: Terminal) -> Lock | None:
    """The lock in the bundle of ``--from``, if it is *pack*'s."""
    from cpack_build.lock.resolve import check_fresh
    from cpack_build.lock.schema import read_lock

    data = carried_lock(downloads, terminal=terminal)
    if data is None:
        return None
    lock = read_lock(data, name=downloads.bundle)
    check_fresh(lock, pack, settings, name=f"The lock in {downloads.bundle}")
    return lock


@contextmanager
def _built(
    lock: Lock, pack: Pack, settings: Settings, *, downloads: Downloads, trust: bool, terminal: Terminal
) -> Iterator[Image]:
    """The image, for as long as the context lasts."""
    from cpack_build.fetch.store import Store
    from cpack_build.image.build import build
    from cpack_build.image.gather import gather

    store = Store()
    bundle = downloads.opened(store, progress=terminal.progress)
    materials = gather(
        lock,
        documents=documents_of(pack),
        places=downloads.places(settings, bundle),
        store=store,
        sources=downloads.sources(settings),
        trust=trust,
        progress=terminal.progress,
    )
    with build(lock, materials, store=store, progress=terminal.progress) as image:
        yield image
