"""``make demo`` does what it says: a pack, an image, a picture in, a picture four times as large out."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests import need
from tests.fetch.servers import serving_files

ROOT = Path(__file__).resolve().parents[1]


def test_the_demo_asks_this_machine_without_a_proxy() -> None:
    program = "import demo, sys; demo.READY_SECONDS = 5; demo.wait_until_ready(sys.argv[1], lambda: True, str)"
    with serving_files({"/readyz": b""}) as server:
        done = subprocess.run(
            [sys.executable, "-c", program, server.url],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "examples"), "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert server.requests[0].path == "/readyz"


@pytest.mark.network
@pytest.mark.parametrize("engine", ["none"])
def test_the_demo_ends_with_a_picture(tmp_path: Path, engine: str) -> None:
    need.tool("unshare")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/demo.py"), "--engine", engine],
        env=os.environ | {"CPACK_DEMO": str(tmp_path / "demo")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = tmp_path / "demo" / "result.png"
    assert f"The picture that came back is {result}" in done.stdout
    assert struct.unpack(">II", result.read_bytes()[16:24]) == (640, 480)
    assert not (tmp_path / "demo" / "root").exists()
