"""One running ComfyUI with the plugin's routes, shared by the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nodes.routing import Comfyui, running


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfyui]:
    with running(tmp_path_factory.mktemp("comfyui")) as engine:
        yield engine
