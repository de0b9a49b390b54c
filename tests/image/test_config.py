"""The config of an image: ours over the base's, whatever the base's says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cpack_build.image.config import image_config
from tests.image.test_gather import lock


def config(base: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(image_config(lock(), history=["a"], diff_ids=[], base=base).data)
    return found


def test_the_bases_environment_stays_below_ours() -> None:
    found = config({"config": {"Env": ["PATH=/base/bin", "KEPT=a=b", "HOME=/root"]}, "history": [{"created_by": "x"}]})
    environment = dict(item.split("=", 1) for item in found["config"]["Env"])
    assert environment["PATH"] == "/opt/comfyui/bin:/base/bin"
    assert environment["KEPT"] == "a=b"
    assert environment["HOME"] == "/data"
    assert [line["created_by"] for line in found["history"]] == ["x", "cpack-build: a"]


@pytest.mark.parametrize(
    "base", [{"config": None}, {"config": 3}, {"config": {"Env": 3}}, {"config": {"Env": [3, None]}}, {"history": 3}]
)
def test_a_base_that_leaves_out_or_garbles_what_is_optional_is_no_trouble(base: dict[str, Any]) -> None:
    """image-spec, config.md: config and history are optional, and null is what some tools write for empty."""
    assert config(base) == config(None)
