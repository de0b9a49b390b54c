"""The merged file system is the one that an engine would show, and files are read out of it without unpacking."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from cpack_build.errors import BadImage
from cpack_build.oci import tar
from cpack_build.oci.filesystem import FileTree, file_tree, read_files
from cpack_build.oci.layout import write_layout
from cpack_build.oci.types import LAYER, LAYER_GZIP, BytesBlob, Image
from tests import need
from tests.oci.images import BrokenBlob, image_of, layer, text_layer


def entry(path: str, content: str | None = None, *, link: str = "", hard: str = "") -> tar.Entry:
    if link:
        return tar.Entry(path, "symlink", 0o777, target=link)
    if hard:
        return tar.Entry(path, "hardlink", target=hard)
    if content is None:
        return tar.Entry(path, "directory", 0o755)
    return tar.Entry(path, "file", content=tar.BytesContent(content.encode()))


def image(*layers: list[tar.Entry]) -> Image:
    return image_of([layer(entries) for entries in layers])


def test_a_usr_merged_base_is_seen_through_its_links() -> None:
    merged = image(
        [
            entry("usr"),
            entry("usr/lib"),
            entry("lib", link="usr/lib"),
            entry("usr/lib/os-release", "ID=debian"),
            entry("etc"),
            entry("etc/os-release", link="../usr/lib/os-release"),
            entry("etc/absolute", link="/usr/lib/os-release"),
        ],
        [entry("lib/new.so", "via the link")],
    )
    tree = file_tree(merged)
    assert tree.nodes["lib"].target == "usr/lib"
    assert "usr/lib/new.so" in tree.nodes
    assert "lib/new.so" not in tree.nodes
    assert tree.resolve("lib/new.so") == "usr/lib/new.so"
    wanted = ("etc/os-release", "etc/absolute", "lib/new.so", "/lib/os-release", "etc/none", "etc")
    assert read_files(merged, wanted) == {
        "etc/os-release": b"ID=debian",
        "etc/absolute": b"ID=debian",
        "lib/new.so": b"via the link",
        "/lib/os-release": b"ID=debian",
    }
    assert read_files(tree, lambda path: path.startswith("usr/lib/")) == {
        "usr/lib/new.so": b"via the link",
        "usr/lib/os-release": b"ID=debian",
    }
    assert list(tree.below("lib")) == ["usr/lib/new.so", "usr/lib/os-release"]


def test_the_last_layer_wins_and_whiteouts_hide_only_what_lies_below() -> None:
    merged = image(
        [
            entry("a", "1"),
            entry("d"),
            entry("d/x", "1"),
            entry("d/y", "1"),
            entry("o"),
            entry("o/old", "1"),
            entry("f"),
        ],
        [
            entry("d/.wh.x", ""),
            entry(".wh.a", ""),
            entry("a", "2"),
            entry("o/new", "2"),
            entry("o/.wh..wh..opq", ""),
            entry("f", "now a file"),
            entry(".wh..wh.plnk", ""),
        ],
    )
    tree = file_tree(merged)
    assert sorted(path for path, node in tree.nodes.items() if node.kind == "file") == ["a", "d/y", "f", "o/new"]
    assert read_files(tree, ["a", "d/y", "f"]) == {"a": b"2", "d/y": b"1", "f": b"now a file"}


def test_a_folder_that_takes_a_links_place_is_a_folder() -> None:
    tree = file_tree(image([entry("usr"), entry("lib", link="usr")], [entry("lib"), entry("lib/x", "1")]))
    assert tree.nodes["lib"].kind == "directory"
    assert "usr/x" not in tree.nodes


def test_hard_links_have_the_content_of_their_target_even_when_it_is_gone() -> None:
    merged = image([entry("a", "content"), entry("b", hard="a")], [entry(".wh.a", "")])
    assert read_files(merged, ["a", "b"]) == {"b": b"content"}


@pytest.mark.parametrize(
    "entries",
    [
        [entry("up", link="../../../etc"), entry("up/passwd", "inside")],
        [entry("up", link="/etc"), entry("up/passwd", "inside")],
    ],
)
def test_no_link_leads_above_the_root(entries: list[tar.Entry]) -> None:
    assert read_files(image(entries), ["etc/passwd", "../../up/passwd"]) == {
        "etc/passwd": b"inside",
        "../../up/passwd": b"inside",
    }


def test_links_in_a_circle_lead_nowhere() -> None:
    tree = file_tree(image([entry("a", link="b"), entry("b", link="a"), entry("a/x", "lost"), entry("c", "1")]))
    assert tree.resolve("a") is None
    assert tree.resolve("a/x") is None
    assert read_files(tree, ["a/x", "c"]) == {"c": b"1"}


def test_names_with_dots_stay_inside() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("../../etc/shadow", "/abs", "./rel", "a/../b"):
            archive.addfile(tarfile.TarInfo(name), None)
    tree = file_tree(image_of([BytesBlob(LAYER, data.getvalue())]))
    assert sorted(tree.nodes) == ["abs", "b", "etc/shadow", "rel"]


def test_it_is_the_tree_that_umoci_unpacks(tmp_path: Path) -> None:
    """Random layers with links and whiteouts, against another implementation of the specification."""
    umoci = need.tool("umoci")
    for seed in range(25):
        chosen = random.Random(seed)
        layers = [_random_layer(chosen) for _ in range(4)]
        merged = image_of([layer(entries) for entries in layers])
        write_layout(merged, tmp_path / f"l{seed}", tag="v")
        unpack = [umoci, "unpack", "--rootless", "--image", f"{tmp_path}/l{seed}:v", f"{tmp_path}/b{seed}"]
        subprocess.run(unpack, check=True, capture_output=True)
        root = tmp_path / f"b{seed}/rootfs"
        unpacked = {}
        for path in root.rglob("*"):
            name = str(path.relative_to(root))
            kind = "symlink" if path.is_symlink() else "directory" if path.is_dir() else path.read_bytes()
            unpacked[name] = kind
        tree = file_tree(merged)
        contents = read_files(tree, lambda path: True)
        implied = dict.fromkeys(tree.below(""), "directory")
        ours = {path: node.kind if node.kind != "file" else contents[path] for path, node in tree.nodes.items()}
        assert implied | ours == unpacked, f"seed {seed}: {layers}"


def _random_layer(chosen: random.Random) -> list[tar.Entry]:
    """Folders before what is in them, as every tool writes them; umoci refuses a path through a file."""
    entries: dict[str, tar.Entry] = {}
    for path in sorted(chosen.sample(["a", "b", "a/c", "b/c", "a/c/d", "b/e", "b/c/y"], chosen.randint(1, 6))):
        folder, _, name = path.rpartition("/")
        parents = [folder.rpartition("/")[0], folder]
        if any(parent in entries and entries[parent].kind != "directory" for parent in parents):
            continue
        entries |= {parent: entry(parent) for parent in parents if parent}
        what = chosen.choice(["file", "link", "directory", "directory", "whiteout", "opaque"])
        if what == "file":
            entries[path] = entry(path, str(chosen.random()))
        elif what == "link":
            entries[path] = entry(path, link="elsewhere")
        elif what == "whiteout":
            hidden = f"{folder}/.wh.{name}".lstrip("/")
            entries[hidden] = entry(hidden, "")
        else:
            entries[path] = entry(path)
            if what == "opaque":
                entries[f"{path}/.wh..wh..opq"] = entry(f"{path}/.wh..wh..opq", "")
    return list(entries.values())


def test_compressed_layers_are_read_and_proved(tmp_path: Path) -> None:
    plain = text_layer({"etc/motd": "hello"})
    packed = BytesBlob(LAYER_GZIP, gzip.compress(plain.data, mtime=0))
    assert read_files(image_of([packed]), ["etc/motd"]) == {"etc/motd": b"hello"}
    broken = BrokenBlob(packed.descriptor, packed.data[:-9])
    with pytest.raises(BadImage, match="gzip data"):
        file_tree(image_of([broken]))


@pytest.mark.parametrize(
    "data",
    [b"not a tar" * 100, os.urandom(2000), text_layer({"a": "b" * 5000}).data[:3000]],
    ids=["text", "noise", "cut"],
)
def test_a_layer_that_is_no_tar_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"Layer sha256:.*not a readable tar"):
        file_tree(image_of([BytesBlob(LAYER, data)]))


def test_a_broken_header_is_not_taken_for_the_end() -> None:
    data = bytearray(text_layer({"a": "1", "b": "2"}).data)
    data[1024] ^= 1
    with pytest.raises(BadImage, match="not a readable tar"):
        file_tree(image_of([BytesBlob(LAYER, bytes(data))]))


def test_a_file_larger_than_the_limit_is_not_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpack_build.oci.filesystem.FILE_LIMIT", 10)
    merged = image([entry("small", "1"), entry("big", "x" * 11)])
    assert read_files(merged, ["small"]) == {"small": b"1"}
    with pytest.raises(BadImage, match=r"/big in the image"):
        read_files(merged, ["big"])


def test_a_scratch_image_has_nothing() -> None:
    tree = FileTree(())
    assert (dict(tree.nodes), tree.resolve("etc"), list(tree.below(""))) == ({}, None, [])
