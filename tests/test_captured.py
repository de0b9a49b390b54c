"""What ``pack`` captures is built: a local node, a single file and a dirty git node go from a workspace into an image,
and the image proves itself again from what it carries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cpack_build.errors import NetworkError
from cpack_build.oci.filesystem import file_tree
from cpack_build.oci.reference import parse_image_name
from cpack_build.oci.sources import open_source
from tests import need
from tests.cli.calling import Caller
from tests.example import system_python
from tests.fetch.repositories import git
from tests.workspace.installs import HUB, WORKFLOW, make_environment, make_git_node, make_install

pytestmark = pytest.mark.network


def make_workspace(root: Path) -> dict[str, str]:
    """An install with uncommitted changes in ComfyUI and in a node, and with nodes that nobody else has; mirrors."""
    make_install(root)
    shutil.rmtree(root / "venv")
    make_environment(root / "venv", {"idna": "3.10"}, version=system_python())
    custom = root / "custom_nodes"
    shutil.rmtree(custom)
    make_git_node(custom / "edited", url=f"{HUB}/edited.git")
    (custom / "edited/__init__.py").write_text("NODE_CLASS_MAPPINGS = {}  # changed\n")
    (custom / "edited/new.bin").write_bytes(bytes(range(256)))
    (custom / "mine").mkdir()
    (custom / "mine/__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (custom / "single.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (custom / "off").mkdir()
    (custom / "off.py.disabled").write_text("1 / 0\n")
    (custom / "off").rename(custom / "off.disabled")
    (root / "main.py").write_text((root / "main.py").read_text() + "# changed\n")
    clones = {}
    for name, folder, url in (
        ("ComfyUI", root, "https://github.com/comfyanonymous/ComfyUI"), ("edited", custom / "edited", f"{HUB}/edited"),
    ):  # fmt: skip
        clone = root.parent / f"remote/{name}"
        git(root.parent, "clone", "--quiet", "--bare", str(folder), str(clone))
        clones[url] = str(clone)
    return clones


def test_a_workspace_s_own_nodes_and_changes_are_in_its_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    need.tool("apt-get")
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    root = tmp_path / "ComfyUI"
    mirrors = make_workspace(root)
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))
    settings = {"system": {"defaults": "none"}, "models": [str(root)], "mirrors": mirrors}
    (tmp_path / "x.cpack.yaml").write_text(json.dumps(settings))
    pack, layout = tmp_path / "x.cpack.zip", tmp_path / "x.oci"
    call = Caller(capsys)
    packed = call("pack", root, "-w", tmp_path / "workflow.json", "-o", pack, "--offline", "--include-local", "--json")
    assert packed.code == 0, packed.err + packed.out
    shutil.rmtree(root / "custom_nodes")  # from here on there is only the pack, and the remotes

    built = call("image", pack, "--output", f"oci:{layout}", "--json")

    if built.code == NetworkError.exit_code:
        need.missing(f"the package registries ({built.out})")
    assert built.code == 0, built.err + built.out
    image = open_source(parse_image_name(f"oci:{layout}")).as_image("linux/amd64")
    tree = file_tree(image)
    nodes = "app/comfyui/custom_nodes"
    found = tree.read(path for path in tree.below("app/comfyui") if not path.endswith(".pyc"))
    assert found[f"{nodes}/edited/__init__.py"] == b"NODE_CLASS_MAPPINGS = {}  # changed\n"
    assert found[f"{nodes}/edited/new.bin"] == bytes(range(256))
    assert found[f"{nodes}/mine/__init__.py"] == found[f"{nodes}/single.py"] == b"NODE_CLASS_MAPPINGS = {}\n"
    assert found["app/comfyui/main.py"].endswith(b"# changed\n")
    assert not any("off" in path for path in tree.below(nodes))
    assert f"{nodes}/__pycache__/single.cpython-{system_python().replace('.', '')}.pyc" in tree.nodes
    layers = {layer.descriptor.annotations.get("io.cpack.layer.name") for layer in image.layers}
    assert {"edited", "mine", "single.py"} <= layers

    # another machine, where neither the pack nor its trees ever were
    shutil.rmtree(tmp_path / "store/git")
    mapped = [word for url, place in mirrors.items() for word in ("--mirror", f"{url}={place}")]
    verified = call("verify", f"oci:{layout}", "--models", root, "--trust", *mapped, "--json")
    assert verified.code == 0, verified.err + verified.out
    assert verified.document["same"]
