"""A node of the Comfy registry is an archive that came once, and has to be the same bytes ever after."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Offline, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.registry import REGISTRY, lock_registry_node, open_registry_node
from tests.fetch.servers import Server, serving_files

FILES = {"__init__.py": "x = 1\n", 'odd "name".txt': "y", "js/a.js": ""}


def zipped(files: Mapping[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return out.getvalue()


def pages(server_files: dict[str, bytes], url: str, version: str = "1.2.3") -> None:
    server_files["/api/nodes/some-pack/install"] = json.dumps({"version": version, "downloadUrl": url}).encode()


def sources(server: Server) -> Sources:
    return Sources(Mirrors({REGISTRY + "/": f"{server.url}/api/", "https://cdn.example/": f"{server.url}/"}))


def test_a_registry_node_is_pinned_by_archive_and_tree(store: Store, tmp_path: Path) -> None:
    files = {"/x.zip": zipped(FILES)}
    pages(files, "https://cdn.example/x.zip")
    with serving_files(files) as server:
        pin = lock_registry_node("some-pack", "1.2.3", store=store, sources=sources(server))
        assert pin.url == "https://cdn.example/x.zip"
        tree = open_registry_node(pin, store=store, sources=sources(server))
        assert {file.path: tree.read(file.oid).decode() for file in tree.files()} == FILES
        elsewhere = lock_registry_node("some-pack", "1.2.3", store=Store(tmp_path / "b"), sources=sources(server))
        assert elsewhere == pin
    assert lock_registry_node("some-pack", "1.2.3", store=store, sources=Sources(Mirrors(), Offline())) == pin


def test_other_bytes_than_the_locked_ones_are_refused(store: Store, tmp_path: Path) -> None:
    files = {"/x.zip": zipped(FILES)}
    pages(files, "https://cdn.example/x.zip")
    with serving_files(files) as server:
        pin = lock_registry_node("some-pack", "1.2.3", store=store, sources=sources(server))
    other = {"/x.zip": zipped({**FILES, "__init__.py": "x = 2\n"})}
    with serving_files(other) as server, pytest.raises(HashMismatch):
        open_registry_node(pin, store=Store(tmp_path / "b"), sources=sources(server))
    lying = pin.model_copy(update={"tree_sha256": "0" * 64})
    with pytest.raises(HashMismatch, match="The tree of some-pack"):
        open_registry_node(lying, store=store, sources=Sources(Mirrors(), Offline()))


@pytest.mark.parametrize("path", ["../evil.py", "/etc/x", "a/../../b", ".git/config", "a/.GIT/hooks/x"])
def test_an_archive_that_leaves_its_folder_is_refused(path: str, store: Store) -> None:
    files = {"/x.zip": zipped({path: "x"})}
    pages(files, "https://cdn.example/x.zip")
    with serving_files(files) as server, pytest.raises(UnsafeInput):
        lock_registry_node("some-pack", "1.2.3", store=store, sources=sources(server))


@pytest.mark.parametrize(
    ("name", "version", "url", "error"),
    [
        ("../x", "1.2.3", "https://cdn.example/x.zip", UnsafeInput),
        ("some-pack", "nightly", "https://cdn.example/x.zip", Unresolvable),
        ("some-pack", "9.9.9", "https://cdn.example/x.zip", Unresolvable),
        ("some-pack", "1.2.3", "file:///etc/passwd", UnsafeInput),
        ("some-pack", "1.2.3", "https://cdn.example/gone.zip", NetworkError),
        ("some-pack", "1.2.3", "https://cdn.example/text", Unresolvable),
    ],
)
def test_what_cannot_be_had_is_named(name: str, version: str, url: str, error: type[CpackError], store: Store) -> None:
    files = {"/x.zip": zipped(FILES), "/text": b"no zip"}
    pages(files, url)
    with serving_files(files) as server, pytest.raises(error):
        lock_registry_node(name, version, store=store, sources=sources(server))


def test_a_registry_that_answers_with_another_version_is_not_believed(store: Store) -> None:
    files = {"/x.zip": zipped(FILES)}
    pages(files, "https://cdn.example/x.zip", version="2.0.0")
    with serving_files(files) as server, pytest.raises(Unresolvable, match=r"no some-pack 1\.2\.3"):
        lock_registry_node("some-pack", "1.2.3", store=store, sources=sources(server))
