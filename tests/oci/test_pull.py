"""A pull brings the image whole or says why not, asks for nothing that is here, and goes on where it broke."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_bytes

import pytest

from cpack_build.errors import (
    BadImage,
    CpackError,
    HashMismatch,
    NetworkError,
    StorageError,
    Unresolvable,
    UnsafeInput,
)
from cpack_build.fetch.store import Store
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.pull import Pulled, pull
from cpack_build.oci.push import push
from cpack_build.oci.reference import LayoutName, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import INDEX, MANIFEST, BytesBlob, Image, canonical_json
from tests.engines import Registry
from tests.oci.images import image_of, machine, small_image, text_layer
from tests.oci.misbehaving import Fault, Misbehaving, Request, run_misbehaving

PLATFORM = f"linux/{machine()}"


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def fake() -> Iterator[Misbehaving]:
    with run_misbehaving() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def model_layer(tmp_path: Path, size: int, name: str = "model") -> ModelLayer:
    path = tmp_path / name
    data = token_bytes(size)
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return ModelLayer(path, sha256, size, hash_model(path, sha256, size), f"models/{name}")


def pulled(host: str, store: Store, *, version: str = ":v1", name: str = "x", jobs: int = 4) -> Pulled:
    return pull(open_source(parse_reference(f"{host}/{name}{version}"), store=store), PLATFORM, jobs=jobs)


def same(one: Image, other: Image) -> bool:
    """Manifest, config and the bytes of each layer."""
    return (
        one.manifest.data == other.manifest.data
        and one.config.data == other.config.data
        and [b"".join(layer.chunks()) for layer in one.layers] == [b"".join(layer.chunks()) for layer in other.layers]
    )


def blob_requests(fake: Misbehaving) -> list[Request]:
    return [request for request in fake.seen if "/blobs/" in request.path]


# -- what comes, and what need not -------------------------------------------------------------------------------------


def test_an_image_is_pulled_whole_and_then_never_again(registry: Registry, store: Store, tmp_path: Path) -> None:
    image = image_of([text_layer({"pull/a": "1"}), model_layer(tmp_path, 3_000_001), text_layer({"pull/b": "2"})])
    push(image, [parse_reference(f"{registry.host}/pull/whole:v1")])
    first = pulled(registry.host, store, name="pull/whole")
    assert same(first.image, image)
    assert first.received == sum(layer.descriptor.size for layer in image.layers) - 4096
    again = pulled(registry.host, store, name="pull/whole", version=f"@{image.digest}")
    assert (again.received, same(again.image, image)) == (0, True)


def test_a_models_layer_becomes_the_model_and_no_tar_of_it(fake: Misbehaving, store: Store, tmp_path: Path) -> None:
    layer = model_layer(tmp_path, 100_000)
    fake.hold(image_of([layer]))
    got = pulled(fake.host, store)
    file = store.find(layer.sha256)
    assert file is not None
    assert file.path.read_bytes() == layer.path.read_bytes()
    assert store.find(layer.digest) is None
    [recipe] = got.image.layers
    assert isinstance(recipe, ModelLayer)
    assert (recipe.path, recipe.digest, recipe.title) == (file.path, layer.digest, layer.title)
    # A build from that store knows the layer without reading the model.
    assert store.recall("model-layer-1", f"{layer.sha256}:{layer.size}") == layer.digest


def test_a_model_that_is_here_is_not_asked_for(fake: Misbehaving, store: Store, tmp_path: Path) -> None:
    """Wherever it lies: here in a folder that the store only knows of."""
    layer = model_layer(tmp_path, 100_000)
    image = image_of([text_layer({"a": "1"}), layer])
    fake.hold(image)
    store.adopt(layer.path)
    got = pulled(fake.host, store)
    assert same(got.image, image)
    assert layer.digest not in {request.path.rpartition("/")[2] for request in fake.seen}
    assert not (tmp_path / "store/blobs/sha256" / layer.sha256).exists()


def test_an_image_that_lies_about_its_model_gets_the_layer_it_names(
    fake: Misbehaving, store: Store, tmp_path: Path
) -> None:
    """The annotation names a model that is here, but the layer holds something else of that size."""
    ours, theirs = model_layer(tmp_path, 100_000, "ours"), model_layer(tmp_path, 100_000, "theirs")
    store.adopt(ours.path)
    lying = BytesBlob(
        theirs.descriptor.media_type,
        b"".join(theirs.chunks()),
        {**theirs.descriptor.annotations, "io.cpack.model.sha256": ours.sha256},
    )
    image = image_of([lying])
    fake.hold(image)
    got = pulled(fake.host, store)
    assert same(got.image, image)
    assert b"".join(got.image.layers[0].chunks()) == b"".join(theirs.chunks())


def test_a_layer_whose_model_has_another_hash_is_refused(fake: Misbehaving, store: Store, tmp_path: Path) -> None:
    """A layer of our form, right by its own digest, under a name that its content does not have."""
    layer = model_layer(tmp_path, 10_000)
    other = "0" * 64
    forged = replace(layer, sha256=other)
    data = b"".join(forged.chunks())
    image = image_of([BytesBlob(layer.descriptor.media_type, data, forged.descriptor.annotations)])
    fake.hold(image)
    with pytest.raises(HashMismatch, match="The model in"):
        pulled(fake.host, store)
    assert store.find(other) is None
    assert store.find(layer.sha256) is None


def test_what_calls_itself_a_model_and_is_none_is_a_layer_like_any_other(fake: Misbehaving, store: Store) -> None:
    plain = text_layer({"a": "x" * 9000})
    image = image_of([replace(plain, annotations={"io.cpack.model.sha256": "0" * 64})])
    fake.hold(image)
    assert same(pulled(fake.host, store).image, image)


def test_a_layer_that_occurs_twice_comes_once(fake: Misbehaving, store: Store) -> None:
    layer = text_layer({"a": "1" * 5000})
    image = image_of([layer, text_layer({"b": "2"}), layer])
    fake.hold(image)
    assert same(pulled(fake.host, store).image, image)
    assert len(blob_requests(fake)) == 3


def test_two_programs_that_pull_the_same_image_both_get_it(fake: Misbehaving, store: Store, tmp_path: Path) -> None:
    image = image_of([model_layer(tmp_path, 4_000_000), text_layer({"a": "1" * 500_000})])
    fake.hold(image)
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=_pull_in_a_program, args=(fake.host, store.root, image.id)) for _ in range(3)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
    assert [program.exitcode for program in programs] == [0, 0, 0]
    assert same(pulled(fake.host, store).image, image)


def _pull_in_a_program(host: str, root: Path, expected: str) -> None:
    got = pulled(host, Store(root)).image
    os._exit(0 if got.id == expected and all(b"".join(layer.chunks()) for layer in got.layers) else 1)


def test_a_dry_run_asks_for_no_layer(fake: Misbehaving, store: Store) -> None:
    image = image_of([text_layer({"a": "1"})])
    fake.hold(image)
    source = open_source(parse_reference(f"{fake.host}/x:v1"), store=store)
    assert pull(source, PLATFORM, dry_run=True).received == image.layers[0].descriptor.size
    assert not any(image.layers[0].descriptor.digest in request.path for request in fake.seen)


def test_a_layout_is_read_where_it_lies(store: Store, tmp_path: Path) -> None:
    image = small_image("layout")
    write_layout(image, tmp_path / "x.oci", tag="v1")
    assert same(pull(open_source(LayoutName(tmp_path / "x.oci")), PLATFORM).image, image)
    assert not store.root.exists()


# -- breaks ------------------------------------------------------------------------------------------------------------


def large_image(tmp_path: Path) -> Image:
    return image_of([text_layer({"a": "1"}), model_layer(tmp_path, 300_000), text_layer({"b": "2" * 200_000})])


def test_a_fault_at_any_request_is_survived(fake: Misbehaving, tmp_path: Path) -> None:
    image = large_image(tmp_path)
    fake.hold(image)
    pulled(fake.host, Store(tmp_path / "first"), jobs=1)
    count = len(fake.seen)
    assert count >= 6
    kinds = (
        *(Fault(take=0), Fault(forget=True), Fault(send=0), Fault(send=70_000), Fault(status=503), Fault(status=500)),
        *(Fault(status=429, headers={"Retry-After": "1"}), Fault(whole=True), Fault(spoil=False)),
    )
    for index, kind in enumerate(kinds):
        for number in range(count + 1):
            fake.seen.clear()
            fake.fault = lambda request, number=number, kind=kind: kind if request.number == number else None
            store = Store(tmp_path / f"store-{index}-{number}")
            assert same(pulled(fake.host, store, jobs=1).image, image), (kind, number)


def test_a_pull_cut_twenty_times_asks_for_nothing_twice(fake: Misbehaving, store: Store, tmp_path: Path) -> None:
    """Over several runs, each of which fails: what came is kept."""
    layer = model_layer(tmp_path, 2_000_000)
    image = image_of([layer, text_layer({"a": token_bytes(900_000).hex()})])
    fake.hold(image)
    cuts = 0

    def cut(request: Request) -> Fault | None:
        nonlocal cuts
        if "/blobs/" in request.path and cuts < 20:
            cuts += 1
            return Fault(send=10_000)
        return None

    fake.fault = cut
    failures = []
    while len(failures) < 20:
        try:
            got = pulled(fake.host, Store(store.root), jobs=1)
            break
        except NetworkError as error:
            failures.append(str(error))
    assert (cuts, len(failures) > 2) == (20, True)
    assert all(f"{fake.host}/x:v1" in failure for failure in failures)
    assert same(got.image, image)
    starts: dict[str, list[int]] = {}
    for request in blob_requests(fake):
        if not request.headers.get("range", "").endswith("-4095"):
            starts.setdefault(request.path, []).append(int(request.headers.get("range", "bytes=0-")[6:-1]))
    for places in starts.values():
        assert places == sorted(places)
        assert len(set(places)) >= len(places) - 1


def test_a_partial_that_is_not_what_it_should_be_is_thrown_away(
    fake: Misbehaving, store: Store, tmp_path: Path
) -> None:
    layer = model_layer(tmp_path, 200_000)
    image = image_of([layer, text_layer({"a": "1" * 5000})])
    fake.hold(image)
    (store.root / "pulled").mkdir(parents=True)
    (store.root / "pulled" / layer.sha256).write_bytes(b"x" * 1000)
    (store.root / "pulled" / image.layers[1].descriptor.digest[7:]).write_bytes(b"y" * 100_000)
    assert same(pulled(fake.host, store).image, image)
    assert not list((store.root / "pulled").iterdir())


def test_a_link_in_the_place_of_a_partial_is_not_written_through(
    fake: Misbehaving, store: Store, tmp_path: Path
) -> None:
    image = image_of([text_layer({"a": "1"})])
    fake.hold(image)
    (store.root / "pulled").mkdir(parents=True)
    (store.root / "pulled" / image.layers[0].descriptor.digest[7:]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        pulled(fake.host, store)
    assert not (tmp_path / "elsewhere").exists()


def test_too_little_room_is_said_before_any_layer_is_asked_for(
    fake: Misbehaving, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of([text_layer({"a": "1"})])
    fake.hold(image)

    class Usage:
        free = 0

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match="has room for 0 MiB"):
        pulled(fake.host, store)
    assert not any(image.layers[0].descriptor.digest in request.path for request in fake.seen)


def test_a_failure_stops_the_other_blobs(fake: Misbehaving, store: Store) -> None:
    layers = [text_layer({f"a{index}": str(index) * 400_000}) for index in range(8)]
    image = image_of(layers)
    fake.hold(image)
    bad = sorted(layers, key=lambda layer: layer.descriptor.digest)[0].descriptor.digest
    fake.fault = lambda request: Fault(spoil=True) if bad in request.path else None
    with pytest.raises(HashMismatch, match=bad):
        pulled(fake.host, store, jobs=1)
    assert len(blob_requests(fake)) < 8


# -- lies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (Fault(spoil=True), HashMismatch),
        (Fault(headers={"Content-Length": "5"}), NetworkError),
        (Fault(status=206, headers={"Content-Range": "bytes 7-9/10"}, body=b"abc"), NetworkError),
        (Fault(status=416), NetworkError),
        (Fault(status=204), NetworkError),
        (Fault(status=200, body=b""), NetworkError),
    ],
    ids=["other bytes", "shorter length", "another range", "no range", "no content", "nothing"],
)
def test_nothing_of_a_lie_is_used(fake: Misbehaving, store: Store, lie: Fault, error: type[CpackError]) -> None:
    image = image_of([text_layer({"a": "1" * 100_000})])
    fake.hold(image)
    digest = image.layers[0].descriptor.digest
    fake.fault = lambda request: lie if digest in request.path else None
    with pytest.raises(error, match=digest.removeprefix("sha256:")) as raised:
        pulled(fake.host, store)
    assert fake.host in str(raised.value)
    assert store.find(digest) is None
    fake.fault = lambda request: None
    assert same(pulled(fake.host, store).image, image)


@pytest.mark.parametrize("told", ["bytes 7-9/10", "bytes */5", "bytes", "5", "bytes 0-99999999999999999999/5"])
def test_a_range_that_is_not_the_one_asked_for_is_asked_for_without(fake: Misbehaving, store: Store, told: str) -> None:
    image = image_of([text_layer({"a": "1" * 300_000})])
    fake.hold(image)
    faults = [Fault(send=100_000), Fault(headers={"Content-Range": told})]
    digest = image.layers[0].descriptor.digest
    fake.fault = lambda request: faults.pop(0) if faults and digest in request.path else None
    assert same(pulled(fake.host, store).image, image)
    assert not faults


def test_more_bytes_than_announced_are_not_taken(fake: Misbehaving, store: Store) -> None:
    image = image_of([text_layer({"a": "1"})])
    fake.hold(image)
    own = image.layers[0].descriptor
    fake.blobs["x", own.digest] += b"\0" * (5 << 20)
    with pytest.raises(BadImage, match=rf"{own.digest}: has more than the {own.size} bytes"):
        pulled(fake.host, store)
    assert store.find(own.digest) is None
    assert not list((store.root / "pulled").iterdir())


def test_another_digest_in_the_headers_is_believed_no_more_than_the_bytes(fake: Misbehaving, store: Store) -> None:
    image = small_image("digests")
    fake.hold(image)
    fake.fault = lambda request: Fault(headers={"Docker-Content-Digest": "sha256:" + "0" * 64})
    with pytest.raises(HashMismatch, match="the index or manifest"):
        pulled(fake.host, store)
    fake.fault = lambda request: Fault(headers={"Docker-Content-Digest": "md5:zz"})
    assert same(pulled(fake.host, store).image, image)


@pytest.mark.parametrize("what", ["blob", "manifest", "token"])
def test_a_registry_that_drips_is_left(
    fake: Misbehaving, store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    image = image_of([text_layer({"a": "1" * 100_000})])
    fake.hold(image)
    monkeypatch.setattr("cpack_build.oci.transport._PATIENCE", 0.1)
    realm = f'Bearer realm="http://{fake.host}/token"'

    def fault(request: Request) -> Fault | None:
        if what == "token" and "authorization" not in request.headers:
            if request.path == "/token":
                return Fault(status=200, body=b'{"token": "' + b"x" * 400 + b'"}', drip=True)
            return Fault(status=401, headers={"WWW-Authenticate": realm})
        part = {"blob": image.layers[0].descriptor.digest, "manifest": "/manifests/"}.get(what, "none")
        return Fault(drip=True) if part in request.path else None

    fake.fault = fault
    with pytest.raises(NetworkError, match="KiB came in"):
        pulled(fake.host, store)
    fake.fault = lambda request: None
    assert same(pulled(fake.host, store).image, image)


def test_a_manifest_of_a_hundred_megabytes_is_not_read(fake: Misbehaving, store: Store) -> None:
    fake.manifests["x", "v1"] = (MANIFEST, b'{"layers":[' + b" " * 100_000_000 + b"]}")
    with pytest.raises(BadImage, match="has more than 4194304 bytes"):
        pulled(fake.host, store)
    image = small_image()
    fake.hold(image)
    entry = {
        **image.manifest.descriptor.to_json(),
        "size": 100_000_000,
        "platform": {"os": "linux", "architecture": machine()},
    }
    fake.manifests["x", "v1"] = (INDEX, canonical_json({"mediaType": INDEX, "manifests": [entry]}))
    with pytest.raises(BadImage, match="100000000 bytes"):
        pulled(fake.host, store)


def test_indexes_without_end_are_not_followed(fake: Misbehaving, store: Store) -> None:
    inner = canonical_json({"mediaType": INDEX, "manifests": []})
    for _ in range(40):
        digest = "sha256:" + hashlib.sha256(inner).hexdigest()
        fake.manifests["x", digest] = (INDEX, inner)
        inner = canonical_json(
            {"mediaType": INDEX, "manifests": [{"mediaType": INDEX, "digest": digest, "size": len(inner)}]}
        )
    fake.manifests["x", "v1"] = (INDEX, inner)
    with pytest.raises(Unresolvable, match="has no image for"):
        pulled(fake.host, store)
    assert len(fake.seen) <= 17


@pytest.mark.parametrize(
    "digest",
    [
        "sha512:" + "0" * 128, "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha256:../../x",
        "../../../etc/passwd", "", "sha256:" + "0" * 64 + "/../..", None, 7,
    ],
)  # fmt: skip
def test_digests_that_are_none_are_refused_before_anything_is_asked(
    fake: Misbehaving, store: Store, digest: object
) -> None:
    image = small_image("odd")
    document = {
        "mediaType": MANIFEST,
        "config": image.config.descriptor.to_json(),
        "layers": [{"mediaType": "x", "digest": digest, "size": 5}],
    }
    fake.manifests["x", "v1"] = (MANIFEST, canonical_json(document))
    with pytest.raises(BadImage, match="no sha256 digest"):
        pulled(fake.host, store)
    assert not blob_requests(fake)


def test_annotations_are_no_paths(fake: Misbehaving, store: Store, tmp_path: Path) -> None:
    layer = text_layer({"a": "1"})
    odd = {"io.cpack.model.path": "../../evil", "io.cpack.model.sha256": "../../evil", "io.cpack.layer.name": "\x1b[2J"}
    image = image_of([replace(layer, annotations=odd)])
    fake.hold(image)
    assert same(pulled(fake.host, store).image, image)
    assert not list(tmp_path.rglob("evil"))


# -- other hosts -------------------------------------------------------------------------------------------------------


def test_blobs_may_lie_elsewhere_and_no_token_goes_there(
    fake: Misbehaving, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = small_image("elsewhere")
    with run_misbehaving() as storage:
        fake.hold(image)
        storage.hold(image)
        basic = {"WWW-Authenticate": 'Basic realm="x"'}

        def fault(request: Request) -> Fault | None:
            if "authorization" not in request.headers:
                return Fault(status=401, headers=basic)
            if "/blobs/" in request.path:
                return Fault(status=307, headers={"Location": f"http://{storage.host}{request.path}?signature=secret"})
            return None

        fake.fault = fault
        monkeypatch.setenv("CPACK_REGISTRY", fake.host)
        monkeypatch.setenv("CPACK_REGISTRY_USER", "me")
        monkeypatch.setenv("CPACK_REGISTRY_PASSWORD", "my-password")
        assert same(pulled(fake.host, store).image, image)
        assert storage.seen
        assert not any("authorization" in request.headers for request in storage.seen)
        storage.fault = lambda request: Fault(status=403, body=b"signature=secret my-password")
        with pytest.raises(NetworkError) as error:
            pulled(fake.host, Store(store.root / "other"))
        assert "secret" not in str(error.value)
        assert "my-password" not in str(error.value)


@pytest.mark.parametrize(
    "location",
    [
        *("http://registry.example/b", "ftp://localhost/b", "file:///etc/passwd", "x:"),
        *("http://me:secret@registry.example/b", "http://[::1/b", "https://["),
    ],
)
def test_a_redirect_to_somewhere_unsafe_is_refused(fake: Misbehaving, store: Store, location: str) -> None:
    image = small_image("unsafe")
    fake.hold(image)
    fake.fault = lambda request: (
        Fault(status=307, headers={"Location": location}) if "/blobs/" in request.path else None
    )
    with pytest.raises(UnsafeInput, match=rf"Pulling {fake.host}/x:v1: {image.id}: the registry redirects") as error:
        pulled(fake.host, store)
    assert "secret" not in str(error.value)


def test_the_body_of_a_redirect_is_not_read(fake: Misbehaving, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants it, and it may have no end."""
    monkeypatch.setattr("cpack_build.oci.transport._TIMEOUT", (5, 1))
    image = small_image("redirect")
    fake.hold(image)
    fake.fault = lambda request: (
        Fault(status=307, headers={"Location": f"{request.path}?there"}, body=b" " * 100_000, send=10, stall=True)
        if "/blobs/" in request.path and "there" not in request.query
        else None
    )
    assert same(pulled(fake.host, store).image, image)


def test_a_registry_that_never_has_enough_of_asking_is_left(fake: Misbehaving, store: Store) -> None:
    fake.hold(small_image())
    fake.fault = lambda request: Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    with pytest.raises(NetworkError, match=r"refuses \(HTTP 401\)"):
        pulled(fake.host, store)
    assert len(fake.seen) == 2
    fake.seen.clear()
    fake.fault = lambda request: Fault(status=307, headers={"Location": request.path})
    with pytest.raises(NetworkError, match="redirects"):
        pulled(fake.host, store)
    assert len(fake.seen) < 10


def test_a_failure_does_not_wait_for_a_slow_blob(fake: Misbehaving, store: Store) -> None:
    """The largest never ends; the small one is refused, and that is told without waiting for anything."""
    image = image_of([text_layer({"a": "1" * 500_000}), text_layer({"b": "2"})])
    fake.hold(image)
    slow, refused = (layer.descriptor.digest for layer in image.layers)

    def fault(request: Request) -> Fault | None:
        if slow in request.path:
            return Fault(send=100_000, stall=True)
        return Fault(status=404) if refused in request.path else None

    fake.fault = fault
    with pytest.raises(Unresolvable, match=f"has no {refused}"):
        pulled(fake.host, store)


def test_errors_of_one_thread_are_told_whole(fake: Misbehaving, store: Store) -> None:
    """The error that ends a pull is the first one's own, not that the others were stopped."""
    image = image_of([text_layer({f"a{index}": str(index) * 50_000}) for index in range(6)])
    fake.hold(image)
    barrier = threading.Event()

    def fault(request: Request) -> Fault | None:
        if image.layers[2].descriptor.digest in request.path:
            barrier.set()
            return Fault(status=404)
        return None

    fake.fault = fault
    with pytest.raises(CpackError, match=rf"has no {image.layers[2].descriptor.digest}"):
        pulled(fake.host, store)
    assert barrier.is_set()
