"""Hashing begins before the program is imported; what the ordinary path finds is the same with it, without it, and
whatever the lock, the settings and the files do meanwhile."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store, StoredFile, stamp_of
from cpack_build.lock.headstart import begin
from cpack_build.lock.models import fetch_model
from cpack_build.lock.proof import Pin, candidates, prove
from cpack_build.lock.schema import Model
from cpack_build.oci.modellayer import hash_model
from cpack_build.progress import SILENT


@dataclass
class Scene:
    """A folder with models, and a lock and settings that name them."""

    place: Path
    models: list[Model] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.place / "models"

    @property
    def lock(self) -> Path:
        return self.place / "x.cpack.lock"

    @property
    def settings(self) -> Path:
        return self.place / "x.cpack.yaml"

    def store(self) -> Store:
        return Store(self.place / "store")

    def add(self, name: str, data: bytes) -> Model:
        path = self.folder / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        digest = hash_model(path, sha256, len(data))
        self.models.append(
            Model(path=f"models/loras/{name}", sha256=sha256, size=len(data), layer_digest=digest, sources=())
        )
        self.lock.write_text(json.dumps({"models": [model.model_dump() for model in self.models]}))
        return self.models[-1]

    def begun(self, *, store: Store | None = None) -> Store:
        store = store or self.store()
        begin(self.lock, self.settings, folders=[str(self.folder)], store=store)
        return store


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is begun"),
    # From 3.12 on Python says of every fork beside threads what `begin` heeds, which this module has it pass over.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # the runner's own thread is no obstacle
    return Scene(tmp_path)


class Said:
    """A hash that has begun, of which only the end is known; *meanwhile* happens while it is waited for."""

    def __init__(self, digest: str | None, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._digest, self._meanwhile = digest, meanwhile

    def digest(self, *, on_read: Callable[[int], object]) -> str | None:
        self._meanwhile()
        on_read(1)
        return self._digest


def file_of(scene: Scene, model: Model) -> StoredFile:
    path = scene.place / model.path
    return StoredFile(path, model.sha256, model.size, stamp_of(path.stat()))


def test_every_model_is_begun_once_and_found_as_it_is_without_that(scene: Scene) -> None:
    models = [scene.add(f"{number}.bin", bytes([number]) * 100_000 * (number + 1)) for number in range(5)]
    store = scene.begun()
    assert [file.sha256 for file in store.begun] == [model.sha256 for model in reversed(models)], "the largest first"
    for model in models:
        read: list[int] = []
        assert store.begun[file_of(scene, model)].digest(on_read=read.append) == model.layer_digest
        assert sum(read) == model.size
    found = [fetch_model(model, folders=[str(scene.folder)], store=store, sources=Sources()) for model in models]
    plain = Store(scene.place / "other")
    assert found == [
        fetch_model(model, folders=[str(scene.folder)], store=plain, sources=Sources()) for model in models
    ]


def test_what_was_begun_is_not_read_again(scene: Scene) -> None:
    """What would be read differs from what is said to have been read, and the latter counts."""
    model = scene.add("a.bin", b"weights" * 1000)
    file = file_of(scene, model)
    for said, is_right in ((model.layer_digest, True), ("sha256:" + "0" * 64, False)):
        store = scene.store()
        store.begun = {file: Said(said)}
        assert prove(model, file, store=store, progress=SILENT) is is_right


def test_what_is_known_is_not_begun(scene: Scene) -> None:
    model = scene.add("a.bin", b"weights" * 1000)
    store = scene.begun()
    fetch_model(model, folders=[str(scene.folder)], store=store, sources=Sources())
    assert not scene.begun(store=Store(scene.place / "store")).begun


def test_a_file_that_changed_since_it_was_begun_is_read_anew(scene: Scene) -> None:
    """Also when it is as long as before: what was begun was another file."""
    model = scene.add("a.bin", b"weights" * 1000)
    store = scene.begun()
    (scene.place / model.path).write_bytes(b"WEIGHTS" * 1000)
    with pytest.raises(HashMismatch):
        fetch_model(model, folders=[str(scene.folder)], store=store, sources=Sources())


def test_a_file_that_changes_while_its_hash_is_waited_for_is_told(scene: Scene) -> None:
    model = scene.add("a.bin", b"weights" * 1000)
    store = scene.store()
    path = scene.place / model.path
    store.begun = {file_of(scene, model): Said(model.layer_digest, lambda: path.write_bytes(b"WEIGHTS" * 1000))}
    with pytest.raises(Unresolvable, match="changed while it was read"):
        fetch_model(model, folders=[str(scene.folder)], store=store, sources=Sources())


def test_a_lock_that_lies_gets_the_same_word_as_without(scene: Scene) -> None:
    model = scene.add("a.bin", b"weights" * 1000)
    other = model.model_copy(update={"layer_digest": "sha256:" + "0" * 64, "sha256": "1" * 64})
    scene.lock.write_text(json.dumps({"models": [other.model_dump()]}))
    said = []
    for store in (scene.begun(), Store(scene.place / "other")):
        with pytest.raises(HashMismatch) as caught:
            fetch_model(other, folders=[str(scene.folder)], store=store, sources=Sources())
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "a.bin" in said[0]


def test_folders_of_the_settings_are_meant_from_where_these_lie(scene: Scene) -> None:
    scene.add("a.bin", b"weights")
    scene.settings.write_text("models: [./models]\n")
    store = scene.store()
    begin(scene.lock, scene.settings, folders=(), store=store)
    assert [file.path.name for file in store.begun] == ["a.bin"]


_PIN = {"path": "models/loras/a.bin", "sha256": "1" * 64, "layer_digest": "sha256:" + "2" * 64, "size": 7}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[" * 100_000,
        "[]",
        "null",
        '{"models": 7}',
        '{"models": [7, null, {}, [[]]]}',
        '{"models": {"path": "x"}}',
        json.dumps({"models": [{**_PIN, "size": "7"}]}),
        json.dumps({"models": [{**_PIN, "size": -7}]}),
        json.dumps({"models": [{**_PIN, "size": 10**30}]}),
        json.dumps({"models": [{**_PIN, "sha256": "../../x"}]}),
        json.dumps({"models": [{**_PIN, "path": "../secret"}]}),
        json.dumps({"models": [{**_PIN, "path": "models/../../secret"}]}),
        json.dumps({"models": [{**_PIN, "path": "/etc/passwd"}]}),
        json.dumps({"models": [{**_PIN, "path": "a\0b"}]}),
        json.dumps({"models": [{**_PIN, "path": "\ud800"}]}),
        json.dumps({"models": [{**_PIN, "path": ["models"]}]}),
    ],
)
def test_a_broken_lock_is_passed_over_and_leads_nowhere(scene: Scene, text: str) -> None:
    scene.folder.mkdir()
    (scene.place / "secret").write_bytes(b"7 bytes")
    scene.lock.write_text(text)
    assert not scene.begun().begun


@pytest.mark.parametrize(
    "text",
    ["[", "7", "models: 7", "models: [7, {}]", "models: [no/folder]", "models: [~nobody/x]", 'models: ["a\\0b"]',
     "models: &a [*a]", "a: !!timestamp x", "a: !!bool foo", 'a: !!int ""'],
)  # fmt: skip
def test_broken_settings_are_passed_over(scene: Scene, text: str) -> None:
    scene.add("a.bin", b"weights")
    scene.settings.write_text(text)
    store = scene.store()
    begin(scene.lock, scene.settings, folders=(), store=store)
    assert not store.begun


def test_a_fifo_or_device_in_a_models_place_is_not_opened(scene: Scene) -> None:
    scene.folder.mkdir()
    (scene.folder / "loras").mkdir()
    os.mkfifo(scene.folder / "loras/a.bin")
    scene.lock.write_text(json.dumps({"models": [{**_PIN, "size": 0}]}))
    assert not scene.begun().begun


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "too large"])
@pytest.mark.parametrize("which", ["lock", "settings"])
def test_a_lock_or_settings_that_are_no_regular_file_are_passed_over(scene: Scene, kind: str, which: str) -> None:
    """In a process of its own with little memory: a FIFO would be waited for without end, and a device read so."""
    scene.add("a.bin", b"weights")
    path = scene.lock if which == "lock" else scene.settings
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(8 << 30)
    program = (
        "import resource, sys; from pathlib import Path; from cpack_build.fetch.store import Store;"
        "from cpack_build.lock.headstart import begin; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "lock, settings, store = map(Path, sys.argv[1:]); store = Store(store);"
        "begin(lock, settings, folders=(), store=store); print(len(store.begun))"
    )
    command = [sys.executable, "-c", program, scene.lock, scene.settings, scene.place / "store"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_lock_behind_a_link_is_a_lock(scene: Scene) -> None:
    scene.add("a.bin", b"weights")
    scene.lock.rename(scene.place / "real.lock")
    scene.lock.symlink_to("real.lock")
    assert len(scene.begun().begun) == 1


def test_nothing_is_begun_beside_other_threads(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.add("a.bin", b"weights")
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not scene.begun().begun


@pytest.mark.parametrize("failing", ["killed", "no process", "no memory"])
def test_where_the_fork_fails_the_hash_is_made_by_who_asks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    models = [scene.add(f"{number}.bin", bytes([number]) * 100_000) for number in range(4)]
    if failing == "no process":

        def no_fork() -> int:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(os, "fork", no_fork)
        store = scene.begun()
    else:

        def fails(*_: object, **__: object) -> str:
            if failing == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError

        with monkeypatch.context() as within:  # the forks have it so for good
            within.setattr("cpack_build.lock.headstart.hash_layer", fails)
            store = scene.begun()
    for model in models:
        read: list[int] = []
        assert store.begun[file_of(scene, model)].digest(on_read=read.append) == model.layer_digest
        assert sum(read) == model.size


def test_a_file_that_is_cut_while_a_fork_hashes_it_ends_the_fork_alone(scene: Scene) -> None:
    """It is mapped where every core has a fork, and what is no longer there is a bus error."""
    small = scene.add("0.bin", b"0" * 100)
    large = [
        scene.add(f"{number}.bin", bytes([number]) * (128 << 20)) for number in range(1, (os.cpu_count() or 1) + 1)
    ]
    store = scene.begun()
    for one in large:
        begun = store.begun[file_of(scene, one)]
        os.truncate(scene.place / one.path, 1)
        assert begun.digest(on_read=lambda length: None) in (None, one.layer_digest), "it may have been done by then"
        with pytest.raises(HashMismatch):
            fetch_model(one, folders=[str(scene.folder)], store=store, sources=Sources())
    assert store.begun[file_of(scene, small)].digest(on_read=lambda length: None) == small.layer_digest


def test_no_fork_is_left_behind(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    forks = []
    fork = os.fork

    def noted() -> int:
        forks.append(fork())
        return forks[-1]

    monkeypatch.setattr(os, "fork", noted)
    model = scene.add("a.bin", b"weights" * 1000)
    scene.begun().begun[file_of(scene, model)].digest(on_read=lambda length: None)
    for thread in threading.enumerate():
        if thread.name == "head start":
            thread.join()
    (child,) = forks
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_forks_end_with_the_program_however_it_ends(scene: Scene, how: signal.Signals) -> None:
    """They hold its standard output, which says that the last of them has ended."""
    path = scene.folder / "loras/a.bin"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    scene.lock.write_text(json.dumps({"models": [{**_PIN, "size": 1 << 40}]}))
    program = (
        "import signal, sys; from pathlib import Path; from cpack_build.fetch.store import Store;"
        "from cpack_build.lock.headstart import begin; lock, settings, folder, store = map(Path, sys.argv[1:]);"
        "signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "store = Store(store); begin(lock, settings, folders=[str(folder)], store=store);"
        "print(len(store.begun), flush=True);"
        "[begun.digest(on_read=lambda length: None) for begun in store.begun.values()]"
    )
    command = [sys.executable, "-c", program, scene.lock, scene.settings, scene.folder, scene.place / "store"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(how)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -how


@pytest.mark.parametrize("begins", [True, False], ids=["begun", "not begun"])
def test_a_candidate_of_another_size_by_now_is_not_the_model(scene: Scene, begins: bool) -> None:
    """Its stat is of before; the next folder is asked."""
    model = scene.add("a.bin", b"weights" * 1000)
    store = scene.begun() if begins else scene.store()
    file = file_of(scene, model)
    if begins:
        store.begun = {file: Said(None)}
    else:
        file.path.write_bytes(b"weights")
    assert prove(model, file, store=store, progress=SILENT) is False


def test_the_next_folder_is_tried_where_a_file_shrinks_while_it_is_looked_at(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scene.add("a.bin", b"weights" * 1000)
    other = scene.place / "other/loras/a.bin"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"weights" * 1000)
    shrinking = scene.place / model.path

    def shrunk(model: Pin, *, folders: Sequence[str], store: Store) -> Iterator[StoredFile]:
        for file in candidates(model, folders=folders, store=store):
            if file.path == shrinking:
                shrinking.write_bytes(b"weights")
            yield file

    monkeypatch.setattr("cpack_build.lock.models.candidates", shrunk)
    folders = [str(scene.folder), str(scene.place / "other")]
    assert fetch_model(model, folders=folders, store=scene.store(), sources=Sources()).path == other


def test_a_store_that_cannot_be_used_is_left_to_the_ordinary_path(scene: Scene) -> None:
    scene.add("a.bin", b"weights")
    (scene.place / "store").write_text("a file")
    assert not scene.begun().begun


def test_a_program_that_ends_early_does_not_wait_for_it(scene: Scene) -> None:
    """A hole of 64 GiB takes half a minute to hash: whoever made a mistake is told at once."""
    path = scene.folder / "loras/a.bin"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(64 << 30)
    scene.lock.write_text(json.dumps({"models": [{**_PIN, "size": 64 << 30}]}))
    program = (
        "import sys; from pathlib import Path; from cpack_build.fetch.store import Store;"
        "from cpack_build.lock.headstart import begin; lock, settings, folder, store = map(Path, sys.argv[1:]);"
        "store = Store(store); begin(lock, settings, folders=[str(folder)], store=store); print(len(store.begun))"
    )
    command = [sys.executable, "-c", program, scene.lock, scene.settings, scene.folder, scene.place / "store"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_what_begins_early_needs_nothing_heavy() -> None:
    program = (
        "import sys; import cpack_build.lock.headstart;"
        "print(sorted({'pydantic', 'requests', 'rich', 'packaging', 'ssl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
