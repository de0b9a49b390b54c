"""A real Debian as a base image: made by debootstrap, with apt and dpkg and without a Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cpack_build.oci.layout import write_layout
from cpack_build.oci.types import LAYER, BytesBlob, Image
from tests import need
from tests.oci.images import image_of

__all__ = ["make_debian"]

SUITE = "bookworm"


def make_debian(layout: Path) -> Image:
    """An image of the least Debian 12 that has apt, written to *layout*; a minute's work."""
    root = layout.with_name(f"{layout.name}-root")
    command = [
        need.tool("debootstrap"), "--variant=minbase", "--include=ca-certificates", SUITE, str(root),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["rm", "-rf", root / "var/cache/apt", root / "var/lib/apt/lists"], check=True)
    tar = ["tar", "--create", "--numeric-owner", "--sort=name", "--exclude=./dev/*", "-C", str(root), "."]
    made = subprocess.run(tar, check=True, capture_output=True).stdout
    subprocess.run(["rm", "-rf", root], check=True)
    image = image_of([BytesBlob(LAYER, made)], config={"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "BASE=debian"]})
    write_layout(image, layout, tag="base")
    return image
