"""Git trees by commit: real repositories, fetched into the store and read without a checkout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.git import canonical_url, fetch_tree, open_locked
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from tests.fetch.repositories import git, make_repository
from tests.fetch.servers import serving_files

URL = "https://code.example/team/node"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def mirrors(origin: Path) -> Mirrors:
    return Mirrors({URL: str(origin)})


def test_a_tree_is_listed_and_read_as_it_was_committed(origin: Path, store: Store, mirrors: Mirrors) -> None:
    files = {
        "b/ä x.txt": "umlaut",
        "a.py": "print()\n",
        "run.sh": "#!/bin/sh\n",
        "empty": b"",
        "bin": bytes(range(256)),
    }
    commit = make_repository(origin, files, executable=("run.sh",), links={"b/up": "../a.py"}, date=1_600_000_000)

    tree = fetch_tree(URL, commit, store=store, mirrors=mirrors)

    listed = {file.path: file for file in tree.files()}
    assert list(listed) == sorted([*files, "b/up"], key=str.encode)
    assert {path: file.mode for path, file in listed.items() if file.mode != "100644"} == {
        "run.sh": "100755",
        "b/up": "120000",
    }
    with tree.reader() as read:
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            assert read(listed[path].oid) == data == b"".join(tree.chunks(listed[path].oid))
            assert listed[path].size == len(data)
        assert read(listed["b/up"].oid) == b"../a.py"
    assert tree.committed_at == 1_600_000_000


def test_the_digest_is_of_modes_paths_and_contents(origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"b": "2", "a": "1"}, executable=("b",))
    tree = fetch_tree(URL, commit, store=store, mirrors=mirrors)

    listing = b"".join(
        f"{mode} {hashlib.sha256(content).hexdigest()} {path}\0".encode()
        for mode, path, content in (("100644", "a", b"1"), ("100755", "b", b"2"))
    )
    assert tree.tree_digest() == hashlib.sha256(listing).hexdigest()


def test_history_has_no_say_in_the_digest(tmp_path: Path, store: Store) -> None:
    digests = []
    for name, earlier in (("one", {}), ("two", {"old": "x"})):
        make_repository(tmp_path / name, earlier)
        commit = make_repository(tmp_path / name, {"a": "1"}, date=1_700_000_000 + len(earlier))
        mirrors = Mirrors({URL: str(tmp_path / name)})
        digests.append(fetch_tree(URL, commit, store=store, mirrors=mirrors).tree_digest())
    assert digests[0] == digests[1]


def test_a_commit_that_is_there_needs_no_origin(origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"a": "1"})
    digest = fetch_tree(URL, commit, store=store, mirrors=mirrors).tree_digest()
    shutil.rmtree(origin)

    again = open_locked(URL, commit, tree_sha256=digest, store=Store(store.root), sources=Sources())
    assert [file.path for file in again.files()] == ["a"]


def test_a_commit_behind_the_branches_is_fetched_alone(origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"a": "1"})
    make_repository(origin, {"a": "2"})
    tree = fetch_tree(URL, commit, store=store, mirrors=mirrors)
    assert git(tree.repository, "rev-list", "--count", "--all") == "1"


def test_a_server_that_gives_only_branches_will_do(origin: Path, store: Store) -> None:
    """git's dumb HTTP protocol can neither fetch one commit nor be shallow."""
    commit = make_repository(origin, {"a": "1"})
    make_repository(origin, {"a": "2"})
    git(origin, "update-server-info")
    files = {
        f"/node.git/{p.relative_to(origin / '.git')}": p.read_bytes() for p in origin.rglob(".git/**/*") if p.is_file()
    }
    with serving_files(files) as server:
        tree = fetch_tree(f"{server.url}/node.git", commit, store=store, mirrors=Mirrors())
        assert tree.read(tree.files()[0].oid) == b"1"


def test_an_unknown_commit_names_the_repository_and_the_commit(origin: Path, store: Store, mirrors: Mirrors) -> None:
    make_repository(origin, {"a": "1"})
    with pytest.raises(Unresolvable, match=rf"{URL} has no commit {'1' * 40}.*--mirror") as caught:
        fetch_tree(URL, "1" * 40, store=store, mirrors=mirrors)
    assert caught.value.exit_code == 4


def test_a_repository_that_lacks_other_blobs_will_do(origin: Path, store: Store, mirrors: Mirrors) -> None:
    make_repository(origin, {"a": "gone", "b": "1"})
    oid = git(origin, "rev-parse", "HEAD:a")
    commit = make_repository(origin, {"b": "1"})
    (origin / ".git" / "objects" / oid[:2] / oid[2:]).unlink()

    assert [file.path for file in fetch_tree(URL, commit, store=store, mirrors=mirrors).files()] == ["b"]


def test_a_repository_that_lacks_a_wanted_blob_is_told(origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"a": "gone"})
    oid = git(origin, "rev-parse", "HEAD:a")
    (origin / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    with pytest.raises(Unresolvable, match=f"{URL} at {commit} cannot be fetched"):
        fetch_tree(URL, commit, store=store, mirrors=mirrors)


def test_the_git_suffix_makes_no_difference_to_mirrors_and_locks(origin: Path, store: Store) -> None:
    commit = make_repository(origin, {"a": "1"})
    for url, prefix in ((f"{URL}.git", URL), (URL, f"{URL}.git"), (f"{URL}/", URL)):
        assert fetch_tree(url, commit, store=store, mirrors=Mirrors({prefix: str(origin)})).url == URL


def test_comfyui_has_one_name() -> None:
    for url in (
        "https://github.com/comfyanonymous/ComfyUI.git",
        "https://github.com/comfyanonymous/ComfyUI",
        "https://github.com/Comfy-Org/ComfyUI/",
        "https://token@github.com/Comfy-Org/ComfyUI.git",
    ):
        assert canonical_url(url) == "https://github.com/Comfy-Org/ComfyUI"
    assert canonical_url("https://github.com/ltdrdata/ComfyUI-Manager") == "https://github.com/ltdrdata/ComfyUI-Manager"


def test_a_mirror_of_one_repository_is_not_one_of_its_neighbour(origin: Path, store: Store) -> None:
    commit = make_repository(origin, {"a": "1"})
    mirrors = Mirrors({URL: str(origin), "https://code.example/team/": "https://127.0.0.1:9/"})
    with pytest.raises(NetworkError, match=r"https://code\.example/team/node-two cannot be reached"):
        fetch_tree(f"{URL}-two", commit, store=store, mirrors=mirrors)


@pytest.mark.parametrize(
    "url",
    [
        "/etc", "file:///srv/x", "ext::sh -c touch% /tmp/x", "--upload-pack=touch /tmp/x", "git://h.example/x",
        "ssh://-oProxyCommand=touch/x", "-x@h.example:y", "git@-oProxyCommand=x:y", "https://h.example/a b", "../up",
        "",
    ],
)  # fmt: skip
def test_what_is_no_plain_remote_is_refused(url: str, store: Store) -> None:
    with pytest.raises(UnsafeInput, match="is refused"):
        fetch_tree(url, "1" * 40, store=store, mirrors=Mirrors())


@pytest.mark.parametrize("commit", ["main", "HEAD", "--upload-pack=x", "abc123", "1" * 39, "A" * 40, f"{'1' * 40}^"])
def test_what_is_no_commit_is_refused(commit: str, store: Store) -> None:
    with pytest.raises(UnsafeInput, match="is not a commit"):
        fetch_tree(URL, commit, store=store, mirrors=Mirrors())


def test_a_managers_trailing_newline_is_forgiven(origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"a": "1"})
    assert fetch_tree(URL, commit + "\n", store=store, mirrors=mirrors).commit == commit


def test_a_submodule_is_named(origin: Path, store: Store, mirrors: Mirrors) -> None:
    make_repository(origin, {"a": "1"})
    git(origin, "update-index", "--add", "--cacheinfo", f"160000,{'2' * 40},vendor/dep")
    git(origin, "commit", "--quiet", "--message", "with a submodule")
    tree = fetch_tree(URL, git(origin, "rev-parse", "HEAD"), store=store, mirrors=mirrors)
    with pytest.raises(Unresolvable, match="submodule at 'vendor/dep'"):
        tree.files()


def test_lfs_pointers_are_found_also_when_remembered(origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"model.bin": LFS, "a": "1"})
    for _ in range(2):
        assert fetch_tree(URL, commit, store=store, mirrors=mirrors).lfs_pointers() == ("model.bin",)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "b/../../../x"])
def test_a_link_out_of_the_tree_is_refused(target: str, origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"a": "1"}, links={"b/link": target})
    with pytest.raises(UnsafeInput, match=r"the link 'b/link' leads out of the tree"):
        fetch_tree(URL, commit, store=store, mirrors=mirrors).tree_digest()


@pytest.mark.parametrize(
    "links",
    [
        {"a": ".", "b": "a/.."},
        {"z": "deep/a/..", "deep/a": ".."},
        {"deep/up": "..", "out": "deep/up/../x"},
        {"a": "b", "b": "a"},
    ],
)
def test_links_that_lead_out_of_the_tree_only_together_are_refused(
    links: dict[str, str], origin: Path, store: Store, mirrors: Mirrors
) -> None:
    commit = make_repository(origin, {"f": "1", "deep/f": "1"}, links=links)
    for _ in range(2):  # nor is it believed the second time
        with pytest.raises(UnsafeInput, match=r"leads out of the tree or in a circle"):
            fetch_tree(URL, commit, store=store, mirrors=mirrors).tree_digest()


def test_a_lock_that_names_such_a_tree_by_its_right_hash_is_refused_by_a_build(
    origin: Path, store: Store, mirrors: Mirrors
) -> None:
    commit = make_repository(origin, {}, links={"a": ".", "b": "a/.."})
    text = "".join(
        f"120000 {hashlib.sha256(target).hexdigest()} {path}\0" for path, target in (("a", b"."), ("b", b"a/.."))
    )
    right = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(UnsafeInput, match="the link 'b'"):
        open_locked(URL, commit, tree_sha256=right, store=store, sources=Sources(mirrors))


def test_links_within_the_tree_are_no_matter_how_long_the_way(origin: Path, store: Store, mirrors: Mirrors) -> None:
    links = {"a": "deep", "b": "a/../f", "deep/c": "../a/f", "dangling": "deep/nothing"}
    commit = make_repository(origin, {"f": "1", "deep/f": "1"}, links=links)
    assert fetch_tree(URL, commit, store=store, mirrors=mirrors).tree_digest()


def test_a_tree_with_git_s_own_names_is_refused(origin: Path, store: Store, mirrors: Mirrors) -> None:
    make_repository(origin, {"a": "1"})
    blob = git(origin, "hash-object", "-w", "--stdin", stdin=b"x")
    inner = git(origin, "mktree", stdin=f"100644 blob {blob}\tconfig\n".encode())
    top = git(origin, "mktree", stdin=f"040000 tree {inner}\t.GIT\n".encode())
    commit = git(origin, "commit-tree", top, "-m", "hostile")
    git(origin, "update-ref", "refs/heads/hostile", commit)
    with pytest.raises(UnsafeInput, match=r"\.GIT/config"):
        fetch_tree(URL, commit, store=store, mirrors=mirrors).files()


def test_a_locked_tree_with_another_digest_is_refused(origin: Path, store: Store, mirrors: Mirrors) -> None:
    commit = make_repository(origin, {"a": "1"})
    with pytest.raises(HashMismatch, match="0" * 64) as caught:
        open_locked(URL, commit, tree_sha256="0" * 64, store=store, sources=Sources(mirrors))
    assert caught.value.exit_code == 5


def test_an_unreachable_server_is_a_network_error_without_secrets(store: Store) -> None:
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        fetch_tree("https://user:secret@127.0.0.1:9/x", "1" * 40, store=store, mirrors=Mirrors())
    assert "secret" not in str(caught.value)


def test_the_users_git_variables_do_not_lead_elsewhere(
    origin: Path, store: Store, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = make_repository(origin, {"a": "1"})
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert len(fetch_tree(URL, commit, store=store, mirrors=mirrors).files()) == 1


@pytest.mark.parametrize(("written", "meant"), [("99999999999999999", 253_402_300_799), ("-5", 0)])
def test_a_date_that_no_calendar_has_becomes_the_nearest_that_one_has(
    tmp_path: Path, store: Store, written: str, meant: int
) -> None:
    origin = tmp_path / "origin"
    make_repository(origin, {"a": "1"})
    text = git(origin, "cat-file", "commit", "HEAD")
    text = text.replace("committer C <c@x.example> 1700000000", f"committer C <c@x.example> {written}") + "\n"
    commit = git(origin, "hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=text.encode())
    git(origin, "update-ref", "refs/heads/odd", commit)
    mirrors = Mirrors({"https://code.example/x": str(origin)})
    assert fetch_tree("https://code.example/x", commit, store=store, mirrors=mirrors).committed_at == meant


def _with_submodule(folder: Path, path: str, url: str, commit: str) -> str:
    """A commit in *folder* with a submodule; git itself is not asked to clone it."""
    make_repository(folder, {".gitmodules": f'[submodule "s"]\n\tpath = {path}\n\turl = {url}\n', "own": "1"})
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    git(folder, "commit", "--quiet", "--message", "submodule")
    return git(folder, "rev-parse", "HEAD")


@pytest.mark.parametrize("url", ["https://code.example/inner.git", "../inner", "./../inner.git"])
def test_submodules_are_part_of_the_tree_at_the_commits_it_says(url: str, tmp_path: Path) -> None:
    deep = make_repository(tmp_path / "deep", {"d": "deep"})
    inner = _with_submodule(tmp_path / "inner", "more", "https://code.example/deep", deep)
    outer = _with_submodule(tmp_path / "outer", "lib/inner", url, inner)
    make_repository(tmp_path / "inner", {"later": "not this"})
    mirrors = Mirrors({"https://code.example/": f"{tmp_path}/"})
    tree = fetch_tree("https://code.example/outer", outer, store=Store(tmp_path / "store"), mirrors=mirrors)
    assert [file.path for file in tree.files()] == [
        ".gitmodules", "lib/inner/.gitmodules", "lib/inner/more/d", "lib/inner/own", "own",
    ]  # fmt: skip
    assert tree.read(tree.files()[2].oid) == b"deep"
    assert len(tree.tree_digest()) == 64


@pytest.mark.parametrize(
    "url", ["file:///etc", "ext::sh -c true", "--upload-pack=x", "/srv/x", "git://code.example/x", "../../../../x"]
)
def test_a_submodule_from_a_place_that_is_not_fetched_is_refused(url: str, tmp_path: Path) -> None:
    inner = make_repository(tmp_path / "inner", {"a": "b"})
    outer = _with_submodule(tmp_path / "outer", "inner", f'"{url}"', inner)
    mirrors = Mirrors({"https://code.example/outer": str(tmp_path / "outer")})
    with pytest.raises(UnsafeInput):
        fetch_tree("https://code.example/outer", outer, store=Store(tmp_path / "store"), mirrors=mirrors)


def test_a_submodule_commit_that_its_remote_lacks_is_named(tmp_path: Path) -> None:
    make_repository(tmp_path / "inner", {"a": "b"})
    outer = _with_submodule(tmp_path / "outer", "inner", "../inner", "1" * 40)
    mirrors = Mirrors({"https://code.example/": f"{tmp_path}/"})
    with pytest.raises(Unresolvable, match=f"inner has no commit {'1' * 40}"):
        fetch_tree("https://code.example/outer", outer, store=Store(tmp_path / "store"), mirrors=mirrors)
