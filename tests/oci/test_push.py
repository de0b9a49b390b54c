"""A push gives the registry the image and nothing else, costs what it must, and survives what a network does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_bytes
from threading import Barrier
from types import SimpleNamespace

import pytest

from cpack_build.errors import Cancelled, CpackError, HashMismatch, NetworkError, UnsafeInput, UsageError
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.image.base import open_locked_base
from cpack_build.lock.schema import BaseImage
from cpack_build.oci.compressed import compressed_image, parse_compression
from cpack_build.oci.connection import Connection
from cpack_build.oci.layout import write_layout
from cpack_build.oci.limits import REGISTRIES, limits_of
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.push import push
from cpack_build.oci.reference import LayoutName, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import LAYER_GZIP, Descriptor, Image, canonical_json
from tests import need
from tests.engines import Docker, Podman, Registry
from tests.oci.images import image_of, machine, small_image, text_layer, web_image, with_top_layer
from tests.oci.misbehaving import Fault, Misbehaving, Request, run_cutting, run_misbehaving

PLATFORM = f"linux/{machine()}"
PIECE = 64 << 10


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def fake() -> Iterator[Misbehaving]:
    with run_misbehaving() as running:
        yield running


@dataclass
class Told:
    """A task that was opened, and how far it came."""

    total: int | None
    count: int = 0

    def advance(self, amount: int) -> None:
        self.count += amount

    def expect(self, total: int) -> None:
        self.total = total


class Tasks:
    """A progress that keeps every task."""

    def __init__(self) -> None:
        self.opened: list[Told] = []

    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Told]:
        self.opened.append(Told(total))
        yield self.opened[-1]

    def note(self, message: str) -> None:
        pass


def model_layer(tmp_path: Path, size: int, name: str = "model") -> ModelLayer:
    path = tmp_path / name
    data = token_bytes(size)
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return ModelLayer(path, sha256, size, hash_model(path, sha256, size), f"models/{name}")


def holds(fake: Misbehaving, image: Image, name: str = "x", version: str = "v1") -> bool:
    """Whether the registry has all of *image*, and nothing half done."""
    blobs = (image.config, *image.layers)
    return (
        fake.manifests.get((name, version), ("", b""))[1] == image.manifest.data
        and all(fake.blobs[name, blob.descriptor.digest] == b"".join(blob.chunks()) for blob in blobs)
        and not fake.uploads
    )


# -- against a real registry -------------------------------------------------------------------------------------------


def skopeo(*arguments: str) -> str:
    done = subprocess.run([need.tool("skopeo"), *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def test_what_was_pushed_is_what_everyone_sees(registry: Registry, tmp_path: Path) -> None:
    image = image_of([text_layer({"push/a": "1"}), model_layer(tmp_path, 3_000_001)])
    reference = parse_reference(f"{registry.host}/push/round:v1")
    [pushed] = push(image, [reference])
    assert str(pushed.reference) == f"{registry.host}/push/round:v1@{image.digest}"
    assert pushed.sent == image.size - image.manifest.descriptor.size
    shown = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{reference}"))
    assert shown["Digest"] == image.digest
    assert open_source(reference).as_image(PLATFORM).manifest.data == image.manifest.data
    # There and back by another program.
    skopeo(
        *("copy", "--insecure-policy", "--preserve-digests", "--src-tls-verify=false"),
        *(f"docker://{reference}", f"oci:{tmp_path}/back:v1"),
    )
    back = open_source(LayoutName(tmp_path / "back", "v1")).as_image(PLATFORM)
    assert back.digest == image.digest
    [again] = push(back, [parse_reference(f"{registry.host}/push/again:v1")], mount_from=[reference])
    assert (again.reference.digest, again.sent) == (image.digest, 0)


def test_docker_pulls_and_runs_by_digest(registry: Registry, docker: Docker) -> None:
    busybox = web_image()
    [pushed] = push(busybox, [parse_reference(f"{registry.host}/push/docker:v1")])
    name = f"{registry.host}/push/docker@{pushed.reference.digest}"
    docker("pull", name)
    assert docker("image", "inspect", "--format", "{{.Id}}", name).stdout.strip() in (busybox.id, busybox.digest)
    docker("rmi", name)


def test_podman_pulls_by_digest(registry: Registry, podman: Podman) -> None:
    busybox = web_image()
    [pushed] = push(busybox, [parse_reference(f"{registry.host}/push/podman:v1")])
    name = f"{registry.host}/push/podman@{pushed.reference.digest}"
    podman("pull", "--tls-verify=false", name)
    assert podman("image", "inspect", "--format", "{{.Id}}", name).stdout.strip() == busybox.id.removeprefix("sha256:")
    podman("rmi", name)


def test_an_unchanged_image_costs_one_request_and_a_new_tag_three(registry: Registry) -> None:
    image = image_of([text_layer({"unchanged": "1"})])
    first = parse_reference(f"{registry.host}/push/unchanged:v1")
    push(image, [first])
    [again] = push(image, [first])
    assert (again.requests, again.changed, again.sent) == (1, False, 0)
    [other] = push(image, [replace(first, tag="v2")])
    assert (other.requests, other.changed, other.sent) == (3, True, 0)


def test_blobs_are_mounted_from_where_they_were_pushed_before(registry: Registry, tmp_path: Path) -> None:
    image = image_of([text_layer({"mounted": "1" * 5000})])
    store = Store(tmp_path / "store")
    [first] = push(image, [parse_reference(f"{registry.host}/push/first:v1")], memo=store)
    [second] = push(image, [parse_reference(f"{registry.host}/push/second:v1")], memo=store)
    assert (first.mounted, second.sent) == (0, 0)
    assert second.mounted == first.sent


def test_a_bases_layers_are_mounted_from_where_the_base_lies_as_it_has_them(registry: Registry, tmp_path: Path) -> None:
    """Compressed by somebody else, and never compressed again."""
    base = image_of([text_layer({"base/a": "1" * 90_000}), text_layer({"base/b": "2" * 90_000})])
    write_layout(base, tmp_path / "base.oci", tag="v1")
    name = f"{registry.host}/push/base:v1"
    skopeo("copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{tmp_path}/base.oci:v1", f"docker://{name}")
    store = Store(tmp_path / "store")
    theirs = open_source(parse_reference(name), store=store).as_image(PLATFORM)
    assert {layer.descriptor.media_type for layer in theirs.layers} == {LAYER_GZIP}
    pin = BaseImage(reference=name, digest=theirs.digest)
    opened = open_locked_base(pin, platform=PLATFORM, name="scratch", store=store, sources=Sources())
    built = image_of([*opened.layers, text_layer({"ours": "3" * 90_000})])
    packed = compressed_image(built, parse_compression("zstd"), store=store)
    [pushed] = push(packed, [parse_reference(f"{registry.host}/push/over:v1")], mount_from=[parse_reference(name)])
    assert pushed.mounted == sum(layer.descriptor.size for layer in theirs.layers)
    assert [layer.descriptor.digest for layer in packed.layers[:2]] == [
        layer.descriptor.digest for layer in theirs.layers
    ]
    assert packed.id == built.id


@pytest.mark.parametrize("name", ["a__b/c.d-e---f/0:_A.b-C_", "x/" + "y" * 100 + ":" + "T" * 128, "n:0"])
def test_names_with_odd_characters_go_there_and_back(registry: Registry, tmp_path: Path, name: str) -> None:
    reference = parse_reference(f"{registry.host}/push/{name}")
    image = small_image(name)
    push(image, [reference])
    assert open_source(reference).as_image(PLATFORM).digest == image.digest
    assert json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{reference}"))["Digest"] == image.digest


def test_every_blob_is_a_task_that_ends_whole_sent_mounted_or_present(registry: Registry, tmp_path: Path) -> None:
    image = image_of([text_layer({"told": "1"}), text_layer({"told": "2"})])
    sizes = sorted(blob.descriptor.size for blob in (image.config, *image.layers))
    memo = Store(tmp_path / "memo")
    for name, how in (("told/a:v1", "sent"), ("told/b:v1", "mounted"), ("told/b:v2", "present")):
        tasks = Tasks()
        # The last has a manifest of its own, so that each blob is asked for.
        pushed = image if how != "present" else image_of(image.layers, config={"User": "x"})
        [done] = push(pushed, [parse_reference(f"{registry.host}/{name}")], memo=memo, progress=tasks)
        whole, *blobs = tasks.opened
        assert [task.count for task in tasks.opened] == [task.total for task in tasks.opened]
        assert whole.total == sum(task.count for task in blobs)
        assert getattr(done, how) >= sum(sizes[1:])
        assert len(blobs) == 3


def test_also_pushes_to_more_names_for_no_more_bytes(registry: Registry) -> None:
    image = image_of([text_layer({"also": "1" * 5000})])
    names = [parse_reference(f"{registry.host}/push/{name}") for name in ("also-a:v1", "also-a:v2", "also-b:v1")]
    pushed = push(image, names)
    assert [one.sent > 0 for one in pushed] == [True, False, False]
    assert {one.reference.digest for one in pushed} == {image.digest}


def test_a_cut_push_to_a_registry_that_forgets_cut_uploads_ends_right(registry: Registry) -> None:
    """docker-registry 2.8 loses an upload that is cut within a request."""
    image = image_of([text_layer({"cut": token_bytes(300_000)})])
    target = registry.host
    with run_cutting(target, after=200_000, times=2) as host:
        [pushed] = push(image, [parse_reference(f"{host}/push/cut:v1")], piece=PIECE)
    assert open_source(parse_reference(f"{target}/push/cut@{pushed.reference.digest}")).as_image(PLATFORM).layers


# -- cuts --------------------------------------------------------------------------------------------------------------


def test_a_reset_at_any_request_is_survived(fake: Misbehaving, tmp_path: Path) -> None:
    image = image_of([text_layer({"a": "1"}), model_layer(tmp_path, 200_000)])
    reference = parse_reference(f"{fake.host}/x:v1")
    push(image, [reference], jobs=1)
    assert holds(fake, image)
    count = len(fake.seen)
    assert count > 10
    for kind in (Fault(take=0), Fault(take=100_000), Fault(forget=True), Fault(status=503), Fault(status=500)):
        for number in range(count + 1):
            fake.blobs.clear()
            fake.manifests.clear()
            fake.seen.clear()
            fake.uploads.clear()
            fake.fault = lambda request, number=number, kind=kind: kind if request.number == number else None
            push(image, [reference], jobs=1, piece=PIECE)
            fake.fault = lambda request: None
            # What the registry did for a client that it lost it cannot be told to forget.
            fake.uploads.clear()
            assert holds(fake, image), (kind, number)


def test_silence_at_any_request_is_survived(fake: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpack_build.oci.transport._TIMEOUT", (5, 0.3))
    image = small_image("silence")
    push(image, [parse_reference(f"{fake.host}/x:v1")], jobs=1)
    count = len(fake.seen)
    for number in range(count):
        for state in (fake.blobs, fake.manifests, fake.seen, fake.uploads):
            state.clear()
        fake.fault = lambda request, number=number: Fault(silent=True) if request.number == number else None
        push(image, [parse_reference(f"{fake.host}/x:v1")], jobs=1)
        assert holds(fake, image), number
    fake.fault = lambda request: Fault(silent=True)
    with pytest.raises(NetworkError, match=f"Pushing {fake.host}/other:v1: .*no answer in time"):
        push(image, [parse_reference(f"{fake.host}/other:v1")])


def test_a_push_cut_twenty_times_sends_nothing_twice_beyond_a_piece(fake: Misbehaving, tmp_path: Path) -> None:
    image = image_of([model_layer(tmp_path, 600_000)])
    cuts = 0

    def cut(request: Request) -> Fault | None:
        nonlocal cuts
        if request.method in ("PUT", "PATCH") and int(request.headers["content-length"]) > 3_000 and cuts < 20:
            cuts += 1
            return Fault(take=3_000)
        return None

    fake.fault = cut
    [pushed] = push(image, [parse_reference(f"{fake.host}/x:v1")], piece=PIECE)
    assert cuts == 20
    assert holds(fake, image)
    assert pushed.sent <= fake.uploaded <= pushed.sent + PIECE + image.manifest.descriptor.size


def test_a_registry_that_forgets_is_begun_with_again_and_given_up_at_last(fake: Misbehaving, tmp_path: Path) -> None:
    image = image_of([model_layer(tmp_path, 300_000)])
    fake.remembers = False
    cuts = 2

    def cut(request: Request) -> Fault | None:
        nonlocal cuts
        if request.method in ("PUT", "PATCH") and request.headers["content-length"] != "0" and cuts:
            cuts -= 1
            return Fault(take=2_000)
        return None

    fake.fault = cut
    push(image, [parse_reference(f"{fake.host}/x:v1")], piece=PIECE)
    assert holds(fake, image)
    fake.blobs.clear()
    fake.manifests.clear()
    cuts = 10**9
    with pytest.raises(NetworkError, match=rf"Pushing {fake.host}/x:v1: blob sha256:[0-9a-f]{{64}}: no connection"):
        push(image, [parse_reference(f"{fake.host}/x:v1")], piece=PIECE)
    assert not fake.manifests


def test_a_whole_body_that_is_refused_goes_in_pieces_no_smaller_than_asked_for(
    fake: Misbehaving, tmp_path: Path
) -> None:
    image = image_of([model_layer(tmp_path, 1_000_000)])
    fake.minimum = 150_000

    def refuse(request: Request) -> Fault | None:
        large = int(request.headers.get("content-length", "0")) > 200_000
        return Fault(status=413) if large else None

    fake.fault = refuse
    push(image, [parse_reference(f"{fake.host}/x:v1")], piece=PIECE)
    assert holds(fake, image)
    pieces = [int(request.headers["content-length"]) for request in fake.seen if request.method == "PATCH"]
    assert pieces[:-1]
    assert set(pieces[:-1]) == {150_000}


@pytest.mark.parametrize("status", [413, 503])
def test_an_answer_in_the_middle_of_a_body_is_taken_for_what_it_is(
    fake: Misbehaving, tmp_path: Path, status: int
) -> None:
    """A proxy that has seen the Content-Length does not wait for what it will not take."""
    image = image_of([model_layer(tmp_path, 8_000_000)])
    fake.fault = lambda request: (
        Fault(status=status, early=True)
        if request.method == "PUT" and int(request.headers["content-length"]) > 1 << 20
        else None
    )
    push(image, [parse_reference(f"{fake.host}/x:v1")], piece=1 << 20)
    assert holds(fake, image)


def test_after_416_the_registry_is_asked_how_far_it_is(fake: Misbehaving, tmp_path: Path) -> None:
    image = image_of([model_layer(tmp_path, 300_000)])
    answers = [Fault(status=413), Fault(status=416)]
    fake.fault = lambda request: (
        answers.pop(0)
        if answers and request.method in ("PUT", "PATCH") and request.headers["content-length"] > "2"
        else None
    )
    push(image, [parse_reference(f"{fake.host}/x:v1")], piece=PIECE)
    assert holds(fake, image)
    assert "GET" in fake.methods("/uploads/")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again_and_one_that_stays_so_is_named(fake: Misbehaving, status: int) -> None:
    image = small_image("busy")
    reference = parse_reference(f"{fake.host}/x:v1")
    fake.fault = lambda request: Fault(status=status, headers={"Retry-After": "1"}) if request.number % 3 == 0 else None
    push(image, [reference], jobs=1)
    assert holds(fake, image)
    fake.fault = lambda request: Fault(status=status)
    with pytest.raises(NetworkError, match=rf"Pushing {fake.host}/x:v1: .*HTTP {status}"):
        push(image, [reference])


def test_a_busy_registry_is_asked_again_as_late_as_it_says_in_the_middle_of_a_blob_too(
    fake: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str | None] = []
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: waited.append(after))
    busy = {
        "PUT": Fault(status=503, headers={"Retry-After": "11"}),
        "PATCH": Fault(status=429, headers={"Retry-After": "12"}),
    }
    fake.fault = lambda request: busy.pop(request.method, None) if "/blobs/uploads/" in request.path else None
    image = image_of([model_layer(tmp_path, 300_000)])
    push(image, [parse_reference(f"{fake.host}/x:v1")], jobs=1, piece=PIECE)
    assert waited == ["11", "12"]
    assert holds(fake, image)


# -- lies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["0-99999999", "0-", "bytes 5", "0--5", "17-90", "0-9" * 20])
def test_a_registry_that_lies_about_how_far_it_is_gets_nothing_wrong(
    fake: Misbehaving, tmp_path: Path, told: str
) -> None:
    image = image_of([model_layer(tmp_path, 300_000)])

    def lie(request: Request) -> Fault | None:
        if request.method == "PUT" and request.headers["content-length"] > "2":
            return Fault(status=413)
        return Fault(headers={"Range": told}) if request.method == "PATCH" else None

    fake.fault = lie
    with pytest.raises(NetworkError, match=r"blob sha256:[0-9a-f]{64}"):
        push(image, [parse_reference(f"{fake.host}/x:v1")], piece=PIECE)
    assert not fake.manifests
    assert not fake.uploads


def test_another_digest_than_the_one_that_was_sent_is_told(fake: Misbehaving) -> None:
    image = small_image("lies")
    other = "sha256:" + "0" * 64
    for method, part in (("PUT", "/blobs/"), ("PUT", "/manifests/")):
        fake.fault = lambda request, method=method, part=part: (
            Fault(headers={"Docker-Content-Digest": other})
            if request.method == method and part in request.path
            else None
        )
        with pytest.raises(HashMismatch, match=f"{fake.host}/x"):
            push(image, [parse_reference(f"{fake.host}/x:v1")])


def test_a_head_that_lies_about_the_size_is_not_believed(fake: Misbehaving) -> None:
    image = small_image("sizes")
    fake.fault = lambda request: (
        Fault(status=200, headers={"Content-Length": "5"})
        if request.method == "HEAD" and "/blobs/" in request.path
        else None
    )
    push(image, [parse_reference(f"{fake.host}/x:v1")])
    assert holds(fake, image)


def test_bytes_spoilt_on_the_way_are_sent_again(fake: Misbehaving) -> None:
    image = small_image("spoilt")
    body = canonical_json({"errors": [{"code": "DIGEST_INVALID"}]})
    answers = [Fault(status=400, body=body)]
    fake.fault = lambda request: (
        answers.pop() if answers and request.method == "PUT" and "/blobs/" in request.path else None
    )
    push(image, [parse_reference(f"{fake.host}/x:v1")])
    assert holds(fake, image)


def test_a_layer_that_changed_never_becomes_a_blob(fake: Misbehaving, tmp_path: Path) -> None:
    layer = model_layer(tmp_path, 200_000)
    image = image_of([layer])
    data = bytearray(layer.path.read_bytes())
    data[100] ^= 1
    layer.path.write_bytes(data)
    with pytest.raises(HashMismatch, match=rf"blob {layer.digest}.*has changed"):
        push(image, [parse_reference(f"{fake.host}/x:v1")])
    assert not fake.manifests
    assert all(digest == image.id for _, digest in fake.blobs)
    os.truncate(layer.path, 1000)
    with pytest.raises(CpackError, match="shorter"):
        push(image, [parse_reference(f"{fake.host}/x:v1")])
    layer.path.unlink()
    with pytest.raises(CpackError, match=f"Blob {layer.digest} cannot be read"):
        push(image, [parse_reference(f"{fake.host}/x:v1")])
    assert not fake.manifests


def test_a_layer_that_is_too_long_or_too_short_is_told(fake: Misbehaving) -> None:
    image = small_image("long")
    data = b"".join(image.layers[-1].chunks())
    for wrong in (data + b"\0", data[:-1], b""):
        with pytest.raises(HashMismatch):
            push(with_top_layer(image, wrong), [parse_reference(f"{fake.host}/x:v1")])
    assert not fake.manifests


def test_a_failure_stops_the_other_blobs_and_gives_their_uploads_up(fake: Misbehaving, tmp_path: Path) -> None:
    layers = [model_layer(tmp_path, 400_000 + index, f"m{index}") for index in range(4)]
    image = with_top_layer(image_of([*layers, text_layer({"top": "x" * 100_000})]), b"", error=Cancelled())
    with pytest.raises(Cancelled):
        push(image, [parse_reference(f"{fake.host}/x:v1")], jobs=2)
    assert not fake.manifests
    assert not fake.uploads


def test_an_image_goes_from_registry_to_registry_past_the_disk(fake: Misbehaving, tmp_path: Path) -> None:
    """A base that lies elsewhere, say: its layers are streamed, also when the one breaks and the other has to go on."""
    image = image_of([text_layer({"a": "1"}), model_layer(tmp_path, 900_000), text_layer({"b": "2" * 300_000})])
    store = Store(tmp_path / "store")
    layers = {layer.descriptor.digest for layer in image.layers}
    with run_misbehaving() as theirs:
        theirs.hold(image, "base")
        cut = iter([Fault(send=200_000), Fault(send=100_000)])
        theirs.fault = lambda request: next(cut, None) if "/blobs/" in request.path else None
        broken = iter([Fault(take=400_000), Fault(take=10_000)])
        fake.fault = lambda request: next(broken, None) if request.method in ("PUT", "PATCH") else None
        copied = open_source(parse_reference(f"{theirs.host}/base:v1"), store=store).as_image(PLATFORM)
        [pushed] = push(copied, [parse_reference(f"{fake.host}/x:v1")], jobs=1, piece=PIECE)
    assert (holds(fake, image), pushed.reference.digest) == (True, image.digest)
    assert not any(store.find(digest) for digest in layers)
    assert not list((store.root / "pulled").glob("*"))


def test_what_another_registry_sends_wrongly_is_not_passed_on(fake: Misbehaving, tmp_path: Path) -> None:
    image = image_of([text_layer({"a": "1" * 300_000})])
    [layer] = image.layers
    with run_misbehaving() as theirs:
        theirs.hold(image, "base")
        theirs.fault = lambda request: Fault(spoil=True) if layer.descriptor.digest in request.path else None
        name = parse_reference(f"{theirs.host}/base:v1")
        copied = open_source(name, store=Store(tmp_path / "store")).as_image(PLATFORM)
        with pytest.raises(HashMismatch, match=layer.descriptor.digest):
            push(copied, [parse_reference(f"{fake.host}/x:v1")], jobs=1, piece=PIECE)
    assert not fake.manifests
    assert not fake.uploads
    assert ("x", layer.descriptor.digest) not in fake.blobs


@dataclass(frozen=True)
class Meeting:
    """A blob that gives its bytes once others are being read as well."""

    descriptor: Descriptor
    data: bytes
    others: Barrier

    def chunks(self) -> Iterator[bytes]:
        self.others.wait(timeout=30)
        yield self.data


def test_several_blobs_are_under_way_at_once(fake: Misbehaving) -> None:
    together = Barrier(3)
    layers = [text_layer({"a": "1" * size}) for size in (90_000, 40_000, 60_000)]
    image = image_of([Meeting(layer.descriptor, layer.data, together) for layer in layers])
    push(image, [parse_reference(f"{fake.host}/x:v1")], jobs=3)
    assert all(fake.blobs["x", layer.descriptor.digest] == layer.data for layer in layers)


def test_the_largest_blob_comes_first(fake: Misbehaving) -> None:
    layers = [text_layer({"a": "1" * size}) for size in (10, 90_000, 40_000, 60_000)]
    image = image_of(layers)
    push(image, [parse_reference(f"{fake.host}/x:v1")], jobs=1)
    sent = [request.query["digest"] for request in fake.seen if request.method == "PUT" and "digest" in request.query]
    sizes = {blob.descriptor.digest: blob.descriptor.size for blob in (image.config, *layers)}
    assert [sizes[digest] for digest in sent] == sorted(sizes.values(), reverse=True)


# -- other hosts -------------------------------------------------------------------------------------------------------


def guarded(fake: Misbehaving, tokens: str, **over: str) -> None:
    """Have *fake* ask for a bearer token of the service at *tokens*."""

    def fault(request: Request) -> Fault | None:
        if request.headers.get("authorization") == "Bearer the-token":
            return None
        realm = f'Bearer realm="http://{tokens}/token",service="reg",scope="repository:x:pull"'
        return Fault(status=401, headers={"WWW-Authenticate": realm})

    fake.fault = fault


def token_service(fake: Misbehaving, **answer: object) -> None:
    body = canonical_json({"token": "the-token", **answer})
    fake.fault = lambda request: Fault(status=200, body=body)


def test_a_token_is_asked_for_once_and_with_the_source_of_a_mount(fake: Misbehaving) -> None:
    image = small_image("tokens")
    with run_misbehaving() as tokens:
        token_service(tokens, expires_in=300)
        guarded(fake, tokens.host)
        push(image, [parse_reference(f"{fake.host}/x:v1")])
        assert holds(fake, image)
        assert len(tokens.seen) == 1
        assert tokens.seen[0].query == {"service": "reg", "scope": "repository:x:pull,push"}
        [pushed] = push(
            image, [parse_reference(f"{fake.host}/y:v1")], mount_from=[parse_reference(f"{fake.host}/x:v1")]
        )
        assert pushed.sent == 0
        assert tokens.seen[-1].query["scope"] == "repository:x:pull"  # The last of two.
        before = len(fake.seen) + len(tokens.seen)
        [again] = push(image, [parse_reference(f"{fake.host}/y:v1")])
        assert again.requests == len(fake.seen) + len(tokens.seen) - before == 3


def test_a_token_that_runs_out_during_an_upload_is_renewed(fake: Misbehaving, tmp_path: Path) -> None:
    image = image_of([model_layer(tmp_path, 500_000)])
    issued: list[str] = []

    def issue(request: Request) -> Fault:
        issued.append(f"token-{len(issued)}")
        return Fault(status=200, body=canonical_json({"access_token": issued[-1]}))

    def fault(request: Request) -> Fault | None:
        uses = [seen.headers.get("authorization") for seen in fake.seen]
        mine = request.headers.get("authorization")
        if mine not in {f"Bearer {token}" for token in issued[-1:]} or uses.count(mine) > 3:
            realm = f'Bearer realm="http://{tokens.host}/token"'
            return Fault(status=401, headers={"WWW-Authenticate": realm})
        if request.method == "PUT" and int(request.headers["content-length"]) > 100_000:
            return Fault(status=413)
        return None

    with run_misbehaving() as tokens:
        tokens.fault = issue
        fake.fault = fault
        push(image, [parse_reference(f"{fake.host}/x:v1")], jobs=1, piece=PIECE)
    assert holds(fake, image)
    assert len(issued) > 3


def test_a_token_is_renewed_before_it_runs_out(fake: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that takes longer than a token holds is not refused: the next request has another."""
    now = [1000.0]
    monkeypatch.setattr("cpack_build.oci.authorization.time", SimpleNamespace(monotonic=lambda: now[0]))
    with run_misbehaving() as tokens:
        token_service(tokens, expires_in=100)
        guarded(fake, tokens.host)
        connection = Connection(parse_reference(f"{fake.host}/x"))

        def ask() -> int:
            connection.ask("HEAD", f"{connection.base}manifests/v1", what="manifest v1", ok=(404,)).close()
            return len(tokens.seen)

        assert ask() == 1
        now[0] += 60
        assert ask() == 1
        now[0] += 15
        assert ask() == 2
        refused = sum("authorization" not in request.headers for request in fake.seen)
        assert (refused, len(fake.seen)) == (1, 4)  # Only the very first, which did not know.


@pytest.mark.parametrize("refusal", ["no token", "registry", "unknown"])
def test_a_mount_that_may_not_be_costs_no_more_than_a_request(fake: Misbehaving, refusal: str) -> None:
    """The token service gives none for the source, or the registry refuses, or it has not got the blob any more."""
    image = small_image("unmountable")
    source = parse_reference(f"{fake.host}/private:v1")
    with run_misbehaving() as tokens:
        body = canonical_json({"token": "the-token"})
        scopes = {"repository:private:pull"} if refusal == "no token" else set()
        tokens.fault = lambda request: (
            Fault(status=403) if request.query["scope"] in scopes else Fault(status=200, body=body)
        )
        guarded(fake, tokens.host)
        ask = fake.fault
        if refusal == "registry":
            fake.hold(image, "private")
            fake.fault = lambda request: ask(request) or (Fault(status=403) if "mount" in request.query else None)
        [pushed] = push(image, [parse_reference(f"{fake.host}/x:v1")], mount_from=[source])
    assert (pushed.mounted, pushed.sent) == (0, sum(b.descriptor.size for b in (image.config, *image.layers)))
    assert holds(fake, image)


def test_a_registry_that_says_it_has_a_blob_and_has_not_gets_no_name(fake: Misbehaving) -> None:
    image = small_image("phantom")
    gone = image.layers[1].descriptor
    fake.fault = lambda request: (
        Fault(status=200, headers={"Content-Length": str(gone.size)})
        if request.method == "HEAD" and gone.digest in request.path
        else None
    )
    with pytest.raises(NetworkError, match=rf"{fake.host}/x:v1: manifest {image.digest}: .*MANIFEST_BLOB_UNKNOWN"):
        push(image, [parse_reference(f"{fake.host}/x:v1")])
    assert not fake.manifests


def test_a_registry_that_never_has_enough_of_asking_is_left(fake: Misbehaving) -> None:
    with run_misbehaving() as tokens:
        token_service(tokens)
        realm = f'Bearer realm="http://{tokens.host}/token"'
        fake.fault = lambda request: Fault(status=401, headers={"WWW-Authenticate": realm})
        with pytest.raises(NetworkError, match=rf"refuses \(HTTP 401\).*cpack-build login {fake.host}"):
            push(small_image("loop"), [parse_reference(f"{fake.host}/x:v1")])
    assert len(fake.seen) == 2


def test_no_token_follows_to_another_host(fake: Misbehaving) -> None:
    """Neither by an upload's address nor by a redirect; the upload itself may go there."""
    image = small_image("elsewhere")
    with run_misbehaving() as tokens, run_misbehaving() as storage:
        token_service(tokens)
        guarded(fake, tokens.host)
        ask = fake.fault

        def fault(request: Request) -> Fault | None:
            if (refused := ask(request)) is not None:
                return refused
            if request.method == "POST":
                upload = f"{len(fake.seen)}"
                storage.uploads[upload] = bytearray()
                return Fault(status=202, headers={"Location": f"http://{storage.host}/v2/x/blobs/uploads/{upload}"})
            if request.method == "PUT":
                fake.blobs.update(storage.blobs)
            if request.method == "HEAD" and "/blobs/" in request.path:
                return Fault(status=307, headers={"Location": f"http://{storage.host}{request.path}"})
            return None

        fake.fault = fault
        push(image, [parse_reference(f"{fake.host}/x:v1")])
        assert holds(fake, image)
        assert storage.seen
        assert all("authorization" not in request.headers for request in storage.seen)


@pytest.mark.parametrize(
    "location", ["http://registry.example/u", "ftp://localhost/u", "file:///etc/passwd", "https:", "http://[::1/u"]
)
def test_an_upload_is_sent_nowhere_unsafe(fake: Misbehaving, location: str) -> None:
    fake.fault = lambda request: Fault(status=202, headers={"Location": location}) if request.method == "POST" else None
    with pytest.raises(UnsafeInput, match=rf"Pushing {fake.host}/x:v1: blob sha256:[0-9a-f]{{64}}: the registry would"):
        push(small_image("unsafe"), [parse_reference(f"{fake.host}/x:v1")])


def test_a_redirected_body_is_sent_again_from_its_beginning(fake: Misbehaving) -> None:
    image = small_image("redirected")
    fake.fault = lambda request: (
        Fault(status=307, headers={"Location": f"{request.path}?moved=1&digest={request.query['digest']}"})
        if request.method == "PUT" and "/blobs/" in request.path and "moved" not in request.query
        else None
    )
    push(image, [parse_reference(f"{fake.host}/x:v1")])
    assert holds(fake, image)


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing(fake: Misbehaving) -> None:
    image = small_image("dry")
    [pushed] = push(image, [parse_reference(f"{fake.host}/x:v1")], dry_run=True)
    assert pushed.sent == image.size - image.manifest.descriptor.size
    assert set(fake.methods()) == {"HEAD"}


def test_a_digest_that_the_image_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="another digest"):
        push(small_image(), [parse_reference("r.example/x@sha256:" + "0" * 64)])


def test_a_blob_too_large_for_a_registry_is_told_before_any_byte_moves(fake: Misbehaving, tmp_path: Path) -> None:
    layer = replace(model_layer(tmp_path, 10), size=11_000 << 20)
    image = image_of([layer])
    with pytest.raises(
        UsageError, match=rf"models/model \({layer.digest}\) has 11000 MiB, and Amazon ECR Public takes 10000"
    ):
        push(image, [parse_reference("public.ecr.aws/x/y:1")])
    for limit in (0, 12_000 << 20):
        push(image, [parse_reference(f"{fake.host}/x:1")], blob_limit=limit, dry_run=True)
    before = len(fake.seen)
    with pytest.raises(UsageError, match="takes 5 MiB"):
        push(image, [parse_reference(f"{fake.host}/x:1")], blob_limit=5 << 20)
    assert len(fake.seen) == before


def test_more_layers_than_a_registry_takes_are_told_before_any_byte_moves(fake: Misbehaving) -> None:
    image = image_of([text_layer({f"a{index}": ""}) for index in range(501)])
    with pytest.raises(UsageError, match="the image has 501 layers, and Amazon ECR takes 500"):
        push(image, [parse_reference("123456789012.dkr.ecr.eu-west-1.amazonaws.com/x:1")])
    with pytest.raises(UsageError, match="takes 500"):
        push(image, [parse_reference(f"{fake.host}/x:1")], layer_limit=500)
    assert not fake.seen


def test_every_limit_that_is_known_has_a_source_and_only_its_own_hosts() -> None:
    hosts = {
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com": "Amazon ECR",
        "public.ecr.aws": "Amazon ECR Public",
        "me.azurecr.io": "Azure Container Registry",
        "ghcr.io": "GitHub's container registry",
        "swr.eu-west-101.myhuaweicloud.com": "Huawei SWR",
    }
    found = {host: limits_of(host) for host in hosts}
    assert {host: known.name for host, known in found.items() if known} == hosts
    assert {known.name for known in REGISTRIES} == set(hosts.values())
    assert all(known.source and (known.blob or known.layers) for known in REGISTRIES)
    assert not any(limits_of(host) for host in ("evil.example", "ghcr.io.evil.example", "xpublic.ecr.aws"))


def test_the_layout_on_disk_has_the_digest_that_was_pushed(fake: Misbehaving, tmp_path: Path) -> None:
    image = small_image("same")
    write_layout(image, tmp_path / "layout", tag="v1")
    [pushed] = push(image, [parse_reference(f"{fake.host}/x:v1")])
    written = open_source(LayoutName(tmp_path / "layout", "v1")).as_image(PLATFORM)
    assert written.digest == pushed.reference.digest
