"""ComfyUI's event loop goes on while the plugin works: pages and previews of others never stand still.

How long it is held is measured by ``make bench BENCH=plugin``, on a machine that does nothing else; here a hold that no
load explains (half a second: a file hashed, a workflow parsed, a program waited for) fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.nodes.routing import ROOT, Comfyui, make_comfyui, running, workflow

LARGE = "models/upscale_models/large.safetensors"
_NEVER = 0.5


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("probed")
    root = make_comfyui(folder / "ComfyUI")
    shutil.copy(ROOT / "tests/nodes/loopprobe.py", root / "custom_nodes")
    for number in range(2000):
        (root / f"models/loras/{number}.safetensors").write_bytes(b"x")
    with (root / LARGE).open("wb") as file:
        file.truncate(1 << 30)
    with running(folder, install=root) as comfyui:
        comfyui.get("/probe")
        yield comfyui


def _large(comfyui: Comfyui) -> None:
    large = workflow()
    large["2"]["_meta"] = {"title": "x" * (32 << 20)}
    comfyui.done("pack", name="large", prompt=large, include_local=True)


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda one: one.post("/cpack/inventory", {"prompt": workflow()}), id="inventory"),
        pytest.param(
            lambda one: one.done("pack", name="x", prompt=workflow(), models=[LARGE], include_local=True), id="hashing"
        ),
        pytest.param(_large, id="large-workflow"),
    ],
)
def test_it_is_not_held(probed: Comfyui, work: Callable[[Comfyui], object]) -> None:
    probed.get("/probe")
    work(probed)
    found = probed.get("/probe").json()
    print(f"\nheld for {found['longest'] * 1000:.1f} ms at most, in {found['looks']} looks")
    assert found["looks"] > 10
    assert found["longest"] < _NEVER
