"""Real ComfyUI, both ways round: a workspace that becomes a pack, an image, and a workspace on an empty machine; and a
pack written by comfy-pack, with ComfyUI's real repository as a mirror. Each gives the same pixels everywhere.

It runs where the variables of :mod:`tests.test_real_comfyui` name what cannot be installed from a registry, and
``CPACK_TEST_COMFYUI_PYTHON`` the Python of a whole ComfyUI.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

import cpack_build.serve.frozen
from tests.asking import pixels, png
from tests.engines import Registry
from tests.fetch.repositories import git
from tests.making import make_wheel
from tests.restore.test_end_to_end import cpack_build as cpack
from tests.restore.test_end_to_end import nothing_in_reach, started
from tests.test_real_comfyui import FIXTURES, TORCHVISION_SCHEMA, _named, fixture_pack

pytestmark = [pytest.mark.comfyui, pytest.mark.network]
__all__ = ["fixture_pack"]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """What says where the things are that no registry has."""
    wheel = make_wheel(
        tmp_path / "wheels",
        "cpack_test_torchvision_schema",
        {
            "cpack_test_torchvision_schema.py": TORCHVISION_SCHEMA,
            "cpack_test_torchvision_schema.pth": b"import cpack_test_torchvision_schema\n",
        },
    )
    settings = tmp_path / "real.yaml"
    settings.write_text(
        json.dumps(
            {
                "system": {"defaults": "none"},
                "nodes": {"exclude": ["ComfyUI-Manager"]},
                "models": [str(FIXTURES)],
                "python": {
                    "find_links": [str(_named("CPACK_TEST_FIND_LINKS")), str(wheel.path.parent)],
                    "packages": ["cpack-test-torchvision-schema"],
                },
                "mirrors": {
                    "https://github.com/Comfy-Org/ComfyUI": str(_named("CPACK_TEST_COMFYUI")),
                    "https://github.com/bentoml/comfy-pack": str(_named("CPACK_TEST_COMFY_PACK")),
                },
            }
        )
    )
    return settings


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The machine that packs and builds."""
    return {"CPACK_HOME": os.environ.get("CPACK_TEST_HOME", str(tmp_path / "store"))}


def test_a_real_workspace_comes_back_from_a_registry_and_from_a_docker_archive(
    fixture_pack: Path, settings: Path, machine: dict[str, str], registry: Registry, home: Path, tmp_path: Path
) -> None:
    home.mkdir()  # BentoML, which comfy-pack's nodes import, wants a home that is there
    root, pack = tmp_path / "workspace", tmp_path / "real.cpack.zip"
    for variable, place, url in (
        ("CPACK_TEST_COMFYUI", root, "https://github.com/comfyanonymous/ComfyUI.git"),
        ("CPACK_TEST_COMFY_PACK", root / "custom_nodes/comfy-pack", "https://github.com/bentoml/comfy-pack.git"),
    ):
        git(tmp_path, "clone", "--quiet", str(_named(variable)), str(place))
        git(place, "remote", "set-url", "origin", url)
    shutil.copy(FIXTURES / "tiny_esrgan_4x.safetensors", root / "models/upscale_models")
    (root / ".venv").symlink_to(_named("CPACK_TEST_COMFYUI_PYTHON").parents[1])
    workflow = tmp_path / "upscale.json"
    with zipfile.ZipFile(fixture_pack) as packed:
        for name in packed.namelist():
            if name.startswith("input/"):
                packed.extract(name, root)
        workflow.write_bytes(packed.read("workflow_api.json"))
    picture = png(96, 64)
    expected = made_by(root, workflow, picture)
    assert expected[0] == (192, 192)

    cpack("pack", root, "-w", workflow, "-o", pack, "--offline", **machine)
    archive, layout = f"docker-archive:{tmp_path / 'real.tar'}", f"oci:{tmp_path / 'real.oci'}"
    cpack("image", pack, "--config", settings, "--output", layout, **machine)
    reference = f"{registry.host}/team/real:1"
    cpack("push", layout, reference, **machine)
    cpack("image", pack, "--config", settings, "--locked", "--output", archive, **machine)
    shutil.rmtree(tmp_path / "real.oci")

    for number, source in enumerate((reference, archive)):
        environment, place = nothing_in_reach(tmp_path / f"home-{number}"), tmp_path / f"restored-{number}"
        done = cpack("restore", source, "-d", place, **environment)
        assert {part["origin"] for part in done["parts"] if part["kind"] in ("comfyui", "node")} == {"image"}
        assert cpack("restore", "--verify", place, **environment)["same"]
        assert made_by(place, workflow, picture) == expected
        shutil.rmtree(place)
        shutil.rmtree(environment["HOME"])


def made_by(root: Path, workflow: Path, picture: bytes) -> tuple[tuple[int, int], bytes]:
    """The pixels of the fixture's workflow, with 48 for the size, by the ComfyUI in *root*."""
    prompt: dict[str, Any] = json.loads(workflow.read_bytes())
    prompt["4"]["inputs"]["value"] = 48
    del prompt["9"], prompt["12"], prompt["8"], prompt["10"]
    # comfy-pack's nodes run pip whenever they are loaded; the service keeps it from doing anything, and so does this.
    frozen = {"PYTHONPATH": str(next(iter(cpack_build.serve.frozen.__path__)))}
    return started(root, picture, workflow=prompt, output="7", into="1", environment=frozen)


def test_comfy_pack_s_pack_gives_the_same_pixels_from_the_pack_and_from_its_image(
    fixture_pack: Path, settings: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(96, 64))
    values = ["--photo", photo, "--size", 48]
    first = cpack("run", fixture_pack, *values, "--config", settings, "-o", tmp_path / "a", **machine)
    layout = tmp_path / "real.oci"
    cpack("image", fixture_pack, "--config", settings, "--output", f"oci:{layout}", **machine)
    environment = nothing_in_reach(tmp_path / "home")
    second = cpack("run", f"oci:{layout}", *values, "-o", tmp_path / "b", "--offline", **environment)
    assert [Path(path).name for path in first["files"]] == [Path(path).name for path in second["files"]]
    expected = pixels((tmp_path / "a/picture.png").read_bytes())
    assert expected[0] == (192, 192)
    assert pixels((tmp_path / "b/picture.png").read_bytes()) == expected
    assert cpack("restore", "--verify", second["workspace"], **environment)["same"]
