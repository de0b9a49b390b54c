"""``cpack-build version``."""

from __future__ import annotations

import click

from cpack_build import __version__
from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal

__all__ = ["version"]


@click.command(epilog="Example: cpack-build version --json")
@terminal_options
def version(terminal: Terminal) -> None:
    """Print the version of cpack-build and of the Python that runs it."""
    import platform

    terminal.say(f"cpack-build {__version__} (Python {platform.python_version()}, {platform.machine()})")
    terminal.result({"version": __version__, "python": platform.python_version(), "machine": platform.machine()})
