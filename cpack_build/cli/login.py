"""``cpack-build login REGISTRY`` and ``logout REGISTRY``: who we are to a registry, kept where Docker keeps it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cpack_build.cli.options import access_of, access_options, terminal_options
from cpack_build.cli.terminal import Terminal

__all__ = ["login", "logout"]

_SECRET_LIMIT = 1 << 20


@click.command(
    epilog="Example: cpack-build login registry.example -u me --password-stdin < token    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("registry", default="docker.io")
@click.option("-u", "--user", metavar="USER", help="Asked for on a terminal.")
@click.option("--password-stdin", is_flag=True, help="Read the password or token from stdin, to its end.")
@access_options
@terminal_options
def login(
    registry: str,
    user: str | None,
    password_stdin: bool,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
) -> None:
    """Log in to REGISTRY (by default Docker Hub), once it has said that it knows user and password.

    The login is written as Docker writes it: to the credential helper that its config.json names, else into that file.
    Docker and podman use it as well.
    """
    from cpack_build.oci.credentials import Credentials
    from cpack_build.oci.login import check_login, log_in, parse_registry

    name = parse_registry(registry)
    credentials = Credentials(*_asked(name, user, from_stdin=password_stdin))
    was_asked = check_login(name, credentials, access=access_of(insecure, ca))
    done = log_in(name, credentials)
    terminal.result({"registry": name, "user": credentials.user, "checked": was_asked, "place": done.place})
    if not was_asked:
        terminal.progress.note(f"{name} asks nobody who they are, so the password could not be checked.")
    if done.is_plain:
        terminal.progress.note(f"The password is in {done.place}, unencrypted. A credential helper keeps it better.")
    terminal.say(f"Logged in to {name} as {credentials.user}.")


@click.command(epilog="Example: cpack-build logout registry.example    (exit codes: docs/exit-codes.md)")
@click.argument("registry", default="docker.io")
@terminal_options
def logout(registry: str, terminal: Terminal) -> None:
    """Forget the login of REGISTRY (by default Docker Hub), wherever Docker's config.json has it."""
    from cpack_build.oci.login import log_out, parse_registry

    name = parse_registry(registry)
    done = log_out(name)
    terminal.result({"registry": name, "changed": done is not None, "place": done.place if done else None})
    terminal.say(f"The login of {name} is removed from {done.place}." if done else f"There is no login of {name}.")


def _asked(registry: str, user: str | None, *, from_stdin: bool) -> tuple[str, str]:
    """User and password; nothing of the password is echoed. Raises :class:`UsageError`."""
    from cpack_build.errors import UsageError

    if from_stdin:
        if not user:
            raise UsageError("--password-stdin needs a user.", hint="Add -u USER.")
        data = sys.stdin.buffer.read(_SECRET_LIMIT)
        try:
            password = data.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            password = ""
        if not password or any(ord(character) < 32 for character in password):
            raise UsageError("What came on stdin is no password.", hint="Pipe one line of text into it.")
    else:
        if not sys.stdin.isatty():
            raise UsageError("There is no terminal to ask for the password.", hint="Use -u USER --password-stdin.")
        user = user or click.prompt(f"User at {registry}", err=True)
        password = click.prompt("Password", hide_input=True, err=True)
    assert user is not None
    if ":" in user or not user.isprintable():
        raise UsageError("A user's name has no colon and no control characters.", hint="Correct -u.")
    return user, password
