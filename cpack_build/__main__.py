"""The ``cpack-build`` command, and ``python -m cpack_build``.

A command line that was run before, with nothing changed since, is answered from its receipt
(:mod:`cpack_build.fetch.receipts`) before the program itself is even imported."""

import sys

from cpack_build.fetch import receipts


def main() -> None:
    """The console script ``cpack-build``."""
    said = receipts.replay(sys.argv[1:])
    if said is None:
        from cpack_build.cli import main as whole

        whole()
        return
    try:
        sys.stderr.write(said["stderr"])
        sys.stdout.write(said["stdout"])
        sys.stdout.flush()
    except BrokenPipeError as error:
        from cpack_build.cli.failure import report

        sys.exit(report(error, sys.argv[1:]))


if __name__ == "__main__":
    main()
