"""Previews reach a terminal that can show pictures, whole and in its own protocol, and no other."""

from __future__ import annotations

import base64
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cpack_build.cli.previews import Graphics, Previews, escape, graphics_of
from cpack_build.cli.running import _watcher

_KITTY = re.compile(r"\x1b_G([^;\x1b]*);([A-Za-z0-9+/=]*)\x1b\\")


def picture(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    made = io.BytesIO()
    Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1])).save(made, format=kind)
    return made.getvalue()


@pytest.mark.parametrize(
    ("environment", "graphics"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-256color", "TMUX": "/tmp/x,1,0", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, None),
        ({}, None),
    ],
)
def test_only_what_the_terminal_announces_is_used(environment: dict[str, str], graphics: Graphics | None) -> None:
    assert graphics_of(environment, is_terminal=True) == graphics
    assert graphics_of(environment, is_terminal=False) is None


def test_iterm2_is_sent_the_picture_as_it_is() -> None:
    data = picture("JPEG")
    found = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", escape(data, "iterm2") or "")
    assert found is not None
    assert base64.b64decode(found[2]) == data
    told = dict(item.split("=") for item in found[1].split(";"))
    assert (told["inline"], told["size"]) == ("1", str(len(data)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_kitty_is_sent_a_png_in_pieces_that_it_takes(kind: str) -> None:
    data = picture(kind)
    text = escape(data, "kitty") or ""
    pieces = _KITTY.findall(text)
    assert "".join(f"\x1b_G{keys};{piece}\x1b\\" for keys, piece in pieces) == text, "and nothing between"
    assert len(pieces) > 1
    assert all(len(piece) <= 4096 and len(piece) % 4 == 0 for _, piece in pieces)
    first = dict(item.split("=") for item in pieces[0][0].split(","))
    assert (first["a"], first["f"], first["q"]) == ("T", "100", "2")
    assert [keys[-3:] for keys, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
    sent = base64.b64decode("".join(piece for _, piece in pieces))
    assert sent == data or kind == "JPEG"
    shown = Image.open(io.BytesIO(sent))
    assert (shown.format, shown.size) == ("PNG", (64, 48))


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff broken", b"x" * (5 << 20)])
def test_what_is_no_picture_is_not_sent_to_kitty(data: bytes) -> None:
    assert escape(data, "kitty") is None


def test_nothing_in_a_picture_is_obeyed() -> None:
    text = escape(b"\x89PNG\r\n\x1a\n\x1b[2J\x07\x1b\\", "kitty") or ""
    assert _KITTY.fullmatch(text)
    text = escape(b"\x1b[2J\x07", "iterm2") or ""
    assert text.count("\x1b") == text.count("\x07") == 1


def test_no_more_are_shown_than_an_eye_can_follow() -> None:
    now, shown = [0.0], list[str]()
    previews = Previews("iterm2", shown.append, clock=lambda: now[0])
    for second in (0.0, 0.5, 1.9, 2.1, 3.0, 9.0):
        now[0] = second
        previews(picture("PNG", (2, 2)))
    assert len(shown) == 3


def test_a_run_s_previews_are_shown_and_counted_as_no_node() -> None:
    shown, counted = list[bytes](), list[int]()

    class Counting:
        def advance(self, amount: int) -> None:
            counted.append(amount)

        def expect(self, total: int) -> None:
            raise AssertionError

    watch = _watcher(Counting(), shown.append)
    watch("node", {"node": "1"})
    watch("preview", {"media_type": "image/jpeg", "data": b"jpeg"})
    watch("step", {"node": "1", "step": 1, "steps": 2})
    assert (shown, sum(counted)) == ([b"jpeg"], 1)


def test_a_picture_passes_the_bars_unharmed(tmp_path: Path) -> None:
    """On a real terminal, while bars are drawn; and without one nothing comes."""
    data = picture("PNG", (200, 60))
    (tmp_path / "x.png").write_bytes(data)
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from cpack_build.cli.running import _previews\n"
        "from cpack_build.cli.terminal import Terminal\n"
        "terminal = Terminal()\n"
        "with terminal.progress.task('Running', total=3, unit='nodes') as task:\n"
        "    task.advance(1)\n"
        "    _previews(terminal)(Path(sys.argv[1]).read_bytes())\n"
        "    task.advance(1)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.png")]
    environment = {**os.environ, "TERM": "xterm-kitty"}
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        received = b""
        try:
            while chunk := os.read(master, 1 << 16):
                received += chunk
        except OSError:
            pass  # a terminal that nobody writes to any more (EIO)
        finally:
            os.close(master)
    assert process.returncode == 0, received
    sent = b"".join(piece.encode() for _, piece in _KITTY.findall(received.decode()))
    assert base64.b64decode(sent) == data
    assert b"Running" in received
    piped = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert piped.stdout + piped.stderr == b""
