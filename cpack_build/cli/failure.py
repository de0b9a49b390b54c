"""How a failure is told: a clear sentence and what to do next on stderr, or with ``--json`` one object on stdout.

Every exception ends here and becomes an exit code. An exception that nobody foresaw is called what it is, a bug, and
its traceback is kept for ``-v``.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from cpack_build.cli.terminal import printable
from cpack_build.errors import Cancelled, CpackError, StorageError, UsageError

__all__ = ["report"]

BUG = 1
"""Exit code of an exception that is nobody's mistake but ours."""


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Tell the user about *error* in the way that *arguments* ask for; the exit code."""
    before_end = list(arguments[: arguments.index("--")]) if "--" in arguments else list(arguments)
    as_json = "--json" in before_end
    verbose = any(word == "--verbose" or _is_flag(word, "v") for word in before_end)
    if isinstance(error, BrokenPipeError):
        _stop_writing()
        return 0
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _write(sys.stderr, error.format_message())
        return UsageError.exit_code
    if verbose and not isinstance(error, click.exceptions.ClickException | click.Abort | KeyboardInterrupt):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    known = _known(error)
    if known is None:
        from cpack_build import __version__
        from cpack_build.fetch.urls import redact

        kind, code = type(error).__name__, BUG
        message = redact(f"This is a bug in cpack-build {__version__}: {kind}: {error}")
        hint = "" if verbose else "Run it again with -v, and report what it prints."
    else:
        kind, code, message, hint = type(known).__name__, known.exit_code, known.message, known.hint
    if as_json:
        import json

        body = {"error": {"type": kind, "message": message, "hint": hint, "exit_code": code}}
        _write(sys.stdout, json.dumps(body, ensure_ascii=False))
    else:
        title = "Error:"
        if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
            title = f"\x1b[1;31m{title}\x1b[0m"
        _write(sys.stderr, f"{title} {printable(message)}" + (f"\n{printable(hint)}" if hint else ""))
        for part in (known.parts or (known,)) if known is not None and verbose else ():
            if part.detail:
                _write(sys.stderr, printable(part.detail))
    return code


def _known(error: BaseException) -> CpackError | None:
    """The same failure as one of ours, or ``None`` for a bug."""
    if isinstance(error, CpackError):
        return error
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return Cancelled()
    if isinstance(error, click.exceptions.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "cpack-build"
        return UsageError(error.format_message(), hint=f"See `{path} --help`.")
    if isinstance(error, click.ClickException):
        return UsageError(error.format_message())
    if isinstance(error, MemoryError):
        return StorageError("The memory is full.", hint="Close other programs, and run it again.")
    if isinstance(error, OSError):
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the disk"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return StorageError(
                f"No space left while writing {place}.",
                hint="Free some space, or name another disk with CPACK_HOME or another output, and run it again.",
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return StorageError(
                f"{place}: {(error.strerror or 'refused').lower()}.", hint="Choose a place that you may use."
            )
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return StorageError("Too many files are open.", hint="Raise the limit with `ulimit -n`, and run it again.")
    return None


def _is_flag(word: str, letter: str) -> bool:
    return len(word) > 1 and word[0] == "-" and word[1] != "-" and word[1:].isalpha() and letter in word


def _write(stream: object, text: str) -> None:
    try:
        print(text, file=stream, flush=True)  # type: ignore[call-overload]
    except BrokenPipeError:
        _stop_writing()


def _stop_writing() -> None:
    """Whoever read our output has gone: point both streams at nothing, so that the interpreter's end is silent too."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(sink, stream.fileno())
        except (OSError, ValueError):
            continue
    os.close(sink)
