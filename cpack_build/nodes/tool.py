"""The command-line tool: finding it, and running it as a process of its own with an environment of its own.

ComfyUI's environment need not have it: it may be named by ``CPACK_BUILD``, lie in the ``.venv`` of this clone, beside
ComfyUI's Python or on ``PATH``. It is asked for its version once, in a thread. Each run reports its progress as JSON
lines and its result as one object; :class:`Process` reads both, and ends the whole process group when it is cancelled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Failed, Stopped
from .piecewise import read

__all__ = ["HOW_TO_GET", "Found", "Process", "Tool", "command_of", "redact"]

HOW_TO_GET = (
    "In a terminal: python3 -m venv ~/cpack && ~/cpack/bin/pip install 'cpack-build[serve]', then start ComfyUI with "
    "CPACK_BUILD=~/cpack/bin/cpack-build. In a clone of the repository, `make setup` is enough."
)
_LEASH = Path(__file__).with_name("leash.py")
_VERSION_SECONDS = 120
_AGAIN_AFTER = 10.0
"""Seconds after which a tool that was not there is looked for once more."""
_RESULT_LIMIT = 64 << 20
_LINE_LIMIT = 4000
_LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""What ComfyUI's Python is told and the tool's must not be."""
_SECRETS = (
    (re.compile(r"(?i)(https?://)[^/\s?#'\"<>]+@"), r"\1…@"),
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), r"\1…@"),
    (re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token)\s+)[^\s'\"]+"), r"\1…"),
    (re.compile(r"(?i)((?:token|secret|password|api[_-]?key)['\"]?\s*[:=]\s*['\"]?)[^\s'\",&]{6,}"), r"\1…"),
)


@dataclass(frozen=True)
class Found:
    """A tool that answered: its program, and its version."""

    path: str
    version: str


class Tool:
    """Where the command-line tool is; *root* is the plugin's own folder."""

    def __init__(self, root: Path, environ: Mapping[str, str] | None = None) -> None:
        self._root = root
        self._environ = os.environ if environ is None else environ
        self._lock = threading.Lock()
        self._found: Found | None = None
        self._looked = 0.0
        self._looking: threading.Thread | None = None
        self.problem = ""
        """Why the one that was named does not answer."""

    def look(self) -> None:
        """Look for it in a thread, unless it is known, is being looked for, or was just looked for in vain."""
        with self._lock:
            recent = self._looked and time.monotonic() - self._looked < _AGAIN_AFTER
            if self._found is not None or recent or (self._looking is not None and self._looking.is_alive()):
                return
            self._looking = threading.Thread(target=self._look, name="cpack-tool", daemon=True)
            self._looking.start()

    @property
    def found(self) -> Found | None:
        """The tool, if it is known by now."""
        return self._found

    @property
    def is_looking(self) -> bool:
        """Whether it is being asked at this moment."""
        return self._looking is not None and self._looking.is_alive()

    def require(self) -> Found:
        """The tool; waits until it is known. Raises :class:`Failed`. Not for ComfyUI's own thread."""
        self.look()
        if (looking := self._looking) is not None:
            looking.join(_VERSION_SECONDS)
        if self._found is None:
            raise Failed("tool_missing", self.problem or "The cpack-build program is not here.", next=HOW_TO_GET)
        return self._found

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a run."""
        kept = {name: value for name, value in self._environ.items() if name not in _LEFT_OUT}
        if not kept.get("CPACK_REGISTRY"):  # the registry would be whichever a page names
            for name in ("CPACK_REGISTRY_USER", "CPACK_REGISTRY_PASSWORD"):
                kept.pop(name, None)
        return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", **more}

    def _look(self) -> None:
        try:
            for path in _candidates(self._root, self._environ):
                try:
                    done = subprocess.run(
                        [path, "version", "--json"], env=self.environment(), capture_output=True,
                        stdin=subprocess.DEVNULL, timeout=_VERSION_SECONDS, check=True,
                    )  # fmt: skip
                    version = json.loads(done.stdout)["version"]
                except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
                    self.problem = f"{path} does not answer as cpack-build: {type(error).__name__}."
                    continue
                self._found = Found(path, str(version))
                self.problem = ""
                return
        finally:
            self._looked = time.monotonic()


def _candidates(root: Path, environ: Mapping[str, str]) -> Iterator[str]:
    """Programs that may be it, the likeliest first; where one was named, that alone."""
    if named := environ.get("CPACK_BUILD"):
        yield os.path.expanduser(named)
        return
    with suppress(OSError, UnicodeDecodeError):  # what `cpack-build plugin install` wrote there
        recorded = (root / ".cpack-tool").read_text(encoding="utf-8").strip()
        if os.path.isfile(recorded):
            yield recorded
    for program in (root / ".venv" / "bin" / "cpack-build", Path(sys.executable).with_name("cpack-build")):
        if program.is_file():
            yield str(program)
    if (on_path := shutil.which("cpack-build", path=environ.get("PATH"))) is not None:
        yield on_path


def command_of(found: Found, *arguments: object) -> list[str]:
    """The words of one run that reports as JSON."""
    return [found.path, *map(str, arguments), "--json", "--progress", "json"]


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """*text* without *secrets*, passwords in URLs, and what is called a token."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class Process:
    """One command on a leash: it ends when it is cancelled, and when this Python ends, however that happens."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path | None = None,
        is_service: bool = False,
    ) -> None:
        self.is_cancelled = False
        self._is_service = is_service
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LEASH), *command],
            env=dict(environment), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if is_service else subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.pid = self._popen.pid

    def cancel(self) -> None:
        """Ask it to end, as Ctrl-C does; it is told and killed when it does not."""
        self.is_cancelled = True
        with suppress(OSError, ValueError):
            assert self._popen.stdin is not None
            self._popen.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)

    def run(self, on_line: Callable[[str], None]) -> tuple[int, bytes]:
        """Its exit code and what it wrote to stdout; each line of stderr goes to *on_line* as it comes. Of a service
        both are its log."""
        assert self._popen.stdout is not None
        if self._is_service:
            for line in _lines(self._popen.stdout):
                on_line(line)
            code = self._popen.wait()
            self.cancel_quietly()
            return code, b""
        assert self._popen.stderr is not None
        out = bytearray()
        stdout = self._popen.stdout

        def read() -> None:
            while chunk := stdout.read1(1 << 16):  # type: ignore[attr-defined]
                if len(out) <= _RESULT_LIMIT:
                    out.extend(chunk)

        reader = threading.Thread(target=read, name="cpack-stdout", daemon=True)
        reader.start()
        for line in _lines(self._popen.stderr):
            on_line(line)
        reader.join()
        code = self._popen.wait()
        self.cancel_quietly()
        if len(out) > _RESULT_LIMIT:
            raise Failed("too_much", "The tool answered with more than can be read.")
        return code, bytes(out)

    def cancel_quietly(self) -> None:
        """Close what is left of it."""
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def result(self, on_line: Callable[[str], None]) -> dict[str, Any]:
        """The object that it printed. Raises :class:`Failed` with its own error, :class:`Stopped`."""
        code, out = self.run(on_line)
        try:
            document = read((out or b"{}").decode())
        except ValueError:
            document = {}
        if self.is_cancelled and code:
            raise Stopped
        if isinstance(document, dict) and "error" in document:
            raise Failed.told(document["error"])
        if not isinstance(document, dict) or not document:
            raise Failed("no_result", f"The tool ended with exit code {code} and no result.", next="See the log.")
        return document


def _lines(stream: Any) -> Iterator[str]:
    """The lines of *stream*, each cut to a length that can be shown."""
    while line := stream.readline(1 << 20):
        yield line.decode("utf-8", "replace").rstrip("\r\n")[:_LINE_LIMIT]
