"""``cpack-build lock PACK``: a pack becomes a lock."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.options import Chosen, form_options, in_settings, pack_argument, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.http import Sources
    from cpack_build.lock.schema import Lock

__all__ = ["lock", "lock_beside", "make_locks", "write_locks"]


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
@form_options
@click.option("--offline", is_flag=True, help="Ask nobody: resolve from what is in the caches and on this machine.")
@click.option("--dry-run", is_flag=True, help="Resolve everything, and write nothing.")
@settings_options
@terminal_options
def lock(
    pack: Path,
    output: Path | None,
    update: tuple[str, ...],
    offline: bool,
    dry_run: bool,
    compression: str | None,
    format_revision: int | None,
    chosen: Chosen,
    terminal: Terminal,
) -> None:
    """Pin every byte that the image of PACK needs: system packages, Python, wheels, git trees and models.

    A lock that is there and belongs to the pack and its settings stays as it is, and nobody is asked; --update says
    what to resolve anew. Python packages keep the versions that an older lock of the pack gave them where they can.
    """
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import UsageError
    from cpack_build.lock.schema import locks_to_bytes

    read = read_pack(pack)
    from cpack_build.lock.form import in_form

    target = output or lock_beside(pack)
    settings = in_settings(chosen.settings(read), compression=compression, format_revision=format_revision)
    before = target.read_bytes() if target.is_file() else None
    if update and before is None:
        raise UsageError(f"There is no lock {target} to update.", hint="Leave --update out to make one.")
    earlier = () if before is None else _earlier(before, target, must=bool(update))
    if earlier and not update and _is_fresh(earlier, read, settings):
        made = earlier
    else:
        sources = chosen.sources(settings, offline=offline)
        made = make_locks(read, settings, sources=sources, previous=earlier, update=update, terminal=terminal)
    made = tuple(in_form(one, compression=settings.compression, revision=format_revision) for one in made)
    changed = before != locks_to_bytes(made)
    if not dry_run and changed:
        write_locks(made, target)
    outcome = "is up to date"
    if changed:
        outcome = f"would be {'changed' if before is not None else 'written'}" if dry_run else "is written"
    terminal.result(
        {
            "lock": str(target),
            "sha256": hashlib.sha256(locks_to_bytes(made)).hexdigest(),
            "changed": changed,
            "written": changed and not dry_run,
            **_counted(made[0]),
            "platforms": [_counted(one) for one in made],
        }
    )
    terminal.say(f"{target} {outcome}: " + "; ".join(_told(_counted(one)) for one in made) + ".")


def _counted(lock: Lock) -> dict[str, Any]:
    """What *lock* pins, in numbers."""
    from cpack_build.lock.target import driver_of
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


def _told(counted: dict[str, Any]) -> str:
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


def lock_beside(pack: Path) -> Path:
    """``NAME.cpack.lock`` beside ``NAME.cpack.zip``."""
    return pack.with_name(pack.name.removesuffix(".zip").removesuffix(".cpack") + ".cpack.lock")


def _earlier(data: bytes, path: Path, *, must: bool) -> tuple[Lock, ...]:
    """The locks in *data*; of what cannot be read there are none, unless there *must* be some to update."""
    from cpack_build.errors import BadInput, HashMismatch
    from cpack_build.lock.schema import read_locks
    from cpack_build.lock.wheels import wheels_of

    try:
        locks = read_locks(data, name=path)
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
    from cpack_build.lock.resolve import check_all_fresh

    pack.served()
    try:
        # How the layers are compressed is nothing to resolve anew.
        chosen = check_all_fresh(locks, pack, settings.model_copy(update={"compression": None}))
    except StaleLock:
        return False
    return len(chosen) == len(locks) and all(lock.builder == cpack_build.__version__ for lock in locks)


def make_locks(
    pack: Pack,
    settings: Settings,
    *,
    sources: Sources,
    previous: Sequence[Lock] = (),
    update: tuple[str, ...] = (),
    served: bool = True,
    terminal: Terminal,
) -> tuple[Lock, ...]:
    """Resolve *pack* from *sources* for each platform. Its workflow must be one that can be *served*.

    The platforms are those of the settings, else those of the *previous* locks, else this machine's.
    """
    from cpack_build.fetch.store import Store
    from cpack_build.lock.resolve import resolve_all, this_platform

    if served:
        pack.served()
    for note in pack.snapshot.notes:
        terminal.progress.note(note)
    return resolve_all(
        pack,
        settings.platform or tuple(lock.platform for lock in previous) or (this_platform(),),
        settings=settings,
        store=Store(),
        sources=sources,
        previous=previous,
        update=update,
        progress=terminal.progress,
    )


def write_locks(made: Sequence[Lock], target: Path) -> None:
    """Put the locks into the file *target*, whole or not at all."""
    from cpack_build.errors import writing
    from cpack_build.lock.schema import locks_to_bytes
    from cpack_build.oci.storage import whole_file

    with writing(target), whole_file(target) as file:
        file.write(locks_to_bytes(made))
