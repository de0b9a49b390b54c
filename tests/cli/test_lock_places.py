"""A lock lies beside its pack, where the user says, or in the pack; wherever it is, it is found and stays fresh."""

from __future__ import annotations

import io
import socket
import zipfile
from pathlib import Path

import pytest

from cpack_build.cpack.reader import read_pack
from cpack_build.errors import NetworkError, StaleLock
from tests import need
from tests.cli.calling import Caller
from tests.example import make_example

pytestmark = pytest.mark.network


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    return Caller(capsys)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    need.tool("apt-get")
    picture = io.BytesIO()
    image.new("RGB", (4, 4)).save(picture, "PNG")
    return make_example(tmp_path, sample=picture.getvalue()).pack


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection to anywhere, and any other program, fails the test."""
    import subprocess

    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError(f"asked for {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(subprocess.Popen, "__init__", refused)


def test_a_lock_in_the_pack_is_found_fresh_updated_and_built_from(
    pack: Path, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = pack.with_name("example.cpack.lock")
    before = read_pack(pack)
    made = call("lock", pack, "--into-pack", "--json")
    if made.code == NetworkError.exit_code:
        need.missing(f"the package registries ({made.out})")
    assert made.code == 0, made.err + made.out
    assert (made.document["inside"], made.document["changed"]) == (True, True)
    assert not beside.exists()
    after = read_pack(pack)
    assert after.content_sha256 == before.content_sha256
    assert set(after.sizes) - set(before.sizes) == {"cpack.lock", "pylock.toml"}
    with zipfile.ZipFile(pack) as archive:
        assert all(entry.date_time == (1980, 1, 1, 0, 0, 0) for entry in archive.infolist())
        locked = archive.read("cpack.lock")
    zipped = pack.read_bytes()

    with monkeypatch.context() as patch:  # whoever asks nobody needs no network and no other program
        forbid_network(patch)
        again = call("lock", pack, "--into-pack", "--json")
        assert (again.code, again.document["changed"]) == (0, False), again.err + again.out
        assert call("lock", pack, "--json").document["inside"], "it is the pack's lock, if there is none beside it"
        assert call("plan", pack, "--json").document["lock"].endswith("example.cpack.zip: cpack.lock")
    assert pack.read_bytes() == zipped
    assert call("image", pack, "--dry-run", "--output", f"oci:{pack.parent / 'x'}", "--json").document["locked"]

    # one package is moved; what was resolved beside it stays, though nobody could be asked
    monkeypatch.setattr("cpack_build.lock.apt.which", lambda name: None)
    moved = call("lock", pack, "--into-pack", "--update", "numpy", "--json")
    assert moved.code == 0, moved.err + moved.out
    with zipfile.ZipFile(pack) as archive:
        assert archive.read("cpack.lock") == locked
    told = call("lock", pack, "--update", "nothing-of-it")
    assert told.code == 2
    assert "nothing-of-it" in told.err + told.out

    # any other change of the pack is told
    with zipfile.ZipFile(pack, "a") as archive:
        archive.writestr("input/other.png", b"x")
    stale = call("image", pack, "--locked", "--dry-run")
    assert stale.code == StaleLock.exit_code
    assert "the pack has changed" in stale.err + stale.out


def test_two_places_for_one_lock_are_refused(pack: Path, call: Caller) -> None:
    assert call("lock", pack, "--into-pack", "-o", pack.with_name("x.lock")).code == 2
    assert call("lock", pack, "--into-pack", "--update", "numpy").code == 2, "there is none to update"
