"""ComfyUI and custom nodes by commit and content; what is missing is told all at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cpack_build.cpack.schema import FileNode, GitPin, NodePin, Snapshot
from cpack_build.errors import BadInput, UnsafeInput
from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.http import Offline, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import files_digest
from cpack_build.lock.nodes import Trees, lock_trees
from tests.fetch.repositories import make_repository
from tests.lock.progress import Heard

COMFYUI = "https://github.com/comfyanonymous/ComfyUI.git"
NODE = "https://code.example/team/node"


class World:
    """A ComfyUI and a node, each in a repository of the test's."""

    def __init__(self, folder: Path) -> None:
        self.comfyui = make_repository(
            folder / "comfyui", {"main.py": "", "custom_nodes/one.py": ""}, date=1_600_000_000
        )
        self.node = make_repository(folder / "node", {"__init__.py": ""}, date=1_650_000_000)
        self.sources = Sources(
            Mirrors({"https://github.com/Comfy-Org/ComfyUI": str(folder / "comfyui"), NODE: str(folder / "node")}),
            Offline(),
        )

    def snapshot(self, **changes: object) -> Snapshot:
        pins = (NodePin(name="node", url=f"{NODE}.git", commit=self.node),)
        document = {"python": "3.11", "comfyui": GitPin(url=COMFYUI, commit=self.comfyui), "nodes": pins}
        return Snapshot.model_validate({**document, **changes})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def lock(world: World, store: Store, *, exclude: tuple[str, ...] = (), **changes: object) -> Trees:
    return lock_trees(world.snapshot(**changes), exclude=exclude, store=store, sources=world.sources)


def test_trees_are_pinned_by_commit_and_content(world: World, store: Store) -> None:
    trees = lock(world, store)

    assert trees.missing == ()
    assert trees.comfyui is not None
    assert trees.comfyui.name == "ComfyUI"
    assert (trees.comfyui.url, trees.comfyui.commit) == ("https://github.com/Comfy-Org/ComfyUI", world.comfyui)
    (node,) = trees.nodes
    assert (node.name, node.url, node.commit, node.committed_at) == ("node", NODE, world.node, 1_650_000_000)
    tree = fetch_tree(NODE, world.node, store=store, mirrors=Mirrors())
    assert node.tree_sha256 == tree.tree_digest()


@pytest.mark.parametrize("name", ["node", "Node", NODE, f"{NODE}.git", f"{NODE}/"])
def test_a_node_is_excluded_by_name_or_url(name: str, world: World, store: Store) -> None:
    assert lock(world, store, exclude=(name,)).nodes == ()


def test_an_exclusion_that_fits_nothing_is_noted(world: World, store: Store) -> None:
    heard = Heard()
    lock_trees(world.snapshot(), exclude=["nod"], store=store, sources=world.sources, progress=heard)
    assert any("'nod'" in note for note in heard.notes)


def test_disabled_nodes_are_not_fetched(world: World, store: Store) -> None:
    pin = NodePin(name="off", url="https://gone.example/off", commit="1" * 40, disabled=True)
    assert lock(world, store, nodes=(pin,)).missing == ()


def test_everything_missing_is_told_at_once(world: World, store: Store) -> None:
    trees = lock(
        world, store,
        nodes=(NodePin(name="node", url=NODE, commit="1" * 40),),
        registry_nodes={"some-pack": "1.2.3"},
        file_nodes=tuple(FileNode(filename=f"{name}.py", disabled=name == "x") for name in ("one", "lost", "x")),
    )  # fmt: skip
    told = "\n".join(map(str, trees.missing))
    assert len(trees.missing) == 3
    assert f"{NODE} has no commit {'1' * 40}" in told
    assert "some-pack 1.2.3" in told
    assert "nodes.exclude: [some-pack]" in told
    assert "lost.py" in told


def test_registry_and_file_nodes_can_be_excluded(world: World, store: Store) -> None:
    trees = lock(
        world, store, exclude=("some-pack", "lost.py"), registry_nodes={"some-pack": "1.2.3"},
        file_nodes=(FileNode(filename="lost.py"),),
    )  # fmt: skip
    assert trees.missing == ()


def test_a_lost_comfyui_is_named(world: World, store: Store) -> None:
    trees = lock(world, store, comfyui=GitPin(url=COMFYUI, commit="1" * 40))
    assert trees.comfyui is None
    assert "ComfyUI has no commit" in str(trees.missing[0])


def test_a_node_called_comfyui_is_not_taken_for_comfyui(world: World, store: Store) -> None:
    pin = NodePin(name="ComfyUI", url=NODE, commit=world.node)
    trees = lock(world, store, nodes=(pin,), comfyui=GitPin(url=COMFYUI, commit="1" * 40))
    assert trees.comfyui is None


def test_a_pack_without_comfyui_is_told(world: World, store: Store) -> None:
    with pytest.raises(BadInput, match="no comfyui commit"):
        lock(world, store, comfyui=None)


def test_two_nodes_of_one_name_are_refused(world: World, store: Store) -> None:
    pins = tuple(NodePin(name=name, url=NODE, commit=world.node) for name in ("node", "NODE"))
    with pytest.raises(BadInput, match="node and NODE"):
        lock(world, store, nodes=pins)


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", "x\n", "__pycache__"])
def test_a_name_that_is_no_folder_is_refused(name: str, world: World, store: Store) -> None:
    with pytest.raises(UnsafeInput, match="no folder name"):
        lock(world, store, nodes=(NodePin(name=name, url=NODE, commit=world.node),))


def test_a_git_lfs_file_that_nobody_has_is_missing(world: World, store: Store, tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'1' * 64}\nsize 1\n"
    commit = make_repository(tmp_path / "node", {"model.bin": pointer})
    (error,) = lock(world, store, nodes=(NodePin(name="node", url=NODE, commit=commit),)).missing
    assert "Git LFS" in error.message


def test_a_git_lfs_file_is_part_of_the_content(world: World, store: Store, tmp_path: Path) -> None:
    data = b"weights"
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
    commit = make_repository(tmp_path / "node", {"model.bin": pointer})
    place = tmp_path / "node/.git/lfs/objects" / sha256[:2] / sha256[2:4] / sha256
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    (node,) = lock(world, store, nodes=(NodePin(name="node", url=NODE, commit=commit),)).nodes
    assert node.tree_sha256 == files_digest({"model.bin": sha256})
