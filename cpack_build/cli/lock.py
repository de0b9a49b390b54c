"""``cpack-build lock PACK``: a pack becomes a lock."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.backend import BackendChoice, workshop_options
from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.lockfile import LockFile, archives_of, lock_file
from cpack_build.cli.options import Chosen, form_options, in_settings, pack_argument, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount, printable

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.errors import NeedsTrust
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.store import Store
    from cpack_build.lock.building import Consent
    from cpack_build.lock.installing import Installer
    from cpack_build.lock.schema import Lock

__all__ = ["counted_in", "lock", "make_locks", "told"]


@click.command(
    epilog="Example: cpack-build lock upscale.cpack.zip --models ~/ComfyUI/models    (exit codes: docs/exit-codes.md)"
)
@pack_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="By default NAME.cpack.lock beside PACK."
)
@click.option(
    "--into-pack",
    is_flag=True,
    help="Put the lock and its pylock.toml into PACK, where images find it, and what install.py of nodes left.",
)
@click.option(
    "--update",
    multiple=True,
    metavar="WHAT",
    help="Resolve anew though the lock is fresh: a Python package, python, system, nodes, models, service or all. May "
    "be given several times.",
)
@form_options
@click.option("--trust", is_flag=True, help="Build packages that have no wheel, which runs their code.")
@workshop_options
@click.option("--dry-run", is_flag=True, help="Resolve everything, and write nothing.")
@settings_options
@download_options
@terminal_options
def lock(
    pack: Path,
    output: Path | None,
    into_pack: bool,
    update: tuple[str, ...],
    trust: bool,
    backend: BackendChoice,
    dry_run: bool,
    compression: str | None,
    format_revision: int | None,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
) -> None:
    """Pin every byte that the image of PACK needs: system packages, Python, wheels, git trees and models.

    A lock that is there and belongs to the pack and its settings stays as it is, and nobody is asked; --update says
    what to resolve anew, and the rest stays. Python packages keep the versions that an older lock of the pack gave them
    where they can.
    """
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.lock.schema import locks_to_bytes

    if into_pack and output is not None:
        raise UsageError("--into-pack and --output name two places for one lock.", hint="Leave one of them out.")
    read = read_pack(pack)
    from cpack_build.lock.form import in_form

    target = lock_file(read, output, inside=into_pack)
    settings = in_settings(chosen.settings(read), compression=compression, format_revision=format_revision)
    store = Store()
    bundle = downloads.opened(store, progress=terminal.progress)
    if update and target.data is None:
        raise UsageError(f"There is no lock {target} to update.", hint="Leave --update out to make one.")
    # what is put into the pack for the first time begins from the lock beside it, and that from the one in a bundle
    known = lock_file(read) if into_pack and target.data is None else target
    if known.data is None and bundle is not None:
        known = LockFile(bundle.path, False, bundle.lock())
    earlier = _earlier(known, must=bool(update))
    if earlier and not update and _is_fresh(earlier, read, settings):
        made = earlier
    else:
        from cpack_build.lock.libraries import lacking

        sources = downloads.sources(settings, chosen)
        made = make_locks(
            read,
            settings,
            store=store,
            sources=sources,
            previous=earlier,
            update=update,
            trust=trust,
            workshop=backend.workshop(settings, store=store, sources=sources),
            terminal=terminal,
        )
        for one in lacking(made, store=store, find_links=settings.python.find_links)[0]:
            terminal.progress.note(f"{one}.")
    made = tuple(in_form(one, compression=settings.compression, revision=format_revision) for one in made)
    # what install.py left is on this machine alone; the pack is to be whole without it
    installed = archives_of(made, store=store) if target.is_inside else {}
    changed = target.data != locks_to_bytes(made) or not installed.keys() <= read.sizes.keys()
    if not dry_run and changed:
        target.write(made, installed=installed)
    outcome = "is up to date"
    if changed:
        outcome = f"would be {'changed' if target.data is not None else 'written'}" if dry_run else "is written"
    terminal.result(
        {
            "lock": str(target.path),
            "inside": target.is_inside,
            "sha256": hashlib.sha256(locks_to_bytes(made)).hexdigest(),
            "changed": changed,
            "written": changed and not dry_run,
            **counted_in(made[0]),
            "platforms": [counted_in(one) for one in made],
        }
    )
    terminal.say(f"{target} {outcome}: " + "; ".join(told(counted_in(one)) for one in made) + ".")


def counted_in(lock: Lock) -> dict[str, Any]:
    """What *lock* pins, in numbers."""
    from cpack_build.lock.cuda import driver_of
    from cpack_build.lock.wheels import wheels_of

    wheels = wheels_of(lock.python)
    return {
        "platform": lock.platform,
        "python": lock.interpreter.version,
        "target": lock.target,
        "driver": driver_of(lock.target),
        "bytecode": lock.bytecode,
        "compression": lock.compression.model_dump() if lock.compression else None,
        "wheels": len(wheels),
        "wheel_bytes": sum(wheel.size or 0 for wheel in wheels),
        "built": len(lock.python.built),
        "debs": len(lock.system),
        "deb_bytes": sum(deb.size for deb in lock.system),
        "nodes": len(lock.custom_nodes),
        "models": len(lock.models),
        "model_bytes": sum(model.size for model in lock.models),
    }


def told(counted: dict[str, Any]) -> str:
    driver = f" (NVIDIA driver {counted['driver']} or newer)" if counted["driver"] else ""
    built = f", {counted['built']} of them built here or before" if counted["built"] else ""
    bytecode = "" if counted["bytecode"] == "compiled" else ", no bytecode"
    return (
        f"{counted['platform']}, {counted['target']}{driver}, Python {counted['python']}{bytecode}, "
        f"{counted['wheels']} wheels ({amount(counted['wheel_bytes'], None, 'B')}){built}, "
        f"{counted['debs']} system packages ({amount(counted['deb_bytes'], None, 'B')}), "
        f"{counted['nodes']} custom nodes, "
        f"{counted['models']} models ({amount(counted['model_bytes'], None, 'B')})"
    )


def _earlier(file: LockFile, *, must: bool) -> tuple[Lock, ...]:
    """The locks in *file*; of what cannot be read there are none, unless there *must* be some to update."""
    from cpack_build.errors import BadInput, HashMismatch
    from cpack_build.lock.wheels import wheels_of

    if file.data is None:
        return ()
    try:
        locks = file.locks()
        for lock in locks:
            wheels_of(lock.python)
        return locks
    except (BadInput, HashMismatch):
        if must:
            raise
        return ()


def _is_fresh(locks: Sequence[Lock], pack: Pack, settings: Settings) -> bool:
    import cpack_build
    from cpack_build.errors import StaleLock
    from cpack_build.lock.freshness import check_all_fresh

    pack.served()
    try:
        # how an image is compressed is nothing to resolve anew
        chosen = check_all_fresh(locks, pack, settings.model_copy(update={"compression": None}))
    except StaleLock:
        return False
    return len(chosen) == len(locks) and all(lock.builder == cpack_build.__version__ for lock in locks)


def make_locks(
    pack: Pack,
    settings: Settings,
    *,
    sources: Sources,
    store: Store | None = None,
    previous: Sequence[Lock] = (),
    update: tuple[str, ...] = (),
    served: bool = True,
    trust: bool = False,
    workshop: Installer | None = None,
    workspace: bool = False,
    terminal: Terminal,
) -> tuple[Lock, ...]:
    """Resolve *pack* from *sources* for each platform. Its workflow must be one that can be *served*.

    The platforms are those of the settings, else those of the *previous* locks, else this machine's: whatever system
    that has for a *workspace*, whose lock is for no image. Unless there is
    *trust* already, the user is asked before code of packages runs. Raises :class:`NeedsTrust` where nobody can be.
    """
    from cpack_build.errors import CpackError, NeedsTrust
    from cpack_build.fetch.store import Store
    from cpack_build.lock.resolve import host_platform, resolve_all, this_platform

    if served:
        pack.served()
    for note in pack.snapshot.notes:
        terminal.progress.note(note)

    def resolved(trust: Consent) -> tuple[Lock, ...]:
        return resolve_all(
            pack,
            settings.platform
            or tuple(lock.platform for lock in previous)
            or (host_platform() if workspace else this_platform(),),
            settings=settings,
            store=store or Store(),
            sources=sources,
            previous=previous,
            update=update,
            trust=trust,
            workshop=workshop,
            workspace=workspace,
            progress=terminal.progress,
        )

    agreed: frozenset[str] = frozenset()
    while True:
        try:
            return resolved(trust or agreed)
        except CpackError as error:
            needs = [part for part in error.parts or (error,) if isinstance(part, NeedsTrust)]
            if len(needs) < len(error.parts or (error,)) or not _agreed(needs, agreed, terminal):
                raise
            # a yes is for what was shown: what a script asks for later, or another one, is shown as well
            agreed |= {run for need in needs for run in need.runs}


def _agreed(needs: Sequence[NeedsTrust], before: frozenset[str], terminal: Terminal) -> bool:
    """Whether somebody sits at the terminal and says yes to what was not agreed to *before*."""
    if terminal.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    new = {run: need.question for need in needs for run in need.runs if run not in before}
    for question in dict.fromkeys(new.values()):
        for run in (run for run, of in new.items() if of == question):
            click.echo(printable(f"  {run}"), err=True)
        if not click.confirm(question, err=True):
            return False
    return bool(new)
