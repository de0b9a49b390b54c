"""A base image whose layers stay in their registry: what the lock says of it stands in for them, and lies are found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import BadField, BadImage, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.base import Base, open_locked_base
from cpack_build.image.build import Materials, build
from cpack_build.image.gather import Places, gather
from cpack_build.image.layer import arrange, text
from cpack_build.lock.base import open_base
from cpack_build.lock.interpreter import is_vouched, vouch
from cpack_build.lock.schema import BaseImage, BaseSummary, Lock, read_lock
from cpack_build.oci.compressed import compressed_image, parse_compression
from cpack_build.oci.layout import write_layout
from cpack_build.oci.push import Pushed, push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import LAYER_GZIP, Blob, BytesBlob, Image, canonical_json
from tests.image.small import CODE, DEBS, make_parts
from tests.oci.images import image_of, layer, machine
from tests.oci.misbehaving import Misbehaving, run_misbehaving

PLATFORM: Any = f"linux/{machine()}"
PASSWD, GROUP = b"root:x:0:0::/root:/bin/sh\n", b"root:x:0:\n"
PYTHON = "usr/bin/python3.11"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
NAME = "bases/os"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def origin() -> Iterator[Misbehaving]:
    with run_misbehaving() as running:
        yield running


def base_image(folder: Path, *, kind: str = "gzip", group: bytes = GROUP) -> Image:
    """Two layers, compressed by somebody."""
    below = layer(arrange([text("etc/passwd", b"other"), text(PYTHON, b"elf" * 9000, 0o755)]))
    above = layer(arrange([text("etc/passwd", PASSWD), text("etc/group", group)]))
    return compressed_image(image_of([below, above]), parse_compression(kind), store=Store(folder / "elsewhere"))


def renamed(image: Image, media_type: str) -> Image:
    """*image* with layers of that media type."""
    document = json.loads(image.manifest.data)
    document["layers"] = [{**entry, "mediaType": media_type} for entry in document["layers"]]
    return replace(image, manifest=BytesBlob(image.manifest.media_type, canonical_json(document)))


def locked(folder: Path, origin: Misbehaving, image: Image) -> Lock:
    """The lock of the small image over *image*, which *origin* has, made on another machine."""
    origin.hold(image, NAME, "1")
    lock = make_parts(folder, models=[1000])
    store = Store(folder / "locking")
    base = open_base(f"{origin.host}/{NAME}:1", platform=PLATFORM, store=store, sources=Sources())
    assert base.record.digest == image.digest
    origin.seen.clear()
    again = read_lock(lock.model_copy(update={"base": base.record}).to_bytes(), name="the lock")
    assert again.base == base.record
    return again


def brought(folder: Path, lock: Lock, store: Store, *, stays: bool) -> Materials:
    places = Places(models=[str(folder / "models")], find_links=[str(folder / "wheels")])
    sources = Sources(Mirrors({CODE: f"{folder}/", DEBS: f"{folder}/"}))
    return gather(lock, documents={}, places=places, store=store, sources=sources, base_stays=stays)


def built(folder: Path, lock: Lock, store: Store, target: str, *, stays: bool, how: str = "zstd") -> tuple[str, Pushed]:
    """Build and push to *target*; the digest of the plain image, and what was pushed."""
    with build(lock, brought(folder, lock, store, stays=stays), store=store) as image:
        packed = compressed_image(image, parse_compression(how), store=store)
        assert isinstance(lock.base, BaseImage)
        mount_from = [parse_reference(lock.base.reference)] if lock.base.reference != "layout" else []
        [pushed] = push(packed, [parse_reference(target)], mount_from=mount_from)
        return image.digest, pushed


def asked(registry: Misbehaving, blobs: tuple[Blob, ...]) -> list[int]:
    """How often each of *blobs* was asked for."""
    paths = [request.path for request in registry.seen if request.method == "GET"]
    return [sum(path.endswith(blob.descriptor.digest) for path in paths) for blob in blobs]


def stored(store: Store, blobs: tuple[Blob, ...]) -> list[bool]:
    partial = {path.name for path in (store.root / "pulled").glob("*")}
    return [
        store.find(blob.descriptor.digest) is not None or bool({path for path in partial if _hex(blob) in path})
        for blob in blobs
    ]


def _hex(blob: Blob) -> str:
    return blob.descriptor.digest.removeprefix("sha256:")


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [LAYER_GZIP, DOCKER_GZIP])
def test_a_base_of_the_same_registry_is_mounted_and_none_of_it_comes(
    media_type: str, origin: Misbehaving, tmp_path: Path
) -> None:
    base = renamed(base_image(tmp_path), media_type)
    lock = locked(tmp_path, origin, base)
    store = Store(tmp_path / "store")
    plain, pushed = built(tmp_path, lock, store, f"{origin.host}/team/over:1", stays=True)
    assert pushed.mounted == sum(one.descriptor.size for one in base.layers)
    assert asked(origin, base.layers) == [0, 0]
    assert asked(origin, (base.manifest, base.config)) == [1, 1]
    assert stored(store, base.layers) == [False, False]

    other = Store(tmp_path / "other")
    read = built(tmp_path, lock, other, f"{origin.host}/team/again:1", stays=False)
    assert stored(other, base.layers) == [True, True]
    assert (read[0], read[1].reference.digest) == (plain, pushed.reference.digest)


@pytest.mark.parametrize("media_type", [LAYER_GZIP, DOCKER_GZIP])
def test_a_base_of_another_registry_is_streamed_once_and_not_kept(
    media_type: str, origin: Misbehaving, tmp_path: Path
) -> None:
    base = renamed(base_image(tmp_path), media_type)
    lock = locked(tmp_path, origin, base)
    store = Store(tmp_path / "store")
    with run_misbehaving() as target:
        _, pushed = built(tmp_path, lock, store, f"{target.host}/team/over:1", stays=True)
        assert asked(origin, base.layers) == [1, 1]
        assert stored(store, base.layers) == [False, False]
        for one in base.layers:
            digest = one.descriptor.digest
            assert target.blobs["team/over", digest] == origin.blobs[NAME, digest]
        # With all of it here, the name stands for the very same.
        again = built(tmp_path, lock, Store(tmp_path / "other"), f"{target.host}/team/over:1", stays=False)
        assert not again[1].changed
        assert again[1].reference == pushed.reference


def test_a_base_that_must_be_compressed_anew_comes_and_is_proved(origin: Misbehaving, tmp_path: Path) -> None:
    base = base_image(tmp_path, kind="zstd")
    lock = locked(tmp_path, origin, base)
    with run_misbehaving() as target:
        name = f"{target.host}/team/over:1"
        first = built(tmp_path, lock, Store(tmp_path / "store"), name, stays=True, how="gzip")
        again = built(tmp_path, lock, Store(tmp_path / "other"), name, stays=False, how="gzip")
    assert asked(origin, base.layers) == [2, 2]
    assert first[0] == again[0]
    assert not again[1].changed


def test_the_base_s_own_python_is_read_when_it_is_needed(origin: Misbehaving, tmp_path: Path) -> None:
    base = base_image(tmp_path)
    lock = locked(tmp_path, origin, base)
    store = Store(tmp_path / "store")
    opened = opened_base(lock, store, stays=True)
    assert stored(store, base.layers) == [False, False]
    assert PYTHON in [entry.path for entry in opened.interpreter_files("3.11")]
    assert stored(store, base.layers) == [True, True]


def test_a_base_that_is_streamed_wrongly_is_noticed(origin: Misbehaving, tmp_path: Path) -> None:
    base = base_image(tmp_path)
    lock = locked(tmp_path, origin, base)
    digest = base.layers[0].descriptor.digest
    origin.blobs[NAME, digest] = origin.blobs[NAME, digest][:-1] + b"?"
    with run_misbehaving() as target:
        with pytest.raises(Exception, match=digest):
            built(tmp_path, lock, Store(tmp_path / "store"), f"{target.host}/team/over:1", stays=True)
        assert ("team/over", "1") not in target.manifests
        assert ("team/over", digest) not in target.blobs


# -- what the lock says ------------------------------------------------------------------------------------------------


def opened_base(lock: Lock, store: Store, *, stays: bool) -> Base:
    assert isinstance(lock.base, BaseImage)
    return open_locked_base(
        lock.base, platform=PLATFORM, name="scratch", store=store, sources=Sources(), stays=stays
    )  # fmt: skip


def lying(lock: Lock, changes: Mapping[str, object]) -> Lock:
    assert isinstance(lock.base, BaseImage)
    assert lock.base.summary is not None
    summary = lock.base.summary.model_copy(update=dict(changes))
    return lock.model_copy(update={"base": lock.base.model_copy(update={"summary": summary})})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"passwd": "root::0:0::/root:/bin/sh\n"}, "other accounts"),
        ({"group": ""}, "other accounts"),
        ({"layers": (1, 1)}, "bytes, not 1, in layer"),
        ({"layers": (1,)}, "2 layers, not 1"),
        ({"layers": ()}, "2 layers, not 0"),
    ],
)
def test_a_lock_that_lies_of_its_base_is_found_out_where_the_base_is(
    changes: Mapping[str, object], what: str, origin: Misbehaving, tmp_path: Path
) -> None:
    true = locked(tmp_path, origin, base_image(tmp_path))
    lock, store = lying(true, changes), Store(tmp_path / "store")
    with pytest.raises(UnsafeInput, match=what) as caught:
        opened_base(lock, store, stays=False).accounts()
    assert NAME in caught.value.message
    assert "cpack-build lock" in caught.value.hint
    # What is known of it since then is held against the lock though the layers stay.
    opened_base(true, store, stays=False).accounts()
    with pytest.raises(UnsafeInput, match=what):
        opened_base(lock, store, stays=True).accounts()


def test_sizes_that_are_not_the_base_s_get_into_no_local_image(origin: Misbehaving, tmp_path: Path) -> None:
    lock = lying(locked(tmp_path, origin, base_image(tmp_path)), {"layers": (10240, 10240)})
    store = Store(tmp_path / "store")
    with (
        build(lock, brought(tmp_path, lock, store, stays=True), store=store) as image,
        pytest.raises(BadImage, match="is not 10240 bytes long when it is uncompressed, as was told"),
    ):
        write_layout(image, tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("passwd", "root\x1b[2J"),
        ("passwd", "root\0"),
        ("passwd", 7),
        ("group", "x" * 65_537),
        ("group", None),
        ("layers", [-1]),
        ("layers", ["1"]),
        ("layers", [1] * 513),
        ("shadow", ""),
    ],
)
def test_a_summary_that_is_none_is_refused(field: str, value: object, tmp_path: Path) -> None:
    lock = make_parts(tmp_path, models=[])
    document = json.loads(lock.to_bytes())
    document["base"]["summary"] = {"passwd": "", "group": "", "layers": [1], field: value}
    with pytest.raises(BadField, match=r"^the lock: base\.image\.summary"):
        read_lock(json.dumps(document).encode(), name="the lock")


@pytest.mark.parametrize("group", [b"caf\xe9:x:1:\n", b"a\0b", b"x" * 65_537])
def test_accounts_that_are_no_text_are_not_pinned_but_read(group: bytes, origin: Misbehaving, tmp_path: Path) -> None:
    base = base_image(tmp_path, group=group)
    lock = locked(tmp_path, origin, base)
    assert isinstance(lock.base, BaseImage)
    assert lock.base.summary is None
    assert b"summary" not in lock.to_bytes()
    assert opened_base(lock, Store(tmp_path / "store"), stays=True).accounts() == (PASSWD, group)
    assert asked(origin, base.layers) == [1, 1]


def test_a_lock_says_what_the_base_is(origin: Misbehaving, tmp_path: Path) -> None:
    image = base_image(tmp_path)
    lock = locked(tmp_path, origin, image)
    assert isinstance(lock.base, BaseImage)
    sizes = tuple(one.descriptor.size for one in opened_base(lock, Store(tmp_path / "s"), stays=False).layers)
    assert lock.base.summary == BaseSummary(passwd=PASSWD.decode(), group=GROUP.decode(), layers=sizes)
    # Who trusted the Python of this base still does: it is the same one.
    store = Store(tmp_path / "vouching")
    older = lock.model_copy(update={"base": lock.base.model_copy(update={"summary": None})})
    vouch(older, store=store)
    assert is_vouched(lock, store=store)
