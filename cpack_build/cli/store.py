"""``cpack-build store``: what the store holds, whether it is sound, what can go, and what it is to take over."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal, amount
from cpack_build.filesystem import expanded

if TYPE_CHECKING:
    from cpack_build.fetch.housekeeping import Entry, Holdings

__all__ = ["parse_size", "store"]

_SHOWN = 20
_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of ``500M``, ``20GB``, ``1.5TiB``. Raises :class:`UsageError`."""
    from cpack_build.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    unit = (_UNITS | _BINARY).get(match[2]) if match else None
    if match is None or unit is None:
        raise UsageError(f"{text!r} is no size.", hint="Write it as 500M, 20GB or 1.5TiB.")
    return int(float(match[1]) * unit)


@click.group(
    epilog="Example: cpack-build store gc --unused 90 --keep upscale.cpack.lock --dry-run    "
    "(exit codes: docs/exit-codes.md)"
)
def store() -> None:
    """Look after the store of models, packages and images below CPACK_HOME (by default ~/.cache/cpack-build)."""


@store.command(epilog="Example: cpack-build store path")
@terminal_options
def path(terminal: Terminal) -> None:
    """Print where the store is."""
    from cpack_build.fetch.store import Store

    here = Store(leased=False)
    terminal.result({"root": str(here.root), "further": [str(root) for root in here.further]})
    terminal.say(str(here.root))
    for root in here.further:
        terminal.say(f"{root} (only read)")


@store.command(epilog="Example: cpack-build store ls --all --json")
@click.option("--all", "everything", is_flag=True, help="Every file, not only the largest.")
@terminal_options
def ls(everything: bool, terminal: Terminal) -> None:
    """Show what the store holds and what it costs."""
    from cpack_build.fetch.housekeeping import holdings
    from cpack_build.fetch.store import Store

    here = Store(leased=False)
    held = holdings(here)
    terminal.result({"root": str(here.root), "size": held.size, **_document(held)})
    if terminal.json:
        return
    shown = held.entries if everything else held.entries[:_SHOWN]
    for entry in shown:
        terminal.say(_line(entry))
    if hidden := len(held.entries) - len(shown):
        terminal.say(f"and {hidden} smaller ones (--all shows them)")
    kinds: dict[str, list[int]] = {}
    for entry in held.entries:
        kinds.setdefault(f"{entry.kind}s" if entry.place == "store" else entry.place, []).append(entry.size)
    for left in held.leftovers:
        kinds.setdefault(left.why, []).append(left.size)
    for folder in held.derived:
        kinds.setdefault(folder.kind, []).append(folder.size)
    for kind, sizes in sorted(kinds.items()):
        terminal.say(f"{kind:<11}{len(sizes):>7}  {amount(sum(sizes), None, 'B'):>10}")
    terminal.say(f"{'git':<11}{'':>7}  {amount(held.repositories, None, 'B'):>10}")
    terminal.say(f"{here.root} takes {amount(held.size, None, 'B')}.")


@store.command(epilog="Example: cpack-build store verify    Exits with 5 when something is broken.")
@click.option("--dry-run", is_flag=True, help="Only tell; put nothing aside.")
@click.pass_context
@terminal_options
def verify(context: click.Context, dry_run: bool, terminal: Terminal) -> None:
    """Read everything in the store again, and put aside what is broken."""
    from cpack_build.errors import HashMismatch
    from cpack_build.fetch.housekeeping import verify as verified
    from cpack_build.fetch.store import Store

    count, broken = verified(Store(leased=False), dry_run=dry_run, progress=terminal.progress)
    terminal.result(
        {
            "files": count,
            "broken": [
                {
                    "path": str(one.path),
                    "expected": one.expected,
                    "actual": one.actual,
                    "aside": str(one.aside) if one.aside else None,
                }
                for one in broken
            ],
        }
    )
    for one in broken:
        state = f"has sha256 {one.actual}" if one.actual else "is no readable file"
        kept = f"; it is kept as {one.aside}" if one.aside else ""
        terminal.say(f"{one.path} {state}, not {one.expected}{kept}")
    terminal.say(f"{count} files, {len(broken)} broken.")
    if broken:
        context.exit(HashMismatch.exit_code)


@store.command(epilog="Example: cpack-build store gc --max-size 100GB --keep upscale.cpack.lock")
@click.option("--unused", "days", type=click.FloatRange(0), metavar="DAYS", help="What nobody used for so long.")
@click.option("--max-size", metavar="SIZE", help="The longest unused, until no more than that is left (50GB, 1TiB).")
@click.option("--all", "everything", is_flag=True, help="Everything that nothing uses now.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="LOCK",
    multiple=True,
    help="What this lock names stays. May be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@terminal_options
def gc(
    days: float | None,
    max_size: str | None,
    everything: bool,
    keep: tuple[Path, ...],
    dry_run: bool,
    terminal: Terminal,
) -> None:
    """Remove what can go. Without options: unfinished downloads that nobody works on, and what was rejected.

    What a running build uses stays, and so does what lies outside of the store.
    """
    from cpack_build.fetch.housekeeping import collect
    from cpack_build.fetch.store import Store

    kept = {sha256 for one in keep for sha256 in _hashes(one)}
    limit = 0 if everything else parse_size(max_size) if max_size is not None else None
    done = collect(Store(leased=False), keep=kept, unused_days=days, max_size=limit, dry_run=dry_run)
    terminal.result(
        {
            "dry_run": dry_run,
            "freed": done.freed,
            "in_use": done.in_use,
            "removed": [vars(one) | {"path": str(one.path)} for one in done.removals],
        }
    )
    for one in done.removals:
        terminal.say(f"{amount(one.size, None, 'B'):>10}  {one.why:<22}  {one.name or one.path.name}")
    used = f" {done.in_use} more are in use and stay." if done.in_use else ""
    freed = amount(done.freed, None, "B")
    terminal.say(f"{len(done.removals)} files and folders, {freed}, {'would go' if dry_run else 'are gone'}.{used}")


@store.command(epilog="Example: cpack-build store add ~/ComfyUI/models ~/.cache/huggingface/hub")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option("--keep", is_flag=True, help="Keep them in the store: by shared blocks, else a hard link, else a copy.")
@click.option("--dry-run", is_flag=True, help="Say what would be added; read and write nothing.")
@terminal_options
def add(paths: tuple[Path, ...], keep: bool, dry_run: bool, terminal: Terminal) -> None:
    """Let builds find the models in PATHs. Each file is hashed once, and stays where it is unless --keep is given."""
    from cpack_build.fetch.adoption import add as added
    from cpack_build.fetch.adoption import found_below
    from cpack_build.fetch.store import Store

    files = list(dict.fromkeys(file for path in paths for file in found_below(expanded(path))))
    if dry_run:
        terminal.result({"dry_run": True, "files": [str(file) for file in files]})
        total = amount(sum(file.stat().st_size for file in files), None, "B")
        terminal.say(f"{len(files)} files, {total}, would be added.")
        return
    done = added(files, store=Store(), keep=keep, progress=terminal.progress)
    terminal.result(
        {
            "added": [
                {"path": str(one.source), "sha256": one.file.sha256, "size": one.file.size, "how": one.how}
                for one in done
            ]
        }
    )
    for one in done:
        terminal.say(f"{one.file.sha256}  {one.how:<9}  {one.source}")
    terminal.say(f"{len(done)} files, {amount(sum(one.file.size for one in done), None, 'B')}, can be found.")


def _hashes(path: Path) -> set[str]:
    """Every sha256 in the lock at *path*: of models and wheels, of archives, and of what they are packed in."""
    from cpack_build.lock.schema import load_lock

    return set(re.findall(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", load_lock(path).to_bytes().decode()))


def _document(held: Holdings) -> dict[str, Any]:
    return {
        "entries": [vars(entry) | {"path": str(entry.path), "kind": entry.kind} for entry in held.entries],
        "leftovers": [vars(left) | {"path": str(left.path)} for left in held.leftovers],
        "folders": [vars(folder) | {"path": str(folder.path)} for folder in held.derived],
        "git": held.repositories,
        "apt": held.lists,
    }


def _line(entry: Entry) -> str:
    if entry.in_use:
        used = "in use"
    elif entry.used is None:
        used = ""
    else:
        days = max(0, int((time.time() - entry.used) / 86_400))
        used = "today" if days == 0 else f"{days} d ago"
    name = entry.name or str(entry.path)
    where = "" if entry.place == "store" else f"  {entry.place}: {entry.path}"
    return f"{entry.sha256[:12]}  {amount(entry.size, None, 'B'):>10}  {used:<9}  {entry.kind:<8}  {name}{where}"
