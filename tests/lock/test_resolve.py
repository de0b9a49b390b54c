"""A pack becomes the same lock everywhere, or is told everything that is missing.

The packs are the test's own, on repositories and models that it makes; system packages and the service's wheels are
really resolved, so these tests need apt and the package registries.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpack_build.cpack.schema import GitPin, ModelEntry, NodePin, Snapshot
from cpack_build.cpack.settings import Settings
from cpack_build.errors import BadInput, BadSettings, HashMismatch, NetworkError, StaleLock, Unresolvable, UnsafeInput
from cpack_build.fetch.http import RequestsTransport, Response, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.freshness import check_fresh
from cpack_build.lock.interpreter import is_vouched
from cpack_build.lock.resolve import resolve, resolve_all, this_platform
from cpack_build.lock.schema import DebInterpreter, Lock, Platform, locks_to_bytes, read_lock, read_locks
from cpack_build.lock.wheels import wheels_of
from tests import need
from tests.fetch.repositories import make_repository
from tests.lock.packs import FakePack

pytestmark = pytest.mark.network
COMFYUI = "https://github.com/comfyanonymous/ComfyUI.git"
NODE = "https://code.example/team/node.git"
DATA = b"weights" * 1000

RUN = """
import os, sys
from pathlib import Path
from tests.lock.test_resolve import World
os.umask(int(sys.argv[2], 8))
sys.stdout.buffer.write(World.load(Path(sys.argv[1])).lock(Path(sys.argv[3])).to_bytes())
"""


class World:
    """A pack, and the places that have what it names."""

    def __init__(self, root: Path, comfyui: str, node: str) -> None:
        self.root = root
        self.snapshot = Snapshot(
            python="3.11",
            comfyui=GitPin(url=COMFYUI, commit=comfyui),
            nodes=(NodePin(name="node", url=NODE, commit=node),),
            requirements=("idna==3.10", "six"),
            models=(
                ModelEntry(filename="models/a/x.bin", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest()),
                ModelEntry(filename="models/a/unused.bin", sha256="0" * 64, disabled=True),
            ),
        )
        self.pack = FakePack("1" * 64, self.snapshot)
        mirrors = {"https://github.com/Comfy-Org/": f"{root}/git/", "https://code.example/team/": f"{root}/git/"}
        self.settings = Settings(platform="linux/amd64", mirrors=mirrors, models=(str(root / "models"),))

    @classmethod
    def make(cls, root: Path) -> World:
        comfyui = make_repository(root / "git" / "ComfyUI", {"main.py": "print()\n"}, date=1_600_000_000)
        node = make_repository(root / "git" / "node", {"__init__.py": "", "a/b.py": "x = 1\n"}, date=1_650_000_000)
        (root / "models" / "a").mkdir(parents=True)
        (root / "models" / "a" / "x.bin").write_bytes(DATA)
        (root / "commits.json").write_text(json.dumps([comfyui, node]))
        return cls.load(root)

    @classmethod
    def load(cls, root: Path) -> World:
        return cls(root, *json.loads((root / "commits.json").read_text()))

    def lock(self, store: Path, **changes: object) -> Lock:
        settings = Settings.model_validate({**self.settings.model_dump(exclude_unset=True), **changes})
        sources = Sources(Mirrors(settings.mirrors))
        return resolve(self.pack, settings=settings, store=Store(store), sources=sources)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    need.tool("apt-get")
    need.tool("git")
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def locked(world: World) -> Lock:
    try:
        return world.lock(world.root / "store")
    except NetworkError as error:
        need.missing(f"the package registries ({error})")


def test_everything_that_enters_the_image_is_pinned(world: World, locked: Lock) -> None:
    assert locked.source_date_epoch == 1_650_000_000
    assert [tree.name for tree in (locked.comfyui, *locked.nodes)] == ["ComfyUI", "node"]
    assert [(model.path, model.size) for model in locked.models] == [("models/a/x.bin", len(DATA))]
    assert {"libc6", "libgl1", "ca-certificates", "dash"} <= {deb.name for deb in locked.system}
    assert isinstance(locked.interpreter, DebInterpreter)
    assert locked.interpreter.path == "/usr/bin/python3.11"
    assert "python3.11-minimal" in {deb.name for deb in locked.interpreter.packages}
    assert not {deb.name for deb in locked.interpreter.packages} & {deb.name for deb in locked.system}
    assert 'name = "idna"\nversion = "3.10"' in locked.python.pylock
    assert 'name = "bentoml"' in locked.service.pylock
    assert read_lock(locked.to_bytes(), name="lock") == locked


def test_the_lock_holds_no_place_of_this_machine(world: World, locked: Lock) -> None:
    text = locked.to_bytes().decode()
    for place in (str(world.root), str(Path.home()), str(Path.cwd())):
        assert place not in text


def test_two_places_umasks_time_zones_and_hash_seeds_give_one_lock(world: World, locked: Lock, tmp_path: Path) -> None:
    for number, (umask, zone, locale) in enumerate((("077", "Asia/Kathmandu", "C"), ("000", "UTC", "C.UTF-8"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        environment = {
            **os.environ, "TZ": zone, "LC_ALL": locale, "PYTHONHASHSEED": str(number + 1),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        command = [sys.executable, "-c", RUN, str(world.root), umask, str(folder / "store")]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout == locked.to_bytes()


def test_a_fresh_lock_is_fresh_and_a_stale_one_says_why(world: World, locked: Lock) -> None:
    check_fresh(locked, world.pack, world.settings)
    moved = world.settings.model_copy(update={"models": ("/elsewhere",), "mirrors": {}})
    check_fresh(locked, world.pack, moved)

    with pytest.raises(StaleLock, match="the pack has changed"):
        check_fresh(locked, FakePack("2" * 64, world.snapshot), world.settings)
    with pytest.raises(StaleLock, match="the settings"):
        check_fresh(locked, world.pack, world.settings.model_copy(update={"environment": {"A": "b"}}))
    with pytest.raises(UnsafeInput, match=r"refused.*models/a/x\.bin"):
        check_fresh(locked, world.pack, world.settings.model_copy(update={"pickles": "refuse"}))
    other = locked.service_code.model_copy(update={"tree_sha256": "0" * 64})
    with pytest.raises(StaleLock, match="another cpack-build"):
        check_fresh(locked.model_copy(update={"service_code": other}), world.pack, world.settings)


def test_a_pickled_model_is_refused_before_anything_is_asked(world: World, tmp_path: Path) -> None:
    with pytest.raises(UnsafeInput, match=r"models/a/x\.bin") as refused:
        world.lock(tmp_path / "store", pickles="refuse")
    assert "unused.bin" not in str(refused.value)  # which is not enabled
    assert not (tmp_path / "store").exists()


def test_only_a_python_that_may_run_here_is_vouched_for(world: World, locked: Lock, tmp_path: Path) -> None:
    """A pack's own choice of one is locked without bytecode; another lock must not get it started by that."""
    assert is_vouched(locked, store=Store(world.root / "store"))
    plain = world.lock(tmp_path / "store", bytecode="none")
    assert plain.bytecode == "none"
    assert not is_vouched(plain, store=Store(tmp_path / "store"))


def test_all_that_is_missing_is_told_at_once(world: World, locked: Lock) -> None:
    snapshot = world.snapshot.model_copy(
        update={
            "nodes": (NodePin(name="node", url=NODE, commit="1" * 40),),
            "models": (ModelEntry(filename="models/a/gone.bin", sha256="1" * 64),),
            "requirements": ("this-package-does-not-exist-anywhere-at-all==1.0",),
        }
    )
    settings = world.settings.model_copy(
        update={"system": world.settings.system.model_copy(update={"packages": ("no-such-package-x",)})}
    )
    with pytest.raises(Unresolvable) as caught:
        resolve(
            FakePack("1" * 64, snapshot), settings=settings, store=Store(world.root / "store"),
            sources=Sources(Mirrors(settings.mirrors)),
        )  # fmt: skip
    told = str(caught.value)
    assert caught.value.exit_code == 4
    for name in ("code.example/team/node", "models/a/gone.bin", "this-package-does-not-exist", "no-such-package-x"):
        assert name in told


def test_a_wrong_model_comes_before_what_is_missing(world: World, locked: Lock, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(DATA[::-1])
    nodes = (NodePin(name="node", url=NODE, commit="1" * 40),)
    settings = world.settings.model_copy(update={"models": (str(tmp_path),)})
    with pytest.raises(HashMismatch, match=r"x\.bin"):
        resolve(
            FakePack("1" * 64, world.snapshot.model_copy(update={"nodes": nodes})),
            settings=settings, store=Store(tmp_path / "store"), sources=Sources(Mirrors(settings.mirrors)),
        )  # fmt: skip


def test_a_python_that_cannot_be_had_says_what_to_do(world: World, locked: Lock) -> None:
    pack = FakePack("1" * 64, world.snapshot.model_copy(update={"python": "3.99"}))
    with pytest.raises(Unresolvable, match=r"no python3\.99.*interpreter: \{url"):
        resolve(
            pack, settings=world.settings, store=Store(world.root / "store"),
            sources=Sources(Mirrors(world.settings.mirrors)),
        )  # fmt: skip


def test_a_pack_that_names_no_python_says_how_to_name_one(world: World, tmp_path: Path) -> None:
    pack = FakePack("1" * 64, world.snapshot.model_copy(update={"python": None}))
    with pytest.raises(BadInput, match="which Python") as caught:
        resolve(pack, settings=world.settings, store=Store(tmp_path), sources=Sources(Mirrors(world.settings.mirrors)))
    assert "cpack-build import" in caught.value.hint


def test_scratch_has_no_python_of_its_own(world: World, locked: Lock) -> None:
    with pytest.raises(BadSettings, match="scratch"):
        world.lock(world.root / "store", interpreter="base")


def test_two_platforms_are_locked_together_and_share_what_does_not_depend_on_them(world: World, locked: Lock) -> None:
    store = Store(world.root / "store")

    def both(*platforms: Platform) -> tuple[Lock, ...]:
        settings = world.settings.model_copy(update={"platform": platforms})
        return resolve_all(
            world.pack, platforms, settings=settings, store=store, sources=Sources(Mirrors(settings.mirrors))
        )

    amd64, arm64 = both("linux/arm64", "linux/amd64")
    assert amd64 == locked
    assert {deb.architecture for deb in arm64.system} == {"arm64", "all"}
    assert any("aarch64" in wheel.filename for wheel in wheels_of(arm64.service))
    assert not any("x86_64" in wheel.filename for wheel in wheels_of(arm64.service))
    assert read_locks(locks_to_bytes([amd64, arm64]), name="lock") == (amd64, arm64)
    (alone,) = both("linux/arm64")
    # an interpreter built from the same source compiles for both; alone, the foreign one cannot run here
    foreign = alone if this_platform() == "linux/amd64" else both("linux/amd64")[0]
    assert (amd64.bytecode, arm64.bytecode, foreign.bytecode) == ("compiled", "compiled", "none")


class _OnceDeaf(RequestsTransport):
    """A model's host that does not hear the first question."""

    asked = 0

    @contextmanager
    def head(self, url: str, *, headers: Mapping[str, str]) -> Iterator[Response]:
        assert url == "https://models.example/x.bin"
        self.asked += 1
        if self.asked == 1:
            raise ConnectionError("nobody is there")
        yield Response(200, {"content-length": str(len(DATA))}, iter(()))


def test_a_host_that_answers_for_one_platform_alone_leaves_one_lock(world: World, locked: Lock, tmp_path: Path) -> None:
    model = world.snapshot.models[0].model_copy(update={"urls": ("https://models.example/x.bin",)})
    pack = FakePack("2" * 64, world.snapshot.model_copy(update={"models": (model,)}))
    platforms: tuple[Platform, ...] = ("linux/amd64", "linux/arm64")
    settings = world.settings.model_copy(update={"platform": platforms})
    sources = Sources(Mirrors(settings.mirrors), _OnceDeaf())
    locks = resolve_all(pack, platforms, settings=settings, store=Store(world.root / "store"), sources=sources)
    assert [lock.models[0].access for lock in locks] == ["public", "public"]
    assert read_locks(locks_to_bytes(locks), name="lock") == locks
