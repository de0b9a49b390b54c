"""``restore``: a pack or an image becomes the workspace that made it, and a second run only what is missing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store
from cpack_build.oci.archive import write_archive
from cpack_build.oci.reference import parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from tests.cli.calling import Caller, Outcome
from tests.fetch.repositories import git
from tests.restore.images import COMFYUI_FILES, MODEL, NODE_FILES, WEIGHTS, World, make_world


def mirrored(world: World) -> list[str]:
    """Flags by which git's remotes answer."""
    return [flag for url, place in world.mirrors.items() for flag in ("--mirror", f"{url}={place}")]


def check_workspace(root: Path, outcome: Outcome) -> None:
    """Everything that the small pack has, at its place and byte for byte."""
    assert outcome.code == 0, outcome
    for path, content in COMFYUI_FILES.items():
        assert (root / path).read_text() == content
    for path, content in NODE_FILES.items():
        assert (root / "custom_nodes/fancy" / path).read_text() == content
    assert (root / "input/sample.png").read_bytes() == b"a picture"
    assert (root / "input/sub/ümlaut.txt").read_bytes() == b"text"
    assert (root / MODEL).read_bytes() == WEIGHTS
    assert json.loads((root / ".cpack/workflow_api.json").read_text())
    assert json.loads((root / "user/default/workflows/small.json").read_text()) == {"nodes": []}


def check_packages(root: Path) -> None:
    """Exactly the locked packages, usable through Python and through their scripts."""
    python = root / ".venv/bin/python"
    code = (
        "import one, two, importlib.metadata as m; "
        "print(one.VALUE, two.VALUE, sorted((d.name, d.version) for d in m.distributions()))"
    )
    said = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert said == "1 2 [('one', '1.0'), ('two', '2.0')]"
    for script, answer in (("one-it", "1"), ("two-it", "2")):
        done = subprocess.run([root / ".venv/bin" / script], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == answer
    assert not list(root.rglob(".venv/**/direct_url.json")), "a pack of it would name this machine"


def test_a_pack_with_its_lock_becomes_a_workspace(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    flags = ["--find-links", world.wheels, "--models-dir", world.folder / "models", *mirrored(world)]
    outcome = call("restore", world.pack, "-d", root, *flags, "--json")
    check_workspace(root, outcome)
    check_packages(root)
    assert {part["origin"] for part in outcome.document["parts"] if part["kind"] in ("comfyui", "node")} == {"git"}
    assert outcome.document["next"].endswith("&& .venv/bin/python main.py")


def test_git_trees_are_real_checkouts_at_the_commit_with_their_remote(
    world: World, call: Caller, tmp_path: Path
) -> None:
    root = tmp_path / "w"
    check_workspace(root, call("restore", f"oci:{world.layout}", "-d", root, "--no-venv", *mirrored(world)))
    for folder, pin in ((root, world.lock.comfyui), (root / "custom_nodes/fancy", world.lock.nodes[0])):
        assert git(folder, "rev-parse", "HEAD") == pin.commit  # type: ignore[union-attr]
        assert git(folder, "remote", "get-url", "origin") == pin.url  # type: ignore[union-attr]
        assert git(folder, "diff", "HEAD", "--stat") == ""
    assert git(root / "custom_nodes/fancy", "status", "--porcelain") == ""


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_an_image_alone_is_enough_without_any_network(world: World, call: Caller, tmp_path: Path, kind: str) -> None:
    source = f"oci:{world.layout}"
    if kind != "oci":
        image = open_source(parse_image_name(source)).as_image(world.lock.platform)
        archive = tmp_path / "small.tar"
        write_archive(image, archive, name=parse_reference("small:1"))
        source = f"{kind}:{archive}"
    root = tmp_path / "w"
    outcome = call("restore", source, "-d", root, "--offline", "--json")
    check_workspace(root, outcome)
    check_packages(root)
    parts = {part["kind"]: part["origin"] for part in outcome.document["parts"]}
    assert (parts["comfyui"], parts["node"], parts["environment"]) == ("image", "image", "image")
    state = json.loads((root / ".cpack/state.json").read_text())
    assert state["trees"]["fancy"]["commit"] == world.lock.nodes[0].commit
    assert call("restore", "--verify", root).code == 0


def test_a_second_run_does_nothing(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    assert call("restore", f"oci:{world.layout}", "-d", root, "--offline").code == 0
    before = snapshot_of(root)
    outcome = call("restore", f"oci:{world.layout}", "-d", root, "--offline", "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["made"] == 0
    assert snapshot_of(root) == before


def snapshot_of(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file that is not the restore's own record."""
    return {
        str(path.relative_to(root)): (os.lstat(path).st_ino, os.lstat(path).st_mtime_ns)
        for path in root.rglob("*")
        if not path.is_dir() and ".cpack" not in path.parts
    }


def test_what_is_missing_is_repaired_and_nothing_else_touched(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    source = f"oci:{world.layout}"
    assert call("restore", source, "-d", root, "--offline").code == 0
    (root / "notes.txt").write_text("mine")
    lost = ["comfy/model.py", "custom_nodes/fancy/__init__.py", "input/sample.png", MODEL]
    for path in lost:
        (root / path).unlink()
    before = snapshot_of(root)
    outcome = call("restore", source, "-d", root, "--offline", "--json")
    check_workspace(root, outcome)
    assert outcome.document["made"] == len(lost)
    after = snapshot_of(root)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == set(lost)


def test_a_broken_environment_is_made_anew(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    flags = ["--offline", "--force", ".venv"]
    assert call("restore", f"oci:{world.layout}", "-d", root, "--offline").code == 0
    next(root.glob(".venv/lib/python3*/site-packages/two.py")).unlink()
    assert call("restore", f"oci:{world.layout}", "-d", root, *flags).code == 0
    check_packages(root)


def test_what_else_lies_there_is_shown_and_stays(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    (root / "custom_nodes/fancy").mkdir(parents=True)
    (root / "custom_nodes/fancy/__init__.py").write_text("mine")
    (root / "main.py").write_text("mine too")
    before = sorted(path for path in root.rglob("*") if ".cpack" not in path.parts)
    source = f"oci:{world.layout}"
    outcome = call("restore", source, "-d", root, "--offline", "--no-venv")
    assert outcome.code == 8
    assert "- main.py" in outcome.err
    assert "- custom_nodes/fancy/__init__.py" in outcome.err
    assert sorted(path for path in root.rglob("*") if ".cpack" not in path.parts) == before
    outcome = call("restore", source, "-d", root, "--offline", "--no-venv", "--force", "main.py")
    assert outcome.code == 8, "only the named path may be replaced"
    assert (root / "main.py").read_text() == "mine too"
    outcome = call(
        "restore", source, "-d", root, "--offline", "--no-venv", "--force", "main.py", "--force", "custom_nodes"
    )
    check_workspace(root, outcome)
    kept = [path.read_text() for path in (root / ".cpack/replaced").rglob("*.py")]
    assert sorted(kept) == ["mine", "mine too"], "what was there is kept"


def test_a_workspace_of_another_lock_is_left_alone(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    assert call("restore", f"oci:{world.layout}", "-d", root, "--offline", "--no-venv").code == 0
    lock = root / ".cpack/cpack.lock"
    lock.write_bytes(lock.read_bytes().replace(b"1650000000", b"1650000001"))
    outcome = call("restore", f"oci:{world.layout}", "-d", root, "--offline", "--no-venv")
    assert outcome.code == 8
    assert "another lock" in outcome.err


def test_a_dry_run_writes_nothing(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    outcome = call("restore", f"oci:{world.layout}", "-d", root, "--offline", "--dry-run")
    assert outcome.code == 0, outcome
    assert not root.exists()
    assert f"model        {MODEL}: 1 would be made" in outcome.out


def test_a_dry_run_or_a_refusal_leaves_a_folder_to_whoever_has_it(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    (root / "main.py").write_text("mine")
    outcome = call("restore", f"oci:{world.layout}", "-d", root, "--offline", "--dry-run")
    assert outcome.code == 0, outcome
    assert "main.py; it needs --force" in outcome.err
    assert [path.name for path in root.iterdir()] == ["main.py"]
    assert call("restore", f"oci:{world.layout}", "-d", root, "--offline").code == 8
    assert not (root / ".cpack/cpack.lock").exists(), "it is nobody's workspace yet"


def test_models_can_be_copied_or_left_out(world: World, call: Caller, tmp_path: Path) -> None:
    copied, without = tmp_path / "copied", tmp_path / "without"
    flags = ["--offline", "--no-venv"]
    assert call("restore", f"oci:{world.layout}", "-d", copied, *flags, "--models", "copy").code == 0
    assert not (copied / MODEL).is_symlink()
    assert (copied / MODEL).stat().st_nlink == 1
    assert call("restore", f"oci:{world.layout}", "-d", without, *flags, "--models", "none").code == 0
    assert not (without / MODEL).exists()
    assert call("restore", "--verify", without).code == 0, "what was left out is not missed"


def test_models_in_the_store_are_shared_and_read_by_nobody(
    world: World, call: Caller, tmp_path: Path, home: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    flags = ["--offline", "--no-venv"]
    assert call("restore", f"oci:{world.layout}", "-d", first, *flags).code == 0
    assert call("restore", f"oci:{world.layout}", "-d", second, *flags).code == 0
    for root in (first, second):
        how = json.loads((root / ".cpack/state.json").read_text())["models"][MODEL]
        assert how in ("reflink", "hard link"), "the file is in the store, on the same file system"
        assert (root / MODEL).read_bytes() == WEIGHTS
    store = Store(home / "store")
    blob = store.blob_path(world.lock.models[0].sha256)
    assert store.known(blob), "a second name is no reason to read it again"
    if how == "hard link":
        assert os.path.samefile(first / MODEL, second / MODEL)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "nodes.py").write_text("x = 2\n"), "nodes.py has changed"),
        (lambda root: (root / "comfy/model.py").unlink(), "comfy/model.py is missing"),
        (lambda root: (root / "main.py").chmod(0o755), "main.py has other permissions"),
        (lambda root: (root / "custom_nodes/fancy/more.py").write_text(""), "more.py is not in the lock"),
        (lambda root: (root / "custom_nodes/other").mkdir(), "custom_nodes/other is not in the lock"),
        (lambda root: (root / "input/sample.png").unlink(), "input/sample.png is missing"),
        (lambda root: next(root.glob(".venv/lib/*/*/two.py")).write_text("VALUE = 3"), "two.py has changed"),
        (lambda root: (root / ".cpack/trees/ComfyUI").write_bytes(b""), "cannot be proved"),
    ],
)  # fmt: skip
def test_verify_names_what_drifted(
    world: World, call: Caller, tmp_path: Path, change: object, told: str, restored: Path
) -> None:
    import shutil

    root = tmp_path / "w"
    shutil.copytree(restored, root, symlinks=True)
    assert call("restore", "--verify", root).code == 0
    change(root)  # type: ignore[operator]
    outcome = call("restore", "--verify", root)
    assert outcome.code == 1, outcome
    assert told in outcome.out


def test_a_changed_model_is_a_drift(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    assert call("restore", f"oci:{world.layout}", "-d", root, "--offline", "--no-venv", "--models", "copy").code == 0
    (root / MODEL).write_bytes(WEIGHTS[::-1])
    assert call("restore", "--verify", root).code == 1


@pytest.fixture(scope="session")
def restored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace to look at; a copy of it is for changing."""
    from cpack_build.cli import run

    folder = tmp_path_factory.mktemp("restored")
    before = dict(os.environ)
    os.environ["CPACK_HOME"] = str(folder / "store")
    try:
        assert run(["restore", f"oci:{world.layout}", "-d", str(folder / "w"), "--offline", "-q"]) == 0
    finally:
        os.environ.clear()
        os.environ.update(before)
    return folder / "w"


def test_a_pack_s_models_that_are_nowhere_fail_the_command(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    outcome = call("restore", world.pack, "-d", root, "--no-venv", *mirrored(world))
    assert outcome.code == 4
    assert MODEL in outcome.err
    assert "restored" not in outcome.out


def test_unpack_takes_comfy_pack_s_flags(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "ComfyUI"
    outcome = call("unpack", world.pack, "-d", root, "--no-models", "--no-venv", "-v", *mirrored(world))
    assert outcome.code == 0, outcome
    assert (root / "main.py").is_file()
    assert not (root / MODEL).exists()


def test_a_node_s_git_lfs_files_are_restored_and_not_their_pointers(call: Caller, tmp_path: Path) -> None:
    weights = bytes(range(256)) * 9
    sha256 = hashlib.sha256(weights).hexdigest()
    node = tmp_path / "made/git/fancy"
    kept = node / ".git/lfs/objects" / sha256[:2] / sha256[2:4] / sha256
    node.mkdir(parents=True)
    git(node, "init", "--quiet", "--initial-branch=main")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(weights)}\n"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(weights)
    world = make_world(tmp_path / "made", node_files={**NODE_FILES, "weights.bin": pointer})

    flags = ["--find-links", world.wheels, "--models-dir", world.folder / "models", *mirrored(world)]
    for source, root in ((world.pack, tmp_path / "p"), (f"oci:{world.layout}", tmp_path / "i")):
        outcome = call("restore", source, "-d", root, "--no-venv", *flags)
        assert outcome.code == 0, outcome
        assert (root / "custom_nodes/fancy/weights.bin").read_bytes() == weights
        assert call("restore", "--verify", root).code == 0
