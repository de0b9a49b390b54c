"""``cpack-build completion``: how the shell learns the verbs and flags."""

from __future__ import annotations

import click

__all__ = ["completion"]

_LINES = {
    "bash": 'eval "$(_CPACK_BUILD_COMPLETE=bash_source cpack-build)"',
    "zsh": 'eval "$(_CPACK_BUILD_COMPLETE=zsh_source cpack-build)"',
    "fish": "_CPACK_BUILD_COMPLETE=fish_source cpack-build | source",
}
"""What click reads (https://click.palletsprojects.com/shell-completion/)."""


@click.command(epilog="Example: cpack-build completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(sorted(_LINES)))
def completion(shell: str) -> None:
    """Print the line to add to ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish."""
    click.echo(_LINES[shell])
