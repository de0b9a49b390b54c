"""A pack written by comfy-pack, with ComfyUI's real repository as a mirror: restored, run, put into an image, and
restored from that image alone on an empty machine, where it gives the same pixels.

It runs where the variables of :mod:`tests.test_real_comfyui` name what cannot be installed from a registry.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.asking import pixels, png
from tests.making import make_wheel
from tests.restore.test_end_to_end import cpack_build, nothing_in_reach
from tests.test_real_comfyui import FIXTURES, TORCHVISION_SCHEMA, _named, fixture_pack

pytestmark = [pytest.mark.comfyui, pytest.mark.network]
__all__ = ["fixture_pack"]


def test_comfy_pack_s_pack_gives_the_same_pixels_from_the_pack_and_from_its_image(
    fixture_pack: Path, tmp_path: Path
) -> None:
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
                "system": {"packages": []},
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
    home = {"CPACK_HOME": os.environ.get("CPACK_TEST_HOME", str(tmp_path / "store"))}
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(96, 64))
    values = ["--photo", photo, "--size", 48]
    first = cpack_build("run", fixture_pack, *values, "--config", settings, "-o", tmp_path / "a", **home)
    layout = tmp_path / "real.oci"
    cpack_build("image", fixture_pack, "--config", settings, "--locked", "--output", f"oci:{layout}", **home)
    environment = nothing_in_reach(tmp_path / "home")
    second = cpack_build("run", f"oci:{layout}", *values, "-o", tmp_path / "b", "--offline", **environment)
    assert [Path(path).name for path in first["files"]] == [Path(path).name for path in second["files"]]
    expected = pixels((tmp_path / "a/picture.png").read_bytes())
    assert expected[0] == (192, 192)
    assert pixels((tmp_path / "b/picture.png").read_bytes()) == expected
    assert cpack_build("restore", "--verify", second["workspace"], **environment)["same"]
