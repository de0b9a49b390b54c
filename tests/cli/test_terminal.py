"""Results go to stdout, progress to stderr as it was asked for, and nothing of a document reaches a terminal raw."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpack_build.cli.terminal import Terminal, amount, printable, speed
from tests.cli.calling import Caller
from tests.cpack.packs import make_pack, snapshot


def test_plain_progress_tells_what_is_slow_and_how_it_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpack_build.cli.terminal._TOLD_AFTER", 0.01)
    progress = Terminal(mode="plain").progress
    with progress.task("Quick"):
        pass
    monkeypatch.setattr("cpack_build.cli.terminal._SHOWN_FROM", 0)
    with progress.task("Fetching", total=3, unit="wheels") as task:
        task.advance(2)
        while "Fetching ..." not in (said := capsys.readouterr().err):
            time.sleep(0.01)
    with pytest.raises(ValueError, match="broken"), progress.task("Failing"):
        raise ValueError("broken")
    progress.note("something")
    assert said == "Fetching ...\n"
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(", ")[0] for line in lines] == ["Fetching: done, 2 wheels", "Failing: stopped", ""]
    assert lines[2] == "Note: something"


def test_json_progress_is_one_event_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Terminal(mode="json").progress
    with progress.task("Fetching") as task:
        task.expect(10)
        task.advance(10)
    progress.note("something")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["start", "end", "note"]
    assert events[0] | {"task": 0} == {"event": "start", "task": 0, "title": "Fetching", "total": None, "unit": "B"}
    assert (events[1]["done"], events[1]["total"], events[1]["complete"]) == (10, 10, True)


def test_without_a_terminal_there_are_only_notes(capsys: pytest.CaptureFixture[str]) -> None:
    for terminal, notes in (
        (Terminal(), "Note: n\n"),
        (Terminal(quiet=True), ""),
        (Terminal(mode="none"), "Note: n\n"),
    ):
        with terminal.progress.task("Fetching") as task:
            task.advance(1)
        terminal.progress.note("n")
        assert capsys.readouterr().err == notes


def test_bars_are_drawn_on_a_terminal_and_their_titles_are_no_markup() -> None:
    program = (
        "from cpack_build.cli.terminal import Terminal\n"
        "import time\n"
        "progress = Terminal().progress\n"
        "with progress.task('[red]title\\x1b[2J', total=10) as task:\n"
        "    task.advance(4); time.sleep(0.6); progress.note('[b]note')\n"
    )
    shown = _on_a_terminal([sys.executable, "-c", program])
    assert "[red]title\\x1b[2J" in shown
    assert "Note: [b]note" in shown
    assert "4/10 B" in shown


def test_no_color_draws_without_color() -> None:
    command = [sys.executable, "-m", "cpack_build", "lock", "absent.zip"]
    assert "\x1b[1;31mError:" in _on_a_terminal(command)
    assert "\x1b" not in _on_a_terminal(command, NO_COLOR="1")


def test_amounts_are_short_and_their_units_agree() -> None:
    assert amount(0, None, "B") == "0 B"
    assert amount(1_500, 2_000_000, "B") == "0.0/2.0 MB"
    assert amount(3, 7, "wheels") == "3/7 wheels"
    assert amount(2_500_000_000, None, "B") == "2.5 GB"


def test_rates_and_times_left_are_short() -> None:
    assert speed(None, None) == ""
    assert speed(12_300_000, None) == "12.3 MB/s"
    assert speed(12_300_000, 65.2) == "12.3 MB/s, 1:05 left"
    assert speed(1, 3 * 3600 + 61) == "1 B/s, 3:01:01 left"


def test_events_and_bars_tell_how_fast_it_is_and_how_long_it_will_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Terminal(mode="json").progress.task("Fetching", total=1000) as task:
        for _ in range(2):
            time.sleep(0.25)
            task.advance(100)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    [*_, told] = [event for event in events if event["event"] == "advance"]
    assert 0 < told["rate"] <= 400
    assert told["left"] == pytest.approx(800 / told["rate"], rel=0.1)
    program = (
        "from cpack_build.cli.terminal import Terminal\n"
        "import time\n"
        "with Terminal().progress.task('title', total=10_000_000) as task:\n"
        "    time.sleep(0.3); task.advance(4_000_000); time.sleep(0.3); task.advance(1)\n"
    )
    shown = _on_a_terminal([sys.executable, "-c", program])
    assert re.search(r"[0-9.]+ MB/s, 0:0[0-9] left", shown)


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("Grüße\n\x1b]0;title\x07\u202e") == "Grüße\n\\x1b]0;title\\x07\\u202e"


def test_json_is_one_object_and_nothing_else(call: Caller, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "x.cpack.zip", snapshot_document=snapshot(pips={"a": "file:///tmp/a"}))
    done = call("inspect", pack, "--json", "-q")
    assert done.code == 0
    assert done.err == ""
    assert [item["name"] for item in done.document["interface"]["inputs"]] == ["photo"]
    assert done.document["snapshot"]["python"] == "3.11"
    assert call("version", "--json").document["version"]


def test_inspect_shows_what_a_pack_asks_for_even_if_it_cannot_be_served(call: Caller, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "x.cpack.zip")
    shown = call("inspect", pack).out
    for words in ("Python 3.11", "photo", "'example.png'", "some-node", "some-registry-node", "single.py", "908.3 kB"):
        assert words in shown
    make_pack(pack, workflow_api={"1": {"class_type": "LoadImage", "inputs": {}}})
    done = call("inspect", pack)
    assert done.code == 0
    assert "cannot be served" in done.out


def _on_a_terminal(command: list[str], **environment: str) -> str:
    """What *command* writes to stderr when that is a terminal."""
    ours, theirs = pty.openpty()
    try:
        kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "CI")}
        subprocess.run(
            command,
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=60,
            env=kept | {"TERM": "xterm-256color", "COLUMNS": "200"} | environment,
        )
        os.close(theirs)
        theirs = -1
        shown = io.BytesIO()
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # Linux says EIO when the other end is closed.
                break
            if not chunk:
                break
            shown.write(chunk)
        return shown.getvalue().decode()
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
