"""``cpack-build check PACK|LOCK|WORKSPACE``: everything that stands in the way of an image, before one is built."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.lock import make_locks
from cpack_build.cli.lockfile import is_lock
from cpack_build.cli.lockfile import lock_file as locks_at
from cpack_build.cli.objectinfo import object_info_option
from cpack_build.cli.options import Chosen, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.errors import CpackError
    from cpack_build.image.limits import Limit
    from cpack_build.lock.preflight import Preflight
    from cpack_build.lock.risks import Risk
    from cpack_build.lock.schema import Lock

__all__ = ["check"]

_RISKY = 8


@click.command(
    epilog="Example: cpack-build check upscale.cpack.zip --strict    Exits with 0 when an image can be made, 4 (5, 6, "
    "8) when something cannot be had, 3 when the lock is stale or the workflow cannot be served, 8 with --strict when "
    "nodes are risky (docs/exit-codes.md)."
)
@click.argument("pack", metavar="PACK|LOCK|WORKSPACE", type=click.Path(path_type=Path))
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="By default NAME.cpack.lock beside PACK; without one, PACK is resolved.",
)
@click.option("--strict", is_flag=True, help="Exit with 8 when a custom node or model could do harm.")
@click.option(
    "-w", "--workflow", "workflow_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Of a WORKSPACE: the workflow to be packed, as `pack` takes it.",
)  # fmt: skip
@click.option(
    "--editor-workflow", type=click.Path(path_type=Path), metavar="FILE", help="The same as the editor saves it."
)
@object_info_option
@click.option("--python", type=click.Path(path_type=Path), metavar="PATH", help="The Python that runs this WORKSPACE.")
@click.option(
    "--folders",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The folders of a ComfyUI that runs, as for `pack`.",
)
@settings_options
@terminal_options
def check(
    pack: Path,
    lock_file: Path | None,
    strict: bool,
    workflow_file: Path | None,
    editor_workflow: Path | None,
    object_info: str | None,
    python: Path | None,
    folders: Path | None,
    chosen: Chosen,
    terminal: Terminal,
) -> None:
    """Name everything of PACK or LOCK that cannot be had, and what to do about each, all at once.

    Also what custom nodes could do (install scripts, network, subprocesses, eval, pickles), the limits of engines and
    registries that the image would break, and the bytes to download. Writes no lock and no image. Of a WORKSPACE, the
    folder of a ComfyUI, and a workflow (-w): what a pack of it would lack, its parameters and results, and with --json
    all that it could hold; this asks nobody.
    """
    from cpack_build.errors import UsageError

    if pack.is_dir():
        from cpack_build.cli.workspacecheck import check_workspace

        if workflow_file is None:
            raise UsageError(f"{pack} is a folder, so a workflow is to be named.", hint="Name it with -w FILE.")
        code = check_workspace(
            pack, workflow_file, editor_workflow=editor_workflow, object_info=object_info, python=python,
            folders=folders, strict=strict, terminal=terminal,
        )  # fmt: skip
        if code:
            raise click.exceptions.Exit(code)
        return
    if workflow_file is not None:
        raise UsageError("-w is for a WORKSPACE.", hint=f"Leave it out: {pack} has its own workflow.")
    from cpack_build.fetch.store import Store
    from cpack_build.image.limits import layer_count, limits_of
    from cpack_build.lock.cuda import driver_of
    from cpack_build.lock.libraries import lacking
    from cpack_build.lock.preflight import preflight, risks_of_pack

    missing: list[CpackError] = []
    stale: CpackError | None = None
    found: Preflight | None = None
    limits: list[Limit] = []
    read, locks, settings, stale, missing = _locks_of(pack, lock_file, chosen, terminal)
    lock = locks[0] if locks else None
    store = Store()
    sources = chosen.sources(settings)
    lacks, unseen = lacking(locks, store=store, find_links=settings.python.find_links)
    risks: list[Risk] = []
    if read is not None and not locks:  # what can be had is looked at all the same
        risks = risks_of_pack(
            read, exclude=settings.nodes.exclude, store=store, sources=sources, progress=terminal.progress
        )
    if locks:
        found = preflight(
            *locks,
            pack=read,
            store=store,
            sources=sources,
            models=settings.models,
            find_links=settings.python.find_links,
            progress=terminal.progress,
        )
        missing += found.missing
        risks = list(found.risks)
        for one in locks:
            broken = limits_of(one, base_layers=_base_layers(one, settings, store, sources, missing))
            limits += [limit for limit in broken if limit not in limits]
    free = _free(store.root)
    code = _code(missing, limits, stale, risky=strict and bool(risks))
    is_fatal = any(limit.is_fatal for limit in limits)
    terminal.result(
        {
            "exit_code": code,
            "missing": [_told(error) for error in missing],
            "stale": None if stale is None else _told(stale),
            "risks": [vars(risk) for risk in risks],
            "libraries": [vars(one) for one in lacks],
            "wheels_not_looked_at": list(unseen),
            "limits": [vars(limit) for limit in limits],
            "platforms": [one.platform for one in locks],
            "target": lock.target if lock else None,
            "driver": driver_of(lock.target) if lock else None,
            "layers": layer_count(lock) if lock and not is_fatal else None,
            "download_bytes": found.download if found else None,
            "downloads_of_unknown_size": found.unsized if found else None,
            "free_bytes": free,
            "image_bytes_at_least": _image_bytes(lock) if lock else None,
        }
    )
    for error in (*missing, *([stale] if stale else [])):
        terminal.say(f"missing  {error.message}\n         {error.hint}".rstrip())
    for limit in limits:
        terminal.say(f"limit    {limit.message}")
    for lack in lacks:
        terminal.say(f"library  {lack}")
    for risk in risks:
        place = f"{risk.owner}: {risk.path}" + (f":{risk.line}" if risk.line else "")
        terminal.say(f"risk     {place}: {risk.kind}: {risk.what}")
    if found is not None:
        more = f" and {found.unsized} files of unknown size" if found.unsized else ""
        needed = f", and at least {amount(_image_bytes(lock), None, 'B')} where the image goes" if lock else ""
        told = f"To download: {amount(found.download, None, 'B')}{more}, kept in {store.root}{needed}"
        terminal.say(f"{told}; free: {amount(free, None, 'B')}.")
        if found.download > free:
            terminal.say(f"limit    {store.root} has not enough space. Name another disk with CPACK_HOME.")
    if unseen:
        terminal.say(f"{len(unseen)} wheels are not here, and were not looked at for the libraries that they need.")
    counts = f"{len(missing)} missing, {len(limits)} limits, {len(lacks)} libraries, {len(risks)} risks"
    terminal.say(f"{pack}: {counts}" + (", stale." if stale else "."))
    if code:
        raise click.exceptions.Exit(code)


def _image_bytes(lock: Lock) -> int:
    """What the image of *lock* is at the least: packed files become larger when they are laid out."""
    from cpack_build.lock.wheels import wheels_of

    wheels = (*wheels_of(lock.service), *wheels_of(lock.python))
    models = {model.sha256: model.size for model in lock.models}
    return sum(wheel.size or 0 for wheel in wheels) + sum(deb.size for deb in lock.system) + sum(models.values())


def _locks_of(
    pack: Path, lock_file: Path | None, chosen: Chosen, terminal: Terminal
) -> tuple[Pack | None, tuple[Lock, ...], Settings, CpackError | None, list[CpackError]]:
    """The pack, the locks to look at, the settings, why the lock at hand is stale, and what could not be resolved."""
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import CpackError, NeedsBuilder, NeedsTrust, StaleLock
    from cpack_build.lock.freshness import check_all_fresh
    from cpack_build.lock.schema import load_locks

    if is_lock(pack):
        return None, load_locks(pack), chosen.alone(), None, []
    read = read_pack(pack)
    settings = chosen.settings(read)
    path = locks_at(read, lock_file)
    stale: CpackError | None = None
    if lock_file is not None or path.data is not None:
        try:
            return read, check_all_fresh(path.locks(), read, settings, name=path), settings, None, []
        except StaleLock as error:
            stale = error
    missing: list[CpackError] = []
    resolved = settings
    while True:
        try:
            made = make_locks(read, resolved, sources=chosen.sources(settings), terminal=terminal)
            return read, made, settings, stale, missing
        except CpackError as error:
            parts = error.parts or (error,)
            runs = [run for part in parts if isinstance(part, NeedsBuilder) for run in part.runs]
            if not runs:
                return read, (), settings, stale, [*missing, *parts]
            missing.append(
                NeedsTrust(
                    runs,
                    why="The lock needs what these programs of others leave, and they have not run for this pack yet:",
                    hint=f"`cpack-build lock {shlex.quote(str(pack))} --backend buildkit --trust` runs them once, on a "
                    "builder; or leave the nodes out of nodes.install.",
                )
            )
            # the rest is looked at as if they left nothing
            resolved = settings.model_copy(update={"nodes": settings.nodes.model_copy(update={"install": ()})})


def _base_layers(lock: Lock, settings: Settings, store: Any, sources: Any, missing: list[CpackError]) -> int:
    """How many layers the base has; that it cannot be had is one more thing that is *missing*."""
    from cpack_build.errors import CpackError
    from cpack_build.image.base import open_locked_base
    from cpack_build.lock.schema import BaseImage

    if not isinstance(lock.base, BaseImage):
        return 0
    try:
        name = settings.base
        base = open_locked_base(lock.base, platform=lock.platform, name=name, store=store, sources=sources)
        base.accounts()  # are what the lock says
        return len(base.layers)
    except CpackError as error:
        missing.append(error)
        return 0


def _told(error: CpackError) -> dict[str, Any]:
    return {
        "type": type(error).__name__, "message": error.message, "hint": error.hint, "exit_code": error.exit_code
    }  # fmt: skip


def _code(missing: list[CpackError], limits: list[Limit], stale: CpackError | None, *, risky: bool) -> int:
    codes = {error.exit_code for error in missing} | ({4} if any(limit.is_fatal for limit in limits) else set())
    if len(codes) == 1:
        return codes.pop()
    if codes:
        return 4
    return stale.exit_code if stale is not None else _RISKY if risky else 0


def _free(root: Path) -> int:
    """Bytes free where the store is, or will be."""
    while not root.exists():
        root = root.parent
    return shutil.disk_usage(root).free
