"""``cpack-build lock PACK``: a pack becomes a lock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.options import Chosen, pack_argument, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.lock.schema import Lock

__all__ = ["lock", "lock_beside", "make_lock", "write_lock"]


@click.command(
    epilog="Example: cpack-build lock upscale.cpack.zip --models ~/ComfyUI/models    (exit codes: docs/exit-codes.md)"
)
@pack_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="By default NAME.cpack.lock beside PACK."
)
@click.option("--dry-run", is_flag=True, help="Resolve everything, and write nothing.")
@settings_options
@terminal_options
def lock(pack: Path, output: Path | None, dry_run: bool, chosen: Chosen, terminal: Terminal) -> None:
    """Pin every byte that the image of PACK needs: system packages, Python, wheels, git trees and models."""
    from cpack_build.cpack.reader import read_pack

    read = read_pack(pack)
    from cpack_build.lock.target import driver_of
    from cpack_build.lock.wheels import wheels_of

    target = output or lock_beside(pack)
    made = make_lock(read, chosen.settings(read), terminal=terminal)
    before = target.read_bytes() if target.is_file() else None
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
            "nodes": len(made.nodes),
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
        f"{len(made.nodes)} custom nodes, "
        f"{len(made.models)} models ({amount(sum(model.size for model in made.models), None, 'B')})."
    )


def lock_beside(pack: Path) -> Path:
    """``NAME.cpack.lock`` beside ``NAME.cpack.zip``."""
    return pack.with_name(pack.name.removesuffix(".zip").removesuffix(".cpack") + ".cpack.lock")


def make_lock(pack: Pack, settings: Settings, *, terminal: Terminal) -> Lock:
    """Resolve *pack*, whose workflow must be one that can be served."""
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.lock.resolve import resolve

    pack.served()
    for note in pack.snapshot.notes:
        terminal.progress.note(note)
    sources = Sources(Mirrors(settings.mirrors))
    return resolve(pack, settings=settings, store=Store(), sources=sources, progress=terminal.progress)


def write_lock(made: Lock, target: Path) -> None:
    """Put the lock at *target*, whole or not at all."""
    from cpack_build.oci.storage import whole_file

    with whole_file(target) as file:
        file.write(made.to_bytes())
