"""Images are read back whole from every place, and nothing that is not what it says gets through."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import BadImage, CpackError, HashMismatch, Unresolvable, UnsafeInput, UsageError
from cpack_build.oci.archive import write_archive
from cpack_build.oci.engines import PodmanEngine
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import ArchiveName, EngineName, LayoutName, parse_image_name, parse_reference
from cpack_build.oci.sources import ImageSource, open_source
from cpack_build.oci.types import INDEX, MANIFEST, BytesBlob, Image, canonical_json
from cpack_build.oci.uncompressed import uncompressed
from tests import need
from tests.engines import Docker, Podman
from tests.oci.images import image_of, machine, small_image, text_layer, web_image

PLATFORM = f"linux/{machine()}"


def layout(root: Path, **named: Image) -> ImageSource:
    for tag, image in named.items():
        write_layout(image, root, tag=tag)
    return open_source(LayoutName(root, next(iter(named))))


def same(read: Image, image: Image) -> bool:
    contents = [[b"".join(layer.chunks()) for layer in one.layers] for one in (read, image)]
    return (read.manifest.data, read.config.data, contents[0]) == (image.manifest.data, image.config.data, contents[1])


def test_an_image_comes_back_from_a_layout_and_from_both_archives(tmp_path: Path) -> None:
    image = small_image()
    assert same(layout(tmp_path / "out", v1=image).as_image(PLATFORM), image)
    write_archive(image, tmp_path / "a.tar", name=parse_reference("x"))
    for name in (ArchiveName(tmp_path / "a.tar", "oci"), ArchiveName(tmp_path / "a.tar", "docker")):
        assert same(open_source(name).as_image(PLATFORM), image)
    by_digest = open_source(parse_image_name(f"oci:{tmp_path}/out@{image.digest}"))
    assert same(by_digest.as_image(PLATFORM), image)


@pytest.mark.docker
def test_what_docker_saved_is_read(docker: Docker, tmp_path: Path) -> None:
    image = web_image()
    write_archive(image, tmp_path / "in.tar", name=parse_reference("cpack-saved:v1"))
    docker("load", "--input", str(tmp_path / "in.tar"))
    docker("save", "--output", str(tmp_path / "saved.tar"), "cpack-saved:v1")
    read = open_source(ArchiveName(tmp_path / "saved.tar", "docker")).as_image(PLATFORM)
    assert read.id == image.id
    assert [layer.descriptor.digest for layer in read.layers] == [layer.descriptor.digest for layer in image.layers]
    assert same(open_source(ArchiveName(tmp_path / "saved.tar", "docker")).as_image(PLATFORM), read)


@pytest.mark.podman
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_what_podman_saved_is_read(podman: Podman, tmp_path: Path, form: str) -> None:
    image = web_image()
    PodmanEngine().load(image, parse_reference("cpack-saved:v1"))
    podman("save", "--format", form, "--output", str(tmp_path / "saved.tar"), "cpack-saved:v1")
    read = open_source(parse_image_name(f"{form}:{tmp_path}/saved.tar")).as_image(PLATFORM)
    diff_ids = [layer.descriptor.digest for layer in image.layers]
    assert json.loads(read.config.data)["rootfs"]["diff_ids"] == diff_ids
    plain = [uncompressed(layer, diff_id) for layer, diff_id in zip(read.layers, diff_ids, strict=True)]
    assert [b"".join(one.chunks()) for one in plain] == [b"".join(layer.chunks()) for layer in image.layers]


def test_what_skopeo_wrote_is_read(tmp_path: Path) -> None:
    image = small_image()
    write_layout(image, tmp_path / "out", tag="v1")
    skopeo = need.tool("skopeo")
    for target in (f"oci-archive:{tmp_path}/o.tar:v1", f"docker-archive:{tmp_path}/d.tar:x:v1"):
        copy = [skopeo, "copy", "--insecure-policy", f"oci:{tmp_path}/out:v1", target]
        subprocess.run(copy, check=True, capture_output=True)
    diff_ids = [layer.descriptor.digest for layer in image.layers]
    for name in (f"oci-archive:{tmp_path}/o.tar", f"docker-archive:{tmp_path}/d.tar"):
        read = open_source(parse_image_name(name)).as_image(PLATFORM)
        assert read.id == image.id
        # skopeo compresses the layers of an OCI archive.
        plain = [uncompressed(layer, diff_id) for layer, diff_id in zip(read.layers, diff_ids, strict=True)]
        assert [b"".join(one.chunks()) for one in plain] == [b"".join(layer.chunks()) for layer in image.layers]


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_one_of_several_images_must_be_named(tmp_path: Path) -> None:
    one, two = small_image("one"), small_image("two")
    layout(tmp_path, one=one, two=two)
    assert open_source(LayoutName(tmp_path, "two")).as_image(PLATFORM).id == two.id
    with pytest.raises(UsageError, match="several images: one, two"):
        open_source(LayoutName(tmp_path)).manifest(PLATFORM)
    with pytest.raises(Unresolvable, match=r"no image 'three'; it has one, two"):
        open_source(LayoutName(tmp_path, "three")).manifest(PLATFORM)


def test_an_index_leads_to_the_image_of_the_platform(tmp_path: Path) -> None:
    images = {name: image_of([text_layer({"a": name})], architecture=name) for name in ("amd64", "arm64")}
    for name, image in images.items():
        write_layout(image, tmp_path, tag=name)
    entries = [_entry(images["amd64"], "amd64"), _entry(images["arm64"], "arm64", "v8")]
    entries.insert(0, {**_entry(images["arm64"], "unknown"), "platform": {"os": "unknown", "architecture": "unknown"}})
    nested = _index(entries)
    _put_index(tmp_path, nested, [_index([{**nested.descriptor.to_json()}]), nested])
    source = open_source(LayoutName(tmp_path))
    for name, image in images.items():
        assert source.as_image(f"linux/{name}").id == image.id
    with pytest.raises(Unresolvable, match=r"no image for linux/riscv64; it has linux/amd64, linux/arm64"):
        source.manifest("linux/riscv64")


def test_an_image_for_another_platform_is_refused(tmp_path: Path) -> None:
    layout(tmp_path, v1=image_of([text_layer({"a": "b"})], architecture="riscv64"))
    index = json.loads((tmp_path / "index.json").read_bytes())
    del index["manifests"][0]["platform"]
    (tmp_path / "index.json").write_bytes(canonical_json(index))
    with pytest.raises(Unresolvable, match=f"image for linux/riscv64, and {PLATFORM} is wanted"):
        open_source(LayoutName(tmp_path)).as_image(PLATFORM)


def test_an_index_that_leads_to_itself_or_very_deep_ends(tmp_path: Path) -> None:
    write_layout(small_image(), tmp_path, tag="v1")
    chain = [_index([])]
    for _ in range(40):
        chain.append(_index([chain[-1].descriptor.to_json()]))
    _put_index(tmp_path, chain[-1], chain)
    with pytest.raises(Unresolvable, match="no image for"):
        open_source(LayoutName(tmp_path)).manifest(PLATFORM)


def test_an_image_in_an_engine_cannot_be_read_and_the_way_out_is_said() -> None:
    with pytest.raises(UsageError, match="podman save -o"):
        open_source(EngineName("podman"))


# -- what is not what it says ------------------------------------------------------------------------------------------


def test_every_single_byte_that_changes_is_noticed(tmp_path: Path) -> None:
    image = small_image()
    source = layout(tmp_path, v1=image)
    for path in sorted((tmp_path / "blobs/sha256").iterdir()):
        data = path.read_bytes()
        for position in range(0, len(data), max(1, len(data) // 25)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises((HashMismatch, BadImage)):
                _read_all(open_source(LayoutName(tmp_path)))
        path.write_bytes(data)
    _read_all(source)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_blob_of_another_size_is_refused(tmp_path: Path, change: Any) -> None:
    layout(tmp_path, v1=small_image())
    for path in sorted((tmp_path / "blobs/sha256").iterdir()):
        data = path.read_bytes()
        path.write_bytes(change(data))
        with pytest.raises(BadImage, match=r"ends after|has more than"):
            _read_all(open_source(LayoutName(tmp_path)))
        path.write_bytes(data)


@pytest.mark.parametrize(
    "digest",
    ["sha256:../../../../etc/passwd", "../../etc/passwd", "sha256:" + "A" * 64, "sha512:" + "a" * 128, "", None, 5],
)
def test_a_digest_is_never_a_path(tmp_path: Path, digest: object) -> None:
    layout(tmp_path, v1=small_image())
    for edit in (_edit_index, _edit_layer):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        edit(tmp_path, digest=digest)
        with pytest.raises(BadImage, match="no sha256 digest"):
            _read_all(open_source(LayoutName(tmp_path)))
        for path, data in before.items():
            path.write_bytes(data)


@pytest.mark.parametrize("size", [-1, 1 << 64, 2.5, True, "12", None])
def test_a_size_that_is_none_is_refused(tmp_path: Path, size: object) -> None:
    layout(tmp_path, v1=small_image())
    _edit_index(tmp_path, size=size)
    with pytest.raises(BadImage, match="no size"):
        _read_all(open_source(LayoutName(tmp_path)))


def test_links_do_not_lead_out_of_a_layout(tmp_path: Path) -> None:
    image = small_image()
    layout(tmp_path / "out", v1=image)
    secret = tmp_path / "secret"
    blob = tmp_path / "out/blobs/sha256" / image.layers[0].descriptor.digest[7:]
    blob.rename(secret)
    blob.symlink_to(secret)
    with pytest.raises(UnsafeInput, match="leads out of that folder"):
        _read_all(open_source(LayoutName(tmp_path / "out")))
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(BadImage, match="not a regular file"):
        _read_all(open_source(LayoutName(tmp_path / "out")))


def test_a_link_within_a_layout_is_followed(tmp_path: Path) -> None:
    image = small_image()
    layout(tmp_path, v1=image)
    blob = tmp_path / "blobs/sha256" / image.layers[0].descriptor.digest[7:]
    blob.rename(tmp_path / "shared")
    blob.symlink_to("../../shared")
    assert same(open_source(LayoutName(tmp_path)).as_image(PLATFORM), image)


def test_a_document_of_100_mb_is_not_read(tmp_path: Path) -> None:
    layout(tmp_path, v1=small_image())
    big = b'{"layers":[]}' + b" " * (100 << 20)
    digest = hashlib.sha256(big).hexdigest()
    (tmp_path / "blobs/sha256" / digest).write_bytes(big)
    _edit_index(tmp_path, digest=f"sha256:{digest}", size=len(big))
    with pytest.raises(BadImage, match="is the most that is taken"):
        _read_all(open_source(LayoutName(tmp_path)))
    _edit_index(tmp_path, digest=f"sha256:{digest}", size=1000)
    with pytest.raises(BadImage, match="has more than"):
        _read_all(open_source(LayoutName(tmp_path)))
    (tmp_path / "index.json").write_bytes(big)
    with pytest.raises(BadImage, match="too large for a document"):
        _read_all(open_source(LayoutName(tmp_path)))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"manifests": 5}',
        b'{"manifests": [5]}',
        b'{"manifests": [{}]}',
        b"[" * 100_000,
        b'{"manifests":' * 50_000,
        b"\xff\xfe",
    ],
)
def test_any_index_is_an_image_or_a_clear_error(tmp_path: Path, document: bytes) -> None:
    layout(tmp_path, v1=small_image())
    (tmp_path / "index.json").write_bytes(document)
    with pytest.raises(BadImage) as error:
        _read_all(open_source(LayoutName(tmp_path)))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "edit",
    [
        {"layers": None},
        {"layers": [None]},
        {"config": None},
        {"layers": []},
        {"layers": [{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1, "urls": ["https://x.example"]}]},
    ],
)
def test_a_manifest_without_its_parts_is_refused(tmp_path: Path, edit: dict[str, Any]) -> None:
    image = small_image()
    manifest = BytesBlob(MANIFEST, canonical_json({**json.loads(image.manifest.data), **edit}))
    write_layout(Image(manifest, image.config, image.layers), tmp_path)
    with pytest.raises(BadImage):
        _read_all(open_source(LayoutName(tmp_path)))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unresolvable, match="There is no folder"):
        _read_all(open_source(LayoutName(tmp_path / "nowhere")))
    with pytest.raises(Unresolvable, match="There is no file"):
        open_source(ArchiveName(tmp_path / "nowhere.tar"))
    with pytest.raises(BadImage, match="Is it an OCI image layout"):
        _read_all(open_source(LayoutName(tmp_path)))
    image = small_image()
    layout(tmp_path / "out", v1=image)
    (tmp_path / "out/blobs/sha256" / image.layers[1].descriptor.digest[7:]).unlink()
    with pytest.raises(BadImage, match=image.layers[1].descriptor.digest[7:]):
        _read_all(open_source(LayoutName(tmp_path / "out")))


# -- archives ----------------------------------------------------------------------------------------------------------


def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    size = write_archive(small_image(), path)
    whole = path.read_bytes()
    for end in [*range(0, size - 1024, 256), *range(1, size - 1024, 1111)]:
        path.write_bytes(whole[:end])
        with pytest.raises(CpackError) as error:
            _read_all(open_source(ArchiveName(path)))
        assert str(path) in str(error.value)
    path.write_bytes(whole)
    _read_all(open_source(ArchiveName(path)))


def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path: Path) -> None:
    import gzip

    write_archive(small_image(), tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(BadImage, match=r"gzip -d a\.tar\.gz"):
        open_source(ArchiveName(tmp_path / "a.tar.gz"))
    (tmp_path / "pictures.tar").write_bytes(b"".join(text_layer({"a.png": "x"}).chunks()))
    with pytest.raises(BadImage, match=r"neither index\.json nor manifest\.json"):
        open_source(ArchiveName(tmp_path / "pictures.tar"))


def test_links_and_odd_members_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    image = small_image()
    write_archive(image, tmp_path / "a.tar")
    digest = image.layers[0].descriptor.digest[7:]
    with tarfile.open(tmp_path / "a.tar") as before, tarfile.open(tmp_path / "b.tar", "w") as after:
        for member in before:
            content = before.extractfile(member) if member.isreg() else None
            if member.name.endswith(digest):
                member.type, member.linkname, member.size, content = tarfile.SYMTYPE, "/etc/passwd", 0, None
            after.addfile(member, content)
    with pytest.raises(BadImage, match=f"there is no blobs/sha256/{digest}"):
        _read_all(open_source(ArchiveName(tmp_path / "b.tar")))


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 3 << 30
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(member.tobuf())
        file.truncate(4 << 30)
    with pytest.raises(BadImage, match="header of"):
        open_source(ArchiveName(tmp_path / "a.tar"))


def test_a_docker_archive_with_lies_in_its_manifest_is_refused(tmp_path: Path) -> None:
    config = image_of([text_layer({"a": "b"})]).config.data
    lies: list[Any] = [[], [{}], [{"Config": "c"}], {}, [{"Config": "../../etc/passwd", "Layers": []}], [1], [{}, {}]]
    for listed in lies:
        _write_tar(tmp_path / "a.tar", {"manifest.json": canonical_json(listed), "config.json": config})
        with pytest.raises(BadImage):
            _read_all(open_source(ArchiveName(tmp_path / "a.tar", "docker")))
    entry = [{"Config": "config.json", "Layers": ["one.tar"]}]
    _write_tar(
        tmp_path / "a.tar",
        {"manifest.json": canonical_json(entry), "config.json": config, "one.tar": text_layer({"a": "b"}).data},
    )
    assert open_source(ArchiveName(tmp_path / "a.tar", "docker")).as_image(PLATFORM).config.data == config


# -- making them -------------------------------------------------------------------------------------------------------


def _read_all(source: ImageSource) -> None:
    image = source.as_image(PLATFORM)
    for layer in image.layers:
        for _ in layer.chunks():
            pass


def _entry(image: Image, architecture: str, variant: str = "") -> dict[str, Any]:
    platform = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
    return {**image.manifest.descriptor.to_json(), "platform": platform}


def _index(entries: list[dict[str, Any]]) -> BytesBlob:
    return BytesBlob(INDEX, canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))


def _put_index(root: Path, top: BytesBlob, blobs: list[BytesBlob]) -> None:
    """Make *top* the one thing that the layout's index names."""
    for blob in blobs:
        (root / "blobs/sha256" / blob.descriptor.digest[7:]).write_bytes(blob.data)
    (root / "index.json").write_bytes(_index([top.descriptor.to_json()]).data)


def _edit_index(root: Path, **fields: object) -> None:
    index = json.loads((root / "index.json").read_bytes())
    index["manifests"][0] |= fields
    (root / "index.json").write_bytes(json.dumps(index).encode())


def _edit_layer(root: Path, **fields: object) -> None:
    index = json.loads((root / "index.json").read_bytes())
    manifest = json.loads((root / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_bytes())
    manifest["layers"][0] |= fields
    data = json.dumps(manifest).encode()
    digest = hashlib.sha256(data).hexdigest()
    (root / "blobs/sha256" / digest).write_bytes(data)
    _edit_index(root, digest=f"sha256:{digest}", size=len(data))


def _write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
