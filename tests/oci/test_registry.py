"""Pulling gives the image that was pushed, or one clear error; no secret goes where it does not belong."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cpack_build.errors import BadImage, HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.oci.credentials import credentials_for
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.registry import RegistryOrigin
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import LAYER_GZIP, Image, canonical_json
from cpack_build.oci.uncompressed import uncompressed
from tests import need
from tests.engines import Registry, free_port
from tests.oci.images import image_of, machine, small_image, text_layer

PLATFORM = f"linux/{machine()}"


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def push(image: Image, registry: Registry, name: str, tmp_path: Path, *options: str) -> None:
    write_layout(image, tmp_path / "pushed", tag="v1")
    source = f"oci:{tmp_path}/pushed:v1"
    target = f"docker://{registry.host}/{name}"
    nobody = tmp_path / "no-logins.json"
    nobody.write_text("{}")
    options = ("--insecure-policy", "--dest-tls-verify=false", f"--authfile={nobody}", *options)
    subprocess.run([need.tool("skopeo"), "copy", *options, source, target], check=True, capture_output=True)


# -- against a real registry -------------------------------------------------------------------------------------------


def test_an_image_is_pulled_as_it_was_pushed(registry: Registry, tmp_path: Path) -> None:
    image = small_image("pull")
    push(image, registry, "hub/library/base:v1", tmp_path, "--preserve-digests")
    for version in (":v1", f"@{image.digest}", f":other@{image.digest}"):
        pulled = open_source(parse_reference(f"{registry.host}/hub/library/base{version}")).as_image(PLATFORM)
        assert pulled.manifest.data == image.manifest.data
        assert pulled.config.data == image.config.data
        assert [b"".join(layer.chunks()) for layer in pulled.layers] == [
            b"".join(layer.chunks()) for layer in image.layers
        ]


def test_compressed_layers_of_a_registry_are_given_uncompressed(registry: Registry, tmp_path: Path) -> None:
    # Layers of its own: skopeo does not push what it knows to be there in another form.
    image = image_of([text_layer({"compressed/a": "1" * 999}), text_layer({"compressed/b": "2"})])
    push(image, registry, "compressed:v1", tmp_path)
    pulled = open_source(parse_reference(f"{registry.host}/compressed:v1")).as_image(PLATFORM)
    assert pulled.id == image.id
    assert pulled.layers[0].descriptor.media_type == LAYER_GZIP
    store = Store(tmp_path / "store")
    for packed, plain in zip(pulled.layers, image.layers, strict=True):
        blob = uncompressed(packed, plain.descriptor.digest, memo=store)
        assert blob.descriptor.size == plain.descriptor.size
        assert b"".join(blob.chunks()) == b"".join(plain.chunks())


def test_a_mirror_stands_in_for_another_registry_and_the_store_for_both(registry: Registry, tmp_path: Path) -> None:
    image = small_image("mirror")
    push(image, registry, "hub/library/base:mirrored", tmp_path, "--preserve-digests")
    mirrors = Mirrors.parse([f"docker.io/={registry.host}/hub/"])
    store = Store(tmp_path / "store")
    source = open_source(parse_reference("base:mirrored"), mirrors=mirrors, store=store)
    first = source.as_image(PLATFORM)
    assert source.name == "docker.io/library/base:mirrored"
    for layer in first.layers:
        list(layer.chunks())
    # By digest everything is in the store now, but for the one document that the name stands for.
    again = open_source(parse_reference(f"base@{image.digest}"), mirrors=mirrors, store=store).as_image(PLATFORM)
    for path in (registry.root / "docker/registry/v2/blobs/sha256").rglob("data"):
        if path.parent.name == image.layers[0].descriptor.digest[7:]:
            path.unlink()
    assert b"".join(again.layers[0].chunks()) == b"".join(image.layers[0].chunks())


def test_a_mirror_may_be_a_folder(tmp_path: Path) -> None:
    image = small_image()
    write_layout(image, tmp_path / "hub/library/base", tag="12")
    mirrors = Mirrors.parse([f"docker.io/={tmp_path}/hub/"])
    assert open_source(parse_reference("base:12"), mirrors=mirrors).as_image(PLATFORM).id == image.id


def test_a_registry_that_changed_a_blob_is_noticed_and_nothing_is_kept(registry: Registry, tmp_path: Path) -> None:
    image = small_image("tampered")
    push(image, registry, "tampered:v1", tmp_path, "--preserve-digests")
    digest = image.layers[1].descriptor.digest[7:]
    data = registry.root / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    data.write_bytes(data.read_bytes()[::-1])
    store = Store(tmp_path / "store")
    pulled = open_source(parse_reference(f"{registry.host}/tampered:v1"), store=store).as_image(PLATFORM)
    with pytest.raises(HashMismatch, match=digest):
        list(pulled.layers[1].chunks())
    assert store.find(digest) is None


def test_what_a_registry_does_not_have_is_said(registry: Registry) -> None:
    for name in ("nothing:v1", "nothing@sha256:" + "0" * 64):
        with pytest.raises(Unresolvable) as error:
            open_source(parse_reference(f"{registry.host}/{name}")).manifest(PLATFORM)
        assert f"Registry {registry.host} has no manifest" in str(error.value)


def test_a_host_that_does_not_answer_is_said() -> None:
    with pytest.raises(NetworkError, match=r"localhost:\d+/x:1: manifest 1: no connection\..*--mirror"):
        open_source(parse_reference(f"localhost:{free_port()}/x:1")).manifest(PLATFORM)


# -- against one that misbehaves ---------------------------------------------------------------------------------------


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stop_after: int | None = None
    """Close the connection after so many bytes of the body."""


@dataclass
class Fake:
    """A server on loopback; *answer* is asked what to say, *seen* has the requests."""

    host: str
    answer: Callable[[str, dict[str, str]], Answer]
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def fakes() -> Iterator[Callable[..., Fake]]:
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str, dict[str, str]], Answer]) -> Fake:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {key.lower(): value for key, value in self.headers.items()}
                fake.seen.append((self.path, headers))
                said = fake.answer(self.path, headers)
                self.send_response(said.status)
                for key, value in {"Content-Length": str(len(said.body)), **said.headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                with suppress(ConnectionError):  # The client may have read enough.
                    self.wfile.write(said.body[: said.stop_after])
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        fake = Fake(f"localhost:{server.server_address[1]}", answer)
        return fake

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def files_of(image: Image) -> dict[str, bytes]:
    """What a registry answers below ``/v2/x/``."""
    files = {f"/v2/x/blobs/{blob.descriptor.digest}": b"".join(blob.chunks()) for blob in (image.config, *image.layers)}
    return files | {f"/v2/x/manifests/{name}": image.manifest.data for name in ("v1", image.digest)}


def serve(image: Image) -> Callable[[str, dict[str, str]], Answer]:
    files = files_of(image)
    return lambda path, headers: Answer(files[path]) if path in files else Answer(status=404)


def test_the_token_dance_is_danced_and_secrets_stay_with_their_host(fakes: Callable[..., Fake], tmp_path: Path) -> None:
    image = small_image()
    files = files_of(image)

    def token(path: str, headers: dict[str, str]) -> Answer:
        return Answer(canonical_json({"token": "the-token"}))

    def storage(path: str, headers: dict[str, str]) -> Answer:
        return Answer(files[path])

    def guarded(path: str, headers: dict[str, str]) -> Answer:
        if headers.get("authorization") != "Bearer the-token":
            realm = f'Bearer realm="http://{tokens.host}/token?a=b",service="reg",scope="repository:x:pull"'
            return Answer(status=401, headers={"WWW-Authenticate": realm})
        if "/blobs/" in path:
            return Answer(status=307, headers={"Location": f"http://{blobs.host}{path}"})
        return Answer(files[path])

    tokens, blobs, registry = fakes(token), fakes(storage), fakes(guarded)
    (tmp_path / "docker-config").mkdir()
    login = {"auths": {registry.host: {"auth": base64.b64encode(b"me:my:secret").decode()}}}
    (tmp_path / "docker-config/config.json").write_text(json.dumps(login))
    pulled = open_source(parse_reference(f"{registry.host}/x:v1")).as_image(PLATFORM)
    assert [b"".join(layer.chunks()) for layer in pulled.layers] == [b"".join(layer.chunks()) for layer in image.layers]
    [(asked, headers)] = tokens.seen
    assert asked == "/token?a=b&service=reg&scope=repository%3Ax%3Apull"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"me:my:secret"
    assert all("authorization" not in headers for _, headers in blobs.seen)
    assert all(headers.get("authorization") in (None, "Bearer the-token") for _, headers in registry.seen)


def test_a_registry_with_basic_authentication_is_given_the_password_once_it_asks(
    fakes: Callable[..., Fake], tmp_path: Path
) -> None:
    image = small_image()
    expected = "Basic " + base64.b64encode(b"me:secret").decode()

    def guarded(path: str, headers: dict[str, str]) -> Answer:
        if headers.get("authorization") != expected:
            return Answer(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return Answer(files_of(image)[path])

    registry = fakes(guarded)
    with pytest.raises(NetworkError, match=rf"refuses \(HTTP 401\)\..*cpack-build login {registry.host}"):
        open_source(parse_reference(f"{registry.host}/x:v1")).manifest(PLATFORM)
    (tmp_path / "docker-config").mkdir()
    login = {"auths": {registry.host: {"auth": base64.b64encode(b"me:secret").decode()}}}
    (tmp_path / "docker-config/config.json").write_text(json.dumps(login))
    assert open_source(parse_reference(f"{registry.host}/x:v1")).as_image(PLATFORM).id == image.id


def test_a_connection_that_breaks_is_taken_up_where_it_broke(fakes: Callable[..., Fake]) -> None:
    image = small_image("x" * 3_000_000)
    files = files_of(image)

    def breaking(path: str, headers: dict[str, str]) -> Answer:
        data = files[path]
        start = int(headers.get("range", "bytes=0-")[6:-1])
        if "/blobs/" not in path or len(data) < 1 << 20:
            return Answer(data)
        stop = 1_200_000 if start < 2_000_000 else None
        return Answer(data[start:], status=206 if start else 200, stop_after=stop)

    registry = fakes(breaking)
    pulled = open_source(parse_reference(f"{registry.host}/x:v1")).as_image(PLATFORM)
    assert b"".join(pulled.layers[1].chunks()) == b"".join(image.layers[1].chunks())
    ranges = [headers["range"] for _, headers in registry.seen if "range" in headers]
    assert ranges
    assert ranges == sorted(ranges)


def test_a_server_without_ranges_is_read_again_from_the_beginning(fakes: Callable[..., Fake]) -> None:
    image = small_image("x" * 3_000_000)
    files = files_of(image)
    count = 0

    def breaking(path: str, headers: dict[str, str]) -> Answer:
        nonlocal count
        count += len(files[path]) > 1 << 20
        return Answer(files[path], stop_after=1_500_000 if count == 1 else None)

    pulled = open_source(parse_reference(f"{fakes(breaking).host}/x:v1")).as_image(PLATFORM)
    assert b"".join(pulled.layers[1].chunks()) == b"".join(image.layers[1].chunks())


def test_a_connection_that_always_breaks_is_given_up(fakes: Callable[..., Fake]) -> None:
    image = small_image("x" * 3_000_000)
    files = files_of(image)
    registry = fakes(lambda path, headers: Answer(files[path], stop_after=1000 if "/blobs/" in path else None))
    pulled = open_source(parse_reference(f"{registry.host}/x:v1")).as_image(PLATFORM)
    with pytest.raises(NetworkError, match=r"sha256:[0-9a-f]{64}: .* of \d+ bytes"):
        list(pulled.layers[1].chunks())


def test_a_busy_registry_is_asked_again_and_a_broken_one_is_named(fakes: Callable[..., Fake]) -> None:
    image = small_image()
    answers = [Answer(status=503), Answer(status=429, headers={"Retry-After": "1"}), Answer(image.manifest.data)]
    registry = fakes(lambda path, headers: answers.pop(0) if answers else Answer(status=500))
    source = open_source(parse_reference(f"{registry.host}/x:v1"))
    assert source.manifest(PLATFORM)[1] == image.manifest.data
    with pytest.raises(NetworkError, match=rf"Pulling {registry.host}/x:v1: sha256:.*HTTP 500"):
        source.config(PLATFORM)


def test_another_manifest_than_the_digest_asked_for_is_refused(fakes: Callable[..., Fake]) -> None:
    other = small_image("other")
    registry = fakes(lambda path, headers: Answer(other.manifest.data))
    with pytest.raises(HashMismatch):
        open_source(parse_reference(f"{registry.host}/x@{small_image().digest}")).manifest(PLATFORM)


def test_a_body_without_end_is_not_read(fakes: Callable[..., Fake]) -> None:
    image = small_image()
    files = files_of(image)
    endless = fakes(lambda path, headers: Answer(files[path] + (b" " * (20 << 20) if "/blobs/" in path else b"")))
    with pytest.raises(BadImage, match="has more than"):
        open_source(parse_reference(f"{endless.host}/x:v1")).as_image(PLATFORM)
    large = fakes(lambda path, headers: Answer(b" " * (20 << 20)))
    with pytest.raises(BadImage, match="has more than"):
        open_source(parse_reference(f"{large.host}/x:v1")).manifest(PLATFORM)


@pytest.mark.parametrize(
    "location", ["http://registry.example/x", "file:///etc/passwd", "ftp://localhost/x", "https:", "//"]
)
def test_a_redirect_to_anything_but_https_is_refused(fakes: Callable[..., Fake], location: str) -> None:
    registry = fakes(lambda path, headers: Answer(status=302, headers={"Location": location}))
    with pytest.raises((UnsafeInput, NetworkError)):
        open_source(parse_reference(f"{registry.host}/x:v1")).manifest(PLATFORM)


def test_redirects_in_a_circle_end(fakes: Callable[..., Fake]) -> None:
    registry = fakes(lambda path, headers: Answer(status=302, headers={"Location": path}))
    with pytest.raises(NetworkError, match="more than 5 redirects"):
        open_source(parse_reference(f"{registry.host}/x:v1")).manifest(PLATFORM)


def test_a_token_service_without_tls_or_without_a_token_is_refused(fakes: Callable[..., Fake]) -> None:
    realm = 'Bearer realm="http://tokens.example/t",service="x"'
    registry = fakes(lambda path, headers: Answer(status=401, headers={"WWW-Authenticate": realm}))
    with pytest.raises(UnsafeInput, match=r"http://tokens\.example"):
        open_source(parse_reference(f"{registry.host}/x:v1")).manifest(PLATFORM)
    realm = 'Bearer realm="https://[tokens.example/t"'
    with pytest.raises(UnsafeInput, match=rf"{registry.host}/x:v1: the registry names the token service .*no address"):
        open_source(parse_reference(f"{registry.host}/x:v1")).manifest(PLATFORM)
    for body in (b"", b"{}", b"[]", b'{"token": 5}', b'{"token": "a\\nHost: b"}', b"[" * 100_000):
        tokens = fakes(lambda path, headers, body=body: Answer(body))
        header = f'Bearer realm="http://{tokens.host}/t"'
        guarded = fakes(lambda path, headers, header=header: Answer(status=401, headers={"WWW-Authenticate": header}))
        with pytest.raises(NetworkError, match="gave no token"):
            open_source(parse_reference(f"{guarded.host}/x:v1")).manifest(PLATFORM)


def test_only_loopback_may_be_without_tls() -> None:
    mirrors = Mirrors.parse(["docker.io/=http://registry.example/"])
    with pytest.raises(UnsafeInput, match="without TLS"):
        open_source(parse_reference("debian"), mirrors=mirrors)
    RegistryOrigin(parse_reference("127.0.0.1:5000/x"), plain=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"auths": []}', '{"auths": {"r.example": {"auth": "%%%"}}}', '{"auths": {"r.example": 5}}']
)
def test_a_docker_config_of_any_kind_is_credentials_or_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "docker-config").mkdir()
    (tmp_path / "docker-config/config.json").write_text(text)
    assert credentials_for("r.example") is None


def test_docker_hub_is_logged_in_to_by_its_old_name(tmp_path: Path) -> None:
    (tmp_path / "docker-config").mkdir()
    auth = base64.b64encode(b"me:pass").decode()
    text = json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": auth}}})
    (tmp_path / "docker-config/config.json").write_text(text)
    assert credentials_for("docker.io") == ("me", "pass")
    assert credentials_for("r.example") is None
