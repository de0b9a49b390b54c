"""What the command line's tests share: a caller, and a store of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import Caller


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    """Runs a command line with an empty store."""
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    before = signal.getsignal(signal.SIGTERM)
    yield Caller(capsys)
    signal.signal(signal.SIGTERM, before)
