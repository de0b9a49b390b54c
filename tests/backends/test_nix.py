"""Nix makes of a lock the image that the embedded backend makes, and says what is wrong where it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store
from tests.backends.nixstore import NixStore, nix_store
from tests.cli.calling import Caller
from tests.restore.images import World, make_world

LOCAL_NODE = {"nodes/own/__init__.py": b"OWN = 1\n", "nodes/own/data/x.txt": b"x\n", "nodes/single.py": b"ONE = 1\n"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A pack with nodes from git, with links and programs, and of its own; its lock; and the embedded image."""
    return make_world(
        tmp_path_factory.mktemp("world"),
        other=LOCAL_NODE,
        node_files={"__init__.py": "A = 1\n", "run.sh": "#!/bin/sh\n", "ä/naïve name.txt": "é\n", "empty.txt": ""},
        node_links={"link": "ä/naïve name.txt"},
    )


@pytest.fixture(scope="module")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NixStore]:
    with nix_store(tmp_path_factory.mktemp("nix") / "nix") as store:
        yield store


@pytest.fixture(scope="module")
def embedded(world: World) -> Path:
    """The image that the embedded backend makes, as a layout."""
    layout = world.folder / "embedded.oci"
    command = [sys.executable, "-m", "cpack_build", "image", world.pack, "--output", f"oci:{layout}", *flags(world)]
    subprocess.run(command, env={**os.environ, "CPACK_HOME": f"{world.folder}/home"}, check=True, capture_output=True)
    return layout


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], world: World, nix: NixStore, monkeypatch: pytest.MonkeyPatch) -> Caller:
    monkeypatch.setenv("CPACK_HOME", str(world.folder / "home"))
    for name, value in nix.environment.items():
        monkeypatch.setenv(name, value)
    return Caller(capsys)


def flags(world: World) -> list[str]:
    """Where the world's things lie on this machine."""
    mirrors = [word for pair in world.mirrors.items() for word in ("--mirror", "=".join(pair))]
    return [*mirrors, "--models", f"{world.folder}/models", "--find-links", str(world.wheels), "--offline"]


@pytest.fixture
def printed(call: Caller, world: World, tmp_path: Path) -> Path:
    """The folder that Nix reads."""
    done = call("image", world.pack, "--backend", "nix", "--print", tmp_path / "printed", *flags(world))
    assert done.code == 0, done.err
    return tmp_path / "printed"


def index_of(layout: Path) -> dict[str, object]:
    document = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    assert isinstance(document, dict)
    return document


# -- the same image ----------------------------------------------------------------------------------------------------


def test_the_same_lock_gives_the_same_manifest_digest(
    call: Caller, world: World, embedded: Path, tmp_path: Path
) -> None:
    done = call("image", world.pack, "--backend", "nix", "--output", f"oci:{tmp_path}/nix.oci", "--json", *flags(world))
    assert done.code == 0, done.err
    assert done.document["digest"] == index_of(embedded)["digest"]
    both = embedded, tmp_path / "nix.oci"
    theirs, ours = ({path.name for path in (layout / "blobs" / "sha256").iterdir()} for layout in both)
    assert theirs == ours


def test_no_model_is_copied_into_the_store(call: Caller, world: World, nix: NixStore, printed: Path) -> None:
    call("image", world.pack, "--backend", "nix", "--output", f"oci:{printed}/../again.oci", *flags(world))
    assert not [name for name in nix.names() if "model" in name]
    assert nix.names().count("cpack-image") == 1
    large = [path for path in (nix.root / "store").rglob("*") if path.is_file() and b"weights" * 9 in path.read_bytes()]
    assert large == []


def test_a_flake_checks_and_builds_what_was_printed(
    nix: NixStore, printed: Path, world: World, embedded: Path, call: Caller
) -> None:
    call("image", world.pack, "--backend", "nix", "--output", f"oci:{printed}/../out.oci", *flags(world))
    nix("nix", "flake", "check", f"path:{printed}")
    nix("nix", "build", f"path:{printed}#image", "--out-link", printed.parent / "result")
    assert index_of(printed.parent / "result")["digest"] == index_of(embedded)["digest"]


def test_without_flakes_the_plain_expression_builds_the_same(
    printed: Path, world: World, embedded: Path, tmp_path: Path
) -> None:
    """In a store that has nothing, from cpack-build's own as fetcher: the clones, the wheels, the pack's own nodes."""
    with nix_store(tmp_path / "plain", experimental_features="") as plain:
        home = str(world.folder / "home")
        store = Store(Path(home))
        for wheel in world.wheels.iterdir():
            store.put([wheel.read_bytes()], what=wheel.name)
        plain.environment["CPACK_HOME"] = home
        assert "experimental" in plain("nix", "flake", "check", f"path:{printed}", check=False).stderr
        plain("nix-build", printed, "--out-link", tmp_path / "result")
        assert index_of(tmp_path / "result")["digest"] == index_of(embedded)["digest"]
        plain("nix-build", printed, "-A", "check", "--out-link", tmp_path / "checked")
        assert (tmp_path / "checked").read_text().strip() == index_of(embedded)["digest"]
