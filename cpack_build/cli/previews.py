"""Pictures in the terminal while a workflow runs, where the terminal says that it can show them.

kitty's graphics protocol takes PNG, iTerm2's inline images take any format; who announces neither is sent nothing. The
picture's bytes travel in base64, so nothing in them is obeyed by the terminal. ComfyUI's previews are JPEG as a rule,
which for kitty is made PNG by Pillow; without Pillow kitty is shown PNG alone.

Protocols: sw.kovidgoyal.net/kitty/graphics-protocol ("Remote client"), iterm2.com/documentation-images.html.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping
from typing import Literal

__all__ = ["Graphics", "Previews", "escape", "graphics_of"]

Graphics = Literal["kitty", "iterm2"]
_ROWS = 10
"""Lines of the terminal that a preview is high."""
_PIECE = 4096
"""Bytes of base64 in one escape of kitty's (its protocol's limit)."""
_EVERY = 2.0
"""Seconds between two previews: each is a picture that scrolls by, not a film."""
_LARGEST = 4 << 20
_SIDE = 512
_PNG = b"\x89PNG\r\n\x1a\n"


def graphics_of(environment: Mapping[str, str], *, is_terminal: bool) -> Graphics | None:
    """How the terminal that *environment* tells of shows pictures, if it does; within tmux or screen it does not."""
    term = environment.get("TERM", "")
    if not is_terminal or environment.get("TMUX") or term.startswith(("screen", "tmux", "dumb")):
        return None
    if term == "xterm-kitty" or environment.get("KITTY_WINDOW_ID"):
        return "kitty"
    return "iterm2" if environment.get("TERM_PROGRAM") == "iTerm.app" else None


def escape(picture: bytes, graphics: Graphics) -> str | None:
    """What shows *picture* (JPEG or PNG) at the cursor, or ``None`` for one that cannot be shown."""
    if not 0 < len(picture) <= _LARGEST:
        return None
    if graphics == "iterm2":
        data = base64.b64encode(picture).decode("ascii")
        return f"\x1b]1337;File=inline=1;size={len(picture)};height={_ROWS};preserveAspectRatio=1:{data}\x07"
    if not picture.startswith(_PNG) and (picture := _as_png(picture)) == b"":
        return None
    data = base64.b64encode(picture).decode("ascii")
    pieces = [data[place : place + _PIECE] for place in range(0, len(data), _PIECE)]
    written = []
    for number, piece in enumerate(pieces):
        # a: show at once; f: PNG; q: no answer, which nobody would read; r: lines; m: whether more follows
        first = f"a=T,f=100,q=2,r={_ROWS}," if number == 0 else ""
        written.append(f"\x1b_G{first}m={int(number < len(pieces) - 1)};{piece}\x1b\\")
    return "".join(written)


class Previews:
    """Shows what it is given by *show*, as often as an eye can follow."""

    def __init__(
        self, graphics: Graphics, show: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._graphics = graphics
        self._show = show
        self._clock = clock
        self._shown = -_EVERY

    def __call__(self, picture: bytes) -> None:
        if self._clock() - self._shown < _EVERY:
            return
        if (text := escape(picture, self._graphics)) is not None:
            self._shown = self._clock()
            self._show(text)


def _as_png(picture: bytes) -> bytes:
    """*picture* as a PNG of at most 512 pixels a side; nothing where it is none, or Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        return b""
    made = io.BytesIO()
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "WEBP")) as image:
            if max(image.size) > 8192:
                return b""
            image.thumbnail((_SIDE, _SIDE))
            image.convert("RGB").save(made, format="PNG")
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for what is no picture
        return b""
    return made.getvalue()
