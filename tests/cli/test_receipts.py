"""The same command line with nothing changed is answered from a receipt; with anything changed, it never is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpack_build.cli.delivery import deliver
from cpack_build.cli.receipt import Recorder
from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.settings import settings_for
from cpack_build.cpack.writer import write_pack
from cpack_build.fetch import receipts
from cpack_build.fetch.housekeeping import collect, holdings
from cpack_build.fetch.store import Store
from cpack_build.image.build import Materials
from cpack_build.lock.schema import Inputs
from cpack_build.oci.engines import DockerEngine
from cpack_build.oci.reference import parse_reference
from tests.cli.calling import Caller
from tests.engines import Docker
from tests.image.small import CODE, DEBS, make_parts
from tests.oci.images import image_of, text_layer

WORKFLOW = {
    "1": {"class_type": "CPackInputInt", "inputs": {"value": 64}, "_meta": {"title": "size"}},
    "2": {"class_type": "CPackOutputImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "picture"}},
}


class Scene:
    """A pack, its lock and its parts in *folder*, and the command that builds it into a layout."""

    def __init__(self, folder: Path, call: Caller) -> None:
        self.folder, self.call = folder, call
        self.layout = folder / "image.oci"
        lock = make_parts(folder, models=[300_000, 70_000])
        self.pack, settings = folder / "x.cpack.zip", folder / "x.cpack.yaml"
        nodes = {f"{CODE}node": {"hash": lock.nodes[0].commit, "disabled": False}}  # type: ignore[union-attr]
        snapshot = {
            "comfyui": lock.comfyui.commit, "git_custom_nodes": nodes, "cnr_custom_nodes": {},  # type: ignore[union-attr]
            "file_custom_nodes": [], "pips": {}, "python": "3.11", "models": [],
        }  # fmt: skip
        write_pack(self.pack, snapshot_document=snapshot, workflow_api=WORKFLOW, workflow={}, inputs={})
        document = {
            "base": f"oci:{folder}/base.oci", "models": [f"{folder}/models"],
            "mirrors": {CODE: f"{folder}/", DEBS: f"{folder}/"}, "python": {"find_links": [f"{folder}/wheels"]},
        }  # fmt: skip
        settings.write_text(json.dumps(document))
        settings_of_it = settings_for(self.pack, inside=None)
        inputs = Inputs(pack=read_pack(self.pack).content_sha256, settings=settings_of_it.digest())
        self.lock = folder / "x.cpack.lock"
        self.lock.write_bytes(lock.model_copy(update={"inputs": inputs}).to_bytes())
        self.words = ["image", str(self.pack), "--output", f"oci:{self.layout}"]

    def build(self, *words: str) -> str:
        done = self.call(*(words or self.words))
        assert done.code == 0, done.err
        return done.out

    def said(self) -> str | None:
        """What the receipt says, if it still holds."""
        found = receipts.replay(self.words)
        return None if found is None else str(found["stdout"])

    @property
    def model(self) -> Path:
        return self.folder / "models/loras/000.safetensors"


@pytest.fixture
def scene(call: Caller, tmp_path: Path) -> Scene:
    return Scene(tmp_path, call)


def test_the_second_time_the_program_says_the_same_and_is_not_even_imported(scene: Scene) -> None:
    assert scene.said() is None
    first = scene.build()
    program = (
        "import sys; from cpack_build.__main__ import main; main();"
        "print(sorted({'click', 'pydantic', 'sqlite3', 'cpack_build.cli'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *scene.words]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{first}[]\n"
    shutil.rmtree(scene.layout)
    # Without the layout it is the whole program, which makes it once more.
    command = [sys.executable, "-m", "cpack_build", *scene.words]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == first
    assert (scene.layout / "index.json").is_file()
    assert scene.said() == first


def test_json_and_notes_come_again_as_they_were(scene: Scene) -> None:
    scene.words.append("--json")
    first = scene.build()
    assert json.loads(scene.said() or "") == json.loads(first)


def rewrite(path: Path) -> None:
    """The same bytes at the same times in another file."""
    status, data = path.stat(), path.read_bytes()
    aside = path.with_name("aside")
    aside.write_bytes(data)
    os.utime(aside, ns=(status.st_atime_ns, status.st_mtime_ns))
    aside.replace(path)


def in_place(path: Path) -> None:
    """One bit less in a file of the same size and mtime."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def blob(scene: Scene) -> Path:
    return max((scene.layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)


CHANGES: dict[str, Callable[[Scene], object]] = {
    "a blob of the layout is gone": lambda scene: blob(scene).unlink(),
    "a blob of the layout is another": lambda scene: in_place(blob(scene)),
    "a blob of the layout is empty": lambda scene: os.truncate(blob(scene), 0),
    "the layout's index is another": lambda scene: (scene.layout / "index.json").write_text("{}"),
    "the layout is gone": lambda scene: shutil.rmtree(scene.layout),
    "a model was written again": lambda scene: rewrite(scene.model),
    "a bit of a model flipped": lambda scene: in_place(scene.model),
    "a model is gone": lambda scene: scene.model.unlink(),
    "a wheel is gone": lambda scene: next((scene.folder / "wheels").iterdir()).unlink(),
    "a package is another": lambda scene: in_place(scene.folder / "tool.deb"),
    "the base is gone": lambda scene: shutil.rmtree(scene.folder / "base.oci"),
    "the pack was written again": lambda scene: rewrite(scene.pack),
    "the lock was written again": lambda scene: rewrite(scene.lock),
    "the lock is gone": lambda scene: scene.lock.unlink(),
    "the settings changed": lambda scene: scene.pack.with_name("x.cpack.yaml").write_text("{}"),
    "the settings are gone": lambda scene: scene.pack.with_name("x.cpack.yaml").unlink(),
    "the repositories are gone": lambda scene: shutil.rmtree(scene.folder / "store/git"),
    "another folder of stores": lambda scene: (scene.folder / "store/roots").write_text("/srv/store\n"),
    "another word": lambda scene: scene.words.append("--frozen"),
    "the receipt is damaged": lambda scene: in_place(next((scene.folder / "store/receipts").iterdir())),
    "the receipt is cut short": lambda scene: os.truncate(next((scene.folder / "store/receipts").iterdir()), 70),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changed_the_whole_program_runs(scene: Scene, change: str) -> None:
    scene.build()
    assert scene.said() is not None
    CHANGES[change](scene)
    assert scene.said() is None


def test_a_model_that_changed_in_place_is_refused_by_its_hash(scene: Scene) -> None:
    scene.build()
    in_place(scene.model)
    done = scene.call(*scene.words)
    assert (done.code, "000.safetensors" in done.err) == (5, True), done.err
    assert scene.said() is None


def test_another_folder_store_or_program_has_no_receipt(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.build()
    with monkeypatch.context() as changed:
        changed.chdir(scene.folder / "wheels")
        assert scene.said() is None
    with monkeypatch.context() as changed:
        changed.setenv("CPACK_HOME", str(scene.folder / "other"))
        assert scene.said() is None
    with monkeypatch.context() as changed:
        changed.setattr(receipts, "_program", lambda: iter([("other.py", 1, 1)]))
        assert scene.said() is None
    assert scene.said() is not None


SOURCES: dict[str, Callable[[Scene], Path]] = {
    "the base's index": lambda scene: scene.folder / "base.oci/index.json",
    "a blob of the base": lambda scene: next((scene.folder / "base.oci/blobs/sha256").iterdir()),
    "a repository": lambda scene: next((scene.folder / "store/git").glob("*/HEAD")),
}


@pytest.mark.parametrize("source", SOURCES)
def test_what_changes_while_parts_are_gathered_leaves_a_receipt_that_never_holds(
    scene: Scene, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of = Recorder.made_of

    def later(recorder: Recorder, materials: Materials) -> None:
        rewrite(SOURCES[source](scene))
        made_of(recorder, materials)

    monkeypatch.setattr(Recorder, "made_of", later)
    scene.build()
    assert scene.said() is None


def retag(scene: Scene) -> None:
    index = scene.layout / "index.json"
    document = json.loads(index.read_bytes())
    document["manifests"][0]["digest"] = f"sha256:{'0' * 64}"
    index.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change", [retag, lambda scene: blob(scene).unlink(), lambda scene: os.truncate(blob(scene), 0)]
)
def test_what_changes_after_it_was_delivered_has_no_receipt(
    scene: Scene, change: Callable[[Scene], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def and_then(*given: Any, **named: Any) -> None:
        deliver(*given, **named)
        change(scene)

    monkeypatch.setattr("cpack_build.cli.delivery.deliver", and_then)
    scene.build()
    assert scene.said() is None


def test_two_names_in_one_layout_have_a_receipt(scene: Scene) -> None:
    scene.words[-1:] = [f"oci:{scene.layout}:one", "--output", f"oci:{scene.layout}:two"]
    assert scene.build() == scene.said()


def test_a_folder_that_was_removed_is_no_bug_of_ours(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert scene.said() is None
    scene.words.append("--dry-run")
    scene.build()


def test_a_link_to_nothing_in_the_program_is_a_file_like_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fetch").mkdir()
    monkeypatch.setattr(receipts, "__file__", str(tmp_path / "fetch/receipts.py"))
    before = receipts.key_of(["image"])
    (tmp_path / ".#edited.py").symlink_to("me@host.1234")
    assert receipts.key_of(["image"]) != before


def test_what_a_receipt_cannot_stand_for_has_none(scene: Scene) -> None:
    scene.words += ["--dry-run"]
    scene.build()
    assert scene.said() is None
    scene.words[-1:] = ["--progress", "json"]
    scene.build()
    assert scene.said() is None
    assert list((scene.folder / "store").glob("receipts/*")) == []


def test_a_receipt_counts_as_use_and_goes_when_it_holds_no_more(scene: Scene) -> None:
    scene.build()
    store = Store(scene.folder / "store")
    later = holdings(store).entries[0].used or 0
    long_ago = later - 100 * 86_400
    for path in (store.root / "leases").iterdir():
        os.utime(path, (long_ago, long_ago))
    for path in (store.root / "blobs/sha256").iterdir():
        os.utime(path, (long_ago, long_ago))
    store.memo.write("DELETE FROM uses")
    [receipt] = (store.root / "receipts").iterdir()
    used = json.loads(receipt.read_bytes().partition(b"\n")[2])["used"]
    assert used
    receipts._use(str(store.root), receipt.name, used)  # what a replay does
    assert all((entry.used or 0) >= later for entry in holdings(store).entries if entry.sha256 in used)
    assert collect(store, keep=[], unused_days=30).in_use == 0
    assert receipt.exists()
    shutil.rmtree(scene.layout)
    collect(store, dry_run=True)
    assert receipt.exists()
    collect(store)
    assert not receipt.exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(70):
        receipts.keep(str(tmp_path), f"{number:064}", files={}, docker=[], used=[], said={})
        os.utime(tmp_path / "receipts" / f"{number:064}", (number, number))
    names = sorted(path.name for path in (tmp_path / "receipts").iterdir())
    assert names == [f"{number:064}" for number in range(6, 70)]


@pytest.mark.docker
def test_docker_is_asked_whether_it_still_has_the_image(scene: Scene, docker: Docker) -> None:
    scene.words = ["image", str(scene.pack), "-t", "receipts:1"]
    first = scene.build()
    assert "docker run" in first
    assert scene.said() == first
    docker("tag", "receipts:1", "receipts:2")
    docker("rmi", "receipts:1")
    assert scene.said() is None
    assert scene.build() == first
    assert scene.said() == first
    docker("rmi", "receipts:1", "receipts:2")
    assert scene.said() is None


@pytest.mark.docker
def test_another_daemon_behind_the_same_context_is_another_place(
    scene: Scene, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = scene.folder / f"docker/contexts/meta/{hashlib.sha256(b'mine').hexdigest()}/meta.json"
    meta.parent.mkdir(parents=True)

    def context(host: str) -> None:
        meta.write_text(json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}))

    context(docker.host)
    (scene.folder / "docker/config.json").write_text('{"currentContext": "mine"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(scene.folder / "docker"))
    monkeypatch.delenv("DOCKER_HOST")
    scene.words = ["image", str(scene.pack), "--output", "docker:receipts:3"]
    assert scene.build() == scene.said()
    context("unix:///run/another.sock")
    assert scene.said() is None


@pytest.mark.docker
def test_another_image_under_the_name_by_now_has_no_receipt(
    scene: Scene, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    DockerEngine().load(image_of([text_layer({"a": "b"})]), parse_reference("other:1"))

    def and_then(*given: Any, **named: Any) -> None:
        deliver(*given, **named)
        docker("tag", "other:1", "receipts:4")

    monkeypatch.setattr("cpack_build.cli.delivery.deliver", and_then)
    scene.words = ["image", str(scene.pack), "--output", "docker:receipts:4"]
    scene.build()
    assert scene.said() is None
