"""Files that Git LFS keeps are in the tree, proved by their pointers: from the store, a clone, or the batch API."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.git import fetch_tree, open_locked
from cpack_build.fetch.http import Offline, RequestsTransport, Sources
from cpack_build.fetch.lfs import read_pointer, with_lfs
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree, files_digest
from tests.fetch.repositories import git, make_repository
from tests.fetch.servers import Answer, Request, Server, serving

URL = "https://code.example/team/node"
WEIGHTS = bytes(range(256)) * 100
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def pointer(data: bytes = WEIGHTS) -> str:
    oid = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n"


class LfsServer:
    """The batch API and the objects behind it (git-lfs, docs/api/batch.md)."""

    def __init__(self, objects: dict[str, bytes] | None = None, *, token: str = "") -> None:
        self.objects = {SHA256: WEIGHTS} if objects is None else objects
        self.token = token
        self.url = ""
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: Request) -> Answer:
        if request.method == "POST" and request.path.endswith(".git/info/lfs/objects/batch"):
            assert request.headers["accept"] == request.headers["content-type"] == "application/vnd.git-lfs+json"
            self.asked.append(json.loads(request.body))
            listed = [self._object(one["oid"], one["size"]) for one in self.asked[-1]["objects"]]
            return Answer(body=json.dumps({"transfer": "basic", "objects": listed}).encode())
        data = self.objects.get(request.path.rpartition("/")[2])
        if data is None or (self.token and request.headers.get("authorization") != self.token):
            return Answer(403)
        return Answer(body=data, headers={"Content-Type": "application/octet-stream"})

    def _object(self, oid: str, size: int) -> dict[str, Any]:
        if oid not in self.objects:
            return {"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}}
        download: dict[str, Any] = {"href": f"{self.url}/objects/{oid}"}
        if self.token:
            download["header"] = {"Authorization": self.token}
        return {"oid": oid, "size": size, "actions": {"download": download}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def sources(folder: Path, server: Server | None, *, repository: str = "node") -> Sources:
    """The repository *folder*/*repository* as that of :data:`URL`, with *server* as its LFS server."""
    mirrors = {URL: str(folder / repository)}
    if server is not None:
        mirrors[f"{URL}.git/info/lfs"] = f"{server.url}/team/node.git/info/lfs"
    return Sources(Mirrors(mirrors), RequestsTransport())


def node(folder: Path, files: dict[str, str | bytes] | None = None) -> str:
    return make_repository(folder / "node", files or {"__init__.py": "x", "weights.bin": pointer()})


def resolved(folder: Path, server: LfsServer | Callable[[Request], Answer], store: Store, commit: str) -> Tree:
    with serving(server) as running:
        if isinstance(server, LfsServer):
            server.url = running.url
        there = sources(folder, running)
        tree = fetch_tree(URL, commit, store=store, mirrors=there.mirrors)
        return with_lfs(tree, name="node", store=store, sources=there)


def test_a_pointer_becomes_the_file_that_it_stands_for(tmp_path: Path, store: Store) -> None:
    server = LfsServer(token="Basic c2VjcmV0")
    tree = resolved(tmp_path, server, store, node(tmp_path))

    weights = next(file for file in tree.files() if file.path == "weights.bin")
    assert weights.stored is not None
    assert (weights.size, weights.stored.path.read_bytes()) == (len(WEIGHTS), WEIGHTS)
    assert tree.lfs_pointers() == ()
    expected = {"__init__.py": hashlib.sha256(b"x").hexdigest(), "weights.bin": SHA256}
    assert tree.tree_digest() == files_digest(expected), "the content hash is of the file, not of its pointer"
    (asked,) = server.asked
    assert (asked["operation"], asked["hash_algo"]) == ("download", "sha256")
    assert asked["objects"] == [{"oid": SHA256, "size": len(WEIGHTS)}]


def test_what_is_in_the_store_is_not_asked_for(tmp_path: Path, store: Store) -> None:
    commit = node(tmp_path)
    digest = resolved(tmp_path, LfsServer(), store, commit).tree_digest()
    offline = Sources(Mirrors({}, is_offline=True), Offline())
    assert open_locked(URL, commit, tree_sha256=digest, store=store, sources=offline).lfs["weights.bin"].size


def test_a_clone_on_this_machine_gives_its_own_objects(tmp_path: Path, store: Store) -> None:
    commit = node(tmp_path)
    place = tmp_path / "node/.git/lfs/objects" / SHA256[:2] / SHA256[2:4]
    place.mkdir(parents=True)
    (place / SHA256).write_bytes(WEIGHTS)
    there = sources(tmp_path, None)
    tree = with_lfs(fetch_tree(URL, commit, store=store, mirrors=there.mirrors), store=store, sources=there)
    assert tree.lfs["weights.bin"].path == place / SHA256
    (place / SHA256).write_bytes(WEIGHTS[::-1])
    with pytest.raises(HashMismatch, match="Git LFS file"):
        with_lfs(replaced(tree), store=Store(tmp_path / "other"), sources=there)


def replaced(tree: Tree) -> Tree:
    return Tree(tree.repository, tree.url, tree.commit, Store(tree.repository.parents[1]))


def test_a_submodule_s_file_is_asked_of_its_own_server(tmp_path: Path, store: Store) -> None:
    inner = make_repository(tmp_path / "inner", {"deep.bin": pointer()})
    make_repository(tmp_path / "node", {".gitmodules": '[submodule "i"]\n\tpath = sub\n\turl = ../inner.git\n'})
    git(tmp_path / "node", "update-index", "--add", "--cacheinfo", f"160000,{inner},sub")
    git(tmp_path / "node", "commit", "--quiet", "--message", "with a submodule")
    with serving(server := LfsServer()) as running:
        server.url = running.url
        at_inner = "https://code.example/team/inner"
        there = Sources(
            Mirrors({
                URL: str(tmp_path / "node"), at_inner: str(tmp_path / "inner"),
                f"{at_inner}.git/info/lfs": f"{running.url}/inner.git/info/lfs",
            }),
        )  # fmt: skip
        commit = git(tmp_path / "node", "rev-parse", "HEAD")
        tree = with_lfs(fetch_tree(URL, commit, store=store, mirrors=there.mirrors), store=store, sources=there)
        assert tree.lfs["sub/deep.bin"].sha256 == SHA256
        assert [request.path for request in running.requests if request.method == "POST"] == [
            "/inner.git/info/lfs/objects/batch"
        ]


def test_all_that_a_server_lacks_is_named_at_once(tmp_path: Path, store: Store) -> None:
    commit = node(tmp_path, {"a.bin": pointer(b"a"), "b.bin": pointer(b"b"), "c.bin": pointer()})
    with pytest.raises(Unresolvable) as caught:
        resolved(tmp_path, LfsServer(), store, commit)
    told = "\n".join(part.message for part in caught.value.parts)
    assert len(caught.value.parts) == 2
    assert "node/a.bin" in told
    assert "node/b.bin is not on the repository's server: Object does not exist (404)" in told


def test_a_file_with_another_hash_is_refused_and_not_kept(tmp_path: Path, store: Store) -> None:
    with pytest.raises(HashMismatch, match=r"weights\.bin"):
        resolved(tmp_path, LfsServer({SHA256: WEIGHTS[::-1]}), store, node(tmp_path))
    assert store.find(SHA256) is None


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (Answer(404), Unresolvable, "there is no Git LFS server"),
        (Answer(401), NetworkError, "refuses access"),
        (Answer(500), NetworkError, "HTTP 500"),
        (Answer(body=b"<html>"), Unresolvable, "is no Git LFS server"),
        (Answer(body=b'{"objects": [{"oid": 7}, "x"]}'), Unresolvable, "says nothing of it"),
        (Answer(body=json.dumps({"objects": [{"oid": SHA256}]}).encode()), Unresolvable, "names no address"),
        (
            Answer(body=json.dumps(
                {"objects": [{"oid": SHA256, "actions": {"download": {"href": "file:///etc/passwd"}}}]}
            ).encode()),
            UnsafeInput,
            "no http",
        ),
    ],
)  # fmt: skip
def test_a_server_s_bad_answers_are_named(
    answer: Answer, kind: type[Exception], says: str, tmp_path: Path, store: Store
) -> None:
    with pytest.raises(kind, match=says):
        resolved(tmp_path, lambda request: answer, store, node(tmp_path))


def test_a_clone_that_lacks_the_file_and_offline_are_told_what_to_do(tmp_path: Path, store: Store) -> None:
    commit = node(tmp_path)
    there = sources(tmp_path, None)
    tree = fetch_tree(URL, commit, store=store, mirrors=there.mirrors)
    with pytest.raises(Unresolvable, match="git lfs fetch"):
        with_lfs(tree, store=store, sources=there)
    with pytest.raises(NetworkError, match="--offline"):
        with_lfs(tree, store=store, sources=Sources(Mirrors({}, is_offline=True), Offline()))


def test_a_token_of_the_server_is_shown_to_nobody(tmp_path: Path, store: Store) -> None:
    server = LfsServer(token="Bearer s3cret")
    server.objects = {SHA256: WEIGHTS}

    def refusing(request: Request) -> Answer:
        return server(request) if request.method == "POST" else Answer(403)

    with serving(refusing) as running:
        server.url = f"{running.url}/x?token=s3cret"
        there = sources(tmp_path, running)
        tree = fetch_tree(URL, node(tmp_path), store=store, mirrors=there.mirrors)
        with pytest.raises(NetworkError) as caught:
            with_lfs(tree, store=store, sources=there)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", pointer() + "ext-0-x sha256:00\n", ""],
)
def test_what_is_no_plain_pointer_is_not_taken_for_one(text: str) -> None:
    assert read_pointer(text.encode()) is None


@pytest.mark.parametrize("url", ["git@code.example:team/node", "ssh://git@code.example/team/node.git"])
def test_a_repository_by_ssh_has_its_files_over_https(url: str) -> None:
    from cpack_build.fetch.lfs import _server

    assert _server(url) == "https://code.example/team/node.git/info/lfs"
