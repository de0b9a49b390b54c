"""Git trees as layers hold what the commit holds, also what no checkout on every system could."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.http import Sources
from cpack_build.fetch.lfs import with_lfs
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import import_tree
from cpack_build.image.trees import node_layer
from cpack_build.lock.schema import GitTree, LocalTree
from tests.fetch.repositories import git, make_repository
from tests.making import read_back

URL = "https://code.example/node"


def test_a_link_whose_text_is_not_utf_8_is_kept_as_it_is(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    make_repository(origin, {"a": "1"})
    oid = git(origin, "hash-object", "-w", "--stdin", stdin=b"caf\xe9")
    git(origin, "update-index", "--add", "--cacheinfo", f"120000,{oid},link")
    git(origin, "commit", "--quiet", "--message", "link")
    store, commit = Store(tmp_path / "store"), git(origin, "rev-parse", "HEAD")
    tree = fetch_tree(URL, commit, store=store, mirrors=Mirrors({URL: str(origin)}))
    pin = GitTree(name="node", url=URL, commit=commit, tree_sha256=tree.tree_digest(), committed_at=1)
    members = read_back(node_layer(pin, tree).entries())
    assert members["app/comfyui/custom_nodes/node/link"].target.encode("utf-8", "surrogateescape") == b"caf\xe9"


def test_a_file_that_git_lfs_keeps_is_in_the_layer_itself(tmp_path: Path) -> None:
    weights = b"weights" * 1000
    sha256 = hashlib.sha256(weights).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(weights)}\n"
    commit = make_repository(tmp_path / "origin", {"w.bin": pointer})
    place = tmp_path / "origin/.git/lfs/objects" / sha256[:2] / sha256[2:4] / sha256
    place.parent.mkdir(parents=True)
    place.write_bytes(weights)
    store, sources = Store(tmp_path / "store"), Sources(Mirrors({URL: str(tmp_path / "origin")}))
    tree = with_lfs(fetch_tree(URL, commit, store=store, mirrors=sources.mirrors), store=store, sources=sources)
    pin = GitTree(name="node", url=URL, commit=commit, tree_sha256=tree.tree_digest(), committed_at=1)
    members = read_back(node_layer(pin, tree).entries())
    assert members["app/comfyui/custom_nodes/node/w.bin"].data == weights


def test_a_single_file_is_a_node_beside_the_others(tmp_path: Path) -> None:
    tree = import_tree({"one.py": 5}, lambda path: iter([b"x = 1"]), name="one", sha256="1" * 64,
                       store=Store(tmp_path / "store"))  # fmt: skip
    pin = LocalTree(name="one.py", kind="file", tree_sha256=tree.tree_digest())
    members = read_back(node_layer(pin, tree).entries())
    assert members["app/comfyui/custom_nodes/one.py"].data == b"x = 1"
