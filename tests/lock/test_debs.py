"""System packages are what apt itself would install, by the sha256 of lists whose signature it has checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.debs import (
    FLOOR,
    AptSources,
    Archive,
    base_sources,
    fetch_deb,
    glibc_minor,
    host_sources,
    installed,
    open_archive,
)
from tests import need
from tests.lock.archives import KEYRING, AptArchive
from tests.lock.progress import Heard

STATUS = (
    "Package: libbase\nStatus: install ok installed\nVersion: 1.0\nArchitecture: amd64\n"
    "Maintainer: T <t@x.example>\nDescription: there already\n\n"
)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[AptArchive]:
    archive = AptArchive(tmp_path / "gnupg")
    yield archive
    archive.close()


def opened(sources: AptSources, store: Store, *, mirrors: Mirrors | None = None, heard: Heard | None = None) -> Archive:
    return open_archive(
        sources, architecture="amd64", store=store, mirrors=mirrors or Mirrors(), progress=heard or Heard()
    )


def test_names_become_files_with_all_they_depend_on(archive: AptArchive, store: Store) -> None:
    sha256 = archive.add("app", "2:1.0+x~1", depends="libone (>= 1.0), libtwo | other", source="app-source (9)")
    archive.add("libone", architecture="all")
    archive.add("libtwo", depends="libone")
    archive.add("unrelated")
    with archive.serve() as server:
        debs = opened(archive.sources(server.url), store).resolve(["app"])

        assert [deb.name for deb in debs] == ["app", "libone", "libtwo"]
        app = debs[0]
        assert (app.version, app.architecture, app.source) == ("2:1.0+x~1", "amd64", "app-source")
        assert (app.sha256, app.size) == (sha256, len("app 2:1.0+x~1"))
        assert debs[1].source == "libone"
        assert fetch_deb(app, store=store, sources=Sources()).path.read_bytes() == b"app 2:1.0+x~1"


def test_what_a_base_has_is_not_taken_again(archive: AptArchive, store: Store) -> None:
    archive.add("app", depends="libbase")
    archive.add("libbase")
    with archive.serve() as server:
        sources = archive.sources(server.url, status=STATUS)
        assert [deb.name for deb in opened(sources, store).resolve(["app"])] == ["app"]


def test_an_unsigned_archive_is_not_used(archive: AptArchive, store: Store) -> None:
    archive.signed = False
    archive.add("app")
    with archive.serve() as server, pytest.raises(Unresolvable, match=r"none of its sources.*is not signed"):
        opened(archive.sources(server.url), store)


def test_an_archive_signed_by_another_key_is_not_used(archive: AptArchive, store: Store, tmp_path: Path) -> None:
    other = AptArchive(tmp_path / "other")
    archive.add("app")
    with archive.serve() as server, pytest.raises(Unresolvable, match="none of its sources"):
        opened(archive.sources(server.url, key=other.key()), store)
    other.close()


def test_lists_that_were_changed_after_signing_are_not_used(archive: AptArchive, store: Store) -> None:
    archive.add("app")
    sources_files = archive.files()
    path = "/debian/dists/stable/main/binary-amd64/Packages"
    sources_files[path] = sources_files[path].replace(b"Version: 1.0", b"Version: 6.6")
    from tests.fetch.servers import serving_files

    with serving_files(sources_files) as server, pytest.raises(Unresolvable, match="none of its sources"):
        opened(archive.sources(server.url), store)


@pytest.mark.parametrize(
    "options", [" trusted=yes", " Trusted=YES", " allow-insecure=yes", " trusted=on", " allow-weak=enable"]
)
def test_a_base_that_waives_signatures_is_refused(options: str) -> None:
    line = f"deb [signed-by=/{KEYRING}{options}] http://a.example/debian stable main\n"
    with pytest.raises(UnsafeInput, match="waives"):
        base_sources({"etc/apt/sources.list": line.encode(), "var/lib/dpkg/status": b""})


@pytest.mark.parametrize("text", ["Trusted: no\n", "Trusted:no\nAllow-Insecure: false\n", "# Trusted: yes\n"])
def test_a_base_that_says_that_it_does_not_waive_them_is_taken(text: str) -> None:
    source = f"Types: deb\nURIs: http://a.example/debian\nSuites: stable\nComponents: main\n{text}"
    path = "etc/apt/sources.list.d/a.sources"
    assert path in base_sources({path: source.encode(), "var/lib/dpkg/status": b""}).files


def test_sources_that_are_named_take_the_place_of_the_others(archive: AptArchive, store: Store) -> None:
    sha256 = archive.add("tool")
    with archive.serve() as server:
        elsewhere = archive.sources("http://127.0.0.1:9")  # where nobody answers
        named = elsewhere.replaced([f"deb [signed-by=/{KEYRING}] {server.url}/debian stable main"])
        found = open_archive(named, architecture="amd64", store=store, mirrors=Mirrors()).resolve(["tool"])
    assert [(deb.name, deb.sha256) for deb in found] == [("tool", sha256)]


@pytest.mark.parametrize(
    "line",
    [
        "deb [trusted=yes] https://deb.example/debian stable main",
        "deb [ allow-insecure=yes ] https://deb.example/debian stable main",
        "deb [%74rusted=yes] https://deb.example/debian stable main",
        'deb [tru"st"ed=yes] https://deb.example/debian stable main',
        "deb [signed-by=%2fetc/x] https://deb.example/debian stable main",
        "deb file:///etc stable main",
        "deb copy:/etc stable main",
        "deb https://deb.example/debian stable main\ndeb [trusted=yes] https://evil.example/ x main",
        "https://deb.example",
        "",
    ],
)
def test_a_named_source_is_a_signed_archive_on_the_web_or_refused(line: str, archive: AptArchive) -> None:
    with pytest.raises(UnsafeInput, match=r"system\.sources"):
        archive.sources("https://deb.example").replaced([line])


def test_a_base_cannot_have_local_sources_read() -> None:
    for uri in ("file:/srv/debian", "copy:/srv/debian", "mirror+file:/srv/list"):
        text = f"Types: deb\nURIs: {uri}\nSuites: ./\n"
        with pytest.raises(UnsafeInput, match=r"x\.sources"):
            base_sources({"etc/apt/sources.list.d/x.sources": text.encode(), "var/lib/dpkg/status": b""})


def test_a_base_s_apt_configuration_is_never_read() -> None:
    files = {"etc/apt/apt.conf.d/99x": b'APT::Update::Pre-Invoke {"touch /tmp/x";};', "var/lib/dpkg/status": b""}
    assert base_sources(files).files == {}


def test_a_base_without_dpkg_says_so() -> None:
    with pytest.raises(Unresolvable, match=r"no dpkg.*defaults: none"):
        base_sources({})


def test_a_source_that_fails_is_a_note_when_it_is_not_needed(archive: AptArchive, store: Store) -> None:
    archive.add("app")
    heard = Heard()
    with archive.serve() as server:
        sources = archive.sources(server.url)
        broken = f"deb [signed-by=/{KEYRING}] {server.url}/nowhere stable main\n".encode()
        files = {**sources.files, "etc/apt/sources.list.d/broken.list": broken}
        opened_archive = opened(AptSources(files, b"", False), store, heard=heard)
        assert [deb.name for deb in opened_archive.resolve(["app"])] == ["app"]
        with pytest.raises(Unresolvable, match=r"missing-one.*nowhere"):
            opened_archive.resolve(["missing-one"])
    assert any("nowhere" in note for note in heard.notes)


def test_a_package_that_is_not_there_and_one_that_cannot_be_installed_are_named(
    archive: AptArchive, store: Store
) -> None:
    archive.add("app", depends="nowhere-lib")
    with archive.serve() as server:
        lists = opened(archive.sources(server.url), store)
        with pytest.raises(Unresolvable, match=r"not-there.*system\.packages"):
            lists.resolve(["not-there"])
        with pytest.raises(Unresolvable, match="nowhere-lib"):
            lists.resolve(["app"])
        assert lists.has("app")
        assert not lists.has("not-there")


@pytest.mark.parametrize("name", ["-oDebug::x=1", "app/stable", "../x", "app;x", "App", "", "app "])
def test_what_is_no_package_name_never_reaches_apt(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeInput, match="no name of a system package"):
        Archive(tmp_path, "", {}).resolve([name])


def test_the_lists_are_read_once_within_the_hour(archive: AptArchive, store: Store) -> None:
    archive.add("app")
    with archive.serve() as server:
        first = opened(archive.sources(server.url), store).resolve(["app"])
        asked = len(server.requests)
        assert opened(archive.sources(server.url), store).resolve(["app"]) == first
        assert len(server.requests) == asked


def test_a_mirrored_archive_leaves_no_trace(archive: AptArchive, store: Store) -> None:
    archive.add("app", "2:1.0+x~1")
    with archive.serve() as server:
        mirrors = Mirrors({"http://archive.example/": f"{server.url}/"})
        sources = archive.sources("http://archive.example")
        (deb,) = opened(sources, store, mirrors=mirrors).resolve(["app"])
        assert deb.url.startswith("http://archive.example/debian/pool/app_")
        assert fetch_deb(deb, store=store, sources=Sources(mirrors)).sha256 == deb.sha256


def test_a_deb_with_other_bytes_is_refused(archive: AptArchive, store: Store) -> None:
    archive.add("app")
    with archive.serve() as server:
        (deb,) = opened(archive.sources(server.url), store).resolve(["app"])
        with pytest.raises(HashMismatch, match=r"app 1\.0"):
            fetch_deb(deb.model_copy(update={"sha256": "0" * 64}), store=store, sources=Sources())


def test_installed_packages_and_their_glibc_are_read_from_dpkg_s_status() -> None:
    removed = "Package: gone\nStatus: deinstall ok config-files\nVersion: 3\n\n"
    status = STATUS + removed + "Package: libc6\nStatus: install ok installed\nVersion: 2.31-13+deb11u1\n"
    found = installed({"var/lib/dpkg/status": status.encode()})
    assert found == {"libbase": "1.0", "libc6": "2.31-13+deb11u1"}
    assert glibc_minor(found) == 31
    assert glibc_minor({}) is None


@pytest.mark.network
def test_the_hosts_own_sources_give_the_floor_of_an_image(store: Store) -> None:
    need.tool("apt-get")
    debs = {deb.name: deb for deb in opened(host_sources(), store).resolve(FLOOR)}
    assert {*FLOOR, "libc6"} <= debs.keys()
    assert all(deb.size > 0 and deb.url.startswith("http") for deb in debs.values())
