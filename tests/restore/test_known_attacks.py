"""What others' unpackers of images fell for, by its number: each of those images is refused here, or does no harm.

umoci: CVE-2021-29136 (in :mod:`.test_attacks`). Docker: CVE-2014-6407, CVE-2014-9356, CVE-2014-9358. containerd:
CVE-2021-32760, CVE-2022-23648, CVE-2023-25153. containers/image and storage: CVE-2021-20291, CVE-2024-3727,
CVE-2024-9676. Python's ``tarfile``, which reads the layers: CVE-2007-4559 (names that lead out, there as well),
CVE-2025-4517, CVE-2025-8194. All of them: CVE-2021-41190. Git's are in :mod:`.test_submodules`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import BadImage, UnsafeInput
from cpack_build.oci.documents import DOCUMENT_LIMIT
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import ArchiveName, LayoutName, parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import CONFIG, INDEX, LAYER, MANIFEST, BytesBlob
from cpack_build.restore.artifact import Layer
from tests.cli.calling import Caller
from tests.making import member
from tests.oci.images import machine, small_image
from tests.restore.images import World
from tests.restore.test_attacks import ROOT, attempt, file, forged, link, tar_of

PLATFORM = f"linux/{machine()}"
LONG = "d" * 247


def refused(world: World, members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path) -> None:
    root = tmp_path / "place" / "w"
    with pytest.raises((UnsafeInput, BadImage)):
        attempt(forged(world, members), root, tmp_path)
    assert sorted(path.name for path in root.iterdir()) == [".cpack"], "nothing of it was written"


def outside(tmp_path: Path) -> Path:
    """A file that no image may change: 0600, with its content."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("kept")
    (folder / "secret").chmod(0o600)
    return folder


def untouched(folder: Path) -> bool:
    secret = folder / "secret"
    state = secret.stat()
    return [*folder.iterdir()] == [secret] and secret.read_text() == "kept" and (state.st_mode & 0o777) == 0o600


def test_a_hard_link_to_a_link_that_leads_out_is_not_followed(world: World, tmp_path: Path) -> None:
    """CVE-2014-6407 (Docker before 1.3.2)."""
    place = outside(tmp_path)
    members = [
        link(f"{ROOT}/a", str(place)), link(f"{ROOT}/b", f"{ROOT}/a", tarfile.LNKTYPE), file(f"{ROOT}/b/evil")
    ]  # fmt: skip
    refused(world, members, tmp_path)
    assert untouched(place)


def test_a_hard_link_to_a_file_of_this_machine_changes_nothing_of_it(world: World, tmp_path: Path) -> None:
    """CVE-2021-32760 (containerd before 1.5.4): the member's mode was given to the file that the link led to."""
    place = outside(tmp_path)
    info, data = link(f"{ROOT}/a", str(place / "secret"), tarfile.LNKTYPE)
    info.mode = 0o4777
    refused(world, [(info, data)], tmp_path)
    assert untouched(place)


def test_an_absolute_link_is_not_followed_by_later_members(world: World, tmp_path: Path) -> None:
    """CVE-2014-9356 (Docker before 1.3.3)."""
    place = outside(tmp_path)
    refused(world, [link(f"{ROOT}/etc", str(place)), file(f"{ROOT}/etc/passwd")], tmp_path)
    assert untouched(place)


def test_links_whose_resolved_path_is_longer_than_a_system_takes_lead_nowhere(world: World, tmp_path: Path) -> None:
    """CVE-2025-4517 (``tarfile``'s filters): beyond PATH_MAX ``realpath`` gave up following, and the kernel did not."""
    place = outside(tmp_path)
    members, at = [], ROOT
    for letter in "abcdefghijklmnop":
        members += [(member(f"{at}/{LONG}", tarfile.DIRTYPE), b""), link(f"{at}/{letter}", LONG)]
        at = f"{at}/{LONG}"
    through = f"{ROOT}/" + "/".join("abcdefghijklmnop") + f"/{'l' * 254}"
    members += [
        link(through, "../" * 16), link(f"{ROOT}/escape", through.removeprefix(f"{ROOT}/") + "/../../../outside"),
        link(f"{ROOT}/secret", "escape/secret", tarfile.LNKTYPE), file(f"{ROOT}/escape/evil"),
    ]  # fmt: skip
    refused(world, members, tmp_path)
    assert untouched(place)


@pytest.mark.parametrize("size", [-512, -1, -(1 << 40)])
def test_a_member_of_negative_size_is_an_error_and_no_loop(world: World, tmp_path: Path, size: int) -> None:
    """CVE-2025-8194 (``tarfile`` to 3.13.5): reading went backwards, for ever."""
    block = bytearray(tar_of([file(f"{ROOT}/a")]))
    block[124:136] = (size % (1 << 96)).to_bytes(12, "big")  # base-256, as GNU tar writes what octal cannot say
    block[124] |= 0x80
    total = sum(block[:148]) + 8 * 32 + sum(block[156:512])
    block[148:156] = b"%06o\0 " % total
    artifact = dataclasses.replace(
        forged(world, []), layers=(Layer("comfyui", "sha256:" + "0" * 64, BytesBlob(LAYER, bytes(block))),)
    )
    with pytest.raises((BadImage, UnsafeInput)):
        attempt(artifact, tmp_path / "w", tmp_path)
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [".cpack"]


@pytest.mark.parametrize("size", [-512, -5])
def test_a_pax_record_of_negative_size_is_an_error_too(world: World, tmp_path: Path, size: int) -> None:
    """CVE-2025-8194 by another way: the size of a record counts, not the header's."""
    info, data = file(f"{ROOT}/a")
    artifact = forged(world, [(info, data)])
    info.pax_headers = {"size": str(size)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(data))
    layers = (Layer("comfyui", "sha256:" + "0" * 64, BytesBlob(LAYER, out.getvalue())),)
    with pytest.raises(BadImage):
        attempt(dataclasses.replace(artifact, layers=layers), tmp_path / "w", tmp_path)
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [".cpack"]


@pytest.mark.parametrize("data", [b"\xfd7zXZ\x00" + bytes(600), b"BZh9" + bytes(600), b"not a tar" * 100])
def test_a_layer_that_is_no_tar_ends_in_an_error(world: World, tmp_path: Path, data: bytes) -> None:
    """CVE-2021-20291 (containers/storage before 1.28.1): the reader waited for ever, with a lock held."""
    artifact = dataclasses.replace(
        forged(world, []), layers=(Layer("comfyui", "sha256:" + "0" * 64, BytesBlob(LAYER, data)),)
    )
    with pytest.raises(BadImage):
        attempt(artifact, tmp_path / "w", tmp_path)


def test_an_image_s_config_is_not_obeyed(world: World, call: Caller, tmp_path: Path) -> None:
    """CVE-2022-23648 (containerd before 1.6.1): a volume's path that leads out had the host's files copied there."""
    place = outside(tmp_path)
    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)
    config = json.loads(image.config.data)
    config["config"] |= {
        "Volumes": {f"/../../../../../../../..{place}": {}}, "WorkingDir": str(place), "Entrypoint": ["touch", "evil"]
    }  # fmt: skip
    own = BytesBlob(CONFIG, json.dumps(config).encode())
    manifest = json.loads(image.manifest.data) | {"config": own.descriptor.to_json()}
    changed = dataclasses.replace(image, config=own, manifest=BytesBlob(MANIFEST, json.dumps(manifest).encode()))
    write_layout(changed, tmp_path / "changed.oci")
    outcome = call("restore", f"oci:{tmp_path / 'changed.oci'}", "-d", tmp_path / "w", "--no-venv", "--offline")
    assert outcome.code == 0, outcome
    assert call("restore", "--verify", tmp_path / "w").code == 0
    assert untouched(place)
    assert not [path for path in (tmp_path / "w").rglob("*") if path.name in ("secret", "evil")]


def test_accounts_are_those_of_the_image_whatever_its_links_say(tmp_path: Path) -> None:
    """CVE-2024-9676 (containers/storage before 1.55.1): ``/etc/passwd`` of an image led to a file of the host."""
    from cpack_build.oci.filesystem import read_files
    from tests.oci.images import image_of

    place = outside(tmp_path)
    layer = BytesBlob(LAYER, tar_of([
        link("etc/passwd", str(place / "secret")), link("etc/group", "../" * 12 + str(place / "secret").lstrip("/")),
    ]))  # fmt: skip
    assert read_files(image_of([layer]), ["etc/passwd", "etc/group"]) == {}


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "../x", "sha512:00"])
def test_a_digest_is_checked_before_it_is_a_path_or_a_url(tmp_path: Path, digest: str) -> None:
    """CVE-2024-3727 (containers/image before 5.30.1); CVE-2014-9358 (Docker before 1.3.3) for image IDs."""
    write_layout(small_image(), tmp_path / "layout")
    index = json.loads((tmp_path / "layout/index.json").read_bytes())
    index["manifests"][0]["digest"] = digest
    (tmp_path / "layout/index.json").write_text(json.dumps(index))
    with pytest.raises(BadImage, match="no sha256 digest"):
        open_source(LayoutName(tmp_path / "layout")).manifest(PLATFORM)


@pytest.mark.parametrize("key", ["Config", "Layers"])
def test_a_docker_archive_names_no_file_of_this_machine(tmp_path: Path, key: str) -> None:
    """CVE-2014-9358 (Docker before 1.3.3): an image's ID led out of its place."""
    place = outside(tmp_path)
    entry: dict[str, Any] = {"Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"]}
    evil = f"../../../../../../../..{place}/secret"
    entry[key] = evil if key == "Config" else [evil]
    diff_id = "sha256:" + hashlib.sha256(b"kept").hexdigest()
    config = {
        "os": "linux", "architecture": machine(), "rootfs": {"type": "layers", "diff_ids": [diff_id]}, "history": []
    }  # fmt: skip
    parts = {"manifest.json": json.dumps([entry]).encode(), "config.json": json.dumps(config).encode()}
    (tmp_path / "lying.tar").write_bytes(tar_of([(member(name), data) for name, data in parts.items()]))
    with pytest.raises((BadImage, UnsafeInput)):
        _read(tmp_path / "lying.tar")
    assert untouched(place)


def _read(archive: Path) -> bytes:
    image = open_source(ArchiveName(archive, "docker")).as_image(PLATFORM)
    return b"".join(chunk for layer in image.layers for chunk in layer.chunks())


def test_a_config_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    """CVE-2023-25153 (containerd before 1.6.18): documents of any size were read whole."""
    image = small_image()
    config = BytesBlob(CONFIG, image.config.data + b" " * DOCUMENT_LIMIT)
    manifest = json.loads(image.manifest.data) | {"config": config.descriptor.to_json()}
    large = dataclasses.replace(image, config=config, manifest=BytesBlob(MANIFEST, json.dumps(manifest).encode()))
    write_layout(large, tmp_path / "layout")
    with pytest.raises(BadImage, match="is the most that is taken"):
        open_source(LayoutName(tmp_path / "layout")).as_image(PLATFORM)


# -- CVE-2021-41190: one document, two meanings ------------------------------------------------------------------------


def both(**kinds: Any) -> BytesBlob:
    """A manifest that lists other manifests, too, under the digest of both."""
    image, other = small_image(), small_image("other")
    document = json.loads(image.manifest.data) | {"manifests": [other.manifest.descriptor.to_json()]}
    del document["mediaType"]
    return BytesBlob(MANIFEST, json.dumps(document | kinds).encode())


@pytest.mark.parametrize("announced", [MANIFEST, INDEX, ""])
@pytest.mark.parametrize("kinds", [{}, {"mediaType": MANIFEST}, {"mediaType": INDEX}])
def test_a_document_that_is_manifest_and_index_at_once_is_refused(
    tmp_path: Path, announced: str, kinds: Mapping[str, str]
) -> None:
    """CVE-2021-41190, wherever its kind is said."""
    write_layout(small_image(), tmp_path)
    write_layout(small_image("other"), tmp_path)
    two = both(**kinds)
    (tmp_path / "blobs/sha256" / two.descriptor.digest[7:]).write_bytes(two.data)
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["manifests"] = [two.descriptor.to_json() | {"mediaType": announced}]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(BadImage, match="manifest and index at once"):
        open_source(LayoutName(tmp_path)).manifest(PLATFORM)


@pytest.mark.parametrize("key", ["Manifests", "MANIFESTS"])
def test_programs_that_know_no_case_see_no_second_meaning_either(tmp_path: Path, key: str) -> None:
    """CVE-2021-41190 through Go's JSON, for which ``Manifests`` is ``manifests``."""
    write_layout(small_image(), tmp_path)
    document = json.loads(both().data)
    document[key] = document.pop("manifests")
    two = BytesBlob(MANIFEST, json.dumps(document).encode())
    (tmp_path / "blobs/sha256" / two.descriptor.digest[7:]).write_bytes(two.data)
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["manifests"] = [two.descriptor.to_json()]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(BadImage, match="manifest and index at once"):
        open_source(LayoutName(tmp_path)).manifest(PLATFORM)


@pytest.mark.parametrize(("own", "announced"), [(MANIFEST, INDEX), (INDEX, MANIFEST)])
def test_a_kind_that_is_announced_otherwise_is_refused(tmp_path: Path, own: str, announced: str) -> None:
    """CVE-2021-41190's remedy: what a document says of itself is what whoever leads to it says."""
    write_layout(small_image(), tmp_path)
    index = json.loads((tmp_path / "index.json").read_bytes())
    if own == INDEX:
        document: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": index["manifests"]}
    else:
        document = json.loads(small_image().manifest.data)
    blob = BytesBlob(own, json.dumps(document).encode())
    (tmp_path / "blobs/sha256" / blob.descriptor.digest[7:]).write_bytes(blob.data)
    for kind, taken in ((own, True), (announced, False)):
        index["manifests"] = [blob.descriptor.to_json() | {"mediaType": kind}]
        (tmp_path / "index.json").write_text(json.dumps(index))
        if taken:
            assert open_source(LayoutName(tmp_path)).manifest(PLATFORM)
            continue
        with pytest.raises(BadImage, match="manifest and index at once"):
            open_source(LayoutName(tmp_path)).manifest(PLATFORM)
