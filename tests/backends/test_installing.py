"""``install.py`` of a trusted node runs on the builder once; the lock pins what it changed, or refuses it by name."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cpack_build.cpack.writer import write_pack
from tests.backends.conftest import Built, Run, bake, root_in
from tests.engines import Docker
from tests.lock.indexes import Index
from tests.test_first_light import check_answers

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("builders")]

NODE = "grower"
GOOD = """
import os, pathlib, subprocess, sys
here = pathlib.Path(__file__).resolve().parent
(here / "data").mkdir()
(here / "data" / "weights.bin").write_bytes(b"w" * 1000)
(here / "t.c").write_text("int answer(void) { return 42; }\\n")
subprocess.check_call(["gcc", "-shared", "-fPIC", "-o", str(here / "t.so"), str(here / "t.c")])
os.symlink("data/weights.bin", here / "latest")
(here / ".git").mkdir()
(here / ".git" / "config").write_text("x")
(here / "gone.py").unlink()
models = pathlib.Path(os.environ["COMFYUI_PATH"]) / "models" / "loras"
models.mkdir(exist_ok=True)
(models / "fetched.safetensors").write_bytes(b"\\2\\0\\0\\0\\0\\0\\0\\0{}")
subprocess.check_call([sys.executable, "-m", "pip", "install", "growerlib"])
os.system("pip --version")
(pathlib.Path.home() / "note").write_text("x")
"""


def _pack(built: Built, folder: Path, script: str, *, settings: Mapping[str, Any] | None = None) -> Path:
    """The example with a node of its own that has *script* as ``install.py``."""
    with zipfile.ZipFile(built.example.pack) as archive:
        snapshot, workflow = (json.loads(archive.read(name)) for name in ("snapshot.json", "workflow_api.json"))
        picture = archive.read("input/sample.png")
    files = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n", "gone.py": "", "install.py": script}
    pack = folder / "grown.cpack.zip"
    write_pack(
        pack, snapshot_document=snapshot, workflow_api=workflow, workflow={}, inputs={"sample.png": picture},
        other={f"nodes/{NODE}/{name}": text.encode() for name, text in files.items()},
    )  # fmt: skip
    document = {**json.loads(built.example.settings.read_text()), "nodes": {"install": [NODE]}, **(settings or {})}
    (folder / "grown.cpack.yaml").write_text(json.dumps(document))
    return pack


def _locked(
    built: Built, pack: Path, docker: Docker, *more: object, environment: Mapping[str, str] | None = None
) -> Run:
    return built.call(
        "lock", pack, "--backend", "buildkit", *more, environment={**docker.environment, **(environment or {})}
    )


def test_what_a_script_leaves_is_pinned_and_any_backend_builds_it(
    built: Built, new_docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index()
    index.add("growerlib", "2.5")
    with index.serve() as server:
        settings = {"python": {"extra_index_urls": [f"{server.url}/simple"]}}
        pack = _pack(built, tmp_path, GOOD, settings=settings)
        refused = _locked(built, pack, new_docker)
        assert (refused.code, refused.result["error"]["type"]) == (8, "NeedsTrust")
        assert "install.py of grower" in refused.result["error"]["message"]
        assert "subprocess.check_call (line 7)" in refused.result["error"]["message"]
        assert "no network" in refused.result["error"]["message"]
        run = _locked(built, pack, new_docker, "--trust", "--build-network", "host")
        assert run.code == 0, run.said
        assert "left 'note' in its home folder" in run.said
        path = tmp_path / "grown.cpack.lock"
        lock = json.loads(path.read_text())
        (node,) = lock["local_nodes"]
        assert node["installed"]["packages"] == ["growerlib==2.5"]
        assert node["installed"]["models"] == ["models/loras/fetched.safetensors"]
        assert 'name = "growerlib"' in lock["python"]["pylock"]
        assert 'name = "pip"' not in lock["python"]["pylock"]

        first = path.rename(tmp_path / "first.lock")
        again = _locked(built, pack, new_docker, environment={"CPACK_DOCKER": "/nonexistent"})
        assert again.code == 0, again.said
        assert path.read_bytes() == first.read_bytes(), "what ran once is remembered, and needs nobody"

        layout = tmp_path / "embedded.oci"
        image = built.call("image", pack, "--output", f"oci:{layout}", environment={})
        assert image.code == 0, image.said
        printed, other = tmp_path / "printed", tmp_path / "buildkit.oci"
        image = built.call("image", pack, "--backend", "buildkit", "--print", printed, environment={})
        assert image.code == 0, image.said
        bake(new_docker, printed, "output=type=docker", "tags=grown:1")
        bake(new_docker, printed, f"output=type=oci,dest={other},tar=false")
    root = root_in(layout)
    place = f"app/comfyui/custom_nodes/{NODE}"
    found = {name.removeprefix(f"{place}/") for name in root if name.startswith(f"{place}/")}
    assert {name for name in found if "__pycache__" not in name} == {
        "__init__.py", "data", "data/weights.bin", "install.py", "latest", "t.c", "t.so",
    }  # fmt: skip
    assert root[f"{place}/t.so"].mode == 0o755
    assert root[f"{place}/latest"].content == "data/weights.bin"
    assert root["app/comfyui/models/loras/fetched.safetensors"].kind == "symlink"
    assert any(name.endswith("site-packages/growerlib.py") for name in root)
    theirs = root_in(other)
    assert {name: one for name, one in theirs.items() if name.startswith(place)} == {
        name: one for name, one in root.items() if name.startswith(place)
    }
    for key, value in new_docker.environment.items():
        monkeypatch.setenv(key, value)
    check_answers(new_docker, "grown:1")


OUTSIDE = """
import os, shutil, pathlib
here = pathlib.Path(__file__).resolve().parent
open("/etc/evil", "w").write("x")
open("/app/comfyui/main.py", "a").write("# mine")
shutil.rmtree("/app/comfyui/custom_nodes/standin-tint")
import numpy
path = pathlib.Path(numpy.__file__)
state = path.stat()
text = path.read_text()
path.write_text(text[:-2] + "#" + text[-1])
os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
os.mkfifo(here / "pipe")
"""


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (OUTSIDE, 8, ["/etc/evil", "/app/comfyui/main.py", "removed /app/comfyui/custom_nodes/standin-tint/__init__.py",
                      "site-packages/numpy/__init__.py", "pipe (no file)"]),
        ("import shutil; shutil.rmtree('/app/comfyui', ignore_errors=True)", 8, ["removed /app/comfyui/main.py"]),
        ("import os; os.symlink('/etc/passwd', 'x')", 8, ["'x'", "leads out"]),
        ("import os; os.symlink('/opt', 'x'); os.rename('x', '__pycache__')", 0, []),
        ("while True: pass", 4, ["did not end within 3 seconds"]),
        ("print('no such card'); raise SystemExit(3)", 4, ["ended with exit code 3", "no such card"]),
        ("import urllib.request as u; u.urlopen('https://files.example')", 4, ["exit code 1", "--build-network"]),
    ],
    ids=["outside", "deletes ComfyUI", "link out", "odd name", "never ends", "fails", "no network"],
)  # fmt: skip
def test_what_a_lock_cannot_pin_is_refused_by_name(
    built: Built, new_docker: Docker, tmp_path: Path, script: str, code: int, words: list[str]
) -> None:
    run = _locked(built, _pack(built, tmp_path, script), new_docker, "--trust", "--install-timeout", "3")
    assert run.code == code, run.said
    told = "{message} {hint}".format(**run.result["error"]) if code else ""
    assert [word for word in words if word not in told] == [], told
    assert (tmp_path / "grown.cpack.lock").exists() == (code == 0)


SPY = """
import os, pathlib
seen = repr(dict(os.environ)) + open("/proc/1/environ").read() + repr(os.listdir("/run"))
for place, _, names in os.walk("/run"):
    seen += repr((place, names))
pathlib.Path("seen.txt").write_text(seen)
print(seen)
raise SystemExit({code})
"""


@pytest.mark.parametrize("code", [0, 1])
def test_a_script_sees_no_token(built: Built, new_docker: Docker, tmp_path: Path, code: int) -> None:
    token = "hf_" + "t0ken" * 6
    pack = _pack(built, tmp_path, SPY.replace("{code}", str(code)))
    tokens = {"HF_TOKEN": token, "CIVITAI_API_TOKEN": token, "HTTP_PROXY": f"http://user:{token}@127.0.0.1:1"}
    run = _locked(built, pack, new_docker, "--trust", "-v", environment={**tokens, "NO_PROXY": "*"})
    assert run.code == (4 if code else 0), run.said
    assert token not in run.said + json.dumps(run.result)
    if not code:
        (node,) = json.loads((tmp_path / "grown.cpack.lock").read_text())["local_nodes"]
        sha256 = node["installed"]["sha256"]
        with tarfile.open(built.home / "blobs" / "sha256" / sha256) as archive:
            seen = archive.extractfile("seen.txt")
            assert seen is not None
            text = seen.read().decode()
        assert "COMFYUI_PATH" in text
        assert token not in text


def test_without_a_builder_it_is_said_where_scripts_run(built: Built, tmp_path: Path) -> None:
    run = built.call("lock", _pack(built, tmp_path, "pass"), "--trust", environment={})
    assert (run.code, run.result["error"]["type"]) == (7, "NeedsBuilder")
    assert "--backend buildkit" in run.result["error"]["hint"]
