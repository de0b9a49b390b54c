"""Whatever goes wrong on the way to a real registry (Debian's docker-registry): in the end the image is right, or there
is none and the error names registry, repository and digest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from secrets import token_bytes

import pytest
import requests

from cpack_build.errors import BadImage, CpackError, HashMismatch, NetworkError, UnsafeInput
from cpack_build.fetch.store import Store
from cpack_build.oci.pull import pull
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Image
from tests.engines import Registry
from tests.oci.images import image_of, machine, text_layer
from tests.oci.misbehaving import Fault, Misbehaving, Request, run_misbehaving

PLATFORM = f"linux/{machine()}"
PIECE = 64 << 10
NAMES = (f"ways/{number}" for number in count())


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def way(registry: Registry) -> Iterator[Misbehaving]:
    with run_misbehaving(before=registry.host) as way:
        yield way


def image_for(size: int = 200_000) -> Image:
    """An image that no registry has."""
    return image_of([text_layer({"bytes": token_bytes(size)})])


def lies_in(registry: Registry, name: str, image: Image) -> bool:
    """Whether the registry itself, asked past us, has all of *image* there."""
    base = f"http://{registry.host}/v2/{name}/"
    accepted = {"Accept": image.manifest.media_type}
    found = [requests.get(f"{base}manifests/v1", headers=accepted).content == image.manifest.data]
    for blob in (image.config, *image.layers):
        found.append(requests.get(f"{base}blobs/{blob.descriptor.digest}").content == b"".join(blob.chunks()))
    return all(found)


BREAKS = {
    "reset": Fault(take=0),
    "reset in the body": Fault(take=100_000),
    "answer lost": Fault(forget=True),
    **{str(status): Fault(status=status, headers={"Retry-After": "1"}) for status in (429, 500, 503)},
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_push_survives_a_break_at_every_request_in_turn(registry: Registry, way: Misbehaving, kind: str) -> None:
    number = 0
    while number <= len(way.seen):  # As many as the last push took, which met no fault.
        name, image = next(NAMES), image_for()
        way.seen.clear()
        way.fault = lambda request, number=number: BREAKS[kind] if request.number == number else None
        push(image, [parse_reference(f"{way.host}/{name}:v1")], jobs=1, piece=PIECE)
        assert lies_in(registry, name, image), number
        number += 1
    assert number > 9


@pytest.mark.parametrize("kind", [*BREAKS, "short body", "no ranges"])
def test_a_pull_survives_a_break_at_every_request_in_turn(
    registry: Registry, way: Misbehaving, tmp_path: Path, kind: str
) -> None:
    faults = {**BREAKS, "short body": Fault(send=70_000), "no ranges": Fault(send=70_000)}
    name, image = next(NAMES), image_for()
    push(image, [parse_reference(f"{registry.host}/{name}:v1")])
    ranges: set[str | None] = set()
    number = 0
    while number <= len(way.seen):
        way.seen.clear()
        way.fault = lambda request, number=number: (
            faults[kind] if request.number == number else Fault(whole=True) if kind == "no ranges" else None
        )
        source = open_source(parse_reference(f"{way.host}/{name}:v1"), store=Store(tmp_path / str(number)))
        got = pull(source, PLATFORM, jobs=1).image
        assert [b"".join(layer.chunks()) for layer in got.layers] == [
            b"".join(layer.chunks()) for layer in image.layers
        ]
        ranges |= {request.headers.get("range") for request in way.seen}
        number += 1
    assert number >= 4
    if kind == "short body":
        assert "bytes=70000-" in ranges


def test_a_push_cut_twenty_times_sends_the_registry_nothing_twice(registry: Registry, way: Misbehaving) -> None:
    """After each it is asked how far it is. Of a request that was begun and cut it forgets all (docs/decisions/007)."""
    name, image = next(NAMES), image_for(600_000)
    cuts = whole = 0

    def cut(request: Request) -> Fault | None:
        nonlocal cuts, whole
        if request.method == "PUT" and int(request.headers["content-length"]) > PIECE:
            return Fault(status=413)
        if request.method == "PATCH" and cuts < 20 and cuts <= whole:
            cuts += 1
            return Fault(take=0)
        whole += request.method == "PATCH"
        return None

    way.fault = cut
    push(image, [parse_reference(f"{way.host}/{name}:v1")], jobs=1, piece=PIECE)
    assert cuts == 20
    assert lies_in(registry, name, image)
    taken = sum(request.taken for request in way.seen if request.method == "PATCH")
    assert taken == image.layers[0].descriptor.size


def test_an_upload_goes_on_at_the_registry_s_own_address_and_no_login_with_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, image = next(NAMES), image_for()
    with run_misbehaving(before=registry.host) as storage, run_misbehaving(before=storage.host) as way:
        monkeypatch.setenv("CPACK_REGISTRY", way.host)
        monkeypatch.setenv("CPACK_REGISTRY_USER", "me")
        monkeypatch.setenv("CPACK_REGISTRY_PASSWORD", "secret")

        def fault(request: Request) -> Fault | None:
            if "authorization" not in request.headers:
                return Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if request.method == "GET" and "/blobs/" in request.path:
                return Fault(status=307, headers={"Location": f"http://{storage.host}{request.path}"})
            return Fault(away=request.method == "POST")

        way.fault = fault
        push(image, [parse_reference(f"{way.host}/{name}:v1")])
        assert lies_in(registry, name, image)
        asked = [request for request in storage.seen if "authorization" not in request.headers]
        assert {"PUT"} == {request.method for request in asked}
        source = open_source(parse_reference(f"{way.host}/{name}:v1"))
        assert [b"".join(layer.chunks()) for layer in source.layers(PLATFORM)]
        straight = [request for request in storage.seen if "/blobs/sha256:" in request.path and request.method == "GET"]
        assert straight
        assert not any("authorization" in request.headers for request in straight)


OTHER = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (Fault(spoil=True), HashMismatch),
        (Fault(headers={"Content-Length": "5"}), NetworkError),
        (Fault(status=206, headers={"Content-Range": "bytes 7-9/10"}, body=b"abc"), NetworkError),
        (Fault(status=416), NetworkError),
        (Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}), NetworkError),
        (Fault(status=307, headers={"Location": "http://registry.example/x"}), UnsafeInput),
        (Fault(headers={"Location": "/v2/x"}, status=302), NetworkError),
    ],
    ids=["other bytes", "shorter length", "another range", "416", "401 loop", "another host", "circle"],
)
def test_nothing_of_a_lie_about_a_blob_is_used(
    registry: Registry, way: Misbehaving, tmp_path: Path, lie: Fault, error: type[CpackError]
) -> None:
    name, image = next(NAMES), image_for()
    push(image, [parse_reference(f"{registry.host}/{name}:v1")])
    digest = image.layers[0].descriptor.digest
    if lie.status == 302:
        lie.headers["Location"] = f"/v2/{name}/blobs/{digest}"
    way.fault = lambda request: lie if digest in request.path else None
    store = Store(tmp_path / "store")
    source = open_source(parse_reference(f"{way.host}/{name}:v1"), store=store)
    with pytest.raises(error) as raised:
        pull(source, PLATFORM)
    assert all(part in str(raised.value) for part in (way.host, name, digest.removeprefix("sha256:")))
    assert store.find(digest) is None
    way.fault = lambda request: None
    assert pull(open_source(parse_reference(f"{way.host}/{name}:v1"), store=store), PLATFORM).image.id == image.id


@pytest.mark.parametrize(("method", "part"), [("PUT", "/blobs/"), ("PUT", "/manifests/"), ("GET", "/manifests/")])
def test_another_digest_than_the_registry_s_own_is_told(
    registry: Registry, way: Misbehaving, method: str, part: str
) -> None:
    name, image = next(NAMES), image_for()
    reference = parse_reference(f"{way.host}/{name}:v1")
    if method == "GET":
        push(image, [reference])
    way.fault = lambda request: (
        Fault(headers={"Docker-Content-Digest": OTHER}) if request.method == method and part in request.path else None
    )
    asked = (lambda: open_source(reference).as_image(PLATFORM)) if method == "GET" else lambda: push(image, [reference])
    with pytest.raises(HashMismatch, match=f"{way.host}/{name}"):
        asked()


def test_after_416_a_real_registry_is_asked_how_far_it_is(registry: Registry, way: Misbehaving) -> None:
    name, image = next(NAMES), image_for(300_000)
    answers = {"PUT": Fault(status=413), "PATCH": Fault(status=416)}
    way.fault = lambda request: answers.pop(request.method, None) if "/blobs/uploads/" in request.path else None
    push(image, [parse_reference(f"{way.host}/{name}:v1")], jobs=1, piece=PIECE)
    assert lies_in(registry, name, image)
    assert "GET" in way.methods("/uploads/")


def test_a_drip_from_a_real_registry_is_left(
    registry: Registry, way: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpack_build.oci.transport._PATIENCE", 0.1)
    name, image = next(NAMES), image_for()
    push(image, [parse_reference(f"{registry.host}/{name}:v1")])
    way.fault = lambda request: Fault(drip=True) if image.layers[0].descriptor.digest in request.path else None
    with pytest.raises(
        NetworkError, match=rf"{way.host}/{name}:v1: {image.layers[0].descriptor.digest}: .*KiB came in"
    ):
        pull(open_source(parse_reference(f"{way.host}/{name}:v1"), store=Store(tmp_path)), PLATFORM)


def test_a_failed_push_leaves_a_real_registry_no_upload(registry: Registry, way: Misbehaving) -> None:
    """Each that was begun is given up (DELETE)."""
    name, image = next(NAMES), image_for(300_000)
    way.fault = lambda request: Fault(status=403) if request.method in ("PUT", "PATCH") else None
    with pytest.raises(NetworkError, match=f"{way.host}/{name}:v1: blob sha256:"):
        push(image, [parse_reference(f"{way.host}/{name}:v1")])
    assert "POST" in way.methods()
    assert "DELETE" in way.methods()
    uploads = registry.root / f"docker/registry/v2/repositories/{name}/_uploads"
    # Its own notes of hashes are all that it keeps of them.
    assert not [path for path in uploads.rglob("*") if path.name in ("data", "startedat")]


def test_a_manifest_that_is_another_on_the_way_is_refused(registry: Registry, way: Misbehaving) -> None:
    name, image = next(NAMES), image_for()
    push(image, [parse_reference(f"{registry.host}/{name}:v1")])
    way.fault = lambda request: Fault(spoil=True) if "/manifests/" in request.path else None
    with pytest.raises((HashMismatch, BadImage), match=f"{way.host}/{name}"):
        open_source(parse_reference(f"{way.host}/{name}@{image.digest}")).as_image(PLATFORM)
