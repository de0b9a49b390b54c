"""The main job with real parts only: a pack written by comfy-pack, real ComfyUI with CPU torch, a real Docker.

It runs where three variables name what cannot be installed from a registry: ``CPACK_TEST_COMFYUI`` a git checkout of
ComfyUI, ``CPACK_TEST_COMFY_PACK`` one of comfy-pack (the pack's nodes), ``CPACK_TEST_FIND_LINKS`` a folder with a CPU
wheel of torch. ``-s`` shows how long each step took.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

from tests.asking import ask_comfyui, ask_service, pixels, png, until_ready
from tests.engines import Docker
from tests.making import make_wheel
from tests.test_first_light import COMFYUI_ALONE, cpack_build, running

pytestmark = [pytest.mark.comfyui, pytest.mark.docker, pytest.mark.network, pytest.mark.xdist_group("engines")]

FIXTURES = Path(__file__).resolve().parents[2] / "shared/fixtures"
FIXTURE_COMMIT = "a125cd84b054a57729b5eecab930ca9408719832"
TORCHVISION_SCHEMA = b'''"""Registers torchvision's operators where they cannot be loaded: beside a CPU torch."""
import importlib.abc, sys

class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            global library
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None

sys.meta_path.insert(0, _Finder())
'''


def _named(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"needs {variable}")
    return Path(os.environ[variable])


@pytest.fixture
def fixture_pack(tmp_path: Path) -> Path:
    """comfy-pack's own pack, at the commit that the checkout has."""
    checkout = _named("CPACK_TEST_COMFYUI")
    if not FIXTURES.is_dir():
        pytest.skip("needs ../shared/fixtures")
    commit = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    pack = tmp_path / "upscale.cpack.zip"
    with zipfile.ZipFile(FIXTURES / "upscale.cpack.zip") as source, zipfile.ZipFile(pack, "w") as target:
        for info in source.infolist():
            target.writestr(info, source.read(info).replace(FIXTURE_COMMIT.encode(), commit.encode()))
    return pack


def test_the_fixture_pack_answers_with_real_comfyui_s_own_pixels(
    fixture_pack: Path, docker: Docker, tmp_path: Path
) -> None:
    wheel = make_wheel(
        tmp_path / "wheels",
        "cpack_test_torchvision_schema",
        {
            "cpack_test_torchvision_schema.py": TORCHVISION_SCHEMA,
            "cpack_test_torchvision_schema.pth": b"import cpack_test_torchvision_schema\n",
        },
    )
    flags = [
        "--find-links", _named("CPACK_TEST_FIND_LINKS"), "--find-links", wheel.path.parent,
        "--python-package", "cpack-test-torchvision-schema", "--exclude-node", "ComfyUI-Manager",
        "--models", FIXTURES,
        "--mirror", f"https://github.com/Comfy-Org/ComfyUI={_named('CPACK_TEST_COMFYUI')}",
        "--mirror", f"https://github.com/bentoml/comfy-pack={_named('CPACK_TEST_COMFY_PACK')}",
    ]  # fmt: skip
    environment = {"CPACK_HOME": os.environ.get("CPACK_TEST_HOME", str(tmp_path / "store")), **docker.environment}
    steps = [("start", time.monotonic())]

    def step(name: str) -> None:
        steps.append((name, time.monotonic()))

    locked = cpack_build("lock", fixture_pack, *flags, environment=environment)
    step("lock")
    result = cpack_build(
        "image", fixture_pack, "-t", "upscale:1", "--locked", "--output", "docker", *flags, environment=environment
    )
    step("image, built and loaded into Docker")
    with zipfile.ZipFile(fixture_pack) as archive:
        prompt = json.loads(archive.read("workflow_api.json"))
    picture = png(96, 64)
    with running(docker, "upscale:1") as (url, _):
        until_ready(f"{url}/readyz", seconds=180)
        step("docker run until ready")
        body, media_type = ask_service(url, accept="image/png", photo=picture, size=48)
        step("/generate")
        assert media_type == "image/png"
        answered = pixels(body)
        everything, media_type = ask_service(url, photo=picture, size=48, caption="hallo")
        assert media_type == "application/zip"
        names = _names(everything)
    assert answered[0] == (192, 192)
    assert names == {"picture.png", "note.txt", "copied.txt"}

    prompt["4"]["inputs"]["value"] = 48
    # comfy-pack's nodes run pip whenever they are loaded; the service keeps it from doing anything, and so does this.
    frozen = f"PYTHONPATH=/opt/cpack/lib/python{locked['python']}/site-packages/cpack_build/serve/frozen"
    alone = ("--entrypoint", "/opt/comfyui/bin/python", "--env", frozen)
    with running(docker, "upscale:1", *alone, command=tuple(COMFYUI_ALONE)) as (url, _):
        until_ready(f"{url}/system_stats", seconds=180)
        del prompt["9"], prompt["12"], prompt["8"], prompt["10"]
        assert pixels(ask_comfyui(url, prompt, "7", picture=picture, into="1")) == answered
    print(f"\nimage {result['image_id']}: {result['size'] / 1e6:.0f} MB in {result['layers']} layers")
    for (_, before), (name, after) in pairwise(steps):
        print(f"{after - before:7.1f} s  {name}")


def _names(data: bytes) -> set[str]:
    import io

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return set(archive.namelist())
