"""What the tests of this room share: a store, and a uv that knows nothing of this machine's indexes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plain_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv without the user's configuration, and with a cache of its own."""
    for key in [key for key in os.environ if key.startswith("UV_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
