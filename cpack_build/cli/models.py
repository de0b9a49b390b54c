"""``cpack-build models PACK|LOCK|WORKSPACE``: the models as a table: what, how large, here or where, on what terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.lockfile import is_lock
from cpack_build.cli.options import Chosen, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.inventory import Listed, Row
    from cpack_build.fetch.places import Place
    from cpack_build.fetch.store import Store

__all__ = ["models"]


@click.command(
    epilog="Example: cpack-build models upscale.cpack.zip --models ~/ComfyUI/models    (exit codes: docs/exit-codes.md)"
)
@click.argument("pack", metavar="PACK|LOCK|WORKSPACE", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Also those that the pack lists without choosing them.")
@settings_options
@download_options
@terminal_options
def models(
    pack: Path,
    everything: bool,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
) -> None:
    """List the models of PACK, LOCK or WORKSPACE: folder, size, hash, here or where, gated, licence; what pickles do.

    Reads no model but the beginning of those that are here. --offline asks nobody about gates and licences.
    """
    from cpack_build.fetch.adoption import other_stores
    from cpack_build.fetch.asking import Asker
    from cpack_build.fetch.folders import Folders
    from cpack_build.fetch.inventory import incomplete_sets, inventory
    from cpack_build.fetch.places import OtherStores
    from cpack_build.fetch.store import Store
    from cpack_build.lock.models import refuse_pickles

    store = Store(leased=False)
    listed, settings = _listed(pack, chosen, store, terminal, everything=everything)
    downloads.opened(store, progress=terminal.progress)
    places: list[Place] = [Folders(settings.models), OtherStores(other_stores())]
    asker = Asker(downloads.sources(settings, chosen), offline=downloads.offline)
    rows = inventory(listed, store=store, places=places, asker=asker)
    lacking = incomplete_sets(row.path for row in rows)
    terminal.result(
        {
            "models": [vars(row) | {"name": row.name, "folder": row.folder} for row in rows],
            "incomplete": {name: list(missing) for name, missing in lacking.items()},
        }
    )
    if not terminal.json:
        _table(rows, terminal)
    for name, missing in sorted(lacking.items()):
        terminal.progress.note(
            f"{name} is not whole: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
        )
    if settings.pickles == "refuse":
        refuse_pickles(row.path for row in rows)


def _listed(
    pack: Path, chosen: Chosen, store: Store, terminal: Terminal, *, everything: bool
) -> tuple[list[Listed], Settings]:
    from cpack_build.cpack.reader import read_pack
    from cpack_build.fetch.inventory import Listed
    from cpack_build.lock.schema import load_locks

    if pack.is_dir():
        from cpack_build.workspace.models import list_models
        from cpack_build.workspace.place import find_comfyui

        found = list_models(find_comfyui(pack))
        for note in found.notes:
            terminal.progress.note(note)
        own = "models/configs/"  # what ComfyUI brings along
        files = [
            Listed(one.name, store.known(one.path), one.size, (), one.path)
            for one in found.files
            if not one.name.startswith(own)
        ]
        return files, chosen.alone()
    if is_lock(pack):
        named = {one.path: one for lock in load_locks(pack) for one in lock.models}
        listed = [Listed(one.path, one.sha256, one.size, one.sources) for one in named.values()]
        return listed, chosen.alone()
    read = read_pack(pack)
    entries = [entry for entry in read.snapshot.models if everything or not entry.disabled]
    return [Listed(one.filename, one.sha256, one.size, one.urls) for one in entries], chosen.settings(read)


def _table(rows: list[Row], terminal: Terminal) -> None:
    if not rows:
        terminal.say("No models.")
        return
    width = max(len(row.name) for row in rows)
    folder = max(len(row.folder) for row in rows)
    for row in rows:
        size = amount(row.size, None, "B") if row.size is not None else "?"
        line = f"{row.folder:<{folder}}  {row.name:<{width}}  {size:>9}  {(row.sha256 or 'not hashed')[:12]:<12}"
        terms = [*(["gated"] if row.gated else []), *([row.licence] if row.licence else [])]
        line += f"  {row.state:<9}  {row.where}" + (f"  ({', '.join(terms)})" if terms else "")
        terminal.say(line.rstrip())
        if row.verdict is not None:
            terminal.say(f"{'':<{folder}}  {row.verdict}")
    here = [row for row in rows if row.state == "here"]
    total = amount(sum(row.size or 0 for row in rows), None, "B")
    left = amount(sum(row.size or 0 for row in rows if row.state == "elsewhere"), None, "B")
    units = len({row.unit for row in rows})
    missing = sum(row.state == "missing" for row in rows)
    nowhere = f"; {missing} can be had from nowhere that is known" if missing else ""
    terminal.say(f"{len(rows)} files of {units} models, {total}; {len(here)} here, {left} to download{nowhere}.")
