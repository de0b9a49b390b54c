"""``cpack-build restore SOURCE``: a pack or an image becomes a workspace again; comfy-pack calls it ``unpack``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cpack_build.cli.export import image_options, name_of
from cpack_build.cli.options import Chosen, terminal_options
from cpack_build.cli.sources import goal_of, opened_at, restore_options, sources_of, trust_option
from cpack_build.cli.terminal import Terminal
from cpack_build.filesystem import expanded

if TYPE_CHECKING:
    from cpack_build.restore.goal import Restored
    from cpack_build.restore.scripts import Script

__all__ = ["next_command", "restore", "restored_to", "unpack"]


@click.command(
    epilog="Example: cpack-build restore registry.example/team/upscale:1 -d upscale    (exit codes: docs/exit-codes.md)"
)
@click.argument("source", required=False)
@click.option("-d", "--dir", "folder", type=click.Path(path_type=Path), metavar="DIR", help="By default ./NAME.")
@click.option(
    "--models",
    type=click.Choice(["link", "copy", "none"]),
    default="link",
    show_default=True,
    help="How models get into the workspace; link shares the store's file.",
)
@click.option("--no-venv", is_flag=True, help="Make no virtual environment.")
@trust_option
@click.option("--offline", is_flag=True, help="Use what the pack, the image and this machine have; ask nobody.")
@click.option("--dry-run", is_flag=True, help="Say what would be made, and make nothing.")
@click.option(
    "--force",
    multiple=True,
    metavar="PATH",
    help="Replace what lies at this path of DIR; what was there is kept aside.",
)
@click.option(
    "--verify",
    "verified",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Compare the workspace DIR with its lock.",
)
@click.option(
    "--best-effort", is_flag=True, help="Of an image that is not ours: ComfyUI, nodes and models, by looking."
)
@restore_options
@image_options
@terminal_options
def restore(
    source: str | None,
    folder: Path | None,
    models: Literal["link", "copy", "none"],
    no_venv: bool,
    trust: bool,
    offline: bool,
    dry_run: bool,
    force: tuple[str, ...],
    verified: Path | None,
    best_effort: bool,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Make the workspace of SOURCE again: ComfyUI, nodes, inputs, workflows, models, and an environment.

    SOURCE is a NAME.cpack.zip, an image (oci:DIR, oci-archive:FILE, docker-archive:FILE, docker:NAME, podman:NAME or a
    registry's reference), or a pack that was pushed to a registry. A pack without a lock is locked first. In a folder
    that has part of it already the rest is made; what else lies there stays.
    """
    from cpack_build.errors import UsageError

    if verified is not None:
        if source is not None:
            raise UsageError("--verify names a workspace, so there is no SOURCE.", hint="Leave one of them out.")
        _verify(verified, terminal)
        return
    if source is None:
        raise UsageError("Nothing is named to restore.", hint="Name a pack or an image, or a workspace with --verify.")
    chosen = sources_of(**flags)
    if best_effort:
        _best_effort(source, folder, chosen, terminal)
        return
    restored_to(
        source, folder, chosen, models=models, no_venv=no_venv, trust=trust, offline=offline, dry_run=dry_run,
        force=force, terminal=terminal,
    )  # fmt: skip


@click.command(epilog="Example: cpack-build unpack upscale.cpack.zip -d ComfyUI    (exit codes: docs/exit-codes.md)")
@click.argument("source")
@click.option("-d", "--dir", "folder", type=click.Path(path_type=Path), default="ComfyUI", show_default=True)
@click.option("--no-models", is_flag=True, help="Leave the models out.")
@click.option("--no-venv", is_flag=True, help="Make no virtual environment.")
@click.option("--include-disabled-models", is_flag=True, help="Also the models that the pack lists and does not use.")
@click.option("--preheat", is_flag=True, help="Start ComfyUI once at the end, to see that it loads every node.")
@trust_option
@restore_options
@image_options
@terminal_options
def unpack(
    source: str,
    folder: Path,
    no_models: bool,
    no_venv: bool,
    include_disabled_models: bool,
    preheat: bool,
    trust: bool,
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Restore SOURCE to DIR, with the flags of comfy-pack's unpack: `restore` under another name."""
    from cpack_build.errors import UsageError

    if preheat and no_venv:
        raise UsageError("--preheat starts ComfyUI, which needs the environment.", hint="Leave --no-venv out.")
    restored_to(
        source, folder, sources_of(**flags), models="none" if no_models else "link", no_venv=no_venv,
        trust=trust, offline=False, dry_run=False, force=(), terminal=terminal,
        disabled_models=include_disabled_models and not no_models, preheat=preheat,
    )  # fmt: skip


def restored_to(
    source: str,
    folder: Path | None,
    chosen: Chosen,
    *,
    models: Literal["link", "copy", "none"] = "link",
    no_venv: bool = False,
    trust: bool,
    offline: bool = False,
    dry_run: bool = False,
    force: tuple[str, ...] = (),
    terminal: Terminal,
    disabled_models: bool = False,
    preheat: bool = False,
) -> None:
    """Restore *source* to *folder*, and tell what was done."""
    from cpack_build.fetch.store import Store
    from cpack_build.restore.goal import Options
    from cpack_build.restore.restoring import restore as restored

    store = Store()
    with goal_of(source, chosen, store=store, offline=offline, write=not dry_run, trust=trust, terminal=terminal) as (
        goal,
        settings,
        sources,
    ):
        python = settings.python
        done = restored(
            goal,
            expanded(folder or goal.name),
            options=Options(
                models=models,
                environment=not no_venv,
                offline=offline,
                dry_run=dry_run,
                force=tuple(_relative(path) for path in force),
                model_folders=settings.models,
                find_links=python.find_links,
                index_urls=tuple(url for url in (python.index_url, *python.extra_index_urls) if url),
                disabled_models=disabled_models,
                consent=_consent(trust, terminal),
                trust=trust,
            ),
            store=store,
            sources=sources,
            progress=terminal.progress,
        )
    if preheat:
        from cpack_build.restore.preheating import preheat as preheated

        preheated(done.root, progress=terminal.progress)
    _tell(done, dry_run=dry_run, no_venv=no_venv, name=goal.name, terminal=terminal)


def _relative(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _consent(trust: bool, terminal: Terminal) -> Callable[[Sequence[Script]], bool]:
    def consent(scripts: Sequence[Script]) -> bool:
        shown = "".join(f"\n  {script.path}  sha256 {script.sha256[:12]}" for script in scripts)
        print(f"These programs of custom nodes ask to be run:{shown}", file=sys.stderr)
        if trust:
            return True
        if terminal.json or terminal.quiet or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        return click.confirm("Run them, with all that you may do?", default=False, err=True)

    return consent


def next_command(root: Path, *, venv: bool) -> str:
    """The command that starts ComfyUI in the workspace."""
    place = shlex.quote(os.path.relpath(root) if root.is_relative_to(Path.cwd()) else str(root))
    if not venv:
        return f"cd {place} && python main.py"
    return f"cd {place} && .venv/bin/python main.py"


def _tell(done: Restored, *, dry_run: bool, no_venv: bool, name: str, terminal: Terminal) -> None:
    command = next_command(done.root, venv=not no_venv)
    terminal.result(
        {
            "workspace": str(done.root),
            "name": name,
            "dry_run": dry_run,
            "made": done.made,
            "parts": [vars(part) for part in done.parts],
            "notes": list(done.notes),
            "scripts_not_run": list(done.scripts),
            "next": command,
        }
    )
    for note in done.notes:
        terminal.progress.note(note)
    would = "would be " if dry_run else ""
    for part in done.parts:
        state = f"{part.made} {would}made" if part.made else "there"
        if part.made and part.there:
            state += f", {part.there} there"
        terminal.say(f"{part.kind:12} {part.name}: {state}{f' (from {part.origin})' if part.origin else ''}")
    for script in done.scripts:
        terminal.say(f"{script} was not run; run it yourself, or restore again with --trust.")
    if dry_run:
        terminal.say(f"{done.root} would be the workspace; nothing was made.")
        return
    terminal.say(f"{done.root} is restored." if done.made else f"{done.root} has everything; nothing was to be done.")
    terminal.say(f"Start ComfyUI:\n  {command}")


def _verify(root: Path, terminal: Terminal) -> None:
    from cpack_build.restore.verify import verify

    drifts, looked = verify(expanded(root), progress=terminal.progress)
    terminal.result(
        {"workspace": str(root), "same": not drifts, "files": looked, "drifts": [vars(drift) for drift in drifts]}
    )
    for drift in drifts:
        terminal.say(str(drift))
    if not drifts:
        terminal.say(f"{root} is what its lock says: {looked} files.")
        return
    terminal.say(
        f"{root} has drifted from its lock: {len(drifts)} differences. Restore it again to repair what is missing."
    )
    raise click.exceptions.Exit(1)


def _best_effort(source: str, folder: Path | None, chosen: Chosen, terminal: Terminal) -> None:
    from cpack_build.errors import UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.restore.foreign import recover

    root = expanded(folder or name_of(source))
    with opened_at(source, chosen, store=Store(), terminal=terminal) as image:
        if isinstance(image, Path):
            raise UsageError(f"{source} is a pack, and no image.", hint="Leave --best-effort out.")
        found = recover(image, root, name=source, progress=terminal.progress)
    terminal.result({"workspace": str(root), **vars(found)})
    terminal.say(f"{root} has what was found at /{found.place} of {source}: {found.files} files.")
    terminal.say(f"Custom nodes: {', '.join(found.nodes) or 'none'}. Models: {', '.join(found.models) or 'none'}.")
    terminal.say("Nothing says what it should be, so nothing was proved, and there is no environment.")
