"""A restored node's submodules: what ``git clone --recurse-submodules`` makes at the same commit, and nothing more."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.restore.folder import Folder
from cpack_build.restore.names import Folding
from cpack_build.workspace.gitfolder import observe
from tests.cli.calling import Caller
from tests.fetch.repositories import git, make_repository
from tests.restore.images import NODE_FILES, NODE_URL, World, make_world
from tests.restore.test_restore import mirrored, snapshot_of

TEAM = "https://nodes.example/team"
DEEP_URL = "https://elsewhere.example/deep"


def gitmodules(*, name: str, path: str, url: str) -> str:
    return f'[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n'


@dataclass(frozen=True)
class Nested:
    """The image of a node with a submodule that has one itself; their commits by path in the node."""

    world: World
    commits: dict[str, str]

    @property
    def source(self) -> str:
        return f"oci:{self.world.layout}"


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Nested:
    folder = tmp_path_factory.mktemp("nested")
    deep = make_repository(folder / "git/deep", {"deep.py": "DEEP = 1\n"})
    inner = make_repository(
        folder / "git/inner",
        {"inner.py": "INNER = 1\n", ".gitmodules": gitmodules(name="the deep one", path="more/deep", url=DEEP_URL)},
        submodules={"more/deep": deep},
    )
    make_repository(folder / "git/inner", {"later.py": "not this\n"})
    world = make_world(
        folder,
        node_files={**NODE_FILES, ".gitmodules": gitmodules(name="lib/inner", path="lib/inner", url="../inner.git")},
        node_submodules={"lib/inner": inner},
        mirrors={f"{TEAM}/inner": str(folder / "git/inner"), DEEP_URL: str(folder / "git/deep")},
    )
    return Nested(world, {"lib/inner": inner, "lib/inner/more/deep": deep})


def recursive(folder: Path) -> list[str]:
    """State, commit and path of each submodule, as git tells them."""
    said = git(folder, "submodule", "status", "--recursive").splitlines()
    return [" ".join(line.split(" (")[0].split()) for line in said]


def check_clean(node: Path, commits: dict[str, str]) -> None:
    assert recursive(node) == [f"{commit} {path}" for path, commit in commits.items()]
    for folder in (node, *(node / path for path in commits)):
        assert git(folder, "status", "--porcelain", "--ignored") == ""
        assert Path(git(folder, "rev-parse", "--show-toplevel")) == folder.resolve()
        git(folder, "fsck", "--strict")


def test_they_are_what_git_s_own_recursive_clone_is(nested: Nested, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    outcome = call("restore", nested.source, "-d", root, "--no-venv", *mirrored(nested.world), "--json")
    assert outcome.code == 0, outcome
    assert not [note for note in outcome.document["notes"] if "checkout" in note]
    node, peer = root / "custom_nodes/fancy", tmp_path / "peer"
    instead = [f"url.{place}.insteadOf={url}{end}" for url, place in nested.world.mirrors.items()
               for end in ((".git", "") if "inner" in url else ("",))]  # fmt: skip
    flags = [flag for one in ("protocol.file.allow=always", *instead) for flag in ("-c", one)]
    git(tmp_path, *flags, "clone", "--quiet", "--recurse-submodules", NODE_URL, str(peer))
    assert recursive(node) == recursive(peer)
    check_clean(node, nested.commits)
    for path in ("lib/inner", "lib/inner/more/deep"):
        assert (node / path / ".git").read_text() == (peer / path / ".git").read_text()
        for question in (
            ("rev-parse", "HEAD"), ("remote", "get-url", "origin"), ("config", "core.worktree"),
            ("ls-files", "--stage"), ("rev-parse", "--show-superproject-working-tree"),
        ):  # fmt: skip
            ours, theirs = git(node / path, *question), git(peer / path, *question)
            assert ours.replace(str(node), "") == theirs.replace(str(peer), ""), question
        urls = ("config", "--get-regexp", r"^submodule\..*\.url$")
        assert git(node, *urls) == git(peer, *urls)
        assert git(node / "lib/inner", *urls) == git(peer / "lib/inner", *urls)
    git(node, "submodule", "update", "--init", "--recursive")  # finds all of it there, and asks nobody
    (node / "lib/inner/more/deep/deep.py").write_text("DEEP = 2\n")
    assert git(node, "status", "--porcelain") == "M lib/inner"
    assert git(node / "lib/inner/more/deep", "diff", "--name-only") == "deep.py"
    assert observe(node).changed == ("lib/inner/more/deep/deep.py",), "and `pack` has the change"


def test_a_second_run_asks_nobody_and_changes_nothing(nested: Nested, call: Caller, home: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    assert call("restore", nested.source, "-d", root, "--no-venv", *mirrored(nested.world)).code == 0
    before = snapshot_of(root)
    shutil.rmtree(home)
    outcome = call("restore", nested.source, "-d", root, "--no-venv", "--offline", "--json")
    assert (outcome.code, outcome.document["made"], outcome.document["notes"]) == (0, 0, [])
    assert snapshot_of(root) == before
    assert call("restore", "--verify", root).code == 0


@pytest.mark.parametrize("lost", ["custom_nodes/fancy/lib/inner/.git", "custom_nodes/fancy/lib/inner/more/deep",
                                  "custom_nodes/fancy/.git/modules/lib/inner/modules"])  # fmt: skip
def test_what_is_missing_of_one_is_repaired(nested: Nested, call: Caller, tmp_path: Path, lost: str) -> None:
    root = tmp_path / "w"
    flags = ["-d", root, "--no-venv", *mirrored(nested.world)]
    assert call("restore", nested.source, *flags).code == 0
    place = root / lost
    place.unlink() if place.is_file() else shutil.rmtree(place)
    if lost.endswith("modules"):
        (root / "custom_nodes/fancy/lib/inner/more/deep/.git").unlink()
    assert call("restore", nested.source, *flags).code == 0
    check_clean(root / "custom_nodes/fancy", nested.commits)


@pytest.mark.parametrize("gone", ["inner", "deep"])
def test_one_whose_remote_does_not_answer_is_its_files_and_its_commit_until_it_does(
    nested: Nested, call: Caller, tmp_path: Path, gone: str
) -> None:
    root = tmp_path / "w"
    some = [f"{url}={place}" for url, place in nested.world.mirrors.items() if not url.endswith(gone)]
    flags = [flag for one in some for flag in ("--mirror", one)]
    outcome = call("restore", nested.source, "-d", root, "--no-venv", "--offline", *flags, "--json")
    assert outcome.code == 0, outcome
    node = root / "custom_nodes/fancy"
    path = "lib/inner" if gone == "inner" else "lib/inner/more/deep"
    assert (node / path / f"{gone}.py").read_text() == f"{gone.upper()} = 1\n"
    assert (node / ".git").is_dir(), "what answers is a checkout"
    assert not (node / path / ".git").exists()
    note = f"fancy/{path} is no git checkout: "
    assert [one for one in outcome.document["notes"] if one.startswith(note) and nested.commits[path] in one]
    record = json.loads((root / ".cpack/state.json").read_text())["trees"]["fancy"]["submodules"][path]
    assert (record["commit"], record["checkout"]) == (nested.commits[path], False)
    assert record["url"] in (f"{TEAM}/inner.git", DEEP_URL)
    assert git(node, "status", "--porcelain") == ""
    assert call("restore", nested.source, "-d", root, "--no-venv", *mirrored(nested.world)).code == 0
    check_clean(node, nested.commits)


def test_a_node_whose_remote_does_not_answer_is_whole_with_them(nested: Nested, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    assert call("restore", nested.source, "-d", root, "--no-venv", "--offline").code == 0
    assert (root / "custom_nodes/fancy/lib/inner/more/deep/deep.py").read_text() == "DEEP = 1\n"
    assert not list(root.rglob(".git"))
    assert call("restore", nested.source, "-d", root, "--no-venv", *mirrored(nested.world)).code == 0
    check_clean(root / "custom_nodes/fancy", nested.commits)


def test_a_git_folder_of_somebody_else_in_its_place_is_left_alone(nested: Nested, call: Caller, tmp_path: Path) -> None:
    place = tmp_path / "w/custom_nodes/fancy/lib/inner"
    theirs = make_repository(place, {"mine.py": "mine\n"})
    outcome = call("restore", nested.source, "-d", tmp_path / "w", "--no-venv", *mirrored(nested.world), "--json")
    assert outcome.code == 0, outcome
    assert git(place, "rev-parse", "HEAD") == theirs
    assert [note for note in outcome.document["notes"] if theirs in note and "left alone" in note]


def test_a_link_that_takes_the_place_of_its_folder_is_not_followed(
    nested: Nested, call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = tmp_path / "w", tmp_path / "outside"
    outside.mkdir()
    write = Folder.write

    def written(folder: Folder, path: str, *arguments: object, **named: object) -> None:
        if path.endswith("lib/inner/.git"):  # between the last look and the write
            (root / "custom_nodes/fancy/lib/inner").rename(root / "moved")
            (root / "custom_nodes/fancy/lib/inner").symlink_to(outside)
        write(folder, path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Folder, "write", written)
    outcome = call("restore", nested.source, "-d", root, "--no-venv", *mirrored(nested.world))
    assert outcome.code == 8, outcome
    assert "is a link, and nothing is written through a link" in outcome.err
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("../../evil", "../inner"),
        ("a/../../../evil", "../inner"),
        ("a//../../evil", "../inner"),
        ("/../evil", "../inner"),
        ("./", "../inner"),
        ("a\\\\..\\\\b", "../inner"),
        ("..\\\\..\\\\evil", "../inner"),
        ("s", "-uevil"),
        ("s", "--upload-pack=evil"),
        ("s", "ext::sh -c evil"),
        ("s", "file:///etc"),
        ("s", "../../../../../evil"),
        ("s", "https://-oProxyCommand=evil/x"),
        ("s", "ssh://-oProxyCommand=evil/x"),
    ],
)
def test_names_and_urls_that_lead_elsewhere_are_refused_and_nothing_written(
    call: Caller, tmp_path: Path, name: str, url: str
) -> None:
    """CVE-2018-11235 (names), CVE-2018-17456 and CVE-2017-1000117 (URLs that are options)."""
    inner = make_repository(tmp_path / "git/inner", {"inner.py": ""})
    world = make_world(tmp_path / "made")
    text = gitmodules(name=name, path="sub", url=f'"{url}"')
    evil = make_repository(world.folder / "git/fancy", {**NODE_FILES, ".gitmodules": text}, submodules={"sub": inner})
    refused(world, evil, call, tmp_path, says="submodule|refused")


@pytest.mark.parametrize("name", ["./lib", "a//b", "/lib", "a/./b"])
def test_odd_names_that_git_takes_are_taken_and_lie_where_git_has_them(call: Caller, tmp_path: Path, name: str) -> None:
    inner = make_repository(tmp_path / "git/inner", {"inner.py": "INNER = 1\n"})
    world = make_world(
        tmp_path / "made",
        node_files={**NODE_FILES, ".gitmodules": gitmodules(name=name, path="sub", url="../inner.git")},
        node_submodules={"sub": inner},
        mirrors={f"{TEAM}/inner": str(tmp_path / "git/inner")},
    )
    root, peer = tmp_path / "w", tmp_path / "peer"
    outcome = call("restore", f"oci:{world.layout}", "-d", root, "--no-venv", *mirrored(world), "--json")
    assert outcome.code == 0, outcome
    node = root / "custom_nodes/fancy"
    check_clean(node, {"sub": inner})
    instead = [f"url.{place}.insteadOf={url}{end}" for url, place in world.mirrors.items()
               for end in ((".git", "") if "inner" in url else ("",))]  # fmt: skip
    flags = [flag for one in ("protocol.file.allow=always", *instead) for flag in ("-c", one)]
    git(tmp_path, *flags, "clone", "--quiet", "--recurse-submodules", NODE_URL, str(peer))
    assert recursive(node) == recursive(peer)
    for checkout in (node, peer):
        history = Path(git(checkout / "sub", "rev-parse", "--absolute-git-dir"))
        assert history == (checkout / ".git/modules" / name.lstrip("/")).resolve()
    urls = ("config", "--get-regexp", r"^submodule\..*\.url$")
    assert git(node, *urls) == git(peer, *urls)
    git(node, "submodule", "update", "--init", "--recursive")  # finds all of it there, and asks nobody


def test_one_whose_name_has_a_backslash_is_its_files_and_told(call: Caller, tmp_path: Path) -> None:
    inner = make_repository(tmp_path / "git/inner", {"inner.py": "INNER = 1\n"})
    world = make_world(
        tmp_path / "made",
        node_files={**NODE_FILES, ".gitmodules": gitmodules(name="a\\\\b", path="sub", url="../inner.git")},
        node_submodules={"sub": inner},
        mirrors={f"{TEAM}/inner": str(tmp_path / "git/inner")},
    )
    root = tmp_path / "w"
    outcome = call("restore", f"oci:{world.layout}", "-d", root, "--no-venv", *mirrored(world), "--json")
    assert outcome.code == 0, outcome
    node = root / "custom_nodes/fancy"
    assert (node / "sub/inner.py").read_text() == "INNER = 1\n"
    assert not (node / "sub/.git").exists()
    assert any("its name 'a\\\\b' has a backslash" in note for note in outcome.document["notes"]), outcome


@pytest.mark.parametrize("names", [("s", "S/hooks"), ("s", "./s/hooks"), ("s", "s//hooks"), ("a/b", "/a/./b")])
def test_folders_of_git_s_within_each_other_are_refused(call: Caller, tmp_path: Path, names: tuple[str, str]) -> None:
    """CVE-2019-1387: one submodule's files would be another's hooks."""
    inner = make_repository(tmp_path / "git/inner", {"inner.py": ""})
    world = make_world(tmp_path / "made")
    text = "".join(
        gitmodules(name=name, path=path, url="../inner") for name, path in zip(names, ("a", "b"), strict=True)
    )
    files = {**NODE_FILES, ".gitmodules": text}
    evil = make_repository(world.folder / "git/fancy", files, submodules={"a": inner, "b": inner})
    refused(world, evil, call, tmp_path, says="whose folder is another's")


@pytest.mark.parametrize("link", ["a", "A"])
def test_a_submodule_below_a_link_is_refused(
    call: Caller, tmp_path: Path, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2024-32002: ``A/modules/x`` beside a link ``a`` to ``.git`` puts hooks where case does not count; and the
    same in a tree that has one name twice."""
    monkeypatch.setattr("cpack_build.restore.restoring.folding_of", lambda folder: Folding(case=True))
    inner = make_repository(tmp_path / "git/inner", {"hooks/post-checkout": "evil"})
    world = make_world(tmp_path / "made")
    place = world.folder / "git/fancy"
    text = gitmodules(name="x", path=f"{link}/modules/x", url="../inner")
    make_repository(place, {"init.py": "", ".gitmodules": text}, submodules={f"{link}/modules/x": inner})
    evil = with_entry(place, "120000", "a", b"b/..")
    places = Mirrors({**world.mirrors, f"{TEAM}/inner": str(tmp_path / "git/inner")})
    tree = fetch_tree(NODE_URL, evil, store=Store(tmp_path / "other"), mirrors=places)
    says = "both a file or link and a folder|would be one file here"
    refused(world, evil, call, tmp_path, says=says, tree_sha256=tree.tree_digest())


@pytest.mark.parametrize("kind", ["link", "nothing"])
def test_a_submodule_that_gitmodules_does_not_explain_is_told(call: Caller, tmp_path: Path, kind: str) -> None:
    """A ``.gitmodules`` that is a link would be read from elsewhere (CVE-2020-11008's kin): it says nothing here."""
    inner = make_repository(tmp_path / "git/inner", {"inner.py": ""})
    world = make_world(tmp_path / "made")
    place = world.folder / "git/fancy"
    files = {**NODE_FILES, "gitmodules": gitmodules(name="s", path="sub", url="../inner")}
    odd = make_repository(place, files, submodules={"sub": inner})
    if kind == "link":
        odd = with_entry(place, "120000", ".gitmodules", b"gitmodules")
    refused(world, odd, call, tmp_path, says="submodule at 'sub' that its .gitmodules does not explain", code=4)


def with_entry(place: Path, mode: str, name: str, data: bytes) -> str:
    """One more entry in the tree of *place*, as git itself would not add it; the commit."""
    top = git(place, "ls-tree", "HEAD")
    blob = git(place, "hash-object", "-w", "--stdin", stdin=data)
    tree = git(place, "mktree", stdin=f"{top}\n{mode} blob {blob}\t{name}\n".encode())
    commit = git(place, "commit-tree", "-m", "odd", tree)
    git(place, "update-ref", "refs/heads/main", commit)
    return commit


def refused(
    world: World, commit: str, call: Caller, folder: Path, *, says: str, code: int = 8, tree_sha256: str = ""
) -> None:
    """That a restore of the node at *commit* ends with *code*, and has written nothing."""
    lock = json.loads(world.lock_path.read_bytes())
    lock["nodes"][0] |= {"commit": commit} | ({"tree_sha256": tree_sha256} if tree_sha256 else {})
    world.lock_path.write_text(json.dumps(lock))
    before, root = set(folder.rglob("*")), folder / "w"
    flags = [*mirrored(world), "--mirror", f"{TEAM}/inner={folder / 'git/inner'}"]
    outcome = call("restore", world.pack, "-d", root, "--no-venv", *flags)
    assert outcome.code == code, outcome
    assert re.search(says, outcome.err)
    made = {path for path in folder.rglob("*") if folder / "home" not in (path, *path.parents)} - before
    assert {path.relative_to(root).parts[:1] for path in made} <= {(), (".cpack",)}
    assert not list(folder.parent.rglob("evil*"))
