"""``cpack-build plan``: the layers that a build would make, without fetching or building anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.capacity import Capacity, capacity_document, capacity_options
from cpack_build.cli.options import Chosen, documents_of, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.image.plan import PlannedLayer
    from cpack_build.lock.schema import Lock

__all__ = ["plan"]


@click.command(epilog="Example: cpack-build plan upscale.cpack.zip --explain    (exit codes: docs/exit-codes.md)")
@click.argument("pack", metavar="PACK|LOCK", type=click.Path(path_type=Path))
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="By default NAME.cpack.lock beside PACK.",
)
@click.option("--explain", is_flag=True, help="Also what a change of each layer costs.")
@capacity_options
@settings_options
@terminal_options
def plan(
    pack: Path,
    lock_file: Path | None,
    explain: bool,
    capacity: Capacity | None,
    chosen: Chosen,
    terminal: Terminal,
) -> None:
    """Show the layers of the image of PACK or LOCK, from the bottom: kind, name, size, size in a registry, and which
    other images have the same layer.

    A known layer was measured by an earlier build on this machine and is not read again; the others are to be made. How
    small a layer becomes is known once it was pushed. Of a LOCK alone the top layer, which has the pack's documents, is
    never known. With --capacity also how many replicas serve --per-minute requests, and what a first one pulls.
    """
    from cpack_build.cli.lockfile import is_lock
    from cpack_build.cli.lockfile import lock_file as locks_at
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.image.plan import plan as planned
    from cpack_build.lock.freshness import check_all_fresh
    from cpack_build.lock.schema import load_locks

    if is_lock(pack):
        if lock_file is not None:
            raise UsageError(f"{pack} is a lock itself; --lock is for a pack.", hint="Leave --lock out.")
        path, carried = str(pack), {}
        locks = every = load_locks(pack)
    else:
        read = read_pack(pack)
        found = locks_at(read, lock_file)
        path, every = str(found), found.locks()
        locks = check_all_fresh(every, read, chosen.settings(read), name=path)
        carried = documents_of(read, locks)
    plans = [(lock, planned(lock, documents=carried, store=Store(), siblings=every)) for lock in locks]
    documents = [_document(lock, layers) for lock, layers in plans]
    sizes: list[Iterator[str]] = []
    if capacity is not None:
        for document, (_, layers) in zip(documents, plans, strict=True):
            document["capacity"], lines = capacity_document(capacity, layers)
            sizes.append(lines)
    terminal.result({"lock": str(path), **(documents[0] if len(documents) == 1 else {"platforms": documents})})
    if terminal.json:
        return
    for lock, layers in plans:
        for line in _lines(path, lock, layers, explain=explain):
            terminal.say(line)
    if len(plans) > 1:
        digests = [{layer.digest for layer in layers if layer.digest} for _, layers in plans]
        common = set.intersection(*digests)
        size = sum(layer.size or 0 for layer in plans[0][1] if layer.digest in common)
        terminal.say(f"{len(common)} known layers ({amount(size, None, 'B')}) are the same on every platform.")
    for (lock, _), lines in zip(plans, sizes, strict=False):
        terminal.say(f"Capacity on {lock.platform}:")
        for line in lines:
            terminal.say(line)


def _base(lock: Lock) -> str:
    from cpack_build.lock.schema import BaseImage

    return f"{lock.base.reference}@{lock.base.digest}" if isinstance(lock.base, BaseImage) else "scratch"


def _document(lock: Lock, layers: list[PlannedLayer]) -> dict[str, Any]:
    from cpack_build.lock.form import recorded_compression

    return {
        "platform": lock.platform,
        "base": _base(lock),
        "compression": str(recorded_compression(lock)),
        "layers": [vars(layer) | {"known": layer.is_known, "shared": layer.shared} for layer in layers],
    }


def _lines(path: object, lock: Lock, layers: list[PlannedLayer], *, explain: bool) -> Iterator[str]:
    from cpack_build.lock.form import recorded_compression

    yield f"{path}: {lock.platform}, over {_base(lock)}, from the bottom:"
    width = max(len(layer.name) for layer in layers)
    how = recorded_compression(lock)
    yield f"{'kind':<12}{'name':<{width}}  {'size':>10}  {how.algorithm:>10}  {'state':<10}  the same in"
    for layer in layers:
        state = "known" if layer.is_known else "to be made"
        sizes = f"{_size(layer.size):>10}  {_size(layer.compressed):>10}"
        yield f"{layer.kind:<12}{layer.name:<{width}}  {sizes}  {state:<10}  {layer.shared}"
        if explain:
            yield f"{'':<12}{_cost(layer, layers)}"
    made = sum(not layer.is_known for layer in layers)
    total = amount(sum(layer.size or 0 for layer in layers), None, "B")
    yield f"{len(layers)} layers, {total} known, {made} to be made."


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
