"""A home for BentoML in this process: it remembers its folders from when it is first asked, so it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def bento_home(home: Path) -> Iterator[Path]:
    """BentoML's home at *home*, where nobody is told of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(home))
        patch.setenv("BENTOML_DO_NOT_TRACK", "True")
        places = _places(home)
        before = {name: _provider(name)._override for name in places}
        for name, value in places.items():
            _provider(name).set(value)
        try:
            yield home
        finally:
            for name, value in before.items():
                _provider(name)._override = value


def _places(home: Path) -> dict[str, Any]:
    from bentoml._internal.bento import BentoStore
    from bentoml._internal.models import ModelStore

    for folder in ("bentos", "models", "tmp"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    return {
        "bentoml_home": str(home),
        "bento_store_dir": str(home / "bentos"),
        "model_store_dir": str(home / "models"),
        "tmp_bento_store_dir": str(home / "tmp"),
        "bento_store": BentoStore(home / "bentos"),
        "model_store": ModelStore(home / "models"),
        "cloud_config": home / ".yatai.yaml",
    }


def _provider(name: str) -> Any:
    from bentoml._internal.configuration.containers import BentoMLContainer

    return getattr(BentoMLContainer, name)
