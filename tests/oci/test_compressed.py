"""What registries are given: compressed once, to the same bytes everywhere, and the same image to whoever pulls it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, ToolMissing, UsageError
from cpack_build.fetch.store import Store
from cpack_build.oci import compressed as module
from cpack_build.oci.compressed import Compression, compressed, compressed_image, known_size, parse_compression
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.push import push
from cpack_build.oci.reference import LayoutName, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import LAYER, LAYER_GZIP, LAYER_ZSTD, Blob, BytesBlob, Descriptor, Image, Seekable
from cpack_build.oci.uncompressed import decompressed, uncompressed
from tests import need
from tests.engines import Docker, Podman, Registry
from tests.oci.images import BrokenBlob, image_of, machine, text_layer, web_image

PLATFORM = f"linux/{machine()}"
TEXT = "".join(f"{number * number % 9973} of the lines, " for number in range(700_000))
PLAIN = text_layer({"etc/text": TEXT, "etc/other": TEXT[:1000]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@dataclass(frozen=True)
class InPieces:
    """A blob that comes in pieces of *step* bytes; *reads* grows by one each time that it is read."""

    descriptor: Descriptor
    data: bytes
    step: int
    reads: list[int]

    def chunks(self) -> Iterator[bytes]:
        self.reads.append(1)
        for start in range(0, len(self.data), self.step):
            yield self.data[start : start + self.step]


def pieces(step: int = 1 << 20) -> InPieces:
    return InPieces(PLAIN.descriptor, PLAIN.data, step, [])


def model_of(path: Path, size: int = 100_000) -> ModelLayer:
    path.write_bytes(bytes(size))
    sha256 = hashlib.sha256(bytes(size)).hexdigest()
    return ModelLayer(path, sha256, size, hash_model(path, sha256, size), f"models/{path.name}")


@pytest.mark.parametrize("how", ["zstd", "zstd:1", "zstd:19", "gzip", "gzip:9"])
def test_bytes_depend_on_the_layer_and_the_compression_alone(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compression = parse_compression(how)
    found = set()
    for number, (step, large) in enumerate([(1 << 20, 8 << 20), (99_991, 0), (1 << 30, 1 << 40)]):
        monkeypatch.setattr(module, "_LARGE", large)  # with one thread, and with two
        blob = compressed(pieces(step), compression, store=Store(tmp_path / str(number)))
        found.add((blob.descriptor.digest, blob.descriptor.size))
        assert blob.descriptor.digest == "sha256:" + hashlib.sha256(b"".join(blob.chunks())).hexdigest()
        assert b"".join(decompressed(blob)) == PLAIN.data
    assert len(found) == 1


@pytest.mark.parametrize(
    ("how", "compressor", "digest"),
    [
        ("zstd", "libzstd 1.5.7", "sha256:06ae2cfedbf3e349cc9bfc8b582ee6231c2b01e10369d1d4032b4caf4fce0e91"),
        ("gzip", "zlib 1.2.13", "sha256:b616c596303f84775feb075ed77e0f7d4a6dfc0f6ad4abcd25eadf9c583b1fe9"),
    ],
)
def test_a_compressor_of_one_version_gives_these_bytes(how: str, compressor: str, digest: str, store: Store) -> None:
    """If this fails although the compressor is the same: parameters were changed, and images pushed by old locks get
    other digests. Either that was a mistake, or the new way needs a name of its own in the lock."""
    compression = parse_compression(how)
    if compression.compressor != compressor:
        need.missing(f"{compressor} (here is {compression.compressor})")
    assert compressed(PLAIN, compression, store=store).descriptor.digest == digest


def test_a_layer_is_compressed_once(store: Store) -> None:
    layer = pieces()
    how = parse_compression("zstd")
    assert known_size(PLAIN.descriptor.digest, how, store=store) is None
    first = compressed(layer, how, store=store)
    again = compressed(layer, how, store=Store(store.root))
    assert len(layer.reads) == 1
    assert b"".join(first.chunks()) == b"".join(again.chunks())
    assert len(layer.reads) == 1, "its bytes come from the store"
    assert known_size(PLAIN.descriptor.digest, how, store=store) == first.descriptor.size
    assert compressed(layer, parse_compression("zstd:4"), store=store).descriptor != first.descriptor
    assert len(layer.reads) == 2


def test_what_was_kept_and_is_gone_is_made_again_from_any_place_on(store: Store) -> None:
    layer = pieces()
    blob = compressed(layer, parse_compression("zstd"), store=store)
    whole = b"".join(blob.chunks())
    store.blob_path(blob.descriptor.digest).unlink()
    assert isinstance(blob, Seekable)
    assert b"".join(blob.chunks_from(1000)) == whole[1000:]
    assert len(layer.reads) == 2


@pytest.mark.parametrize("how", ["zstd", "gzip"])
@pytest.mark.parametrize("data", [PLAIN.data[:-1] + b"x", PLAIN.data[:-1], PLAIN.data + b"x"], ids=len)
def test_a_layer_that_is_not_what_it_says_is_not_compressed(how: str, data: bytes, store: Store) -> None:
    with pytest.raises(HashMismatch, match="was promised"):
        compressed(BrokenBlob(PLAIN.descriptor, data), parse_compression(how), store=store)
    assert not (store.root / "blobs").exists()
    assert known_size(PLAIN.descriptor.digest, parse_compression(how), store=store) is None


def test_models_stay_as_they_are_and_the_image_id_too(store: Store, tmp_path: Path) -> None:
    model = model_of(tmp_path / "m.safetensors")
    image = image_of([PLAIN, model])
    packed = compressed_image(image, parse_compression("zstd"), store=store)
    assert (packed.id, packed.config) == (image.id, image.config)
    assert packed.digest != image.digest
    assert [layer.descriptor.media_type for layer in packed.layers] == [LAYER_ZSTD, LAYER]
    assert packed.layers[1] is model
    shared = BytesBlob(LAYER, PLAIN.data, {"io.cpack.layer.kind": "models"})
    assert compressed_image(image_of([shared]), parse_compression("zstd"), store=store).layers == (shared,)
    listed = json.loads(packed.manifest.data)["layers"]
    assert listed == [layer.descriptor.to_json() for layer in packed.layers]
    assert listed[1]["annotations"]["io.cpack.model.path"] == "models/m.safetensors"
    gzipped = compressed_image(packed, parse_compression("gzip"), store=store)
    assert [layer.descriptor.media_type for layer in gzipped.layers] == [LAYER_GZIP, LAYER]
    plain = compressed_image(gzipped, Compression("none"), store=store)
    assert plain.manifest == image.manifest, "there and back"
    assert compressed_image(packed, parse_compression("zstd:19"), store=store) is packed, "it is zstd already"


def test_a_base_s_layers_stay_as_the_base_has_them_unless_nobody_could_read_them(store: Store) -> None:
    how = {name: parse_compression(name) for name in ("gzip", "zstd", "none")}
    forms: dict[str, Blob] = {name: compressed(PLAIN, how[name], store=store) for name in ("gzip", "zstd")}
    forms["docker"] = replace_type(forms["gzip"], "application/vnd.docker.image.rootfs.diff.tar.gzip")
    over = {name: image_of([uncompressed(form, PLAIN.descriptor.digest)]) for name, form in forms.items()}

    def kind(base: str, wanted: str) -> tuple[str, bool]:
        [layer] = compressed_image(over[base], how[wanted], store=store).layers
        return layer.descriptor.media_type, layer.descriptor.digest == forms[base].descriptor.digest

    assert kind("gzip", "zstd") == kind("gzip", "gzip") == kind("gzip", "none") == (LAYER_GZIP, True)
    assert kind("docker", "zstd") == (LAYER_GZIP, True)
    assert kind("zstd", "zstd") == (LAYER_ZSTD, True)
    assert kind("zstd", "gzip") == (LAYER_GZIP, False)
    assert kind("zstd", "none") == (LAYER, False)


def replace_type(blob: Blob, media_type: str) -> BytesBlob:
    return BytesBlob(media_type, b"".join(blob.chunks()))


@pytest.mark.parametrize("text", ["zstd:0", "zstd:20", "zstd:", "gzip:0", "gzip:10", "none:1", "xz", "", "zstd:٣"])
def test_what_is_no_compression_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="Compression"):
        parse_compression(text)


def test_another_compressor_than_the_lock_s_is_refused() -> None:
    parse_compression("gzip").require()
    with pytest.raises(ToolMissing, match=r"libzstd 1\.4\.0.*--compression zstd"):
        Compression("zstd", 3, "libzstd 1.4.0").require()


# -- others ------------------------------------------------------------------------------------------------------------


def pushed(image: Image, how: str, registry: Registry, name: str, *, store: Store) -> tuple[Image, str]:
    packed = compressed_image(image, parse_compression(how), store=store)
    reference = parse_reference(f"{registry.host}/compressed/{name}:v1")
    push(packed, [reference])
    return packed, f"{reference.name}@{packed.digest}"


def test_skopeo_copies_it_and_it_is_read_back_as_the_same_image(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    image = image_of([PLAIN, model_of(tmp_path / "m.bin")])
    packed, name = pushed(image, "zstd", registry, "skopeo", store=store)
    skopeo = [need.tool("skopeo"), "copy", "--insecure-policy", "--preserve-digests", "--src-tls-verify=false"]
    subprocess.run([*skopeo, f"docker://{name}", f"oci:{tmp_path}/back:v1"], check=True, capture_output=True)
    back = open_source(LayoutName(tmp_path / "back", "v1")).as_image(PLATFORM)
    assert (back.digest, back.id) == (packed.digest, image.id)
    assert [b"".join(decompressed(layer)) for layer in back.layers] == [
        b"".join(layer.chunks()) for layer in image.layers
    ]


def page_of(engine: Docker | Podman, name: str) -> str:
    """What a container of the image *name* has unpacked."""
    container = engine("create", name, "/bin/ls").stdout.strip()
    archive = engine("cp", f"{container}:/www/index.html", "-").stdout
    engine("rm", container)
    return archive[512:518]


@pytest.mark.podman
def test_podman_pulls_and_unpacks_zstd(registry: Registry, podman: Podman, store: Store) -> None:
    image = web_image()
    _, name = pushed(image, "zstd", registry, "podman", store=store)
    podman("pull", "--tls-verify=false", name)
    assert podman("image", "inspect", "--format", "{{.Id}}", name).stdout.strip() == image.id.removeprefix("sha256:")
    assert page_of(podman, name) == "hello\n"
    podman("rmi", "--force", name)


@pytest.mark.docker
def test_docker_pulls_and_unpacks_gzip_by_digest(registry: Registry, docker: Docker, store: Store) -> None:
    image = web_image()
    _, name = pushed(image, "gzip", registry, "docker", store=store)
    docker("pull", name)
    assert docker("image", "inspect", "--format", "{{.Id}}", name).stdout.strip().startswith("sha256:")
    assert page_of(docker, name) == "hello\n"
    docker("rmi", "--force", name)


@pytest.mark.docker
def test_docker_before_23_refuses_zstd_which_is_why_a_push_says_so(
    registry: Registry, docker: Docker, store: Store
) -> None:
    if int(docker("version", "--format", "{{.Server.Version}}").stdout.split(".")[0]) >= 23:
        need.missing("a Docker before 23")
    # One of its own: of an image that Docker has already it asks for no layer.
    image = image_of([text_layer({"zstd/only": "here"})])
    _, name = pushed(image, "zstd", registry, "docker-zstd", store=store)
    assert docker("pull", name, check=False).returncode != 0
