"""What ``install.py`` left lies in one store and in images: it comes out of them again, for whoever has no more."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path

import pytest

from cpack_build.cli.lockfile import lock_beside
from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.writer import replace_entries
from cpack_build.errors import HashMismatch
from cpack_build.fetch.store import Store
from cpack_build.lock.installed import LeftFile, keep_tree
from cpack_build.lock.schema import Installed, Lock
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.restore.artifact import read_artifact
from cpack_build.restore.export import export
from tests.cli.calling import Caller
from tests.restore.images import MODEL, NODE_FILES, World, make_image, make_world
from tests.restore.test_restore import mirrored

MINE = {"__init__.py": b"NODE_CLASS_MAPPINGS = {}\n", "gone.py": b"x = 1\n", "install.py": b"import os\n"}
LEFT = {"__init__.py": b"NODE_CLASS_MAPPINGS = {}\n", "made.so": b"elf" * 1000, "\u00e4/data.bin": b"w" * 5000}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world, where ``install.py`` of its own node and of the one from git have run."""
    folder = tmp_path_factory.mktemp("installed")
    world = make_world(
        folder,
        other={f"nodes/mine/{name}": data for name, data in MINE.items()},
        node_files={**NODE_FILES, "install.py": "import os\n"},
    )
    store = Store(folder / "builder")

    def left(lock: Lock, kind: str, name: str) -> Lock:
        files = []
        for number, (path, data) in enumerate(LEFT.items()):
            place = folder / f"{name}-{number}"
            place.write_bytes(data)
            files.append(LeftFile(path, place, is_executable=path.endswith(".so")))
        archive, tree = keep_tree(name, [*files, LeftFile("latest", None, target="made.so")], store=store)
        pins = []
        for pin in getattr(lock, kind):
            done = Installed(
                sha256=archive.sha256, size=archive.size, script_sha256="a" * 64, from_tree_sha256=pin.tree_sha256,
                platform=lock.platform,
            )  # fmt: skip
            is_it = pin.name == name
            pins.append(pin.model_copy(update={"installed": done, "tree_sha256": tree.tree_digest()}) if is_it else pin)
        return lock.model_copy(update={kind: tuple(pins)})

    lock = left(left(world.lock, "local_nodes", "mine"), "nodes", "fancy")
    lock_beside(world.pack).write_bytes(lock.to_bytes())
    with make_image(
        read_pack(world.pack), lock, folder / MODEL, wheels=world.built, store=store, mirrors=world.mirrors
    ) as image:
        layout = folder / "installed.oci"
        write_layout(image, layout)
        return dataclasses.replace(world, lock=lock, layout=layout, image_id=image.id)


def _check(root: Path) -> None:
    for name in ("mine", "fancy"):
        place = root / "custom_nodes" / name
        assert {path: (place / path).read_bytes() for path in LEFT} == LEFT
        assert (place / "latest").readlink() == Path("made.so")
        assert not (place / "gone.py").exists()


def test_an_image_s_pack_has_it_and_gives_the_same_image_where_nobody_else_has_it(
    installed: World, call: Caller, tmp_path: Path
) -> None:
    pack = tmp_path / "again.cpack.zip"
    outcome = call("export", f"oci:{installed.layout}", "-o", pack, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["exact"]
    with zipfile.ZipFile(installed.pack) as before, zipfile.ZipFile(pack) as after:
        came = {name: after.read(name) for name in after.namelist()}
        assert came.pop("installed/mine.tar") == came.pop("installed/fancy.tar")
        assert came == {name: before.read(name) for name in before.namelist()}
    with make_image(
        read_pack(pack), installed.lock, installed.folder / MODEL, wheels=installed.built,
        store=Store(tmp_path / "other"), mirrors=installed.mirrors,
    ) as image:  # fmt: skip
        assert image.id == installed.image_id
    twice = tmp_path / "twice.cpack.zip"
    assert call("export", f"oci:{installed.layout}", "-o", twice).code == 0
    assert twice.read_bytes() == pack.read_bytes()


def test_a_pack_that_holds_its_lock_holds_it_as_well_and_gives_the_same_image_elsewhere(
    installed: World, call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, layout = tmp_path / "carried.cpack.zip", f"oci:{tmp_path}/built.oci"
    shutil.copyfile(installed.pack, pack)
    replace_entries(pack, {"installed/left-over.tar": b"of a node that is no more"})
    lock_beside(pack).write_bytes(installed.lock.to_bytes())
    monkeypatch.setenv("CPACK_HOME", str(installed.folder / "builder"))
    outcome = call("lock", pack, "--into-pack", "--json")
    assert outcome.code == 0, outcome
    lock_beside(pack).unlink()
    with zipfile.ZipFile(pack) as archive:
        names = {name for name in archive.namelist() if name.startswith("installed/")}
        assert names == {"installed/mine.tar", "installed/fancy.tar"}
    assert not call("lock", pack, "--into-pack", "--json").document["changed"]

    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "elsewhere"))
    places = ["--find-links", installed.wheels, "--models", installed.folder / "models", *mirrored(installed)]
    built = call("image", pack, "--frozen", *places, "--output", layout, "--json")
    assert built.code == 0, built
    again = tmp_path / "again.cpack.zip"
    assert call("export", layout, "-o", again).code == 0
    assert (
        call("image", again, "--frozen", *places, "--output", f"oci:{tmp_path}/twice.oci", "--json").document["digest"]
        == built.document["digest"]
    ), "image → pack → lock → image"


@pytest.mark.parametrize("what", ["image", "pack"])
def test_a_workspace_gets_it_from_an_image_and_from_its_pack(
    installed: World, call: Caller, tmp_path: Path, what: str
) -> None:
    source: object = f"oci:{installed.layout}"
    if what == "pack":
        source = tmp_path / "again.cpack.zip"
        assert call("export", f"oci:{installed.layout}", "-o", source).code == 0
    flags = ["--find-links", installed.wheels, "--models-dir", installed.folder / "models"]
    outcome = call("restore", source, "-d", tmp_path / "there", *mirrored(installed), *flags)
    assert outcome.code == 0, outcome
    _check(tmp_path / "there")
    assert call("restore", "--verify", tmp_path / "there").code == 0


def test_the_pack_is_built_and_the_image_verified_by_machines_that_have_nothing_else(
    installed: World, call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, layout = tmp_path / "again.cpack.zip", f"oci:{tmp_path}/built.oci"
    places = ["--find-links", installed.wheels, "--models", installed.folder / "models", *mirrored(installed)]
    lacks = call("image", installed.pack, "--frozen", *places, "--output", layout, "--json")
    assert (lacks.code, lacks.document["error"]["type"]) == (4, "Unresolvable")
    assert "export the pack out of its image" in lacks.document["error"]["hint"]
    assert call("export", f"oci:{installed.layout}", "-o", pack).code == 0
    built = call("image", pack, "--frozen", *places, "--output", layout, "--json")
    assert built.code == 0, built
    planned = call("plan", pack, "--json")
    assert planned.code == 0, planned
    image = open_source(parse_image_name(layout)).as_image(installed.lock.platform)
    assert [layer["digest"] for layer in planned.document["layers"]] == [
        layer.descriptor.digest for layer in image.layers
    ]
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "verifier"))
    verified = call("verify", layout, *places, "--json")
    assert verified.code == 0, verified
    assert verified.document["same"]
    twice = tmp_path / "twice.cpack.zip"
    assert call("export", layout, "-o", twice).code == 0
    assert twice.read_bytes() == pack.read_bytes()


@pytest.mark.parametrize("how", ["other bytes", "longer"])
def test_a_pack_with_another_tree_is_refused(installed: World, call: Caller, tmp_path: Path, how: str) -> None:
    pack = tmp_path / "again.cpack.zip"
    assert call("export", f"oci:{installed.layout}", "-o", pack).code == 0
    with zipfile.ZipFile(pack) as archive:
        data = archive.read("installed/mine.tar")
    other = data.replace(b"elf", b"ELF") if how == "other bytes" else data + bytes(10240)
    replace_entries(pack, {"installed/mine.tar": other})
    places = ["--find-links", installed.wheels, "--models", installed.folder / "models", *mirrored(installed)]
    outcome = call("image", pack, "--frozen", *places, "--output", f"oci:{tmp_path}/built.oci", "--json")
    assert (outcome.code, outcome.document["error"]["type"]) == (5, "HashMismatch"), outcome
    assert "installed/mine.tar" in outcome.document["error"]["message"]
    assert not (tmp_path / "built.oci").exists()


def test_an_image_with_another_tree_gives_no_pack(installed: World, tmp_path: Path) -> None:
    image = open_source(parse_image_name(f"oci:{installed.layout}")).as_image(installed.lock.platform)
    (first, *_), lock = installed.lock.local_nodes, installed.lock
    assert first.installed is not None
    other = first.model_copy(update={"installed": first.installed.model_copy(update={"sha256": "b" * 64})})
    artifact = dataclasses.replace(
        read_artifact(image, name="it"), lock=lock.model_copy(update={"local_nodes": (other,)})
    )
    with pytest.raises(HashMismatch, match=r"mine, as its install\.py left it"):
        export(artifact, tmp_path / "x.cpack.zip", tmp_path / "x.lock")
    assert list(tmp_path.glob("x.*")) == []
