"""Uncommitted changes are laid over a commit in git's object database; what reaches further is refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cpack_build.errors import BadInput, CpackError, HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.git import fetch_tree, open_locked
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.patch import Patch, patched
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from tests.fetch.repositories import git, make_repository

URL = "https://code.example/node"
FILES = {"a.txt": "one\n", "d/b.py": "x\n"}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return opened(tmp_path)


def opened(folder: Path) -> Tree:
    commit = make_repository(folder / "node", FILES, links={"link": "d"})
    mirrors = Mirrors({URL: str(folder / "node")})
    return fetch_tree(URL, commit, store=Store(folder / "store"), mirrors=mirrors)


def apply(tree: Tree, data: bytes, *, sha256: str = "") -> Tree:
    """*tree* with the patch *data*."""
    sha256 = sha256 or hashlib.sha256(data).hexdigest()
    return patched(tree, Patch("patches/node.patch", sha256, lambda: data), store=Store(tree.repository.parents[1]))


def added(path: str, content: str = "x", *, mode: str = "100644", ends: bool = True) -> bytes:
    """A patch that makes one new file of one line."""
    text = (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{content}\n"
    )
    return (text + ("" if ends else "\\ No newline at end of file\n")).encode()


def difference(folder: Path) -> bytes:
    """What ``pack`` writes of the changes in the clone *folder*."""
    from cpack_build.workspace.gitfolder import observe

    git(folder, "config", "remote.origin.url", URL)
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")
    return observe(folder).patch


def test_the_tree_is_what_the_workspace_had(tmp_path: Path, tree: Tree) -> None:
    folder = tmp_path / "node"
    git(folder, "checkout", "--quiet", "--force", "HEAD")
    (folder / "a.txt").write_bytes(b"two  \n\n")
    (folder / "d/b.py").unlink()
    (folder / "new.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "inner").symlink_to("d")

    result = apply(tree, difference(folder))

    modes = {file.path: file.mode for file in result.files()}
    assert modes == {"a.txt": "100644", "inner": "120000", "link": "120000", "new.bin": "100644", "run.sh": "100755"}
    contents = {file.path: result.read(file.oid) for file in result.files()}
    assert contents["a.txt"] == b"two  \n\n"
    assert contents["new.bin"] == bytes(range(256)) * 9
    assert contents["inner"] == b"d"
    assert result.committed_at == tree.committed_at


def test_files_of_a_submodule_are_changed_like_any_others(tmp_path: Path) -> None:
    inner = make_repository(tmp_path / "inner", {"deep.txt": "old\n"})
    outer = tmp_path / "node"
    make_repository(outer, {".gitmodules": '[submodule "i"]\n\tpath = sub\n\turl = https://code.example/inner\n'})
    git(outer, "update-index", "--add", "--cacheinfo", f"160000,{inner},sub")
    git(outer, "commit", "--quiet", "--message", "with a submodule")
    mirrors = Mirrors({URL: str(outer), "https://code.example/inner": str(tmp_path / "inner")})
    store = Store(tmp_path / "store")
    tree = fetch_tree(URL, git(outer, "rev-parse", "HEAD"), store=store, mirrors=mirrors)
    change = (
        b"diff --git a/sub/deep.txt b/sub/deep.txt\n--- a/sub/deep.txt\n+++ b/sub/deep.txt\n@@ -1 +1 @@\n-old\n+new\n"
    )

    result = apply(tree, change)

    assert {file.path: result.read(file.oid) for file in result.files()}["sub/deep.txt"] == b"new\n"


def test_commit_and_patch_give_the_same_tree_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = apply(opened(tmp_path / "one"), added("n.py"))
    (tmp_path / "gitconfig").write_text(
        "[core]\n\tautocrlf = true\n\thooksPath = /nonexistent\n[apply]\n\twhitespace = fix\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    second = apply(opened(tmp_path / "two"), added("n.py"))
    assert first.commit == second.commit
    assert first.tree_digest() == second.tree_digest()


def test_what_was_applied_once_is_not_read_again(tree: Tree) -> None:
    data = added("n.py")
    once = apply(tree, data)

    def never() -> bytes:
        raise AssertionError("it was read again")

    again = Patch("patches/node.patch", hashlib.sha256(data).hexdigest(), never)
    assert patched(tree, again, store=Store(tree.repository.parents[1])) == once


def test_a_patch_with_other_bytes_than_promised_is_refused(tree: Tree) -> None:
    with pytest.raises(HashMismatch, match=r"patches/node\.patch"):
        apply(tree, added("n.py"), sha256="0" * 64)


def test_a_locked_tree_with_a_patch_is_proved_as_a_whole(tmp_path: Path, tree: Tree) -> None:
    data = added("n.py")
    store, sources = Store(tmp_path / "store"), Sources(Mirrors({URL: str(tmp_path / "node")}))
    patch = Patch("patches/node.patch", hashlib.sha256(data).hexdigest(), lambda: data)
    with pytest.raises(HashMismatch, match=URL):
        open_locked(URL, tree.commit, tree_sha256=tree.tree_digest(), patch=patch, store=store, sources=sources)
    sound = apply(tree, data).tree_digest()
    opened = open_locked(URL, tree.commit, tree_sha256=sound, patch=patch, store=store, sources=sources)
    assert "n.py" in {file.path for file in opened.files()}


@pytest.mark.parametrize(
    "path",
    ["../x", "d/../../x", "/etc/passwd", ".git/hooks/post-checkout", ".GIT/config", "git~1/config", "d/.git/x",
     "link/x"],
)  # fmt: skip
def test_a_name_that_leaves_the_tree_is_refused(path: str, tree: Tree) -> None:
    with pytest.raises(UnsafeInput, match=r"patches/node\.patch reaches out of its tree"):
        apply(tree, added(path))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (added("out", "/etc", mode="120000", ends=False), "the link 'out' leads out"),
        (added("out", "../..", mode="120000", ends=False), "the link 'out' leads out"),
        (added("out", "/etc", mode="120000", ends=False) + added("out/passwd"), "beyond a symbolic link"),
        (added("sub", f"Subproject commit {'1' * 40}", mode="160000"), "adds a submodule"),
        (
            b"diff --git a/a.txt b/../a.txt\nsimilarity index 100%\nrename from a.txt\nrename to ../a.txt\n",
            "reaches out of its tree",
        ),
        (b"diff --git a/z b/z\nnew file mode 100644\nGIT binary patch\nliteral 99999999999\nzc\n", "more than 1 GiB"),
        (b"diff --git a/z b/z\nnew file mode 100644\nGIT binary patch\ndelta " + b"9" * 6000 + b"\nzc\n", "1 GiB"),
    ],
)
def test_links_submodules_and_bombs_are_refused(data: bytes, says: str, tree: Tree) -> None:
    with pytest.raises(UnsafeInput, match=says) as caught:
        apply(tree, data)
    assert "patches/node.patch" in caught.value.message


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"not a patch", Unresolvable),
        (b" \n", BadInput),
        (b"diff --git a/a.txt b/a.txt\n--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-two\n+three\n", Unresolvable),
        (added("a.txt/x"), Unresolvable),
    ],
)
def test_a_patch_that_does_not_fit_is_named(data: bytes, kind: type[CpackError], tree: Tree) -> None:
    with pytest.raises(kind, match=r"patches/node\.patch"):
        apply(tree, data)
    assert {file.path for file in tree.files()} == {"a.txt", "d/b.py", "link"}
