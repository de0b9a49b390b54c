"""A real registry that takes tokens alone (Debian's docker-registry), each of which is asked for what is needed.

The token service is ours; what a token is good for is judged by the registry, by the signature and by its own rules.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cpack_build.errors import NetworkError
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.sources import open_source
from tests import need
from tests.cli.calling import Caller
from tests.engines import run_registry
from tests.oci.images import machine, small_image
from tests.oci.misbehaving import Fault, Misbehaving, Request, run_misbehaving

PLATFORM = f"linux/{machine()}"
BASIC = "Basic " + base64.b64encode(b"me:my-secret").decode()


@dataclass
class TokenService:
    """Who may do what, and the key that the registry believes."""

    host: str
    key: Path
    certificate: Path
    fake: Misbehaving
    mine: dict[str, str] = field(default_factory=dict)
    """Actions (``pull,push``) of the user ``me`` on each repository."""
    everyones: dict[str, str] = field(default_factory=dict)
    """The same of whoever does not say who he is."""

    def answer(self, request: Request) -> Fault:
        told = request.headers.get("authorization")
        if told not in (None, BASIC):
            return Fault(status=401)
        rights = self.mine if told else self.everyones
        access = []
        for scope in request.scopes:
            kind, name, actions = scope.split(":")
            given = sorted(set(actions.split(",")) & set(rights.get(name, "").split(",")))
            access.append({"type": kind, "name": name, "actions": given})
        now = int(time.time())
        claims = {"iss": "tests", "aud": "registry", "sub": "me", "nbf": now - 5, "exp": now + 300, "access": access}
        der = subprocess.run(
            ["openssl", "x509", "-in", self.certificate, "-outform", "DER"], check=True, capture_output=True
        ).stdout
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        text = b".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        sign = ["openssl", "dgst", "-sha256", "-sign", self.key]
        signature = subprocess.run(sign, input=text, check=True, capture_output=True).stdout
        token = b".".join((text, _encoded(signature))).decode()
        return Fault(status=200, body=json.dumps({"token": token, "expires_in": 300}).encode())


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenService]:
    folder = tmp_path_factory.mktemp("tokens")
    make = [need.tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    paths = ("-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem")
    subprocess.run([*make, *paths], check=True, capture_output=True)
    with run_misbehaving() as fake:
        service = TokenService(fake.host, folder / "key.pem", folder / "cert.pem", fake)
        fake.fault = service.answer
        yield service


@pytest.fixture(scope="module")
def guarded(tokens: TokenService) -> Iterator[str]:
    """``host:port`` of the registry."""
    auth = (
        f"auth: {{token: {{realm: 'http://{tokens.host}/token', service: registry, issuer: tests, "
        f"rootcertbundle: {tokens.certificate}}}}}\n"
    )
    with run_registry(auth=auth) as registry:
        yield registry.host


@pytest.fixture(autouse=True)
def _fresh(tokens: TokenService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    tokens.mine = {"team/a": "pull,push", "team/b": "pull,push"}
    tokens.everyones = {}
    tokens.fake.seen.clear()


def log_in(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("CPACK_REGISTRY", host)
    monkeypatch.setenv("CPACK_REGISTRY_USER", "me")
    monkeypatch.setenv("CPACK_REGISTRY_PASSWORD", "my-secret")


def test_a_mount_takes_a_token_that_may_read_the_source(
    guarded: str, tokens: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, guarded)
    image = small_image("tokens")
    source, target = parse_reference(f"{guarded}/team/a:v1"), parse_reference(f"{guarded}/team/b:v1")
    [first] = push(image, [source])
    [second] = push(image, [target], mount_from=[source])
    assert (second.sent, second.mounted) == (0, first.sent)
    assert tokens.fake.seen[-1].scopes == ("repository:team/b:pull,push", "repository:team/a:pull")
    assert open_source(target).as_image(PLATFORM).digest == image.digest


def test_what_may_not_be_read_is_not_mounted_but_sent(
    guarded: str, tokens: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, guarded)
    image = small_image("private")
    source, target = parse_reference(f"{guarded}/team/a:private"), parse_reference(f"{guarded}/team/b:private")
    [first] = push(image, [source])
    del tokens.mine["team/a"]
    [second] = push(image, [target], mount_from=[source])
    assert (second.sent, second.mounted) == (first.sent, 0)
    assert open_source(target).as_image(PLATFORM).digest == image.digest


def test_everyone_pulls_what_everyone_may_and_nobody_pushes_unknown(
    guarded: str, tokens: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = parse_reference(f"{guarded}/team/a:public")
    image = small_image("public")
    with pytest.MonkeyPatch.context() as logged_in:
        log_in(logged_in, guarded)
        push(image, [reference])
    with pytest.raises(NetworkError, match=rf"{guarded}/team/a:public: .*HTTP 401.*cpack-build login {guarded}"):
        open_source(reference).manifest(PLATFORM)
    tokens.everyones = {"team/a": "pull"}
    assert open_source(reference).as_image(PLATFORM).digest == image.digest
    with pytest.raises(NetworkError, match=f"cpack-build login {guarded}"):
        push(small_image("other"), [reference])
    assert open_source(reference).as_image(PLATFORM).digest == image.digest


def test_a_login_is_proved_by_the_registry_itself(
    capsys: pytest.CaptureFixture[str], guarded: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for password, code in (("wrong", 6), ("my-secret", 0)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{password}\n".encode())))
        done = Caller(capsys)("login", guarded, "-u", "me", "--password-stdin")
        assert done.code == code, done.err
        assert (tmp_path / "auth.json").exists() is (code == 0)
    image = small_image("logged in")
    push(image, [parse_reference(f"{guarded}/team/a:login")])
    # Others find the same login, and dance the same dance.
    skopeo = [need.tool("skopeo"), "inspect", "--tls-verify=false", f"docker://{guarded}/team/a:login"]
    shown = subprocess.run(skopeo, check=True, capture_output=True).stdout
    assert json.loads(shown)["Digest"] == image.digest
