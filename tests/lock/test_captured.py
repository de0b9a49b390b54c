"""What the pack holds itself is locked by content hash and opened by it: local nodes, patches, a ComfyUI of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from cpack_build.cpack.schema import FileNode, NodePin
from cpack_build.errors import BadInput, HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Offline, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from cpack_build.lock.nodes import Trees, lock_trees, open_tree
from cpack_build.lock.schema import LocalTree, NodeTree
from tests.lock.packs import FakePack
from tests.lock.test_nodes import NODE, World

CHANGE = b"diff --git a/new.py b/new.py\nnew file mode 100644\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+x = 1\n"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def pack_of(world: World, files: Mapping[str, bytes], **changes: object) -> FakePack:
    return FakePack("1" * 64, world.snapshot(**changes), files)


def lock(world: World, pack: FakePack, store: Store, *, exclude: tuple[str, ...] = ()) -> Trees:
    return lock_trees(pack.snapshot, pack=pack, exclude=exclude, store=store, sources=world.sources)


def contents(tree: Tree) -> dict[str, bytes]:
    return {file.path: tree.read(file.oid) for file in tree.files()}


def reopened(pin: NodeTree, pack: FakePack | None, store: Store, world: World | None = None) -> dict[str, bytes]:
    sources = world.sources if world is not None else Sources(Mirrors(), Offline())
    return contents(open_tree(pin, pack, store=store, sources=sources))


def test_local_nodes_are_pinned_by_content(world: World, store: Store, tmp_path: Path) -> None:
    files = {"nodes/mine/__init__.py": b"a", "nodes/mine/js/ü x.js": b"b", "nodes/one.py": b"c", "nodes/README": b"d"}
    pack = pack_of(world, files, file_nodes=(FileNode(filename="one.py"),))
    trees = lock(world, pack, store)
    assert trees.missing == ()
    assert [(pin.name, pin.kind) for pin in trees.local_nodes] == [("mine", "folder"), ("one.py", "file")]
    mine, one = trees.local_nodes
    elsewhere = Store(tmp_path / "elsewhere")
    assert reopened(mine, pack, elsewhere) == {"__init__.py": b"a", "js/ü x.js": b"b"}
    assert reopened(one, pack, elsewhere) == {"one.py": b"c"}
    assert reopened(mine, None, elsewhere) == reopened(mine, None, store), "it is in the store by now"


def test_compiled_files_and_disabled_nodes_are_left_out(world: World, store: Store) -> None:
    files = {"nodes/mine/a.py": b"", "nodes/mine/__pycache__/a.cpython-311.pyc": b"?", "nodes/off.py": b""}
    trees = lock(world, pack_of(world, files, file_nodes=(FileNode(filename="off.py", disabled=True),)), store)
    (mine,) = trees.local_nodes
    assert reopened(mine, None, store) == {"a.py": b""}


def test_local_nodes_can_be_excluded(world: World, store: Store) -> None:
    pack = pack_of(world, {"nodes/mine/a.py": b"", "nodes/one.py": b""}, file_nodes=(FileNode(filename="one.py"),))
    trees = lock(world, pack, store, exclude=("mine", "one.py"))
    assert (trees.local_nodes, trees.missing) == ((), ())


def test_a_local_node_that_shares_a_folder_with_another_is_refused(world: World, store: Store) -> None:
    with pytest.raises(BadInput, match="node and Node"):
        lock(world, pack_of(world, {"nodes/Node/a.py": b""}), store)


@pytest.mark.parametrize("name", ["__pycache__", "..", "x\x01"])
def test_a_local_node_whose_name_is_no_folder_is_refused(name: str, world: World, store: Store) -> None:
    with pytest.raises(UnsafeInput):
        lock(world, pack_of(world, {f"nodes/{name}/a.py": b""}), store)


@pytest.mark.parametrize("path", ["../a.py", ".git/config", "x/../../a.py"])
def test_a_file_that_leaves_its_node_is_refused(path: str, world: World, store: Store) -> None:
    with pytest.raises(UnsafeInput, match="mine"):
        lock(world, pack_of(world, {f"nodes/mine/{path}": b""}), store)


def test_another_pack_s_node_is_refused_and_spoils_nothing(world: World, store: Store, tmp_path: Path) -> None:
    pack = pack_of(world, {"nodes/mine/a.py": b"right"})
    (pin,) = lock(world, pack, store).local_nodes
    elsewhere = Store(tmp_path / "elsewhere")
    with pytest.raises(HashMismatch, match="mine"):
        reopened(pin, pack_of(world, {"nodes/mine/a.py": b"wrong"}), elsewhere)
    with pytest.raises(Unresolvable, match="mine"):
        reopened(pin, None, elsewhere)
    assert reopened(pin, pack, elsewhere) == {"a.py": b"right"}


def test_a_dirty_git_node_is_pinned_by_commit_patch_and_outcome(world: World, store: Store, tmp_path: Path) -> None:
    pack = pack_of(world, {"patches/node.patch": CHANGE})
    (clean,) = lock(world, pack_of(world, {}), store).nodes
    (pin,) = lock(world, pack, store).nodes
    assert (pin.commit, pin.patch_sha256) == (world.node, hashlib.sha256(CHANGE).hexdigest())
    assert pin.tree_sha256 != clean.tree_sha256
    assert pin.committed_at == clean.committed_at
    elsewhere = Store(tmp_path / "elsewhere")
    assert reopened(pin, pack, elsewhere, world) == {"__init__.py": b"", "new.py": b"x = 1\n"}
    assert reopened(pin, None, elsewhere, world), "the outcome is in the store by now"
    with pytest.raises(Unresolvable, match="changes of node"):
        reopened(pin, None, Store(tmp_path / "third"), world)
    with pytest.raises(HashMismatch):
        reopened(pin, pack_of(world, {"patches/node.patch": CHANGE + b"\n"}), Store(tmp_path / "third"), world)


def test_comfyui_s_own_changes_are_applied(world: World, store: Store) -> None:
    trees = lock(world, pack_of(world, {"patches/ComfyUI.patch": CHANGE}), store)
    assert trees.comfyui is not None
    assert trees.comfyui.patch_sha256 == hashlib.sha256(CHANGE).hexdigest()  # type: ignore[union-attr]
    assert reopened(trees.comfyui, None, store, world)["new.py"] == b"x = 1\n"


def test_a_patch_that_does_not_fit_is_told_with_all_else(world: World, store: Store) -> None:
    wrong = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    files = {"patches/node.patch": wrong}
    trees = lock(world, pack_of(world, files, file_nodes=(FileNode(filename="lost.py"),)), store)
    told = "\n".join(map(str, trees.missing))
    assert len(trees.missing) == 2
    assert "patches/node.patch does not fit" in told
    assert "lost.py" in told


def test_a_patch_for_nothing_is_refused_and_one_for_a_disabled_node_is_not_used(world: World, store: Store) -> None:
    with pytest.raises(BadInput, match=r"patches/other\.patch"):
        lock(world, pack_of(world, {"patches/other.patch": CHANGE}), store)
    off = NodePin(name="node", url=NODE, commit=world.node, disabled=True)
    assert lock(world, pack_of(world, {"patches/node.patch": b"?"}, nodes=(off,)), store).missing == ()
    assert lock(world, pack_of(world, {"patches/node.patch": b"?"}), store, exclude=("node",)).missing == ()


def test_a_patch_that_may_be_comfyui_s_or_a_node_s_is_refused(world: World, store: Store) -> None:
    twin = NodePin(name="ComfyUI", url=NODE, commit=world.node)
    with pytest.raises(BadInput, match="may belong"):
        lock(world, pack_of(world, {"patches/ComfyUI.patch": CHANGE}, nodes=(twin,)), store)


def test_a_comfyui_without_a_commit_is_the_pack_s_own(world: World, store: Store, tmp_path: Path) -> None:
    pack = pack_of(world, {"comfyui/main.py": b"run", "comfyui/custom_nodes/one.py": b""}, comfyui=None,
                   file_nodes=(FileNode(filename="one.py"),))  # fmt: skip
    trees = lock(world, pack, store)
    assert trees.missing == ()
    assert isinstance(trees.comfyui, LocalTree)
    assert trees.comfyui.kind == "comfyui"
    elsewhere = Store(tmp_path / "elsewhere")
    assert reopened(trees.comfyui, pack, elsewhere) == {"main.py": b"run", "custom_nodes/one.py": b""}
