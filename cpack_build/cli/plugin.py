"""``cpack-build plugin``: the ComfyUI plugin of this version in a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.workspace.plugin import Plugin

__all__ = ["plugin"]

_WORKSPACE = click.argument("workspace", type=click.Path(path_type=Path), default=".", metavar="[WORKSPACE]")
_TOLD = {
    "absent": "has no plugin",
    "current": "is the plugin of this version",
    "outdated": "is the plugin of another version",
    "linked": "is a link to a clone of the plugin",
    "edited": "is the plugin, and somebody has edited it",
    "clone": "is a clone of the plugin's repository",
    "foreign": "is something else",
}


@click.group(epilog="Example: cpack-build plugin install ~/ComfyUI    (exit codes: docs/exit-codes.md)")
def plugin() -> None:
    """Put the ComfyUI plugin (nodes, toolbar, dialogs) into a workspace, see what it has, or take it away."""


@plugin.command(epilog="Example: cpack-build plugin install ~/ComfyUI")
@_WORKSPACE
@click.option("--link", is_flag=True, help="Link to the clone that this program runs from, to work on the plugin.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
@terminal_options
def install(workspace: Path, link: bool, dry_run: bool, terminal: Terminal) -> None:
    """Copy the plugin of this version into WORKSPACE/custom_nodes. What is not a copy of it is never replaced."""
    from cpack_build.workspace.place import find_comfyui
    from cpack_build.workspace.plugin import install_plugin

    found, done = install_plugin(find_comfyui(workspace), link=link, dry_run=dry_run)
    terminal.result({**_document(found), "done": done, "dry_run": dry_run})
    would = "would be " if dry_run and done != "kept" else ""
    terminal.say(f"{found.path}: {would}{done}.")
    if not dry_run and done != "kept":
        terminal.say("Start ComfyUI again to see it.")


@plugin.command(epilog="Example: cpack-build plugin status ~/ComfyUI --json")
@_WORKSPACE
@terminal_options
def status(workspace: Path, terminal: Terminal) -> None:
    """Show what WORKSPACE has of the plugin."""
    from cpack_build.workspace.place import find_comfyui
    from cpack_build.workspace.plugin import look_at_plugin

    found = look_at_plugin(find_comfyui(workspace))
    terminal.result(_document(found))
    version = f" ({found.version})" if found.version else ""
    terminal.say(f"{found.path} {_TOLD[found.state]}{version}.")
    for name in found.changed:
        terminal.say(f"  changed: {name}")


@plugin.command(epilog="Example: cpack-build plugin remove ~/ComfyUI")
@_WORKSPACE
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
@terminal_options
def remove(workspace: Path, dry_run: bool, terminal: Terminal) -> None:
    """Take the copy of the plugin, or the link to it, out of WORKSPACE. What is not a copy of it is left alone."""
    from cpack_build.workspace.place import find_comfyui
    from cpack_build.workspace.plugin import remove_plugin

    found, done = remove_plugin(find_comfyui(workspace), dry_run=dry_run)
    terminal.result({**_document(found), "done": done, "dry_run": dry_run})
    would = "would be " if dry_run and done != "kept" else ""
    terminal.say(f"{found.path}: {'nothing is there' if done == 'kept' else would + done}.")


def _document(found: Plugin) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "state": found.state,
        "version": found.version,
        "changed": list(found.changed),
    }
