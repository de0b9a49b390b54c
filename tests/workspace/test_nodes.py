"""Custom nodes of every kind are seen for what they are, and a hostile one harms nobody."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from cpack_build.errors import BadInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.workspace.nodes import Node, find_nodes
from cpack_build.workspace.place import find_comfyui
from cpack_build.workspace.upstream import Upstream
from tests import need
from tests.fetch.repositories import git
from tests.fetch.servers import serving_files
from tests.workspace.installs import HUB, make_git_node, make_install, make_registry_node


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_install(tmp_path / "ComfyUI", with_git=False)


def nodes(root: Path) -> dict[str, Node]:
    found, _ = find_nodes(find_comfyui(root))
    return {node.name: node for node in found}


def only(root: Path) -> Node:
    (node,) = (node for node in nodes(root).values() if node.name == "node")
    return node


def applied(node: Node, clone: Path, target: Path) -> Path:
    """A fresh clone at the recorded commit, with the patch."""
    assert node.git is not None
    subprocess.run([need.tool("git"), "clone", "-q", str(clone), str(target)], check=True, capture_output=True)
    git(target, "checkout", "--quiet", node.git.commit)
    git(target, "apply", "-", stdin=node.git.patch)
    return target


def test_a_git_node_is_its_remote_and_commit(root: Path) -> None:
    commit = make_git_node(root / "custom_nodes/node", url=f"{HUB}/node.git")
    node = only(root)
    assert node.git is not None
    assert (node.kind, node.git.url, node.git.commit, node.git.patch) == ("git", f"{HUB}/node.git", commit, b"")
    assert node.notes == ()


def test_a_detached_head_and_several_remotes(root: Path) -> None:
    folder = root / "custom_nodes/node"
    commit = make_git_node(folder, url=f"{HUB}/node.git")
    git(folder, "config", "remote.fork.url", "https://hub.example/other/node.git")
    git(folder, "checkout", "--quiet", "--detach")
    node = only(root)
    assert node.git is not None
    assert (node.git.url, node.git.commit) == (f"{HUB}/node.git", commit)
    assert "several remotes; origin" in node.notes[0]


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("git@hub.example:me/node.git", "git@hub.example:me/node.git"),
        ("alice@hub.example:me/node.git", "ssh://hub.example/me/node.git"),
        ("ssh://alice:pw@hub.example:22/me/node", "ssh://hub.example:22/me/node"),
        ("https://alice:ghp_secret@hub.example/me/node.git", "https://hub.example/me/node.git"),
    ],
)
def test_no_user_or_token_of_a_remote_is_kept(root: Path, remote: str, url: str) -> None:
    make_git_node(root / "custom_nodes/node", url=remote)
    node = only(root)
    assert node.git is not None
    assert node.git.url == url
    assert node.git.private == (not url.startswith("https"))
    assert node.git.private == any("needs access" in note for note in node.notes)


def test_uncommitted_changes_become_a_patch_that_applies(root: Path, tmp_path: Path) -> None:
    folder = root / "custom_nodes/node"
    make_git_node(
        folder, url=f"{HUB}/node.git", files={"a.py": "a\n", "b.py": "b\n", "c.bin": b"\0\1", ".gitignore": "*.log\n"}
    )
    (folder / "a.py").write_text("changed\n")
    (folder / "b.py").unlink()
    (folder / "c.bin").write_bytes(b"\0\2\xff")
    (folder / "näw.py").write_text("new\n")
    (folder / "x.log").write_text("ignored")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/a.pyc").write_bytes(b"x")
    node = only(root)
    assert node.git is not None
    assert node.git.changed == ("a.py", "b.py", "c.bin", "näw.py")
    assert "uncommitted changes" in node.notes[-1]
    clone = applied(node, folder, tmp_path / "clone")
    assert (clone / "a.py").read_text() == "changed\n"
    assert not (clone / "b.py").exists()
    assert (clone / "c.bin").read_bytes() == b"\0\2\xff"
    assert (clone / "näw.py").read_text() == "new\n"
    assert not (clone / "x.log").exists()


def test_looking_changes_nothing_in_the_workspace(root: Path) -> None:
    folder = root / "custom_nodes/node"
    make_git_node(folder, url=f"{HUB}/node.git")
    (folder / "new.py").write_text("x")

    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}

    before = state()
    nodes(root)
    assert state() == before


def test_commits_that_were_not_pushed_are_captured(root: Path, tmp_path: Path) -> None:
    folder = root / "custom_nodes/node"
    pushed = make_git_node(folder, url=f"{HUB}/node.git")
    (folder / "more.py").write_text("more\n")
    git(folder, "add", "more.py")
    git(folder, "commit", "--quiet", "--message", "mine alone")
    node = only(root)
    assert node.git is not None
    assert node.git.commit == pushed
    assert (applied(node, folder, tmp_path / "clone") / "more.py").read_text() == "more\n"
    assert "commits that origin does not have" in node.notes[0]


def test_an_lfs_file_in_place_of_its_pointer_is_no_change(root: Path) -> None:
    content = b"big content\n"
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(content).hexdigest()}\n"
        f"size {len(content)}\n"
    )
    folder = root / "custom_nodes/node"
    files = {"m.bin": pointer, "other.bin": pointer, ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"}
    make_git_node(folder, url=f"{HUB}/node.git", files=files)
    (folder / "m.bin").write_bytes(content)
    node = only(root)
    assert node.git is not None
    assert node.git.changed == ()
    assert node.git.lfs == ("m.bin", "other.bin")
    assert "--capture-node node packs the node with these files" in node.notes[-1]
    (folder / "m.bin").write_bytes(b"Big content\n")
    changed = only(root).git
    assert changed is not None
    assert changed.changed == ("m.bin",)


def test_changes_within_a_submodule_are_captured(root: Path, tmp_path: Path) -> None:
    make_git_node(tmp_path / "inner", url=f"{HUB}/inner.git", files={"x.py": "x\n"})
    folder = root / "custom_nodes/node"
    make_git_node(folder)
    git(folder, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "inner"), "sub/inner")
    git(folder, "commit", "--quiet", "--message", "with a submodule")
    make_url = f"{HUB}/node.git"
    git(folder, "config", "remote.origin.url", make_url)
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")
    clean = only(root).git
    assert clean is not None
    assert clean.patch == b""
    (folder / "sub/inner/x.py").write_text("y\n")
    changed = only(root).git
    assert changed is not None
    assert changed.changed == ("sub/inner/x.py",)
    assert b"a/sub/inner/x.py b/sub/inner/x.py" in changed.patch
    shutil.rmtree(folder / "sub/inner")
    assert any("not checked out" in note for note in only(root).notes)


def test_a_large_or_outward_change_is_named_not_captured(root: Path) -> None:
    folder = root / "custom_nodes/node"
    make_git_node(folder, url=f"{HUB}/node.git")
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "home").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    node = only(root)
    assert node.git is not None
    assert node.git.patch == b""
    said = " ".join(node.notes)
    assert "weights.bin of 1048576 MiB" in said
    assert "link home, which leads out" in said


def test_nothing_that_a_repository_configures_is_run(root: Path, tmp_path: Path) -> None:
    folder = root / "custom_nodes/node"
    make_git_node(
        folder, url=f"{HUB}/node.git", files={"a.txt": "a\n", ".gitattributes": "*.txt filter=evil diff=evil\n"}
    )
    program = f"touch {tmp_path / 'was-run'}"
    for key in (
        "core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.textconv",
        "diff.external", "core.sshCommand", "core.pager", "core.hooksPath", "core.editor",
    ):  # fmt: skip
        git(folder, "config", key, program)
    (folder / "a.txt").write_text("b\n")
    node = only(root)
    assert node.git is not None
    assert node.git.changed == ("a.txt",)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("how", ["empty", "head", "objects", "pointer", "index", "config"])
def test_a_broken_repository_is_named_and_captured_whole(root: Path, how: str) -> None:
    folder = root / "custom_nodes/node"
    make_git_node(folder, url=f"{HUB}/node.git", files={"a.py": "a\n"})
    if how in ("empty", "pointer"):
        shutil.rmtree(folder / ".git")
        if how == "empty":
            (folder / ".git").mkdir()
        else:
            (folder / ".git").write_text("gitdir: ../nowhere\n")
    elif how == "objects":
        shutil.rmtree(folder / ".git/objects")
        (folder / ".git/objects").mkdir()
    else:
        {"head": folder / ".git/HEAD", "index": folder / ".git/index", "config": folder / ".git/config"}[
            how
        ].write_bytes(b"\0garbage\n[[")
    node = only(root)
    if how == "index":  # it can be made again from the commit
        assert node.kind == "git"
        return
    assert node.kind == "local"
    assert "broken" in node.reason
    assert [file.name for file in node.files] == ["nodes/node/a.py"]


def test_a_partial_clone_is_still_its_commit(root: Path) -> None:
    folder = root / "custom_nodes/node"
    commit = make_git_node(folder, url=f"{HUB}/node.git", files={"a.py": "a\n", "b.py": "b\n"})
    oid = git(folder, "rev-parse", "HEAD:a.py")
    (folder / ".git/objects" / oid[:2] / oid[2:]).unlink()
    (folder / "a.py").unlink()
    node = only(root)
    assert node.git is not None
    assert (node.kind, node.git.commit) == ("git", commit)
    assert "cannot be captured" in node.notes[0]


def test_a_registry_node_is_its_id_and_version(root: Path) -> None:
    make_registry_node(root / "custom_nodes/node", name="Some-Node")
    (root / "custom_nodes/node/mine.py").write_text("")
    node = only(root)
    assert (node.kind, node.registry_id, node.version, node.files) == ("registry", "some-node", "1.2.3", ())
    assert "not packed: mine.py. --capture-node node packs the node as it is" in node.notes[0]


def test_edits_of_a_registry_node_are_told_with_a_way_out(root: Path) -> None:
    folder = root / "custom_nodes/node"
    make_registry_node(folder)
    (folder / "nodes.py").write_text("x = 1\n")
    with (folder / ".tracking").open("a") as tracking:
        tracking.write("nodes.py\n")
    installed = (folder / ".tracking").stat().st_mtime
    assert only(root).notes == ()
    (folder / "nodes.py").write_text("x = 2\n")
    os.utime(folder / "nodes.py", (installed + 60, installed + 60))
    assert "edited since they came from the registry, which are not packed: nodes.py" in only(root).notes[0]
    (node,), _ = find_nodes(find_comfyui(root), capture=("node",))
    assert (node.kind, "nodes/node/nodes.py" in [file.name for file in node.files]) == ("local", True)
    for path in folder.iterdir():  # a copied folder is all of one time, and tells nothing
        os.utime(path, (installed + 60, installed + 60))
    os.utime(folder / ".tracking", (installed, installed))
    assert only(root).notes == ()


def test_edits_of_a_registry_node_are_known_by_its_archive(root: Path, tmp_path: Path) -> None:
    folder = root / "custom_nodes/node"
    make_registry_node(folder)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("pyproject.toml", "__init__.py"):
            archive.write(folder / name, name)
    api = json.dumps({"version": "1.2.3", "downloadUrl": "https://cdn.example/x.zip"}).encode()
    answers = {"/api/nodes/some-node/install": api, "/x.zip": out.getvalue()}

    def noted(*, url: str = "http://127.0.0.1:9", store: str = "s") -> tuple[str, ...]:
        mirrors = Mirrors({"https://api.comfy.org/": f"{url}/api/", "https://cdn.example/": f"{url}/"})
        upstream = Upstream(Store(tmp_path / store), Sources(mirrors))
        (node,), _ = find_nodes(find_comfyui(root), upstream=upstream)
        assert node.kind == "registry"
        return node.notes

    for path in folder.iterdir():  # times that would tell something else
        os.utime(path, (2_000_000_000, 2_000_000_000))
    os.utime(folder / ".tracking", (1_000_000_000, 1_000_000_000))
    with serving_files(answers) as server:
        assert noted(url=server.url) == ()
    (folder / "__init__.py").write_text("NODE_CLASS_MAPPINGS = 77\n")
    assert "edited since they came from the registry, which are not packed: __init__.py" in noted()[0]  # by the store
    for broken in (b"no zip", b""):
        with serving_files({**answers, "/x.zip": broken}) as server:
            assert noted(url=server.url, store=f"other-{len(broken)}") == ()


def test_disabled_nodes_of_both_ways_and_single_files(root: Path) -> None:
    custom = root / "custom_nodes"
    make_git_node(custom / "old.disabled", url=f"{HUB}/old.git")
    make_git_node(custom / ".disabled/newer@nightly", url=f"{HUB}/newer.git")
    (custom / "single.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (custom / "websocket_image_save.py").write_text("")
    (custom / "example_node.py.example").write_text("")
    (custom / "__pycache__").mkdir()
    found = nodes(root)
    assert {name: (node.kind, node.disabled) for name, node in found.items()} == {
        "old": ("git", True),
        "newer": ("git", True),
        "single.py": ("file", False),
        "websocket_image_save.py": ("file", False),
    }
    assert [file.name for file in found["single.py"].files] == ["nodes/single.py"]
    assert found["websocket_image_save.py"].files == ()


def test_a_node_without_remote_is_listed_whole_without_what_leads_out(root: Path) -> None:
    folder = root / "custom_nodes/node"
    (folder / "web").mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n")
    (folder / "web/a.js").write_text("a")
    (folder / "web/up").symlink_to(folder)
    (folder / "inside.py").symlink_to("__init__.py")
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "gone").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "back\\slash").write_text("")
    node = only(root)
    assert node.kind == "local"
    assert [file.name for file in node.files] == [
        "nodes/node/__init__.py", "nodes/node/inside.py", "nodes/node/web/a.js",
    ]  # fmt: skip
    said = "\n".join(node.notes)
    for part in (
        "passwd",
        "leads out of the node",
        "gone",
        "pipe",
        "no regular file",
        "backslash",
        "folder that holds it",
    ):
        assert part in said


def test_weird_names_are_told_and_passed_over(root: Path) -> None:
    for name in (b"a\\b", b"new\nline", b"\xff\xfe"):
        os.mkdir(os.fsencode(root / "custom_nodes") + b"/" + name)
    found, notes = find_nodes(find_comfyui(root))
    assert {node.name for node in found} <= {"README.md"}
    assert len(notes) == 3
    "\n".join(notes).encode()


def test_excluding_what_is_not_there_is_an_error(root: Path) -> None:
    make_git_node(root / "custom_nodes/node", url=f"{HUB}/node.git")
    assert find_nodes(find_comfyui(root), exclude=("node",))[0] == ()
    with pytest.raises(BadInput, match="'nodee' is no custom node"):
        find_nodes(find_comfyui(root), exclude=("nodee",))
