"""The command line: ``cpack-build VERB OBJECT``. One module per verb, imported only when that verb runs.

:data:`VERBS` is all that ``--help`` needs, so it answers at once however large the program becomes. :func:`run` is the
whole program as a function: arguments in, exit code out; no exception leaves it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

__all__ = ["VERBS", "LazyGroup", "cli", "main", "run"]

VERBS: dict[str, tuple[str, str]] = {
    "pack": ("cpack_build.cli.pack:pack", "Pack a workflow with what it uses of a ComfyUI install."),
    "lock": ("cpack_build.cli.lock:lock", "Pin every byte that a pack's image needs, in NAME.cpack.lock."),
    "check": ("cpack_build.cli.check:check", "Name everything that stands in the way of an image, all at once."),
    "plan": ("cpack_build.cli.plan:plan", "Show the layers that a build would make, and which are known already."),
    "image": ("cpack_build.cli.image:image", "Build a pack's image, and give it to an engine, a folder or a file."),
    "models": ("cpack_build.cli.models:models", "List the models of a pack, lock or workspace: here or where."),
    "fetch": ("cpack_build.cli.fetch:fetch", "Fetch all that an image needs, also for a place without a network."),
    "push": ("cpack_build.cli.push:push", "Push an image to a registry."),
    "deliver": ("cpack_build.cli.delivering:deliver", "Give what Nix has built to an engine or a registry."),
    "pull": ("cpack_build.cli.pull:pull", "Pull an image or a pack from a registry."),
    "login": ("cpack_build.cli.login:login", "Log in to a registry."),
    "logout": ("cpack_build.cli.login:logout", "Forget the login of a registry."),
    "run": ("cpack_build.cli.running:run", "Run a workflow once here, or with --engine its image as a service."),
    "restore": ("cpack_build.cli.restore:restore", "Make a workspace of a pack or an image again, and check one."),
    "init": ("cpack_build.cli.init:init", "Make a new workspace: ComfyUI and nodes at pinned versions."),
    "plugin": ("cpack_build.cli.plugin:plugin", "Put the ComfyUI plugin into a workspace, look at it, take it away."),
    "unpack": ("cpack_build.cli.restore:unpack", "Restore a pack, with comfy-pack's flags."),
    "export": ("cpack_build.cli.export:export", "Get the pack and the lock that made an image out of it."),
    "sbom": ("cpack_build.cli.sbom:sbom", "List everything in an image, as CycloneDX, SPDX or provenance."),
    "verify": ("cpack_build.cli.verify:verify", "Make an image again from its lock, and name what differs."),
    "import": ("cpack_build.cli.importing:import_", "Make a pack of what another program recorded, or of an old pack."),
    "store": ("cpack_build.cli.store:store", "Look after the store: what it holds, what is broken, what can go."),
    "serve": ("cpack_build.cli.serve:serve", "Serve a pack or workflow here, with a ComfyUI of this machine."),
    "bento": ("cpack_build.cli.bento:bento", "Make a Bento of a pack or an image, for BentoML."),
    "build-bento": ("cpack_build.cli.bento:build_bento", "Make a Bento of a pack, with comfy-pack's flags."),
    "unpack-bento": ("cpack_build.cli.bento:unpack_bento", "Restore a Bento, with comfy-pack's flags."),
    "deploy": ("cpack_build.cli.deploy:deploy", "Give an image to an engine that scales it."),
    "inspect": ("cpack_build.cli.inspect:inspect", "Show what a pack holds and what its workflow asks for."),
    "diff": ("cpack_build.cli.diff:diff", "Compare two packs by what they mean; exit code 1 when they differ."),
    "schema": ("cpack_build.cli.schema:schema", "Print the JSON Schema of a pack, of cpack.lock or of cpack.yaml."),
    "completion": ("cpack_build.cli.completion:completion", "Print the line that turns on completion in your shell."),
    "version": ("cpack_build.cli.version:version", "Print the version."),
}
"""Verb → where its command is, and its one line of help."""


class LazyGroup(click.Group):
    """A group that knows its commands by a table like :data:`VERBS`, and imports only the one that runs."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], kind: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table
        self._kind = kind

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.table and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.table, n=1)
            ctx.fail(f"There is no {self._kind} {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(f"{self._kind.capitalize()}s"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()] or [("", "")])


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from cpack_build import __version__

        click.echo(f"cpack-build {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    table=VERBS,
    kind="verb",
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 differs or a bug, 2 usage, 3 bad input, 4 cannot be resolved, 5 hash mismatch, "
    "6 network, 7 engine or tool, 8 refused for safety, 9 storage, 130 interrupted (docs/exit-codes.md).",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print it.")
def cli() -> None:
    """Turn a ComfyUI workflow, packed as NAME.cpack.zip, into a container image that serves it.

    \b
    cpack-build image upscale.cpack.zip
    docker run --rm -p 3000:3000 upscale
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line *arguments* (without the program's name) and return its exit code (docs/exit-codes.md)."""
    try:
        # Documents are checked by pydantic, which looks through all that is installed for plugins: a tenth of the time.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        _end_as_with_ctrl_c()
        # Not standalone, click returns the code of ``ctx.exit`` ("differs" is 1), or what the verb returned: nothing.
        # The words themselves are what a receipt is kept under.
        words = list(arguments)
        code = cli.main(args=words, prog_name="cpack-build", standalone_mode=False, obj=tuple(words))
        sys.stdout.flush()
    except SystemExit as ended:
        # Shell completion and a closed pipe end this way within click.
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException as error:
        from cpack_build.cli.failure import report

        return report(error, arguments)
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script ``cpack-build``."""
    sys.unraisablehook = _interrupt_again
    # Looking for cycles among what was imported, again and again and once more at the end, took up to a fifth of a
    # command that has little to do.
    gc.set_threshold(_ALLOCATIONS)
    code = run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


_ALLOCATIONS = 50_000
"""Objects, more than were let go of, after which the collector looks: about as many as a verb's imports make a tenth
of."""


def _end_as_with_ctrl_c() -> None:
    """Let a polite ``kill`` unwind like Ctrl-C, so that nothing half-made stays behind."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


_AGAIN = 0.05
"""Seconds after which a lost interrupt is repeated: the callback that swallowed it has ended by then."""


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a callback (of a weak reference as each import has them, ``__del__``), with no
    more than a line on stderr; a Ctrl-C that happens to arrive there is sent once more."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    import signal
    import threading

    # to that very thread, or the call that it sleeps in goes on
    if sys.platform == "win32":
        again = threading.Timer(_AGAIN, signal.raise_signal, (signal.SIGINT,))
    else:
        main = threading.main_thread().ident
        again = threading.Timer(_AGAIN, signal.pthread_kill, (main, signal.SIGINT))
    again.daemon = True
    again.start()
