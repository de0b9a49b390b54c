"""``install.py`` runs for whoever trusts it, once; what it left is in the lock by hash and made sure of by all who use
it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import BadSettings, CpackError, HashMismatch, NeedsTrust, ToolMissing, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Offline, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.building import Consent
from cpack_build.lock.captured import Captured, lock_local
from cpack_build.lock.installed import LeftFile, keep_tree
from cpack_build.lock.installing import Outcome, install, require_alike, scripts_of
from cpack_build.lock.nodes import open_tree
from cpack_build.lock.schema import Deb, Installed, LocalTree, Lock, NodeTree, PythonEnvironment
from cpack_build.oci import tar
from cpack_build.progress import Progress
from tests.lock.packs import FakePack
from tests.lock.test_nodes import World
from tests.lock.test_preflight import lock as plain_lock

NOWHERE = Sources(Mirrors(), Offline())
SCRIPT = b"import subprocess\nsubprocess.run(['make'])\n"


@dataclass
class FakeInstaller:
    """Leaves *files* in each node, *models* below ComfyUI and *packages*, and counts."""

    files: Mapping[str, bytes] = field(default_factory=lambda: {"made.so": b"elf"})
    models: Mapping[str, bytes] = field(default_factory=dict)
    packages: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    network: str = "none"
    runs: list[str] = field(default_factory=list)

    def built(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("nothing is built here")

    def apt(self, *arguments: Any) -> Any:
        raise AssertionError("nothing is asked of apt here")

    def installed(self, lock: Lock, pin: NodeTree, pack: Captured | None, out: Path, *, progress: Progress) -> Outcome:
        self.runs.append(pin.name)

        def left(files: Mapping[str, bytes]) -> list[LeftFile]:
            kept = []
            for number, (path, data) in enumerate(files.items()):
                place = out / f"{len(files)}-{number}-{hashlib.sha256(data).hexdigest()}"
                place.write_bytes(data)
                kept.append(LeftFile(path, place, is_executable=path.endswith(".so")))
            return kept

        links = [LeftFile(path, None, target=target) for path, target in self.links.items()]
        return Outcome([*left({"install.py": SCRIPT, **self.files}), *links], left(self.models), self.packages)


@dataclass
class Room:
    """A lock with two local nodes, and what they are made of."""

    lock: Lock
    pack: FakePack
    store: Store

    def installed(
        self,
        installer: FakeInstaller | None,
        *names: str,
        trust: Consent = True,
        again: Callable[[Sequence[str]], PythonEnvironment] | None = None,
        pickles: str = "allow",
    ) -> Lock:
        scripts = scripts_of(names, self.lock.custom_nodes, self.pack, store=self.store, sources=NOWHERE)
        return install(
            self.lock, scripts, pack=self.pack, installer=installer, trust=trust, again=again or _nobody,
            pickles=pickles, store=self.store,
        )  # fmt: skip


def _nobody(more: Sequence[str]) -> PythonEnvironment:
    raise AssertionError("no package is asked for")


@pytest.fixture
def room(tmp_path: Path, store: Store) -> Room:
    files = {f"nodes/{name}/install.py": SCRIPT for name in ("one", "two")}
    pack = FakePack("1" * 64, World(tmp_path).snapshot(), {**files, "nodes/bare/a.py": b"", "nodes/x.py": b""})
    pins = [lock_local(name, "folder", pack, store=store) for name in ("bare", "one", "two")]
    pins.append(lock_local("x.py", "file", pack, store=store))
    return Room(plain_lock(tmp_path, "https://x.example", local_nodes=tuple(pins)), pack, store)


def test_what_a_script_leaves_is_the_node_s_tree_from_then_on(room: Room, tmp_path: Path) -> None:
    lock = room.installed(FakeInstaller(links={"lib.so": "made.so"}), "one")
    _, one, two, _ = lock.local_nodes
    assert two.installed is None
    assert one.installed is not None
    assert one.installed.script_sha256 == hashlib.sha256(SCRIPT).hexdigest()
    assert one.installed.from_tree_sha256 == room.lock.local_nodes[1].tree_sha256 != one.tree_sha256
    tree = open_tree(one, None, store=room.store, sources=NOWHERE)
    found = {file.path: (file.mode, tree.read(file.oid)) for file in tree.files()}
    assert found == {
        "install.py": ("100644", SCRIPT), "lib.so": ("120000", b"made.so"), "made.so": ("100755", b"elf")
    }  # fmt: skip
    assert Lock.model_validate_json(lock.to_bytes()) == lock
    other = Store(tmp_path / "elsewhere")
    with pytest.raises(Unresolvable, match=r"one is as its install.py left it") as caught:
        open_tree(one, room.pack, store=other, sources=NOWHERE)
    assert "bundle" in str(caught.value.hint)
    blob = room.store.find(one.installed.sha256)
    assert blob is not None
    other.put([blob.path.read_bytes()], what="the tar")
    assert open_tree(one, None, store=other, sources=NOWHERE).tree_digest() == one.tree_sha256


def test_nothing_runs_without_trust_and_what_would_is_shown(room: Room) -> None:
    installer = FakeInstaller(network="host")
    with pytest.raises(NeedsTrust) as caught:
        room.installed(installer, "one", "two", trust=False)
    assert installer.runs == []
    assert [run.partition(",")[0] for run in caught.value.runs] == ["install.py of one", "install.py of two"]
    assert "subprocess.run (line 2)" in caught.value.runs[0]
    assert "the network 'host'" in caught.value.runs[0]


def test_what_ran_once_is_remembered_and_needs_neither_trust_nor_a_builder(room: Room) -> None:
    first = room.installed(FakeInstaller(), "one")
    assert room.installed(None, "one", trust=False) == first
    room.lock = room.lock.model_copy(update={"python": PythonEnvironment(pylock="", pylock_sha256="b" * 64)})
    with pytest.raises(ToolMissing, match=r"install.py of one runs on a builder only"):
        room.installed(None, "one")


def test_what_ran_on_other_ground_or_is_to_be_renewed_runs_again(room: Room) -> None:
    room.installed(FakeInstaller(), "one")
    wider = FakeInstaller(network="host")
    room.installed(wider, "one")
    assert wider.runs == ["one"], "it may get now what it did without"
    narrower = FakeInstaller()
    room.installed(narrower, "one")
    assert narrower.runs == []
    deb = Deb(name="gcc", version="1", architecture="amd64", source="gcc", url="https://x.example/a.deb",
              sha256="c" * 64, size=1)  # fmt: skip
    room.lock = room.lock.model_copy(update={"system": (*room.lock.system, deb)})
    room.installed(narrower, "one")
    assert narrower.runs == ["one"]
    scripts = scripts_of(["one"], room.lock.custom_nodes, room.pack, store=room.store, sources=NOWHERE)
    install(
        room.lock, scripts, pack=room.pack, installer=narrower, trust=True, again=_nobody, pickles="allow", anew=True,
        store=room.store,
    )  # fmt: skip
    assert narrower.runs == ["one", "one"]


@pytest.mark.parametrize(("name", "words"), [("none", "no such"), ("bare", "no install.py"), ("x.py", "no such")])
def test_a_name_without_a_script_is_told(room: Room, name: str, words: str) -> None:
    with pytest.raises(BadSettings, match=f"{name}.*{words}"):
        room.installed(FakeInstaller(), name)


def test_models_are_pinned_and_a_pickle_is_refused_where_the_pack_s_would_be(room: Room) -> None:
    lock = room.installed(FakeInstaller(models={"models/a/m.safetensors": b"{}"}), "one")
    (model,) = [model for model in lock.models if model.path == "models/a/m.safetensors"]
    assert room.store.find(model.sha256) is not None
    assert (model.size, model.sources) == (2, ())
    with pytest.raises(UnsafeInput, match=r"m\.ckpt"):
        room.installed(FakeInstaller(models={"models/a/m.ckpt": b"{}"}), "two", pickles="refuse")


def test_two_scripts_that_fetch_other_models_for_one_path_are_named(room: Room) -> None:
    room.installed(FakeInstaller(models={"models/m.pt": b"1"}), "one")
    with pytest.raises(Unresolvable, match=r"install.py of two fetches models/m.pt"):
        room.installed(FakeInstaller(models={"models/m.pt": b"2"}), "one", "two")


def test_packages_are_resolved_again_and_two_versions_are_named(room: Room) -> None:
    asked: list[Sequence[str]] = []
    resolved = PythonEnvironment(pylock="", pylock_sha256="c" * 64)

    def again(more: Sequence[str]) -> PythonEnvironment:
        asked.append(more)
        return resolved

    lock = room.installed(FakeInstaller(packages=["tiny==1"]), "one", again=again)
    assert (lock.python, asked) == (resolved, [["tiny==1"]])

    def fails(more: Sequence[str]) -> PythonEnvironment:
        raise Unresolvable("no tiny.")

    with pytest.raises(CpackError, match=r"What install.py of one installs cannot be pinned: no tiny"):
        room.installed(None, "one", again=fails)
    with pytest.raises(Unresolvable, match=r"install.py of two installs tiny==2, and that of one tiny==1"):
        room.installed(FakeInstaller(packages=["tiny==2"]), "one", "two", again=again)


def test_a_yes_is_for_what_was_shown_and_a_build_that_comes_of_it_is_asked_for_without_a_second_run(room: Room) -> None:
    installer = FakeInstaller(packages=["tiny==1"])
    with pytest.raises(NeedsTrust) as shown:
        room.installed(installer, "one", trust=False)
    agreed = frozenset(shown.value.runs)
    with pytest.raises(NeedsTrust, match=r"install\.py of two"):
        room.installed(installer, "one", "two", trust=agreed)
    with pytest.raises(NeedsTrust, match=r"install\.py of one"):
        room.installed(FakeInstaller(network="host"), "one", trust=agreed)
    assert installer.runs == []

    def builds(more: Sequence[str]) -> PythonEnvironment:
        raise NeedsTrust(["tiny from https://x.example/tiny-1.tar.gz, built by setuptools"])

    with pytest.raises(NeedsTrust, match=r"What install.py of one installs cannot be pinned(.|\n)*built by setuptools"):
        room.installed(installer, "one", trust=agreed, again=builds)
    lock = room.installed(
        installer, "one", trust=False, again=lambda more: PythonEnvironment(pylock="", pylock_sha256="c" * 64)
    )
    assert (installer.runs, lock.python.pylock_sha256) == (["one"], "c" * 64)


@pytest.mark.parametrize("files", [{"../x": b""}, {"a/.git/config": b""}, {"a\nb": b""}])
def test_a_name_that_leaves_the_node_is_refused(room: Room, files: dict[str, bytes]) -> None:
    with pytest.raises(UnsafeInput):
        room.installed(FakeInstaller(files=files), "one")


def test_a_link_that_leaves_the_node_is_refused(room: Room) -> None:
    with pytest.raises(UnsafeInput, match="leads out"):
        room.installed(FakeInstaller(links={"x": "/etc/passwd"}), "one")


@pytest.mark.parametrize(
    "entries",
    [
        [tar.Entry("../x", "file", content=tar.BytesContent(b""))],
        [tar.Entry("x", "hardlink", target="y")],
        [tar.Entry("x", "directory")],
        [tar.Entry("x", "symlink", target="/etc")],
    ],
)
def test_a_hostile_tar_in_a_lock_is_refused(store: Store, entries: list[tar.Entry]) -> None:
    file = store.put(tar.stream(entries), what="x")
    installed = Installed(
        sha256=file.sha256, size=1, script_sha256="a" * 64, from_tree_sha256="a" * 64, platform="linux/amd64"
    )
    pin = LocalTree(name="Node", tree_sha256="a" * 64, installed=installed)
    with pytest.raises(UnsafeInput):
        open_tree(pin, None, store=store, sources=NOWHERE)


def test_another_tree_than_the_lock_s_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    file, _ = keep_tree("Node", [LeftFile("f", tmp_path / "f")], store=store)
    installed = Installed(
        sha256=file.sha256, size=1, script_sha256="a" * 64, from_tree_sha256="a" * 64, platform="linux/amd64"
    )
    with pytest.raises(HashMismatch, match="Node, installed"):
        open_tree(LocalTree(name="Node", tree_sha256="a" * 64, installed=installed), None, store=store, sources=NOWHERE)


def test_platforms_whose_scripts_leave_other_files_share_no_lock(room: Room) -> None:
    one = room.installed(FakeInstaller(), "one")
    room.lock = room.lock.model_copy(update={"platform": "linux/arm64"})
    alike = room.installed(FakeInstaller(), "one")
    require_alike([one, alike])
    comfyui = room.lock.comfyui.model_copy(update={"tree_sha256": "d" * 64})
    room.lock = room.lock.model_copy(update={"comfyui": comfyui})
    with pytest.raises(Unresolvable, match=r"install.py of one leaves other files on linux/amd64 than on linux/arm64"):
        require_alike([one, room.installed(FakeInstaller(files={"made.so": b"arm"}), "one")])


def test_no_script_needs_nobody(room: Room) -> None:
    assert room.installed(None, trust=False) == room.lock
