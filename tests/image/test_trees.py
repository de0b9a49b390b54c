"""Git trees as layers hold what the commit holds, also what no checkout on every system could."""

from __future__ import annotations

from pathlib import Path

from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.trees import node_layer
from cpack_build.lock.schema import GitTree
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
