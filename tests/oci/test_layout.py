"""A layout is valid for everyone, whole or absent, and never written twice or destroyed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, StorageError, UsageError
from cpack_build.oci import storage
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import ModelLayer, hash_model, layer_size, stamp
from cpack_build.oci.pull import pull
from cpack_build.oci.reference import parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import FileBlob, Image
from cpack_build.oci.uncompressed import uncompressed
from tests import need
from tests.oci.images import image_of, machine, small_image, text_layer, web_image, with_top_layer
from tests.oci.specification import check_layout

NAME = parse_reference("upscale:v1")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_layout_is_valid_by_the_schemas_and_its_blobs_by_their_names(tmp_path: Path) -> None:
    image = small_image()
    done = write_layout(image, tmp_path / "out", name=NAME)
    files = contents(tmp_path / "out")
    check_layout(files)
    blobs = {path.rpartition("/")[2]: data for path, data in files.items() if path.startswith("blobs/")}
    assert set(blobs) == {hashlib.sha256(data).hexdigest() for data in blobs.values()}
    assert len(blobs) == 4
    assert (done.written, done.shared, done.kept) == (image.size, 0, 0)
    assert os.listdir(tmp_path) == ["out"]


def test_skopeo_and_umoci_read_it(tmp_path: Path) -> None:
    image = web_image()
    write_layout(image, tmp_path / "out", name=NAME)
    skopeo = [need.tool("skopeo"), "inspect", f"oci:{tmp_path}/out:v1"]
    seen = json.loads(subprocess.run(skopeo, check=True, capture_output=True).stdout)
    assert seen["Digest"] == image.digest
    umoci = [need.tool("umoci"), "unpack", "--rootless", "--image", f"{tmp_path}/out:v1", f"{tmp_path}/bundle"]
    subprocess.run(umoci, check=True, capture_output=True)
    assert (tmp_path / "bundle/rootfs/www/index.html").read_bytes() == b"hello\n"
    assert (tmp_path / "bundle/rootfs/bin/sh").readlink() == Path("busybox")


def test_the_same_image_gives_the_same_layout_under_any_umask(tmp_path: Path) -> None:
    write_layout(small_image(), tmp_path / "a", name=NAME)
    before = os.umask(0o077)
    try:
        write_layout(small_image(), tmp_path / "b", name=NAME)
    finally:
        os.umask(before)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_several_images_live_in_one_layout_and_a_tag_moves(tmp_path: Path) -> None:
    first, second, third = (small_image(text) for text in ("one", "two", "three"))
    write_layout(second, tmp_path, tag="b")
    write_layout(first, tmp_path, tag="a")
    once = (tmp_path / "index.json").read_bytes()
    write_layout(third, tmp_path, tag="b")
    entries = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert [entry["digest"] for entry in entries] == [first.digest, third.digest]
    check_layout(contents(tmp_path))
    write_layout(second, tmp_path, tag="b")
    assert (tmp_path / "index.json").read_bytes() == once, "the order of writing leaves no trace"


def test_what_is_there_is_not_read_or_written_again(tmp_path: Path) -> None:
    image = small_image()
    write_layout(image, tmp_path / "out")
    inodes = {path: path.stat().st_ino for path in (tmp_path / "out/blobs/sha256").iterdir()}
    unreadable = with_top_layer(image, b"", error=AssertionError("a layer that is there was read"))
    done = write_layout(unreadable, tmp_path / "out")
    assert (done.written, done.kept) == (0, image.size)
    assert {path: path.stat().st_ino for path in inodes} == inodes


def test_a_blob_of_the_wrong_size_or_a_link_in_its_place_is_replaced(tmp_path: Path) -> None:
    image = small_image()
    write_layout(image, tmp_path / "out")
    top, below = (tmp_path / "out/blobs/sha256" / blob.descriptor.digest[7:] for blob in reversed(image.layers))
    whole = contents(tmp_path / "out")
    top.write_bytes(top.read_bytes()[:-1])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(below.stat().st_size))
    below.unlink()
    below.symlink_to(elsewhere)
    write_layout(image, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert not below.is_symlink()
    assert not any(elsewhere.read_bytes())


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("data", "error", "expected"),
    [
        (b"other", None, HashMismatch),
        (b"x" * 100_000, None, HashMismatch),
        (b"", None, HashMismatch),
        (b"half", KeyboardInterrupt(), KeyboardInterrupt),
        (b"half", StorageError("No space left."), StorageError),
    ],
)
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, existing: bool, data: bytes, error: BaseException | None, expected: type[BaseException]
) -> None:
    if existing:
        write_layout(small_image("old"), tmp_path / "out", tag="old")
    before = contents(tmp_path)
    with pytest.raises(expected):
        write_layout(with_top_layer(small_image("new"), data, error=error), tmp_path / "out", tag="new")
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == (["out"] if existing else [])


def test_a_layout_is_whole_even_when_stopped_right_after_its_index_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(small_image("old"), tmp_path, tag="old")
    synced = storage.sync_directory

    def stopped(path: Path) -> None:
        if (path / "index.json").exists() and b'"new"' in (path / "index.json").read_bytes():
            raise KeyboardInterrupt
        synced(path)

    monkeypatch.setattr(storage, "sync_directory", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_layout(small_image("new"), tmp_path, tag="new")
    check_layout(contents(tmp_path))


def test_an_empty_folder_is_used_and_left_empty_by_a_failure(tmp_path: Path) -> None:
    with pytest.raises(HashMismatch):
        write_layout(with_top_layer(small_image(), b"other"), tmp_path)
    assert os.listdir(tmp_path) == []
    write_layout(small_image(), tmp_path)
    check_layout(contents(tmp_path))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not an OCI layout"):
        write_layout(small_image(), tmp_path)
    with pytest.raises(UsageError, match=r"is not a folder"):
        write_layout(small_image(), tmp_path / "thesis.txt")
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_killed_write_leaves_no_layout_and_the_next_one_goes_on_from_its_blobs(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from cpack_build.oci.layout import write_layout
from tests.oci.images import image_of, machine, small_image

class Slow:
    descriptor = small_image().layers[1].descriptor
    def chunks(self):
        yield b"half"
        print("half", flush=True)
        time.sleep(60)

write_layout(image_of([small_image().layers[0], Slow()]), Path({str(tmp_path / "out")!r}))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert os.listdir(tmp_path) == [".out.partial"]
    done = write_layout(small_image(), tmp_path / "out")
    assert done.kept == small_image().layers[0].descriptor.size
    assert os.listdir(tmp_path) == ["out"]
    assert all("partial" not in path for path in contents(tmp_path))
    check_layout(contents(tmp_path / "out"))


def test_two_programs_write_into_one_layout_at_once_and_both_images_are_there(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from cpack_build.oci.layout import write_layout
from tests.oci.images import small_image
write_layout(small_image(sys.argv[2]), Path(sys.argv[1]), tag=sys.argv[2])
"""
    tags = [f"t{number}" for number in range(4)]
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out"), tag]) for tag in tags]
    assert [process.wait() for process in running] == [0] * len(tags)
    entries = json.loads((tmp_path / "out/index.json").read_bytes())["manifests"]
    assert [entry["digest"] for entry in entries] == [small_image(tag).digest for tag in tags]
    check_layout(contents(tmp_path / "out"))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with _mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "none") as disk:
        big = image_of([text_layer({"big": bytes(1 << 20)})])
        with pytest.raises(StorageError, match="No space left") as error:
            write_layout(big, disk / "out")
        assert str(disk / "out") in str(error.value)
        assert os.listdir(disk) == []
        write_layout(small_image(), disk / "out")


def test_a_place_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with _mounted(disk, "-t", "tmpfs", "-o", "ro", "none"), pytest.raises(StorageError, match="cannot be written"):
        write_layout(small_image(), disk / "out")


def _model_image(tmp_path: Path, size: int) -> Image:
    path = tmp_path / "model"
    data = (b"weights " * (size // 8 + 1))[:size]
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return image_of([ModelLayer(path, sha256, size, hash_model(path, sha256, size), proof=stamp(path.stat()))])


@pytest.mark.parametrize("size", [0, 5, 4096, 100_003])
def test_a_model_is_written_as_it_is_announced(tmp_path: Path, size: int) -> None:
    image = _model_image(tmp_path, size)
    write_layout(image, tmp_path / "out")
    blob = tmp_path / "out/blobs/sha256" / image.layers[0].descriptor.digest[7:]
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert blob.stat().st_size == layer_size(size)


@pytest.mark.parametrize("size", [5, 4096, 1 << 20, 5_000_003])
def test_where_files_can_share_data_no_model_byte_is_written(tmp_path: Path, size: int) -> None:
    with _sharing_disk(tmp_path) as disk:
        image = _model_image(disk, size)
        done = write_layout(image, disk / "out")
        layer = image.layers[0]
        assert done.shared == layer.descriptor.size
        blob = disk / "out/blobs/sha256" / layer.descriptor.digest[7:]
        assert "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest() == layer.descriptor.digest


def test_where_files_can_share_data_a_base_from_a_layout_or_the_store_is_not_copied(tmp_path: Path) -> None:
    with _sharing_disk(tmp_path) as disk:
        first = small_image()
        write_layout(first, disk / "base")
        source = open_source(parse_image_name(f"oci:{disk}/base"))
        pulled = pull(source, f"linux/{machine()}").image
        layers = [uncompressed(layer, layer.descriptor.digest) for layer in pulled.layers]
        stored = [
            FileBlob(layer.descriptor, disk / "base/blobs/sha256" / layer.descriptor.digest[7:])
            for layer in first.layers
        ]
        size = sum(layer.descriptor.size for layer in first.layers)
        for name, blobs in (("from-a-layout", layers), ("from-the-store", stored)):
            image = image_of(blobs)
            assert write_layout(image, disk / name).shared == size
            for layer in first.layers:
                blob = disk / name / "blobs/sha256" / layer.descriptor.digest[7:]
                assert "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest() == layer.descriptor.digest


def test_a_shared_file_with_a_flipped_bit_is_told_by_name(tmp_path: Path) -> None:
    """Its blocks are shared before anybody has read them, and what came of it is hashed."""
    with _sharing_disk(tmp_path) as disk:
        first = small_image()
        write_layout(first, disk / "base")
        blobs = [
            FileBlob(layer.descriptor, disk / "base/blobs/sha256" / layer.descriptor.digest[7:])
            for layer in first.layers
        ]
        data = bytearray(blobs[0].path.read_bytes())
        data[600] ^= 1
        blobs[0].path.chmod(0o644)
        blobs[0].path.write_bytes(data)
        with pytest.raises(HashMismatch, match=blobs[0].descriptor.digest[7:19]):
            write_layout(image_of(blobs), disk / "out")
        assert not (disk / "out").exists()


def test_a_model_that_has_changed_since_it_was_hashed_is_not_shared(tmp_path: Path) -> None:
    with _sharing_disk(tmp_path) as disk:
        image = _model_image(disk, 100_000)
        (disk / "model").write_bytes(b"changed " * 12_500)
        with pytest.raises(HashMismatch):
            write_layout(image, disk / "out")
        assert os.listdir(disk) == ["model"]


def test_a_layer_that_nobody_proved_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    """Its digest may come from a lock that lies."""
    with _sharing_disk(tmp_path) as disk:
        (layer,) = _model_image(disk, 100_000).layers
        assert isinstance(layer, ModelLayer)
        done = write_layout(image_of([replace(layer, proof=None)]), disk / "out")
        assert done.shared == 0
        lying = replace(layer, proof=None, digest="sha256:" + "1" * 64)
        with pytest.raises(HashMismatch):
            write_layout(image_of([lying]), disk / "other")


@contextmanager
def _sharing_disk(folder: Path) -> Iterator[Path]:
    """A file system on which files can share data."""
    make = need.tool("mkfs.xfs")
    disk_image = folder / "xfs.img"
    with disk_image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run([make, "-q", "-m", "reflink=1", str(disk_image)], check=True)
    with _mounted(folder / "disk", "-o", "loop", str(disk_image)) as disk:
        yield disk


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """A file system of its own at *place*."""
    if os.geteuid():
        need.missing("root (to mount a small file system)")
    place.mkdir()
    subprocess.run(["mount", *arguments, str(place)], check=True)
    try:
        yield place
    finally:
        for _ in range(20):
            if subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
