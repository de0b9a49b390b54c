"""What a node's source could do is named with file and line, and nothing of it is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.risks import risks_of_models, risks_of_source, risks_of_tree
from cpack_build.lock.schema import Model
from tests.fetch.repositories import make_repository

URL = "https://code.example/node"


@pytest.mark.parametrize(
    ("source", "kind", "what"),
    [
        ("import os\nos.system('x')", "process", "os.system"),
        ("import subprocess as sp\nsp.run(['x'])", "process", "subprocess.run"),
        ("from subprocess import check_call as c\nc(['x'])", "process", "subprocess.check_call"),
        ("import os\nos.execvp('x', [])", "process", "os.execvp"),
        ("import requests\nrequests.get('x')", "network", "requests.get"),
        ("import urllib.request\nurllib.request.urlopen('x')", "network", "urllib.request.urlopen"),
        ("from huggingface_hub import hf_hub_download\nhf_hub_download('x')", "network",
         "huggingface_hub.hf_hub_download"),
        ("x = 1\neval('x')", "code", "eval"),
        ("import builtins\nbuiltins.exec('x')", "code", "exec"),
        ("import pickle\npickle.loads(b'')", "pickle", "pickle.loads"),
        ("import torch\ntorch.load('x')", "pickle", "torch.load without weights_only=True"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "pickle", "numpy.load with allow_pickle=True"),
    ],
)  # fmt: skip
def test_a_risky_call_is_named_with_its_line(source: str, kind: str, what: str) -> None:
    (risk,) = risks_of_source("node", "a.py", source.encode())
    assert (risk.path, risk.line, risk.kind, risk.what) == ("a.py", 2, kind, what)


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "model.eval()",
        "import torch\ntorch.load('x', weights_only=True)",
        "import os\nos.path.join('a', 'b')",
        "class A:\n    def exec(self): ...\nA().exec()",
        "# eval(x)\n'subprocess.run'",
    ],
)
def test_what_only_looks_alike_is_not_named(source: str) -> None:
    assert risks_of_source("node", "a.py", source.encode()) == []


@pytest.mark.parametrize("source", [b"def (", b"\0", b"(" * 100_000, b"# coding: nonsense\n"])
def test_source_that_cannot_be_parsed_is_named(source: bytes) -> None:
    (risk,) = risks_of_source("node", "a.py", source)
    assert risk.kind == "unreadable"


def test_a_tree_is_read_and_never_imported(tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    files = {
        "__init__.py": f"open({str(marker)!r}, 'w')\nimport os\nos.system('true')\n",
        "install.py": "",
        "prestartup_script.py": "",
        "sub/weights.pth": b"x",
        "README.md": "eval(x)",
    }
    commit = make_repository(tmp_path / "node", files)
    mirrors = Mirrors({URL: str(tmp_path / "node")})
    found = risks_of_tree("node", fetch_tree(URL, commit, store=Store(tmp_path / "store"), mirrors=mirrors))
    assert [(risk.path, risk.line, risk.kind) for risk in found] == [
        ("__init__.py", 3, "process"),
        ("install.py", 0, "install"),
        ("prestartup_script.py", 0, "startup"),
        ("sub/weights.pth", 0, "pickle"),
    ]
    assert not marker.exists()


def test_models_that_may_run_code_are_named() -> None:
    def model(path: str) -> Model:
        return Model(path=path, sha256="0" * 64, size=1, layer_digest="sha256:" + "0" * 64, sources=())

    models = [model("models/a/x.safetensors"), model("models/a/y.CKPT")]
    assert [risk.path for risk in risks_of_models(one.path for one in models)] == ["models/a/y.CKPT"]
