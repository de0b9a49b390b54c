"""An earlier lock's versions stay unless they are asked to move, and --offline asks nobody."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cpack_build.errors import NetworkError, Unresolvable
from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.http import Offline, Sources, download
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.base import open_base
from cpack_build.lock.debs import AptSources, open_archive
from cpack_build.lock.python import Target, lock_environment
from cpack_build.lock.wheels import wheels_of
from tests import need
from tests.cli.calling import Caller
from tests.example import make_example
from tests.fetch.repositories import make_repository
from tests.lock.indexes import Index

URL = "https://code.example/node"
OFFLINE = Sources(Mirrors({}, is_offline=True), Offline())


@pytest.mark.usefixtures("plain_uv")
def test_versions_of_an_earlier_lock_stay_where_they_can(store: Store) -> None:
    index = Index()
    for version in ("1.0", "2.0", "3.0"):
        index.add("beta", version)
        index.add("gamma", version)
    index.add("alpha", "1.0", requires=["beta", "gamma>=2"])
    with index.serve() as server:
        found = lock_environment(
            ["alpha"], target=Target("3.11"), store=store, sources=Sources(), index_url=f"{server.url}/simple/",
            preferred=["alpha==1.0", "beta==1.0", "gamma==1.0", "gone==7"],
        )  # fmt: skip
    assert {one.name: one.version for one in wheels_of(found)} == {"alpha": "1.0", "beta": "1.0", "gamma": "3.0"}


def test_offline_fetches_no_file_repository_base_or_list(store: Store) -> None:
    with pytest.raises(NetworkError, match="--offline"):
        download("https://files.example/x", store=store, sources=OFFLINE)
    with pytest.raises(NetworkError, match=r"code\.example.*--offline"):
        fetch_tree(URL, "1" * 40, store=store, mirrors=OFFLINE.mirrors)
    with pytest.raises(NetworkError, match="--offline"):
        open_base("registry.example/debian:12", platform="linux/amd64", store=store, sources=OFFLINE)
    need.tool("apt-get")
    apt = AptSources({"etc/apt/sources.list": b"deb http://apt.example/ stable main\n"}, b"", False)
    with pytest.raises(NetworkError, match="--offline"):
        open_archive(apt, architecture="amd64", store=store, mirrors=OFFLINE.mirrors)


def test_offline_takes_what_the_user_mapped_to_this_machine(tmp_path: Path, store: Store) -> None:
    commit = make_repository(tmp_path / "node", {"a": "b"})
    mapped = Mirrors({URL: str(tmp_path / "node")}, is_offline=True)
    assert fetch_tree(URL, commit, store=store, mirrors=mapped).files()
    elsewhere = Mirrors({URL: "https://127.0.0.1:9/node"}, is_offline=True)
    with pytest.raises(NetworkError, match="--offline"):
        fetch_tree(URL, commit, store=Store(tmp_path / "other"), mirrors=elsewhere)


@pytest.mark.usefixtures("plain_uv")
def test_offline_resolves_packages_from_the_cache_alone(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0")
    with index.serve() as server:
        with pytest.raises((Unresolvable, NetworkError)):
            lock_environment(
                ["alpha"], target=Target("3.11"), store=store, sources=OFFLINE, index_url=f"{server.url}/simple/"
            )
        assert server.requests == []


@pytest.mark.network
def test_a_fresh_lock_asks_nobody_and_the_same_caches_give_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    need.tool("apt-get")
    picture = io.BytesIO()
    image.new("RGB", (4, 4)).save(picture, "PNG")
    pack = make_example(tmp_path, sample=picture.getvalue()).pack
    target = pack.with_name("example.cpack.lock")
    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "store"))
    call = Caller(capsys)
    made = call("lock", pack, "--json")
    if made.code == NetworkError.exit_code:
        need.missing(f"the package registries ({made.out})")
    assert made.code == 0, made.err + made.out
    first = target.read_bytes()

    again = call("lock", pack, "--offline", "--update", "all", "-o", tmp_path / "again.lock", "--json")
    assert again.code == 2  # there is no lock at that place to update
    assert call("lock", pack, "--offline", "-o", tmp_path / "again.lock").code == 0
    assert (tmp_path / "again.lock").read_bytes() == first

    monkeypatch.setenv("CPACK_HOME", str(tmp_path / "nothing"))
    fresh = call("lock", pack, "--json")
    assert (fresh.code, fresh.document["changed"]) == (0, False)
    assert not (tmp_path / "nothing").exists()

    lost = call("lock", pack, "--update", "no-such-package")
    assert (lost.code, "no-such-package" in lost.err) == (2, True)
