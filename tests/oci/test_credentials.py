"""Logins are found where Docker and podman keep them, and a helper is a program and nothing more."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import NetworkError
from cpack_build.oci.connection import Connection
from cpack_build.oci.credentials import Credentials, credentials_for, find_credentials
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import canonical_json
from tests.oci.misbehaving import Fault, Request, run_misbehaving

HELPER = """#!/bin/sh
read -r server
echo "$1 $server" >> "$(dirname "$0")/asked"
case "$server" in
r.example) echo '{"ServerURL": "r.example", "Username": "helped", "Secret": "pass"}' ;;
token.example) echo '{"Username": "<token>", "Secret": "refresh"}' ;;
broken.example) echo 'secret things'; exit 3 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home, with a credential helper on the PATH."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(HELPER)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    return tmp_path


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_nobody_is_logged_in_at_first() -> None:
    assert find_credentials("r.example").credentials is None
    assert find_credentials("r.example").problem == ""


def test_dockers_file_then_podmans(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".config/containers/auth.json", {"auths": {"r.example": auth("config", "1")}})
    assert credentials_for("r.example") == ("config", "1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    write(home / "run/containers/auth.json", {"auths": {"r.example": auth("runtime", "2")}})
    assert credentials_for("r.example") == ("runtime", "2")
    write(home / ".docker/config.json", {"auths": {"r.example": auth("docker", "3:4")}})
    assert credentials_for("r.example") == ("docker", "3:4")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "named.json"))
    write(home / "named.json", {"auths": {"https://r.example": auth("named", "5")}})
    assert credentials_for("r.example") == ("named", "5")


def test_podmans_logins_for_a_part_of_a_registry_come_first(home: Path) -> None:
    auths = {"r.example": auth("all", "1"), "r.example/team": auth("team", "2")}
    write(home / ".config/containers/auth.json", {"auths": auths})
    assert credentials_for("r.example", repository="team/image") == ("team", "2")
    assert credentials_for("r.example", repository="teams/image") == ("all", "1")


def test_the_environment_comes_first_and_for_its_registry_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPACK_REGISTRY_USER", "ci")
    monkeypatch.setenv("CPACK_REGISTRY_PASSWORD", "secret")
    assert credentials_for("r.example") is None
    assert credentials_for("r.example", own="r.example") == ("ci", "secret")
    monkeypatch.setenv("CPACK_REGISTRY", "other.example")
    assert credentials_for("r.example", own="r.example") is None
    assert credentials_for("other.example") == ("ci", "secret")


@pytest.mark.parametrize(
    "document",
    [
        {"credHelpers": {"r.example": "test"}},
        {"credsStore": "test"},
        {"credsStore": "test", "auths": {"r.example": {}}},
    ],
)
def test_a_helper_is_asked(home: Path, document: dict[str, Any]) -> None:
    write(home / ".docker/config.json", document)
    assert credentials_for("r.example") == ("helped", "pass")
    assert (home / "bin/asked").read_text() == "get r.example\n"


def test_a_helper_that_knows_nothing_or_fails_leaves_the_rest(home: Path) -> None:
    document = {"credsStore": "test", "auths": {"other.example": auth("plain", "1")}}
    write(home / ".docker/config.json", document)
    assert credentials_for("other.example") == ("plain", "1")
    assert find_credentials("unknown.example").problem == ""
    broken = find_credentials("broken.example")
    assert broken.credentials is None
    assert broken.problem == "docker-credential-test failed (exit code 3)"


@pytest.mark.parametrize("name", ["../test", "/bin/sh", "test; id", "-x", "", "a b", 5, ["test"]])
def test_a_helper_is_named_by_a_plain_word(home: Path, name: object) -> None:
    write(home / ".docker/config.json", {"credHelpers": {"r.example": name}})
    assert credentials_for("r.example") is None
    assert not (home / "bin/asked").exists()


def test_a_helper_that_is_missing_is_told_when_a_login_is_needed(home: Path) -> None:
    with run_misbehaving() as fake:
        write(home / ".docker/config.json", {"credHelpers": {fake.host: "absent"}})
        fake.fault = lambda request: Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        connection = Connection(parse_reference(f"{fake.host}/x"))
        with pytest.raises(NetworkError, match="docker-credential-absent, which is not here"):
            connection.ask("HEAD", f"{connection.base}manifests/v1", what="manifest v1")


def test_an_identity_token_goes_to_the_token_service_as_a_form(home: Path) -> None:
    bodies: list[Request] = []

    def issue(request: Request) -> Fault:
        bodies.append(request)
        return Fault(status=200, body=canonical_json({"access_token": "t"}))

    with run_misbehaving() as fake, run_misbehaving() as tokens:
        write(home / ".docker/config.json", {"auths": {fake.host: {"identitytoken": "refresh"}}})
        tokens.fault = issue
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/t",service="s"'}
        fake.fault = lambda request: Fault(status=200 if "authorization" in request.headers else 401, headers=challenge)
        connection = Connection(parse_reference(f"{fake.host}/x"))
        connection.ask("HEAD", f"{connection.base}manifests/v1", what="manifest v1").close()
    [request] = bodies
    assert request.method == "POST"
    assert request.query == {}
    assert "authorization" not in request.headers


def test_credentials_do_not_show_themselves() -> None:
    assert "secret" not in repr(Credentials("me", "secret"))
    assert "secret" not in repr(find_credentials)
