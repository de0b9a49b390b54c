"""``cpack-build plan``: the layers that a build would make, without fetching or building anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.options import Chosen, documents_of, pack_argument, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.image.plan import PlannedLayer

__all__ = ["plan"]


@click.command(epilog="Example: cpack-build plan upscale.cpack.zip --explain    (exit codes: docs/exit-codes.md)")
@pack_argument
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="By default NAME.cpack.lock beside PACK.",
)
@click.option("--explain", is_flag=True, help="Also what a change of each layer costs.")
@settings_options
@terminal_options
def plan(pack: Path, lock_file: Path | None, explain: bool, chosen: Chosen, terminal: Terminal) -> None:
    """Show the layers of PACK's image, from the bottom, by its lock: kind, name, size, size in a registry, and which
    other images have the same layer.

    A known layer was measured by an earlier build on this machine and is not read again; the others are to be made. How
    small a layer becomes is known once it was pushed.
    """
    from cpack_build.cli.lock import lock_beside
    from cpack_build.cpack.reader import read_pack
    from cpack_build.fetch.store import Store
    from cpack_build.image.plan import plan as planned
    from cpack_build.lock.form import recorded_compression
    from cpack_build.lock.resolve import check_fresh
    from cpack_build.lock.schema import BaseImage, load_lock

    read = read_pack(pack)
    path = lock_file or lock_beside(pack)
    lock = load_lock(path)
    check_fresh(lock, read, chosen.settings(read), name=path)
    layers = planned(lock, documents=documents_of(read), store=Store())
    base = f"{lock.base.reference}@{lock.base.digest}" if isinstance(lock.base, BaseImage) else "scratch"
    how = recorded_compression(lock)
    terminal.result(
        {
            "lock": str(path),
            "platform": lock.platform,
            "base": base,
            "compression": str(how),
            "layers": [vars(layer) | {"known": layer.is_known, "shared": layer.shared} for layer in layers],
        }
    )
    if terminal.json:
        return
    terminal.say(f"{path}: {lock.platform}, over {base}, from the bottom:")
    width = max(len(layer.name) for layer in layers)
    terminal.say(f"{'kind':<12}{'name':<{width}}  {'size':>10}  {how.algorithm:>10}  {'state':<10}  the same in")
    for layer in layers:
        state = "known" if layer.is_known else "to be made"
        sizes = f"{_size(layer.size):>10}  {_size(layer.compressed):>10}"
        terminal.say(f"{layer.kind:<12}{layer.name:<{width}}  {sizes}  {state:<10}  {layer.shared}")
        if explain:
            terminal.say(f"{'':<12}{_cost(layer, layers)}")
    made = sum(not layer.is_known for layer in layers)
    total = amount(sum(layer.size or 0 for layer in layers), None, "B")
    terminal.say(f"{len(layers)} layers, {total} known, {made} to be made.")


def _size(count: int | None) -> str:
    return amount(count, None, "B") if count is not None else "?"


def _cost(layer: PlannedLayer, layers: Sequence[PlannedLayer]) -> str:
    """What a change of *layer* sends to a registry again, and what an engine unpacks again."""
    number = layers.index(layer)
    changed = "this layer" if layer.kind == "app" else f"{layer.changed} layers"
    sent = "" if all(other.compressed is not None for other in layers) else "about "
    least = "" if all(other.is_known for other in layers[number:]) else "at least "
    return (
        f"a change makes {changed} anew, pushes {sent}{amount(layer.pushed, None, 'B')} and unpacks "
        f"{least}{amount(layer.above, None, 'B')}"
    )
