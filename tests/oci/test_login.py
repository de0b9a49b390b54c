"""A login is written only when the registry has taken it, where Docker finds it, and for nobody else to read."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import UsageError
from cpack_build.oci.credentials import credentials_for
from cpack_build.oci.login import parse_registry
from cpack_build.oci.types import canonical_json
from tests import need
from tests.cli.calling import Caller
from tests.oci.misbehaving import Fault, Misbehaving, Request, run_misbehaving

SECRET = "my:very-secret"
HELPER = """#!/bin/sh
here="$(dirname "$0")"
echo "$1" >> "$here/asked"
case "$1" in
store) cat > "$here/stored" ;;
get) read -r server; [ -e "$here/stored" ] && cat "$here/stored" || { echo 'credentials not found'; exit 1; } ;;
erase) rm "$here/stored" || { echo 'credentials not found in native keychain'; exit 1; } ;;
esac
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home, with a credential helper on the PATH."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(HELPER)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(capsys)


def typed(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Have *text* on stdin."""
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def basic(request: Request) -> Fault | None:
    expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    if request.headers.get("authorization") == expected:
        return Fault(status=200)
    return Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})


def log_in(call: Caller, fake: Misbehaving, monkeypatch: pytest.MonkeyPatch, password: str = SECRET, *more: str) -> Any:
    typed(monkeypatch, password + "\n")
    return call("login", fake.host, "-u", "me", "--password-stdin", *more)


def test_a_login_is_proved_and_then_found(call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_misbehaving() as fake:
        fake.fault = basic
        done = log_in(call, fake, monkeypatch)
        assert (done.code, done.out) == (0, f"Logged in to {fake.host} as me.\n")
        assert credentials_for(fake.host) == ("me", SECRET)
        config = home / ".docker/config.json"
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert SECRET not in done.out + done.err
        assert "unencrypted" in done.err
        assert json.loads(config.read_text()) == {
            "auths": {fake.host: {"auth": base64.b64encode(f"me:{SECRET}".encode()).decode()}}
        }
        assert call("logout", fake.host).code == 0
        assert credentials_for(fake.host) is None
        assert call("logout", fake.host).out == f"There is no login of {fake.host}.\n"


def test_a_wrong_password_is_written_nowhere(call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_misbehaving() as fake:
        fake.fault = basic
        done = log_in(call, fake, monkeypatch, "wrong-secret")
        assert done.code == 6
        assert f"Logging in to {fake.host}: user and password: the registry refuses them (HTTP 401)" in done.err
        assert "wrong-secret" not in done.out + done.err
        assert not (home / ".docker").exists()


def test_a_token_service_is_asked_with_the_password_and_the_registry_with_its_token(
    call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_misbehaving() as fake, run_misbehaving() as tokens:
        tokens.fault = lambda request: (
            Fault(status=200, body=canonical_json({"token": "t"})) if (basic(request) or Fault()).status == 200
            else Fault(status=401)
        )  # fmt: skip
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/token",service="s"'}
        fake.fault = lambda request: Fault(
            status=200 if request.headers.get("authorization") == "Bearer t" else 401, headers=challenge
        )
        assert log_in(call, fake, monkeypatch, "wrong").code == 6
        assert not (home / ".docker").exists()
        assert log_in(call, fake, monkeypatch).code == 0
        assert all(SECRET not in str(request.headers) for request in fake.seen)
        assert tokens.seen[-1].query == {"service": "s"}


def test_a_registry_that_asks_nobody_is_said_to_be_one(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_misbehaving() as fake:
        fake.fault = lambda request: Fault(status=200)
        done = log_in(call, fake, monkeypatch, SECRET, "--json")
        assert done.document["checked"] is False
        assert "could not be checked" in done.err


@pytest.mark.parametrize("named", ["credsStore", "credHelpers"])
def test_a_helper_keeps_the_password_and_the_file_does_not(
    call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    with run_misbehaving() as fake:
        fake.fault = basic
        config = home / ".docker/config.json"
        config.parent.mkdir()
        document = {"credsStore": "test"} if named == "credsStore" else {"credHelpers": {fake.host: "test"}}
        config.write_text(json.dumps(document | {"HttpHeaders": {"X": "y"}}))
        done = log_in(call, fake, monkeypatch)
        assert done.code == 0, done.err
        assert "unencrypted" not in done.err
        stored = json.loads((home / "bin/stored").read_text())
        assert stored == {"ServerURL": fake.host, "Username": "me", "Secret": SECRET}
        assert json.loads(config.read_text()) == {**document, "HttpHeaders": {"X": "y"}, "auths": {fake.host: {}}}
        assert credentials_for(fake.host) == ("me", SECRET)
        assert call("logout", fake.host).code == 0
        assert not (home / "bin/stored").exists()
        assert json.loads(config.read_text())["auths"] == {}


def test_a_helper_that_is_missing_or_fails_is_told_and_says_nothing_of_the_secret(
    call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_misbehaving() as fake:
        fake.fault = basic
        config = home / ".docker/config.json"
        config.parent.mkdir()
        for name, said in (("absent", "which is not here"), ("../test", "no program"), ("broken", "exit code 3")):
            (home / "bin/docker-credential-broken").write_text("#!/bin/sh\ncat\nexit 3\n")
            (home / "bin/docker-credential-broken").chmod(0o755)
            text = json.dumps({"credsStore": name})
            config.write_text(text)
            done = log_in(call, fake, monkeypatch)
            assert (done.code, said in done.err) == (7, True), done.err
            assert SECRET not in done.out + done.err
            assert config.read_text() == text


def test_everything_else_in_the_file_stays_and_a_link_to_it_too(
    call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = home / "dotfiles.json"
    real.write_text('{"psFormat": "{{.ID}}", "auths": {"other.example": {"auth": "bWU6eA=="}}, "x": [1]}')
    (home / ".docker").mkdir()
    (home / ".docker/config.json").symlink_to(real)
    with run_misbehaving() as fake:
        fake.fault = basic
        assert log_in(call, fake, monkeypatch).code == 0
        document = json.loads(real.read_text())
        assert list(document) == ["psFormat", "auths", "x"]
        assert set(document["auths"]) == {"other.example", fake.host}
        assert (home / ".docker/config.json").is_symlink()
        assert credentials_for("other.example") == ("me", "x")


@pytest.mark.parametrize("text", ["not json", "[]", '{"auths": []}', '{"credHelpers": 5}'])
def test_a_file_that_is_none_of_dockers_is_left_alone(
    call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text(text)
    with run_misbehaving() as fake:
        fake.fault = basic
        assert log_in(call, fake, monkeypatch).code == 3
    assert (home / ".docker/config.json").read_text() == text


def test_others_log_in_with_what_was_written(call: Caller, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """skopeo reads the same file: it asks the registry as that user."""
    skopeo = need.tool("skopeo")
    with run_misbehaving() as fake:
        fake.fault = basic
        assert log_in(call, fake, monkeypatch).code == 0
        fake.fault = lambda request: basic(request) if (basic(request) or Fault()).status == 401 else None
        done = subprocess.run(
            [skopeo, "inspect", "--tls-verify=false", f"docker://{fake.host}/x:v1"],
            capture_output=True, text=True, env={**os.environ, "HOME": str(home)},
        )  # fmt: skip
        assert "manifest unknown" in done.stderr or "404" in done.stderr or "MANIFEST_UNKNOWN" in done.stderr, (
            done.stderr
        )
        assert any((basic(request) or Fault()).status == 200 for request in fake.seen if "manifests" in request.path)


def test_what_is_no_password_or_no_registry_is_refused(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "\n", "a\nb", b"\xff\xfe"):
        typed(monkeypatch, text)
        assert call("login", "r.example", "-u", "me", "--password-stdin").code == 2
    typed(monkeypatch, "x")
    assert call("login", "r.example", "--password-stdin").code == 2
    typed(monkeypatch, "x")
    assert call("login", "r.example", "-u", "a:b", "--password-stdin").code == 2
    assert call("login", "r.example", "-u", "me").code == 2  # no terminal to ask
    for name in ("r.example/team", "", "a b", "r.example:99999999"):
        with pytest.raises(UsageError):
            parse_registry(name)
    assert parse_registry("https://index.docker.io/v1/") == "docker.io"
    assert parse_registry("localhost:5000") == "localhost:5000"
