"""``make bench``: every speed that the documentation claims, in one table, each beside a peer timed in the same run.

Seconds differ from machine to machine; a ratio to a peer on the same machine does so far less. Each module beside this
one is a subject with a function ``rows(place)`` that measures in the empty folder *place* and yields what it found; a
peer that is not installed is left out by name. ``make bench BENCH="layers registry"`` runs some. The table is printed,
and saved with the machine's description in ``.demo/bench.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import demo  # noqa: E402

from bench.measure import BenchError, Row, unmount  # noqa: E402

SUBJECTS = sorted({path.stem for path in HERE.glob("[a-z]*.py")} - {"measure", "scene"})


def main() -> int:
    """Measure, print, save; exit code 1 when a subject could not be measured."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(SUBJECTS)}; without any, all")
    chosen = parser.parse_args().subjects
    if unknown := set(chosen) - set(SUBJECTS):
        parser.error(f"there is no subject {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    failed = []
    place = demo.DEMO / "bench"
    # A polite kill, as of `timeout`, unwinds like Ctrl-C: daemons are stopped and nothing stays mounted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for subject in chosen or SUBJECTS:
        unmount(place)
        demo.fresh(place)
        place.mkdir(parents=True)
        try:
            for row in import_module(f"bench.{subject}").rows(place):
                rows.append(row)
                print(_line(row), flush=True)
        except (BenchError, demo.DemoError) as error:
            failed.append(subject)
            print(f"{subject} could not be measured: {error}", file=sys.stderr)
    demo.fresh(place)
    (demo.DEMO / "bench.json").write_text(json.dumps(_report(rows), indent=1) + "\n")
    return 1 if failed else 0


def _line(row: Row) -> str:
    peer = f"{row.peer_seconds:8.2f} s  {row.ratio:5.2f} x {row.peer}" if row.peer_seconds and row.ratio else ""
    goal = "" if row.goal is None else f"  goal {row.goal:g}{' s' if not row.peer else ''}: {_verdict(row)}"
    memory = f"  {row.peak_mb:.0f} MB" if row.peak_mb else ""
    note = f"  ({row.note})" if row.note else ""
    return f"{row.subject:<9} {row.what:<44} {row.seconds:8.2f} s {peer}{goal}{memory}{note}"


def _verdict(row: Row) -> str:
    return "met" if row.met else "MISSED"


def _report(rows: list[Row]) -> dict[str, object]:
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()}
    python = platform.python_version()
    return {"machine": machine, "python": python, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}


if __name__ == "__main__":
    sys.exit(main())
