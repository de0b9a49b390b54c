"""Packs lie in a registry and come back byte for byte; what is attached to an image is found from it, old registry or
new."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpack_build.oci.artifact import attach
from cpack_build.oci.connection import Connection
from cpack_build.oci.layout import write_layout
from cpack_build.oci.manifests import list_referrers
from cpack_build.oci.push import push_index
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import INDEX, MANIFEST, ImageIndex, canonical_json, digest_of
from tests import need
from tests.cli.calling import Caller
from tests.cpack.packs import make_pack, snapshot
from tests.engines import Registry
from tests.oci.images import image_of, machine, small_image, text_layer
from tests.oci.misbehaving import Fault, Misbehaving, run_misbehaving
from tests.oci.specification import check

SBOM = b'{"bomFormat": "CycloneDX", "specVersion": "1.5"}'
PROVENANCE = b'{"_type": "https://in-toto.io/Statement/v1"}'


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(capsys)


@pytest.fixture
def fake() -> Iterator[Misbehaving]:
    with run_misbehaving() as running:
        yield running


def test_a_pack_goes_there_and_comes_back_byte_for_byte(call: Caller, registry: Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "upscale.cpack.zip")
    name = f"{registry.host}/packs/upscale:1"
    done = call("push", pack, name, "--json")
    assert done.code == 0, done.err
    digest = done.document["digest"]
    assert call("push", pack, name).out == f"{name}@{digest}  unchanged\n"
    done = call("pull", name, "--json")
    assert done.code == 0, done.err
    [file] = done.document["files"]
    assert (file["path"], file["type"]) == ("upscale.cpack.zip", "application/vnd.cpack.pack.v1+zip")
    assert Path("upscale.cpack.zip").read_bytes() == pack.read_bytes()
    assert call("pull", f"{registry.host}/packs/upscale@{digest}", "-o", tmp_path / "other.zip").code == 0
    assert (tmp_path / "other.zip").read_bytes() == pack.read_bytes()
    # The manifest is what the spec says one is, and others can read it.
    raw = subprocess.run(
        [need.tool("skopeo"), "inspect", "--raw", "--tls-verify=false", f"docker://{name}"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert digest_of(raw) == digest
    check(raw, "image-manifest-schema.json")
    assert json.loads(raw)["artifactType"] == "application/vnd.cpack.pack.v1+zip"


def test_a_pack_is_pushed_under_the_same_digest_everywhere(call: Caller, fake: Misbehaving, tmp_path: Path) -> None:
    digests = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        pack = make_pack(tmp_path / folder / "x.cpack.zip")
        digests.add(call("push", pack, f"{fake.host}/{folder}:1", "--json").document["digest"])
    assert len(digests) == 1


def test_what_is_no_pack_or_has_a_token_in_it_is_not_pushed(call: Caller, fake: Misbehaving, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 no zip")
    assert call("push", tmp_path / "x.zip", f"{fake.host}/x:1").code == 3
    pips = {"a @ https://hub.example/a.whl?token=hunter2": ""}
    pack = make_pack(tmp_path / "y.cpack.zip", snapshot_document=snapshot(pips=pips))
    done = call("push", pack, f"{fake.host}/x:1")
    assert (done.code, "hunter2" in done.err) == (8, False)
    assert not fake.seen


@pytest.mark.parametrize("modern", [True, False])
def test_what_is_attached_is_found_from_the_image(
    call: Caller, fake: Misbehaving, tmp_path: Path, modern: bool
) -> None:
    fake.has_referrers = modern
    image = small_image("attached")
    write_layout(image, tmp_path / "x.oci")
    files = {
        "x.cpack.zip": make_pack(tmp_path / "x.cpack.zip").read_bytes(),
        "x.cpack.lock": b'{"image_revision":1,"lock_revision":1}',
        "sbom.json": SBOM,
        "provenance.json": PROVENANCE,
    }
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    name = f"{fake.host}/x:v1"
    words = [word for file in files for word in ("--attach", str(tmp_path / file))]
    done = call("push", f"oci:{tmp_path}/x.oci", name, *words, "--json")
    assert done.code == 0, done.err
    assert len(done.document["attached"]) == 4
    assert (("x", image.digest.replace(":", "-")) in fake.manifests) is not modern
    listed = list_referrers(Connection(parse_reference(name)), image.digest)
    assert {entry["artifactType"] for entry in listed} == {
        "application/vnd.cpack.pack.v1+zip",
        "application/vnd.cpack.lock.v1+json",
        "application/vnd.cyclonedx+json",
        "application/vnd.in-toto+json",
    }
    # Again: nothing is sent, and nothing is listed twice.
    sent = fake.uploaded
    assert call("push", f"oci:{tmp_path}/x.oci", name, *words).code == 0
    assert fake.uploaded == sent
    assert len(list_referrers(Connection(parse_reference(name)), image.digest)) == 4
    done = call("pull", name, "--attached", "got", "--json")
    assert done.code == 0, done.err
    assert {path.name: path.read_bytes() for path in Path("got").iterdir()} == files
    # The image itself is what it was.
    assert fake.manifests["x", "v1"][1] == image.manifest.data


def test_a_real_old_registry_keeps_what_is_attached(call: Caller, registry: Registry, tmp_path: Path) -> None:
    image = small_image("attached-old")
    write_layout(image, tmp_path / "x.oci")
    (tmp_path / "sbom.json").write_bytes(SBOM)
    name = f"{registry.host}/packs/attached:1"
    done = call("push", f"oci:{tmp_path}/x.oci", name, "--attach", tmp_path / "sbom.json")
    assert done.code == 0, done.err
    assert call("pull", name, "--attached", "got").code == 0
    assert Path("got/sbom.json").read_bytes() == SBOM
    done = call("pull", f"{registry.host}/packs/attached@{image.digest}", "--attached", "got", "--json")
    assert done.document["files"][0]["sha256"] == digest_of(SBOM)[7:]


def test_what_is_attached_to_the_index_of_several_platforms_is_found_by_its_name(
    call: Caller, registry: Registry, tmp_path: Path
) -> None:
    layer = text_layer({"index": "attached"})
    index = ImageIndex(tuple(image_of([layer], architecture=architecture) for architecture in ("amd64", "arm64")))
    place = parse_reference(f"{registry.host}/packs/attached-index:1")
    push_index(index, [place])
    sbom = tmp_path / "sbom.json"
    sbom.write_bytes(SBOM)
    attach([sbom], index.manifest.descriptor, place)
    for name in (place, f"{place.name}@{index.digest}"):
        done = call("pull", name, "--attached", tmp_path / "got", "--json")
        assert done.code == 0, done.err
        assert done.document["reference"].endswith(index.digest)
        assert (tmp_path / "got/sbom.json").read_bytes() == SBOM
    own = next(image for image in index.images if image.platform.endswith(machine()))
    assert call("pull", f"{place.name}@{own.digest}", "--attached", tmp_path / "none").code == 4


def test_only_what_is_known_is_attached_and_that_is_said_first(call: Caller, fake: Misbehaving, tmp_path: Path) -> None:
    write_layout(small_image(), tmp_path / "x.oci")
    (tmp_path / "notes.txt").write_text("notes")
    for file in ("notes.txt", "absent.json"):
        done = call("push", f"oci:{tmp_path}/x.oci", f"{fake.host}/x:1", "--attach", tmp_path / file)
        assert (done.code, file in done.err) == (2, True)
    assert not fake.seen


def test_nothing_attached_is_said(call: Caller, fake: Misbehaving) -> None:
    fake.hold(small_image())
    done = call("pull", f"{fake.host}/x:v1", "--attached", "got")
    assert (done.code, "Nothing is attached" in done.err) == (4, True)


# -- lies --------------------------------------------------------------------------------------------------------------


def hold_file(fake: Misbehaving, data: bytes, *, title: object, kind: str, version: str = "v1", **more: Any) -> str:
    """Have a file as an artifact; its manifest's digest."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    layer = {
        "mediaType": kind, "digest": digest_of(data), "size": len(data),
        "annotations": {"org.opencontainers.image.title": title},
    }  # fmt: skip
    document = {"mediaType": MANIFEST, "artifactType": kind, "config": empty, "layers": [layer], **more}
    fake.blobs["x", digest_of(data)] = data
    manifest = canonical_json(document)
    for key in (version, digest_of(manifest)):
        fake.manifests["x", key] = (MANIFEST, manifest)
    return digest_of(manifest)


PACK = "application/vnd.cpack.pack.v1+zip"


@pytest.mark.parametrize(
    "title", ["../../evil", "/etc/evil", "a/b", ".bashrc", "", "x\x1b[2J", "a" * 300, None, 5, ".."]
)
def test_a_name_that_is_none_becomes_the_digest(call: Caller, fake: Misbehaving, tmp_path: Path, title: object) -> None:
    data = make_pack(tmp_path / "x.zip").read_bytes()
    hold_file(fake, data, title=title, kind=PACK)
    assert call("pull", f"{fake.host}/x:v1").code == 0
    assert [path.name for path in Path().iterdir()] == [digest_of(data).replace(":", "-")]


def test_another_file_of_that_name_is_not_written_over(call: Caller, fake: Misbehaving, tmp_path: Path) -> None:
    data = make_pack(tmp_path / "x.zip").read_bytes()
    hold_file(fake, data, title="Makefile", kind=PACK)
    Path("Makefile").write_text("all:")
    assert call("pull", f"{fake.host}/x:v1").code == 8
    assert Path("Makefile").read_text() == "all:"
    assert call("pull", f"{fake.host}/x:v1", "-o", "Makefile").code == 0
    assert Path("Makefile").read_bytes() == data
    assert call("pull", f"{fake.host}/x:v1").code == 0  # the same is no other


def test_what_calls_itself_a_pack_and_is_none_is_not_written(call: Caller, fake: Misbehaving) -> None:
    hold_file(fake, b"no zip", title="x.cpack.zip", kind=PACK)
    done = call("pull", f"{fake.host}/x:v1")
    assert (done.code, list(Path().iterdir())) == (3, [])
    hold_file(fake, b"other", title="x.cpack.zip", kind=PACK)
    fake.fault = lambda request: Fault(spoil=True) if "/blobs/" in request.path else None
    assert call("pull", f"{fake.host}/x:v1").code == 5
    assert list(Path().iterdir()) == []


def test_a_list_that_names_what_is_not_attached_is_told(call: Caller, fake: Misbehaving, tmp_path: Path) -> None:
    image = small_image()
    fake.hold(image)
    digest = hold_file(fake, SBOM, title="sbom.json", kind="application/vnd.cyclonedx+json", version="other")
    manifest = fake.manifests["x", digest][1]
    entry = {"mediaType": MANIFEST, "digest": digest, "size": len(manifest)}
    index = canonical_json({"mediaType": INDEX, "manifests": [entry]})
    fake.manifests["x", image.digest.replace(":", "-")] = (INDEX, index)
    done = call("pull", f"{fake.host}/x:v1", "--attached", "got")
    assert (done.code, "is listed as attached to" in done.err) == (3, True)
    fake.manifests["x", image.digest.replace(":", "-")] = (INDEX, b'{"manifests": [{"digest": "../../x"}]}')
    assert call("pull", f"{fake.host}/x:v1", "--attached", "got").code == 3
    assert not Path("got").exists()


@pytest.mark.parametrize("following", ["http://[::1/x", "http://hub.example/x", "/v2/x?"])
def test_a_list_that_goes_on_elsewhere_or_for_ever_is_left(call: Caller, fake: Misbehaving, following: str) -> None:
    fake.has_referrers = True
    fake.hold(small_image())
    fake.fault = lambda request: (
        Fault(
            status=200,
            headers={"Content-Type": INDEX, "Link": f'<{following}>; rel="next"'},
            body=b'{"manifests": []}',
        )
        if "/referrers/" in request.path or request.path == "/v2/x"
        else None
    )
    done = call("pull", f"{fake.host}/x:v1", "--attached", "got")
    assert (done.code, "Nothing is attached" in done.err) == (4, True)
    assert len(fake.seen) < 20


def test_an_artifact_of_others_is_said_to_be_one(call: Caller, fake: Misbehaving) -> None:
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    fake.manifests["x", "v1"] = (MANIFEST, canonical_json({"mediaType": MANIFEST, "config": empty, "layers": []}))
    done = call("pull", f"{fake.host}/x:v1")
    assert (done.code, "artifact of 0 files" in done.err) == (4, True)
