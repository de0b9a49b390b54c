"""The engines that each serving test runs on, and one service for the tests that only ask it things."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.running import Engine, Service, real_comfyui, serving, standin, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything

_ENGINES = [pytest.param("standin", id="standin")]
if "CPACK_TEST_COMFYUI" in os.environ:
    _ENGINES.append(pytest.param("comfyui", id="comfyui", marks=pytest.mark.comfyui))


@pytest.fixture(scope="session", params=_ENGINES)
def engine(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The stand-in, and real ComfyUI where ``CPACK_TEST_COMFYUI`` names one."""
    folder = tmp_path_factory.mktemp("engine") / request.param
    return standin(folder) if request.param == "standin" else real_comfyui(folder)


@pytest.fixture(scope="session")
def service(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service of the workflow ``everything``, shared: tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("service")
    app = write_app(folder / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, folder, engine=engine) as running:
        yield running


@pytest.fixture
def own_standin(tmp_path: Any) -> Engine:
    """A stand-in of the test's own, to be ended and broken."""
    return standin(tmp_path / "comfyui")
