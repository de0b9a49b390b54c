"""What comfy-pack's restore gets wrong, each a test that holds here; the table is held to the tests that there are.

=====================================================  =================================================================
comfy-pack                                             here
=====================================================  =================================================================
commit pins are lost on a fresh clone                  test_git_trees_are_real_checkouts_at_the_commit_with_their_remote
``StopIteration`` unless Manager is a git node         test_a_pack_with_its_lock_becomes_a_workspace
pip falls back to ``--no-deps``, prints and goes on    test_a_package_that_cannot_be_installed_fails_the_command
a model that was downloaded is not linked              test_a_model_that_is_downloaded_is_put_in_its_place
failures end in exit 0 and "restored"                  test_a_pack_s_models_that_are_nowhere_fail_the_command
a raw traceback when offline                           test_offline_without_anything_says_what_is_missing
no resume                                              test_a_restore_killed_at_thirty_moments_and_run_again_is_whole
prompts by ``input()``                                 test_a_node_s_program_is_shown_and_not_run_and_nothing_asks
a model's name or hash as a path moves files outside   test_a_model_s_name_cannot_lead_out
a ``.tar`` pack escapes                                test_a_pack_that_is_a_tar_is_refused
=====================================================  =================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from cpack_build.errors import Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.python import Target, lock_environment
from cpack_build.lock.schema import load_lock
from cpack_build.oci.reference import parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.restore.preheating import preheat
from tests.cli.calling import Caller
from tests.example import system_python
from tests.fetch.repositories import git
from tests.fetch.servers import serving_files
from tests.lock.indexes import Index, sdist, source_files
from tests.restore.images import MODEL, NODE_FILES, WEIGHTS, World, make_world
from tests.restore.test_restore import mirrored

PATCH = b"""\
diff --git a/tools/run.py b/tools/run.py
--- a/tools/run.py
+++ b/tools/run.py
@@ -1 +1 @@
-print('tool')
+print('patched')
"""


def test_a_package_that_cannot_be_installed_fails_the_command(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    models = ["--models-dir", world.folder / "models"]
    outcome = call("restore", world.pack, "-d", root, *models, *mirrored(world))
    assert outcome.code == 4
    assert "one-1.0-py3-none-any.whl" in outcome.err
    assert "is restored" not in outcome.out
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for wheel in world.wheels.iterdir():
        (wheels / wheel.name).write_bytes(wheel.read_bytes() + b"x")
    outcome = call("restore", world.pack, "-d", root, *models, *mirrored(world), "--find-links", wheels)
    assert outcome.code == 5, "a wheel with other bytes is not the locked one"
    outcome = call("restore", world.pack, "-d", root, *models, *mirrored(world), "--find-links", world.wheels)
    assert outcome.code == 0, outcome


def test_a_model_that_is_downloaded_is_put_in_its_place(call: Caller, tmp_path: Path) -> None:
    with serving_files({"/tiny": WEIGHTS}) as server:
        entry = {
            "filename": MODEL, "size": len(WEIGHTS), "disabled": False,
            "sha256": hashlib.sha256(WEIGHTS).hexdigest(), "source": {"download_url": f"{server.url}/tiny"},
        }  # fmt: skip
        world = make_world(tmp_path / "made", snapshot={"models": [entry]})
        outcome = call("restore", world.pack, "-d", tmp_path / "w", "--no-venv", *mirrored(world))
        assert outcome.code == 0, outcome
        assert (tmp_path / "w" / MODEL).read_bytes() == WEIGHTS


def test_offline_without_anything_says_what_is_missing(world: World, call: Caller, tmp_path: Path) -> None:
    outcome = call("restore", world.pack, "-d", tmp_path / "w", "--offline")
    assert outcome.code == 6
    assert "Traceback" not in outcome.err
    assert "github.com/Comfy-Org/ComfyUI" in outcome.err
    assert "--mirror" in outcome.err


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> World:
    script = "import pathlib, one\npathlib.Path('ran').write_text(str(one.VALUE))\n"
    return make_world(tmp_path_factory.mktemp("scripted"), node_files={**NODE_FILES, "install.py": script})


def test_a_node_s_program_is_shown_and_not_run_and_nothing_asks(scripted: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    outcome = call("restore", f"oci:{scripted.layout}", "-d", root, "--offline", "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["scripts_not_run"] == ["custom_nodes/fancy/install.py"]
    assert "custom_nodes/fancy/install.py" in outcome.err
    assert not (root / "custom_nodes/fancy/ran").exists()


def test_with_trust_it_runs_once_in_the_workspace_s_python(scripted: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    for _ in range(2):
        outcome = call("restore", f"oci:{scripted.layout}", "-d", root, "--offline", "--trust", "--json")
        assert outcome.code == 0, outcome
        assert outcome.document["scripts_not_run"] == []
        ran = root / "custom_nodes/fancy/ran"
        if ran.exists():
            assert ran.read_text() == "1"
            ran.unlink()
    assert not ran.exists(), "not a second time"


def test_a_program_that_fails_fails_the_command(call: Caller, tmp_path: Path) -> None:
    world = make_world(tmp_path / "made", node_files={"__init__.py": "", "install.py": "raise SystemExit(3)\n"})
    outcome = call("restore", f"oci:{world.layout}", "-d", tmp_path / "w", "--offline", "--trust")
    assert outcome.code == 4
    assert "ended with exit code 3" in outcome.err


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A pack with what nobody else has: a node, a single file, and changes to another node."""
    other = {
        "nodes/mine/__init__.py": b"NODE_CLASS_MAPPINGS = {}\n",
        "nodes/mine/data/x.txt": b"x",
        "nodes/alone.py": b"y = 1\n",
        "patches/fancy.patch": PATCH,
    }
    return make_world(tmp_path_factory.mktemp("captured"), other=other)


@pytest.mark.parametrize("kind", ["pack", "image", "image with git"])
def test_what_only_the_pack_had_is_restored(captured: World, call: Caller, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "w"
    flags = ["--no-venv", "--models-dir", captured.folder / "models"]
    flags += ["--offline"] if kind == "image" else mirrored(captured)
    source = captured.pack if kind == "pack" else f"oci:{captured.layout}"
    outcome = call("restore", source, "-d", root, *flags)
    assert outcome.code == 0, outcome
    assert (root / "custom_nodes/mine/__init__.py").read_text() == "NODE_CLASS_MAPPINGS = {}\n"
    assert (root / "custom_nodes/mine/data/x.txt").read_text() == "x"
    assert (root / "custom_nodes/alone.py").read_text() == "y = 1\n"
    assert (root / "custom_nodes/fancy/tools/run.py").read_text() == "print('patched')\n"
    if kind != "image":
        node = root / "custom_nodes/fancy"
        assert git(node, "rev-parse", "HEAD") == captured.lock.nodes[0].commit
        assert git(node, "diff", "--name-only") == "tools/run.py", "a patch is an uncommitted change again"
    outcome = call("restore", "--verify", root)
    assert outcome.code == 0, outcome


def test_a_pack_with_nodes_and_patches_of_its_own_comes_out_of_its_image(
    captured: World, call: Caller, tmp_path: Path
) -> None:
    pack = tmp_path / "again.cpack.zip"
    outcome = call("export", f"oci:{captured.layout}", "-o", pack, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["exact"]
    assert pack.read_bytes() == captured.pack.read_bytes()
    assert load_lock(tmp_path / "again.cpack.lock") == captured.lock


def test_best_effort_recovers_what_can_be_seen(world: World, call: Caller, tmp_path: Path) -> None:
    root = tmp_path / "w"
    outcome = call("restore", f"oci:{world.layout}", "-d", root, "--best-effort", "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["place"] == "app/comfyui"
    assert outcome.document["nodes"] == ["fancy"]
    assert (root / MODEL).read_bytes() == WEIGHTS, "a model is a file of its own, wherever the image has it"
    assert call("restore", f"oci:{world.layout}", "-d", root, "--best-effort").code == 8


def test_preheating_starts_comfyui_and_its_failure_is_the_command_s(world: World, call: Caller, tmp_path: Path) -> None:
    flags = ["--models-dir", world.folder / "models", "--find-links", world.wheels, *mirrored(world), "--preheat"]
    assert call("unpack", world.pack, "-d", tmp_path / "w", *flags).code == 0
    (tmp_path / "w/main.py").write_text("raise SystemExit(4)\n")
    with pytest.raises(Unresolvable, match="exit code 4"):
        preheat(tmp_path / "w")


def test_disabled_models_come_with_their_flag(call: Caller, tmp_path: Path) -> None:
    unused = b"unused" * 100
    with serving_files({"/unused": unused}) as server:
        entries = [
            {"filename": MODEL, "size": len(WEIGHTS), "disabled": False,
             "sha256": hashlib.sha256(WEIGHTS).hexdigest(), "source": {}},
            {"filename": "models/loras/unused.safetensors", "size": len(unused), "disabled": True,
             "sha256": hashlib.sha256(unused).hexdigest(), "source": {"download_url": f"{server.url}/unused"}},
        ]  # fmt: skip
        world = make_world(tmp_path / "made", snapshot={"models": entries})
        flags = ["--no-venv", "--models-dir", world.folder / "models", *mirrored(world)]
        assert call("unpack", world.pack, "-d", tmp_path / "a", *flags).code == 0
        assert not (tmp_path / "a/models/loras/unused.safetensors").exists()
        assert call("unpack", world.pack, "-d", tmp_path / "b", "--include-disabled-models", *flags).code == 0
        assert (tmp_path / "b/models/loras/unused.safetensors").read_bytes() == unused


def test_an_image_of_another_program_without_its_history_is_still_read(world: World, tmp_path: Path) -> None:
    """Skopeo and registries keep all; a squashing program may not: layers are then found by what is in them."""
    import dataclasses

    from cpack_build.fetch.http import Offline
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.oci.types import BytesBlob, Descriptor
    from cpack_build.restore.artifact import read_artifact
    from cpack_build.restore.goal import Goal, Options
    from cpack_build.restore.restoring import restore

    image = open_source(parse_image_name(f"oci:{world.layout}")).as_image(world.lock.platform)

    @dataclasses.dataclass(frozen=True)
    class Bare:
        descriptor: Descriptor
        inner: object

        def chunks(self) -> object:
            return self.inner.chunks()  # type: ignore[attr-defined]

    layers = tuple(Bare(dataclasses.replace(layer.descriptor, annotations={}), layer) for layer in image.layers)
    config = json.loads(image.config.data)
    del config["history"]
    bare = dataclasses.replace(
        image,
        layers=layers,
        config=BytesBlob(image.config.media_type, json.dumps(config).encode()),  # type: ignore[arg-type]
    )
    artifact = read_artifact(bare, name="bare")
    goal = Goal("bare", artifact.lock, artifact.documents, artifact=artifact)
    sources = Sources(Mirrors({}, is_offline=True), Offline())
    options = Options(environment=False, offline=True)
    restore(goal, tmp_path / "w", options=options, store=Store(tmp_path / "s"), sources=sources)
    assert (tmp_path / "w" / MODEL).read_bytes() == WEIGHTS


def test_each_fault_has_a_test_that_is_there() -> None:
    lines = (line.split("  ")[-1].strip() for line in (__doc__ or "").splitlines())
    named = [line for line in lines if line.startswith("test_")]
    assert len(named) == 10
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for name in named:
        assert f"\ndef {name}(" in sources, name


@pytest.mark.parametrize("end", [".tar", ".cpack.zip"])
def test_a_pack_that_is_a_tar_is_refused(call: Caller, tmp_path: Path, end: str) -> None:
    """Under either name; its members lead out, and nothing of them is written."""
    pack = tmp_path / f"lying{end}"
    with tarfile.open(pack, "w") as archive:
        for name in ("../escaped", str(tmp_path / "absolute"), "snapshot.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    outcome = call("restore", pack, "-d", tmp_path / "w", "--no-venv", "--offline")
    assert outcome.code in (2, 3), outcome
    assert "lying" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == [pack.name]


@pytest.mark.parametrize("flag", ["--models-dir", "-d", "--find-links"])
def test_a_home_that_nobody_has_is_an_ordinary_error(world: World, call: Caller, flag: str) -> None:
    outcome = call("restore", world.pack, "--offline", flag, "~no-such-user/x")
    assert outcome.code == 2, outcome
    assert "knows no home of '~no-such-user'" in outcome.err


def test_a_package_without_a_wheel_is_built_by_leave_alone(call: Caller, tmp_path: Path) -> None:
    """What a source distribution would run is shown, and runs with ``--trust``."""
    index = Index()
    index.add_sdist("source", "1.0", sdist(source_files("source", "1.0"), "source-1.0"))
    with index.serve() as server:
        made = make_world(tmp_path / "made")
        environment = lock_environment(
            ["source"], target=Target(system_python()), store=Store(tmp_path / "locker"), sources=Sources(),
            index_url=f"{server.url}/simple/", trust=True,
        )  # fmt: skip
        made.lock_path.write_bytes(made.lock.model_copy(update={"python": environment}).to_bytes())
        root = tmp_path / "w"
        flags = ["-d", root, "--models-dir", made.folder / "models", *mirrored(made)]
        refused = call("restore", made.pack, *flags)
        assert refused.code == 8, refused
        assert "- source 1.0 from " in refused.err
        assert "source-1.0.tar.gz" in refused.err
        assert "--trust" in refused.err
        assert "is restored" not in refused.out
        assert not list(root.glob(".venv/lib/*/site-packages/source*"))
        agreed = call("restore", made.pack, *flags, "--trust")
        assert agreed.code == 0, agreed
    assert list(root.glob(".venv/lib/*/site-packages/source-1.0.dist-info"))
    assert call("restore", "--verify", root).code == 0
