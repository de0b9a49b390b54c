"""``cpack-build lock PACK``: a pack becomes a lock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.options import Chosen, pack_argument, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.lock.schema import Lock

__all__ = ["carried_lock", "lock", "lock_beside", "make_lock", "write_lock"]


@click.command(
    epilog="Example: cpack-build lock upscale.cpack.zip --models ~/ComfyUI/models    (exit codes: docs/exit-codes.md)"
)
@pack_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="By default NAME.cpack.lock beside PACK."
)
@click.option(
    "--update",
    multiple=True,
    metavar="WHAT",
    help="Resolve anew though the lock is fresh: a Python package, python, or all. May be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Resolve everything, and write nothing.")
@settings_options
@download_options
@terminal_options
def lock(
    pack: Path,
    output: Path | None,
    update: tuple[str, ...],
    dry_run: bool,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
) -> None:
    """Pin every byte that the image of PACK needs: system packages, Python, wheels, git trees and models.

    A lock that is there and belongs to the pack and its settings stays as it is, and nobody is asked; --update says
    what to resolve anew. Python packages keep the versions that an older lock of the pack gave them where they can.
    """
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import UsageError

    read = read_pack(pack)
    from cpack_build.lock.target import driver_of
    from cpack_build.lock.wheels import wheels_of

    target = output or lock_beside(pack)
    settings = chosen.settings(read)
    before = target.read_bytes() if target.is_file() else None
    carried = before or carried_lock(downloads, terminal=terminal)
    if update and before is None:
        raise UsageError(f"There is no lock {target} to update.", hint="Leave --update out to make one.")
    earlier = None if carried is None else _earlier(carried, target, must=bool(update))
    if earlier is not None and not update and _is_fresh(earlier, read, settings):
        made = earlier
    else:
        made = make_lock(read, settings, previous=earlier, update=update, downloads=downloads, terminal=terminal)
    changed = before != made.to_bytes()
    if not dry_run and changed:
        write_lock(made, target)
    wheels = wheels_of(made.python)
    known_bytes = sum(wheel.size or 0 for wheel in wheels)
    terminal.result(
        {
            "lock": str(target),
            "sha256": made.sha256,
            "changed": changed,
            "written": changed and not dry_run,
            "platform": made.platform,
            "python": made.interpreter.version,
            "target": made.target,
            "driver": driver_of(made.target),
            "wheels": len(wheels),
            "wheel_bytes": known_bytes,
            "debs": len(made.system),
            "deb_bytes": sum(deb.size for deb in made.system),
            "nodes": len(made.nodes) + len(made.registry_nodes),
            "models": len(made.models),
        }
    )
    if dry_run:
        outcome = f"would be {'changed' if before is not None else 'written'}" if changed else "is up to date"
    else:
        outcome = "is written" if changed else "is up to date"
    driver = f" (NVIDIA driver {needed} or newer)" if (needed := driver_of(made.target)) else ""
    terminal.say(
        f"{target} {outcome}: {made.platform}, {made.target}{driver}, Python {made.interpreter.version}, "
        f"{len(wheels)} wheels ({amount(known_bytes, None, 'B')}), "
        f"{len(made.system)} system packages ({amount(sum(deb.size for deb in made.system), None, 'B')}), "
        f"{len(made.nodes) + len(made.registry_nodes)} custom nodes, "
        f"{len(made.models)} models ({amount(sum(model.size for model in made.models), None, 'B')})."
    )


def lock_beside(pack: Path) -> Path:
    """``NAME.cpack.lock`` beside ``NAME.cpack.zip``."""
    return pack.with_name(pack.name.removesuffix(".zip").removesuffix(".cpack") + ".cpack.lock")


def _earlier(data: bytes, path: Path, *, must: bool) -> Lock | None:
    """The lock in *data*; one that cannot be read is none, unless there *must* be one to update."""
    from cpack_build.errors import BadInput, HashMismatch
    from cpack_build.lock.schema import read_lock
    from cpack_build.lock.wheels import wheels_of

    try:
        lock = read_lock(data, name=path)
        wheels_of(lock.python)
        return lock
    except (BadInput, HashMismatch):
        if must:
            raise
        return None


def _is_fresh(lock: Lock, pack: Pack, settings: Settings) -> bool:
    import cpack_build
    from cpack_build.errors import StaleLock
    from cpack_build.lock.resolve import check_fresh

    pack.served()
    try:
        check_fresh(lock, pack, settings)
    except StaleLock:
        return False
    return lock.builder == cpack_build.__version__


def make_lock(
    pack: Pack,
    settings: Settings,
    *,
    previous: Lock | None = None,
    update: tuple[str, ...] = (),
    downloads: Downloads | None = None,
    terminal: Terminal,
) -> Lock:
    """Resolve *pack*, whose workflow must be one that can be served; *downloads* say whom to ask."""
    from cpack_build.fetch.store import Store
    from cpack_build.lock.resolve import resolve

    pack.served()
    for note in pack.snapshot.notes:
        terminal.progress.note(note)
    downloads = downloads or Downloads()
    store = Store()
    downloads.opened(store, progress=terminal.progress)
    return resolve(
        pack,
        settings=settings,
        store=store,
        sources=downloads.sources(settings),
        previous=previous,
        update=update,
        progress=terminal.progress,
    )


def carried_lock(downloads: Downloads, *, terminal: Terminal) -> bytes | None:
    """The lock that the bundle of ``--from`` was made for."""
    from cpack_build.fetch.store import Store

    bundle = downloads.opened(Store(), progress=terminal.progress)
    return bundle.lock() if bundle is not None else None


def write_lock(made: Lock, target: Path) -> None:
    """Put the lock at *target*, whole or not at all."""
    from cpack_build.errors import writing
    from cpack_build.oci.storage import whole_file

    with writing(target), whole_file(target) as file:
        file.write(made.to_bytes())
