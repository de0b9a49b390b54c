"""TLS is proved unless the user said otherwise, by name."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from cpack_build.errors import NetworkError, UnsafeInput, UsageError
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.base import open_base
from cpack_build.oci.connection import Access, Connection
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from tests import need
from tests.oci.images import image_of, small_image, text_layer
from tests.oci.misbehaving import Misbehaving, run_misbehaving

NAME = "registry.test"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and the certificate of :data:`NAME` that it has signed itself."""
    path = tmp_path / "registry.pem"
    command = [
        *(need.tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"),
        *("-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/cert.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    return path


@pytest.fixture(autouse=True)
def _resolved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host name that is not loopback's leads to it."""
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: object, **options: object) -> object:
        return real("127.0.0.1" if host == NAME else host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def target(fake: Misbehaving) -> str:
    return f"{NAME}:{fake.host.rpartition(':')[2]}"


def test_a_certificate_that_nobody_vouches_for_is_refused_unless_its_ca_is_named(
    certificate: Path, tmp_path: Path
) -> None:
    image = small_image("tls")
    with run_misbehaving(certificate=certificate) as fake:
        reference = parse_reference(f"{target(fake)}/x:v1")
        with pytest.raises(NetworkError, match=r"TLS failed.*--ca FILE.*--insecure-registry"):
            push(image, [reference])
        assert not fake.seen
        push(image, [reference], access=Access(ca=tmp_path / "cert.pem"))
        assert fake.manifests["x", "v1"][1] == image.manifest.data


@pytest.mark.parametrize("secure", [True, False])
def test_an_insecure_registry_is_one_that_was_named(certificate: Path, secure: bool) -> None:
    image = small_image("insecure")
    with run_misbehaving(certificate=certificate if secure else None) as fake:
        reference = parse_reference(f"{target(fake)}/x:v1")
        with pytest.raises(NetworkError):
            push(image, [reference], access=Access(frozenset({"other.test"})))
        assert not any(request.path.startswith("/v2/x") for request in fake.seen)
        push(image, [reference], access=Access(frozenset({reference.registry})))
        assert fake.manifests["x", "v1"][1] == image.manifest.data


def test_a_ca_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "absent.pem"):
        connection = Connection(parse_reference("r.example/x"), access=Access(ca=tmp_path / name))
        with pytest.raises(UsageError, match=f"--ca {tmp_path}/{name}"):
            connection.ask("HEAD", f"{connection.base}manifests/v1", what="manifest v1")


def test_nothing_leads_from_tls_to_none() -> None:
    connection = Connection(parse_reference("r.example/x"))
    for url in ("http://r.example/y", "http://localhost/y", "ftp://r.example/", "https:///x"):
        with pytest.raises(UnsafeInput):
            connection.allowed(url, "leads to")


def test_a_base_image_comes_from_such_a_registry_as_well(certificate: Path, tmp_path: Path) -> None:
    """What lock and image build upon is pulled as everything else is."""
    image = image_of([text_layer({"usr/bin/python3.11": "x"})], architecture="amd64")
    store = Store(tmp_path / "store")
    with run_misbehaving(certificate=certificate) as fake:
        fake.hold(image)
        name = f"{target(fake)}/x:v1"
        with pytest.raises(NetworkError, match="TLS failed"):
            open_base(name, platform="linux/amd64", store=store, sources=Sources())
        for access in (Access(ca=tmp_path / "cert.pem"), Access(frozenset({target(fake)}))):
            base = open_base(name, platform="linux/amd64", store=store, sources=Sources(registries=access))
            assert base.record.digest == image.digest
            assert "usr/bin/python3.11" in base.paths
