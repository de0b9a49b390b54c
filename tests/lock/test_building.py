"""What no index has a wheel of is built once, by leave of the user, and pinned so that another machine can compare.

The packages bring a build backend of their own, so nothing but the test's index is asked.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, HashMismatch, NeedsTrust, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock import sourcetree
from cpack_build.lock.building import rebuild
from cpack_build.lock.python import Target, lock_environment
from cpack_build.lock.schema import Platform, PythonEnvironment, SourceArchive, SourceTree
from cpack_build.lock.wheels import wheels_of
from cpack_build.restore.environment import fetch_wheels
from tests.example import system_python
from tests.fetch.repositories import make_repository
from tests.lock.indexes import Index, sdist, source_files
from tests.restore.images import make_world

PYTHON = system_python()
pytestmark = pytest.mark.usefixtures("plain_uv")


def lock(
    index: Index,
    requirements: list[str],
    store: Store,
    *,
    trust: bool = True,
    platform: Platform = "linux/amd64",
    python: str = PYTHON,
    mirrors: dict[str, str] | None = None,
) -> PythonEnvironment:
    with index.serve() as server:
        return lock_environment(
            requirements, target=Target(python, platform, 36), store=store, sources=Sources(Mirrors(mirrors or {})),
            index_url=f"{server.url}/simple/", trust=trust,
        )  # fmt: skip


def index_with(name: str = "source", **options: object) -> Index:
    index = Index()
    index.add_sdist(name, "1.0", sdist(source_files(name, "1.0", **options), f"{name}-1.0"))  # type: ignore[arg-type]
    return index


def member_of(environment: PythonEnvironment, store: Store, name: str) -> bytes:
    (built,) = environment.built
    stored = store.find(built.sha256)
    assert stored is not None
    with zipfile.ZipFile(stored.path) as archive:
        return archive.read(name)


def test_nothing_of_a_source_runs_before_the_user_agrees(store: Store, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    index = index_with(body=f"open({str(ran)!r}, 'w').close()")
    index.add("alpha", "1.0", requires=["source"])
    with pytest.raises(NeedsTrust, match=r"(?s)source from http.*source-1\.0\.tar\.gz.*--trust") as caught:
        lock(index, ["alpha"], store, trust=False)
    assert caught.value.exit_code == 8
    assert len(caught.value.runs) == 1
    assert not ran.exists()
    lock(index, ["alpha"], store)
    assert ran.exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            source_files("source", "1.0", build_requires=["tool>=2"]),
            "built by own in its own files, which needs tool>=2",
        ),
        ({"setup.py": ""}, r"built by setup\.py \(setuptools\), which needs setuptools"),
        ({"pyproject.toml": '[build-system]\nbuild-backend = "evil\\n- harmless"\n'}, r"built by evil\?- harmless"),
        ({"pyproject.toml": "[["}, "which does not say by what"),
        ({"README": ""}, "which does not say by what"),
    ],
)
def test_who_would_build_is_told_before_anybody_agrees(files: dict[str, str], said: str, store: Store) -> None:
    index = Index()
    index.add_sdist("source", "1.0", sdist(files, "source-1.0"))
    with pytest.raises(NeedsTrust, match=said) as caught:
        lock(index, ["source"], store, trust=False)
    assert len(caught.value.runs) == 1
    assert "\n" not in caught.value.runs[0]


def test_a_dependency_without_wheel_is_built_and_pinned_with_how_it_was_made(store: Store) -> None:
    index = index_with(requires=["beta"], build_requires=["tool"])
    index.add("alpha", "1.0", requires=["source"])
    index.add("beta", "2.0")
    index.add("tool", "3.0")
    environment = lock(index, ["alpha"], store)
    assert {wheel.name: wheel.version for wheel in wheels_of(environment)} == {
        "alpha": "1.0", "beta": "2.0", "source": "1.0",
    }  # fmt: skip
    (built,) = environment.built
    (wheel,) = [wheel for wheel in wheels_of(environment) if wheel.name == "source"]
    assert (wheel.url, wheel.sha256, wheel.filename) == (None, built.sha256, built.filename)
    assert isinstance(built.source, SourceArchive)
    assert built.source.url is not None
    assert built.source.url.endswith("/source-1.0.tar.gz")
    assert [(one.name, one.version) for one in wheels_of(built.requires)] == [("tool", "3.0")]
    assert built.python.startswith(PYTHON + ".")


def test_the_wheel_is_the_same_bytes_wherever_it_is_built_and_is_built_once(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b" / "deeper")
    index = index_with()
    one, two = lock(index, ["source"], first), lock(index, ["source"], second)
    assert one.built[0].sha256 == two.built[0].sha256
    # a third time nobody has to agree
    assert lock(index, ["source"], first, trust=False).built[0].sha256 == one.built[0].sha256


def test_a_build_sees_nothing_of_the_user(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = member_of(lock(index_with(), ["source"], store), store, "source.py")
    assert b"SOURCE_DATE_EPOCH" in seen
    assert b"HF_TOKEN" not in seen


def test_a_git_pin_is_built_from_its_commit_and_its_subdirectory(store: Store, tmp_path: Path) -> None:
    files = {f"python/{path}": text for path, text in source_files("source", "4.5").items()}
    commit = make_repository(tmp_path / "git" / "source", {**files, "README": "x"}, date=1_600_000_000)
    environment = lock(
        Index(), [f"source @ git+https://code.example/team/source.git@{commit}#subdirectory=python"], store,
        mirrors={"https://code.example/team/": f"{tmp_path}/git/"},
    )  # fmt: skip
    assert [(wheel.name, wheel.version) for wheel in wheels_of(environment)] == [("source", "4.5")]
    (built,) = environment.built
    assert isinstance(built.source, SourceTree)
    assert (built.source.url, built.source.commit) == ("https://code.example/team/source", commit)
    assert str(tmp_path) not in environment.model_dump_json()


def test_another_machine_makes_the_same_wheel_or_says_that_it_differs(store: Store, tmp_path: Path) -> None:
    index = index_with()
    with index.serve() as server:
        (built,) = lock_environment(
            ["source"], target=Target(PYTHON), store=store, sources=Sources(),
            index_url=f"{server.url}/simple/", trust=True,
        ).built  # fmt: skip
        other = Store(tmp_path / "other")
        rebuild(built, name="source", python_version=PYTHON, store=other, sources=Sources())
        assert other.find(built.sha256) is not None
        lie = built.model_copy(update={"sha256": "0" * 64})
        with pytest.raises(HashMismatch, match="built again"):
            rebuild(lie, name="source", python_version=PYTHON, store=other, sources=Sources())


def test_a_restore_builds_what_no_index_has_by_leave_alone(store: Store, tmp_path: Path) -> None:
    with index_with().serve() as server:
        environment = lock_environment(
            ["source"], target=Target(PYTHON), store=store, sources=Sources(), index_url=f"{server.url}/simple/",
            trust=True,
        )  # fmt: skip
        locked = make_world(tmp_path / "world").lock.model_copy(update={"python": environment})
        other = Store(tmp_path / "other")
        with pytest.raises(NeedsTrust, match=r"source from source-1\.0\.tar\.gz|source 1\.0 from"):
            fetch_wheels(locked, store=other, sources=Sources())
        (path,) = fetch_wheels(locked, store=other, sources=Sources(), trust=True).values()
    assert path == other.blob_path(environment.built[0].sha256)


def test_a_pure_wheel_serves_every_platform_and_another_names_who_can_build_it(store: Store) -> None:
    assert lock(index_with(), ["source"], store, platform="linux/arm64").built
    native = index_with("native", tag=f"cp{PYTHON.replace('.', '')}-cp{PYTHON.replace('.', '')}-linux_x86_64")
    with pytest.raises(Unresolvable, match=r"does not run on linux/arm64.*BuildKit backend"):
        lock(native, ["native"], store, platform="linux/arm64")


def test_a_python_that_this_machine_lacks_is_named(store: Store) -> None:
    with pytest.raises(Unresolvable, match=r"Python 3\.7, which this machine lacks.*BuildKit backend"):
        lock(index_with(), ["source"], store, python="3.7")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"body": "raise SystemExit('no compiler here')"}, "no compiler here"),
        ({"build_requires": ["nowhere"]}, "What is needed to build source"),
        ({"build_requires": ["x @ file:///srv/x"]}, "packer's machine"),
    ],
)
def test_a_build_that_fails_says_why(options: dict[str, object], said: str, store: Store) -> None:
    with pytest.raises(CpackError, match=said):
        lock(index_with(**options), ["source"], store)


def test_a_source_that_gives_another_package_is_refused(store: Store) -> None:
    index = Index()
    index.add_sdist("source", "1.0", sdist(source_files("evil", "1.0"), "source-1.0"))
    with pytest.raises(CpackError, match="another package"):
        lock(index, ["source"], store)


def tarred(*members: tuple[str, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        tarred(("../evil", tarfile.REGTYPE, "")),
        tarred(("/tmp/evil", tarfile.REGTYPE, "")),
        tarred(("source-1.0/../../evil", tarfile.REGTYPE, "")),
        tarred(("source-1.0/a", tarfile.SYMTYPE, "/etc/passwd")),
        tarred(("source-1.0/a", tarfile.SYMTYPE, "../../outside")),
        tarred(("source-1.0/a", tarfile.LNKTYPE, "/etc/passwd")),
        tarred(("source-1.0/a", tarfile.SYMTYPE, "b"), ("source-1.0/a/c", tarfile.REGTYPE, "")),
        tarred(("source-1.0/a", tarfile.CHRTYPE, "")),
    ],
    ids=["above", "absolute", "above-within", "link-out", "link-above", "hard-link-out", "through-a-link", "device"],
)
def test_a_source_archive_that_leaves_its_folder_is_refused(data: bytes, store: Store) -> None:
    index = Index()
    index.add_sdist("source", "1.0", data)
    with pytest.raises(UnsafeInput, match=r"source-1\.0\.tar\.gz"):
        lock(index, ["source"], store)


def test_a_source_archive_that_unpacks_to_too_much_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sourcetree, "_UNPACKED", 10_000)
    index = Index()
    index.add_sdist("source", "1.0", sdist({"setup.py": "#" * 20_000}, "source-1.0"))
    with pytest.raises(UnsafeInput, match="unpacks to more"):
        lock(index, ["source"], store)


def test_a_source_archive_that_is_none_is_told(store: Store) -> None:
    index = Index()
    index.add_sdist("source", "1.0", b"not an archive")
    with pytest.raises(CpackError, match=r"source-1\.0\.tar\.gz cannot be unpacked"):
        lock(index, ["source"], store)
