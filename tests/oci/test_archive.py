"""One archive for everyone: its bytes depend on image and name alone, and every reader finds the same image in it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, StorageError
from cpack_build.oci.archive import archive_size, stream_archive, write_archive
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import Image
from tests import need
from tests.oci.images import image_of, small_image, text_layer, web_image, with_top_layer
from tests.oci.specification import check_layout

NAME = parse_reference("upscale:v1")


def members(data: bytes) -> dict[str, bytes]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            assert member.name not in files, "written once"
            if member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                files[member.name] = file.read()
    return files


def test_it_is_a_valid_layout_and_has_dockers_manifest(tmp_path: Path) -> None:
    layer = text_layer({"a": "b"})
    image = image_of([layer, text_layer({"c": "d"}), layer])
    size = write_archive(image, tmp_path / "a.tar", name=NAME)
    data = (tmp_path / "a.tar").read_bytes()
    assert size == len(data) == archive_size(image, name=NAME)
    files = members(data)
    check_layout(files)
    [entry] = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == ["docker.io/library/upscale:v1"]
    assert files[entry["Config"]] == image.config.data
    assert [hashlib.sha256(files[path]).hexdigest() for path in entry["Layers"]] == [
        blob.descriptor.digest[7:] for blob in image.layers
    ]
    assert len([path for path in files if path.startswith("blobs/")]) == 4


def test_the_bytes_depend_on_image_and_name_alone(tmp_path: Path) -> None:
    """If this fails, ``docker-archive:`` and ``oci-archive:`` change for the same image: say so in CHANGELOG.md."""
    data = b"".join(stream_archive(_fixed(), name=NAME))
    before = os.umask(0o077)
    try:
        write_archive(_fixed(), tmp_path / "a.tar", name=NAME)
    finally:
        os.umask(before)
    assert (tmp_path / "a.tar").read_bytes() == data
    assert hashlib.sha256(data).hexdigest() == "354b29f0b9712026e8499f16aa27d013028e686bd1619b7010cbb0a6ca6d6a8f"


def _fixed() -> Image:
    return image_of([text_layer({"a": "b"})], architecture="amd64")


def test_skopeo_reads_it_as_either_kind(tmp_path: Path) -> None:
    image = web_image()
    write_archive(image, tmp_path / "a.tar", name=NAME)
    skopeo = need.tool("skopeo")
    for kind in ("oci-archive", "docker-archive"):
        command = [skopeo, "inspect", "--config", "--raw", f"{kind}:{tmp_path}/a.tar"]
        config = subprocess.run(command, check=True, capture_output=True).stdout
        assert "sha256:" + hashlib.sha256(config).hexdigest() == image.id


@pytest.mark.parametrize(
    ("data", "error", "expected"),
    [
        (b"other", None, HashMismatch),
        (b"x" * 100_000, None, HashMismatch),
        (b"half", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, data: bytes, error: BaseException | None, expected: type[BaseException]
) -> None:
    path = tmp_path / "a.tar"
    write_archive(small_image("old"), path)
    before = path.read_bytes()
    with pytest.raises(expected):
        write_archive(with_top_layer(small_image("new"), data, error=error), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.tar"]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    script = f"""
import resource, signal
from pathlib import Path
from cpack_build.errors import StorageError
from cpack_build.oci.archive import write_archive
from tests.oci.images import image_of, text_layer

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_archive(image_of([text_layer({{"big": bytes(1 << 20)}})]), Path({str(tmp_path / "a.tar")!r}))
except StorageError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert "No space left" in said
    assert "a.tar" in said
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_archive(small_image(), tmp_path / "file" / "a.tar")


def test_a_model_that_changed_is_named_in_every_output(tmp_path: Path) -> None:
    """Of the hash alone nobody could tell which file to look at."""
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    layer = ModelLayer(path, sha256, 7, hash_model(path, sha256, 7), "models/upscale/x.safetensors")
    path.write_bytes(b"changed")
    with pytest.raises(HashMismatch, match=r"models/upscale/x\.safetensors"):
        write_archive(image_of([layer]), tmp_path / "a.tar")
    with pytest.raises(HashMismatch, match=r"models/upscale/x\.safetensors"):
        write_layout(image_of([layer]), tmp_path / "layout")
    assert [place.name for place in tmp_path.iterdir()] == ["model"]
