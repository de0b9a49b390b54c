"""The command line as a test calls it: in this process, with what it wrote and its exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from cpack_build.cli import run


@dataclass(frozen=True)
class Outcome:
    """One run of the command line."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


class Caller:
    """Runs command lines and captures what they write."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)
