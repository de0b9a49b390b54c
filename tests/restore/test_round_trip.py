"""Everything that a pack may hold goes through everything that is done with it, and comes out as it went in.

The pack has a changed node with a Git LFS file, a node and a single file of its own, models that share a layer, and its
locks for two platforms inside; each step is another person's code, and here they meet.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cpack_build.cli.lockfile import LockFile
from cpack_build.cpack.reader import LOCK_FILES
from cpack_build.image import budget
from cpack_build.lock.schema import Platform
from cpack_build.oci.reference import parse_image_name
from cpack_build.oci.sources import open_source
from tests.cli.calling import Caller
from tests.engines import Registry
from tests.fetch.repositories import git
from tests.restore.images import MODEL, NODE_FILES, WEIGHTS, World, make_world
from tests.restore.test_faults import PATCH
from tests.restore.test_restore import mirrored

PLATFORMS: tuple[Platform, Platform] = ("linux/amd64", "linux/arm64")
LARGE = bytes(range(256)) * 99
MODELS = {MODEL: WEIGHTS, "models/loras/a.safetensors": b"a" * 700, "models/loras/b.safetensors": b"b" * 7000}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("round")
    node, sha256 = folder / "git/fancy", hashlib.sha256(LARGE).hexdigest()
    node.mkdir(parents=True)
    git(node, "init", "--quiet", "--initial-branch=main")
    kept = node / ".git/lfs/objects" / sha256[:2] / sha256[2:4] / sha256
    kept.parent.mkdir(parents=True)
    kept.write_bytes(LARGE)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(LARGE)}\n"
    other = {
        "nodes/mine/__init__.py": b"NODE_CLASS_MAPPINGS = {}\n",
        "nodes/alone.py": b"y = 1\n",
        "patches/fancy.patch": PATCH,
    }
    entries = []
    for path, data in MODELS.items():
        if path != MODEL:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        entries.append({"filename": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "source": {}})
    files = {**NODE_FILES, "large.bin": pointer}
    world = make_world(folder, other=other, node_files=files, snapshot={"models": entries})
    world.lock_path.unlink()
    LockFile(world.pack, True, None).write([world.lock.model_copy(update={"platform": one}) for one in PLATFORMS])
    return world


def check_restored(root: Path) -> None:
    assert (root / "custom_nodes/fancy/large.bin").read_bytes() == LARGE
    assert (root / "custom_nodes/mine/__init__.py").is_file()
    assert (root / "custom_nodes/alone.py").read_text() == "y = 1\n"
    for path, data in MODELS.items():
        assert (root / path).read_bytes() == data


def test_from_a_pack_to_a_registry_and_back_it_is_the_same_image_pack_and_workspace(
    world: World, call: Caller, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def done(*arguments: object) -> dict[str, Any]:
        outcome = call(*arguments, "--json")
        assert outcome.code == 0, outcome
        return outcome.document

    # ours are six; one for each of three nodes, one for the largest model, and one that the other models share
    monkeypatch.setattr(budget, "LAYER_BUDGET", 6 + 3 + 2)
    sources = ["--find-links", world.wheels, *mirrored(world)]
    # a model that shares a layer is not one in the store of who pulled it
    places = [*sources, "--models", world.folder / "models"]
    name = f"{registry.host}/round/trip:1"
    outcome = call(
        "image", world.pack, "--locked", *places, "--compression", "gzip",
        "--output", f"oci:{tmp_path}/both.oci", "--push", name, "--push-models", f"{registry.host}/round/models",
        "--attach", world.pack, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "2 small models share layers" in outcome.err
    pushed = outcome.document
    ids = {image["platform"]: image["image_id"] for image in pushed["images"]}
    assert list(ids) == list(PLATFORMS)
    assert len(pushed["models"]) == len(pushed["attached"]) == 1, "the platforms share them"

    plan = done("plan", world.pack)
    for planned in plan["platforms"]:
        image = open_source(parse_image_name(f"oci:{tmp_path}/both.oci")).as_image(planned["platform"])
        assert [layer["digest"] for layer in planned["layers"]] == [layer.descriptor.digest for layer in image.layers]
        assert all(layer["known"] for layer in planned["layers"])

    # a third machine has nothing but the pack and what was carried there
    for bundle in (tmp_path / "bundle", tmp_path / "bundle.tar"):
        done("fetch", world.pack, *places, "-o", bundle)
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("CPACK_HOME", str(tmp_path / f"with-{bundle.name}"))
            layout = tmp_path / f"of-{bundle.name}.oci"
            carried = done("image", world.pack, "--locked", "--offline", "--from", bundle, "--output", f"oci:{layout}")
            assert {image["platform"]: image["image_id"] for image in carried["images"]} == ids

    # another machine, that has only the registry: and in the end git's remotes, for what only they have
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "there"))
    done("pull", name, "--attached", tmp_path / "got")
    pack = tmp_path / "got" / world.pack.name
    assert pack.read_bytes() == world.pack.read_bytes()
    for platform, image_id in ids.items():
        layout, again = tmp_path / f"{platform[6:]}.oci", tmp_path / f"{platform[6:]}.cpack.zip"
        assert done("pull", name, "--platform", platform, "-o", f"oci:{layout}")["image_id"] == image_id
        assert done("export", f"oci:{layout}", "--platform", platform, "-o", again)["exact"]
        with zipfile.ZipFile(pack) as before, zipfile.ZipFile(again) as after:
            came = {entry: after.read(entry) for entry in after.namelist()}
            assert came == {entry: before.read(entry) for entry in before.namelist() if entry not in LOCK_FILES}
        one = done("image", again, "--frozen", *places, "--output", f"oci:{tmp_path}/again-{platform[6:]}.oci")
        assert one["image_id"] == image_id
        assert done("verify", f"oci:{layout}", "--platform", platform, *places)["same"]
    done("store", "gc", "--all")
    made = done(
        "image", pack, "--locked", *places, "--output", f"oci:{tmp_path}/2.oci",
        "--push", f"{registry.host}/round/again:1", "--compression", "gzip",
    )  # fmt: skip
    assert (made["digest"], made["pushed"][0]["reference"].partition("@")[2]) == (
        pushed["digest"],
        pushed["pushed"][0]["reference"].partition("@")[2],
    )

    for number, (source, flags) in enumerate(
        ((name, ["--offline"]), (f"oci:{tmp_path}/both.oci", ["--offline"]), (pack, sources))
    ):
        monkeypatch.setenv("CPACK_HOME", str(tmp_path / f"store-{number}"))
        root = tmp_path / f"workspace-{number}"
        models = ["--models-dir", world.folder / "models"] if source is pack else []
        done("restore", source, "-d", root, *flags, *models)
        check_restored(root)
        assert done("restore", "--verify", root)["same"]
        shutil.rmtree(root)
