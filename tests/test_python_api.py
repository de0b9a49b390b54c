"""The page on the Python API is true: its examples run, in order, and its schemas are those of the program.

An example below the line ``<!-- not run: why -->`` is passed over.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cpack_build.cli.schema import schema_of
from tests.cpack.packs import COMMIT, make_pack
from tests.workspace.installs import WORKFLOW, make_install

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_pack(tmp_path / "upscale.cpack.zip")
    make_install(tmp_path / "ComfyUI")
    (tmp_path / "upscale_api.json").write_text(json.dumps(WORKFLOW))
    git_nodes = {"https://hub.example/a/b": {"hash": COMMIT, "disabled": False}}
    (tmp_path / "snapshot.json").write_text(json.dumps({"comfyui": COMMIT, "git_custom_nodes": git_nodes}))
    text = (DOCS / "python-api.md").read_text()
    examples = re.findall(r"(?<!-->\n)^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 7
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/python-api.md", "exec"), names)


@pytest.mark.parametrize("name", ["pack", "lock", "config"])
def test_the_published_schema_is_that_of_the_program(name: str) -> None:
    """`make docs` writes them."""
    file = {"pack": "cpack.zip", "lock": "cpack.lock", "config": "cpack.yaml"}[name]
    assert json.loads((DOCS / f"{file}.schema.json").read_text()) == schema_of(name)
