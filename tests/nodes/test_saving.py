"""A pack that is kept where its user finds it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cpack_build.nodes.errors import Failed
from cpack_build.nodes.packing import save

LONGEST = "漢" * 81 + "xy.cpack.zip"


@pytest.mark.parametrize("links", [True, False])
def test_it_replaces_nothing_whatever_the_file_system(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    plugin: Any = SimpleNamespace(comfyui=SimpleNamespace(saved=tmp_path / "output/cpack"))
    file = tmp_path / "made"
    file.write_bytes(b"first")
    assert len(LONGEST.encode()) == 255
    assert save(plugin, file, LONGEST) == f"cpack/{LONGEST}"
    file.write_bytes(b"second")
    with pytest.raises(Failed, match="is there already"):
        save(plugin, file, LONGEST)
    file.unlink()
    with pytest.raises(Failed, match="cannot be saved"):
        save(plugin, file, "other")
    (kept,) = plugin.comfyui.saved.iterdir()
    assert (kept.name, kept.read_bytes()) == (LONGEST, b"first")
