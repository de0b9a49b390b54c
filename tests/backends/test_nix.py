"""Nix makes of a lock the image that the embedded backend makes, and says what is wrong where it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.backends.nix.backend import NixBackend
from cpack_build.backends.nix.program import Nix
from cpack_build.backends.nix.result import check_image
from cpack_build.backends.protocol import Farm, Request
from cpack_build.errors import EngineFailed, HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.image.gather import Places
from cpack_build.lock.interpreter import vouch
from cpack_build.lock.machine import this_platform
from cpack_build.lock.schema import Lock, locks_to_bytes
from cpack_build.lock.wheels import read_toml
from cpack_build.progress import SILENT
from tests import need
from tests.backends.nixstore import NixStore, nix_store
from tests.cli.calling import Caller
from tests.engines import Registry
from tests.image.golden.building import golden_lock
from tests.restore.images import World, make_world

LOCAL_NODE = {"nodes/own/__init__.py": b"OWN = 1\n", "nodes/own/data/x.txt": b"x\n", "nodes/single.py": b"ONE = 1\n"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A pack with nodes from git, with links and programs, and of its own; its lock; and the embedded image."""
    return make_world(
        tmp_path_factory.mktemp("world"),
        other=LOCAL_NODE,
        node_files={"__init__.py": "A = 1\n", "run.sh": "#!/bin/sh\n", "ä/naïve name.txt": "é\n", "empty.txt": ""},
        node_links={"link": "ä/naïve name.txt"},
    )


@pytest.fixture(scope="module")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NixStore]:
    with nix_store(tmp_path_factory.mktemp("nix") / "nix") as store:
        yield store


@pytest.fixture(scope="module")
def embedded(world: World) -> Path:
    """The image that the embedded backend makes, as a layout."""
    layout = world.folder / "embedded.oci"
    command = [sys.executable, "-m", "cpack_build", "image", world.pack, "--output", f"oci:{layout}", *flags(world)]
    subprocess.run(command, env={**os.environ, "CPACK_HOME": f"{world.folder}/home"}, check=True, capture_output=True)
    return layout


@pytest.fixture(autouse=True)
def _in_the_store(world: World, nix: NixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the Nix of this machine."""
    monkeypatch.setenv("CPACK_HOME", str(world.folder / "home"))
    for name, value in nix.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(capsys)


def flags(world: World) -> list[str]:
    """Where the world's things lie on this machine."""
    mirrors = [word for pair in world.mirrors.items() for word in ("--mirror", "=".join(pair))]
    return [*mirrors, "--models", f"{world.folder}/models", "--find-links", str(world.wheels), "--offline"]


@pytest.fixture
def printed(call: Caller, world: World, tmp_path: Path) -> Path:
    """The folder that Nix reads."""
    done = call("image", world.pack, "--backend", "nix", "--print", tmp_path / "printed", *flags(world))
    assert done.code == 0, done.err
    return tmp_path / "printed"


def index_of(layout: Path) -> dict[str, object]:
    document = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    assert isinstance(document, dict)
    return document


# -- the same image ----------------------------------------------------------------------------------------------------


def test_the_same_lock_gives_the_same_manifest_digest(
    call: Caller, world: World, embedded: Path, tmp_path: Path
) -> None:
    done = call("image", world.pack, "--backend", "nix", "--output", f"oci:{tmp_path}/nix.oci", "--json", *flags(world))
    assert done.code == 0, done.err
    assert done.document["digest"] == index_of(embedded)["digest"]
    both = embedded, tmp_path / "nix.oci"
    theirs, ours = ({path.name for path in (layout / "blobs" / "sha256").iterdir()} for layout in both)
    assert theirs == ours


def test_no_model_is_copied_into_the_store(call: Caller, world: World, nix: NixStore, printed: Path) -> None:
    call("image", world.pack, "--backend", "nix", "--output", f"oci:{printed}/../again.oci", *flags(world))
    assert not [name for name in nix.names() if "model" in name]
    assert nix.names().count("cpack-image") == 1
    large = [path for path in (nix.root / "store").rglob("*") if path.is_file() and b"weights" * 9 in path.read_bytes()]
    assert large == []


def test_a_flake_checks_and_builds_what_was_printed(
    nix: NixStore, printed: Path, world: World, embedded: Path, call: Caller
) -> None:
    call("image", world.pack, "--backend", "nix", "--output", f"oci:{printed}/../out.oci", *flags(world))
    nix("nix", "flake", "check", f"path:{printed}")
    nix("nix", "build", f"path:{printed}#image", "--out-link", printed.parent / "result")
    assert index_of(printed.parent / "result")["digest"] == index_of(embedded)["digest"]


def test_without_flakes_and_without_any_network_the_plain_expression_builds_the_same(
    printed: Path, world: World, embedded: Path, tmp_path: Path
) -> None:
    """In a store that has nothing, in a network namespace without even loopback; cpack-build's own store is what
    fetches from: clones, wheels, the pack's own nodes."""
    store = Store(world.folder / "home")
    for wheel in world.wheels.iterdir():
        store.put([wheel.read_bytes()], what=wheel.name)
    with nix_store(tmp_path / "plain", experimental_features="") as plain:
        plain.environment["CPACK_HOME"] = str(store.root)
        assert "experimental" in plain("nix", "flake", "check", f"path:{printed}", check=False).stderr
        alone = [need.tool("unshare"), "--net", *(["--map-root-user"] if os.geteuid() else [])]
        plain(*alone, "nix-build", printed, "--out-link", tmp_path / "result")
        assert index_of(tmp_path / "result")["digest"] == index_of(embedded)["digest"]
        plain("nix-build", printed, "-A", "check", "--out-link", tmp_path / "checked")
        assert (tmp_path / "checked").read_text().strip() == index_of(embedded)["digest"]


def test_a_nixpkgs_builds_with_its_python_and_all_that_cpack_build_depends_on(
    printed: Path, world: World, nix: NixStore, embedded: Path, tmp_path: Path
) -> None:
    """A stand-in: its Python is this machine's, and it names what it was asked for."""
    project = read_toml((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert isinstance(project, dict)
    wanted = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["dependencies"]} - {"tomli", "uv"}
    packages = "".join(f"{name} = {{ }};" for name in wanted)
    (tmp_path / "nixpkgs.nix").write_text(f"""{{
      python3.withPackages = choose:
        if builtins.deepSeq (choose {{ {packages} }}) (builtins.length (choose {{ {packages} }})) == {len(wanted)}
        then "{sys.prefix}" else throw "not what pyproject.toml names";
      git = "{Path(need.tool("git")).parents[1]}"; coreutils = "/usr";
    }}""")
    given = ["--arg", "pkgs", f"import {tmp_path}/nixpkgs.nix"]
    (printed / "host.json").write_text(json.dumps({"python": "/nowhere/python", "path": "/nowhere"}))
    nix.environment["CPACK_HOME"] = f"{world.folder}/home"
    nix("nix-build", printed, *given, "--out-link", tmp_path / "result")
    assert index_of(tmp_path / "result")["digest"] == index_of(embedded)["digest"]


# -- giving it away ----------------------------------------------------------------------------------------------------


@pytest.fixture
def flake(call: Caller, nix: NixStore, printed: Path, world: World) -> str:
    """A flake whose image is in the store already."""
    assert call("image", world.pack, "--backend", "nix", "--output", f"oci:{printed}/../o", *flags(world)).code == 0
    nix.environment["CPACK_HOME"] = f"{world.folder}/home"
    return f"path:{printed}"


def test_nix_run_pushes_it_with_the_models_from_where_they_lie(
    flake: str, nix: NixStore, registry: Registry, call: Caller, world: World
) -> None:
    models = ["--models", f"{world.folder}/models", "--offline"]
    name = f"{registry.host}/nix/small:1"
    nix("nix", "run", f"{flake}#push", "--", name, *models)
    done = call("image", world.pack, "--push", f"{registry.host}/embedded/small:1", "--json", *flags(world))
    assert done.code == 0, done.err
    told = call("image", world.pack, "--backend", "nix", "--push", name, "--json", *flags(world))
    digests = {pushed["reference"].partition("@")[2] for pushed in (*done.document["pushed"], *told.document["pushed"])}
    assert len(digests) == 1
    assert not told.document["pushed"][0]["changed"], "nix run has pushed the same image before"


def test_nix_run_streams_the_archive(flake: str, nix: NixStore, world: World, embedded: Path, tmp_path: Path) -> None:
    with (tmp_path / "image.tar").open("wb") as file:
        subprocess.run(
            ["nix", "run", f"{flake}#archive", "--", "--models", f"{world.folder}/models", "-t", "small:1"],
            env={**os.environ, **nix.environment}, stdout=file, check=True,
        )  # fmt: skip
    with tarfile.open(tmp_path / "image.tar") as archive:
        index = json.loads(archive.extractfile("index.json").read())  # type: ignore[union-attr]
        names = {name.rpartition("/")[2] for name in archive.getnames() if name.startswith("blobs/sha256/")}
    assert index["manifests"][0]["digest"] == index_of(embedded)["digest"]
    assert names == {path.name for path in (embedded / "blobs" / "sha256").iterdir()}


def test_an_image_with_its_models_is_a_whole_layout(flake: str, nix: NixStore, embedded: Path, tmp_path: Path) -> None:
    nix("nix", "build", f"{flake}#image-with-models", "--out-link", tmp_path / "whole")
    nix(
        need.tool("skopeo"),
        "copy",
        "--quiet",
        "--preserve-digests",
        f"oci:{tmp_path}/whole:latest",
        f"oci:{tmp_path}/copy:latest",
    )
    assert index_of(tmp_path / "whole")["digest"] == index_of(embedded)["digest"]
    assert sorted(path.name for path in (tmp_path / "copy/blobs/sha256").iterdir()) == sorted(
        path.name for path in (embedded / "blobs/sha256").iterdir()
    )


def test_a_second_store_takes_it_from_a_signed_cache_and_builds_nothing(
    flake: str, nix: NixStore, call: Caller, world: World, embedded: Path, tmp_path: Path
) -> None:
    nix("nix-store", "--generate-binary-cache-key", "cache.example-1", tmp_path / "secret", tmp_path / "public")
    cache = f"file://{tmp_path}/cache?secret-key={tmp_path}/secret"
    where = f"oci:{tmp_path}/out.oci"
    done = call("image", world.pack, "--backend", "nix", "--cache-to", cache, "--output", where, *flags(world))
    assert done.code == 0, done.err
    elsewhere = ["--store", f"local?root={tmp_path}/machine", "--max-jobs", "0", "--no-link"]
    take = ["nix", "build", f"{flake}#image", *elsewhere, "--option", "substituters", f"file://{tmp_path}/cache"]
    refused = nix(*take, check=False)
    assert refused.returncode != 0, "nobody has said that this key is trusted"
    nix(*take, "--option", "trusted-public-keys", (tmp_path / "public").read_text())
    (found,) = (tmp_path / "machine" / "nix" / "store").glob("*-cpack-image")
    assert index_of(found)["digest"] == index_of(embedded)["digest"]
    layers = [os.readlink(path) for path in (found / "blobs" / "sha256").iterdir() if path.is_symlink()]
    assert len(layers) > 3
    for layer in layers:
        assert (found.parent / Path(layer).relative_to(nix.root / "store")).is_file(), "its layers came along"
    for folder in Path(tmp_path, "machine").rglob("*"):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o755)


# -- only what changed -------------------------------------------------------------------------------------------------


def test_a_change_of_one_node_makes_its_layer_and_the_topmost_anew(
    call: Caller, nix: NixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for content in (b"OWN = 1\n", b"OWN = 2\n"):
        other = make_world(tmp_path / content.decode()[-2], other={"nodes/own/__init__.py": content})
        monkeypatch.setenv("CPACK_HOME", str(tmp_path / "home"))
        before = set(nix.names_with_hashes())
        where = f"oci:{tmp_path}/changing.oci"
        done = call("image", other.pack, "--backend", "nix", "--output", where, *flags(other))
        assert done.code == 0, done.err
        new = set(nix.names_with_hashes()) - before
        made.append({name[33:] for name in new if not name.endswith((".drv", ".lock"))})
    assert made[1] == {"captured", "cpack-tree-own", "cpack-layer-node-own", "cpack-image"}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_without_nix_the_error_says_so(
    call: Caller, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "git").symlink_to(need.tool("git"))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = call("image", world.pack, "--backend", "nix", *flags(world))
    assert done.code == 7
    assert "Nix is not installed" in done.err
    assert "nix-bin" in done.err


def test_a_store_that_cannot_be_written_is_named(
    call: Caller, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NIX_STATE_DIR", str(tmp_path / "file" / "state"))
    done = call("image", world.pack, "--backend", "nix", *flags(world))
    assert done.code == 9
    assert "The Nix store cannot be written" in done.err
    assert "NIX_STORE_DIR" in done.err


def test_a_daemon_that_does_not_answer_is_named(
    call: Caller, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIX_REMOTE", f"unix://{tmp_path}/socket")
    done = call("image", world.pack, "--backend", "nix", *flags(world))
    assert done.code == 7
    assert "The Nix daemon does not answer" in done.err


def test_a_sandbox_that_would_hide_the_builder_is_known_before_anything_is_built(
    call: Caller, world: World, nix: NixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIX_CONFIG", nix.environment["NIX_CONFIG"].replace("sandbox = false", "sandbox = true"))
    done = call("image", world.pack, "--backend", "nix", *flags(world))
    assert done.code == 7
    assert "sandbox hides this machine's Python" in " ".join(done.err.split())


def test_a_platform_that_nobody_builds_for_is_refused(call: Caller, world: World, tmp_path: Path) -> None:
    other = {"linux/amd64": "linux/arm64", "linux/arm64": "linux/amd64"}[world.lock.platform]
    lock = world.lock.model_copy(update={"platform": other})
    (tmp_path / "other.lock").write_bytes(lock.to_bytes())
    command = ["image", world.pack, "--backend", "nix", "--lock", tmp_path / "other.lock", "--frozen"]
    done = call(*command, "--platform", other, *flags(world))
    assert done.code == 7, done.err
    assert "--builder" in done.err


def test_several_platforms_are_the_embedded_backend_s_index_and_need_no_machine_of_the_other(
    call: Caller, world: World, nix: NixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacking runs nothing: this machine may say that it builds for both."""
    other = {"linux/amd64": "linux/arm64", "linux/arm64": "linux/amd64"}[world.lock.platform]
    both = (world.lock, world.lock.model_copy(update={"platform": other}))
    (tmp_path / "both.lock").write_bytes(locks_to_bytes(both))
    locked = ["--lock", tmp_path / "both.lock", "--frozen", "--platform", "linux/amd64,linux/arm64", "--json"]
    monkeypatch.setenv("NIX_CONFIG", f"{nix.environment['NIX_CONFIG']}\nextra-platforms = x86_64-linux aarch64-linux\n")
    made = {}
    for backend in ("embedded", "nix"):
        where = f"oci:{tmp_path}/{backend}.oci"
        done = call("image", world.pack, "--backend", backend, "--output", where, *locked, *flags(world))
        assert done.code == 0, done.err
        made[backend] = done.document
    assert made["nix"]["digest"] == made["embedded"]["digest"]
    assert [one["platform"] for one in made["nix"]["images"]] == ["linux/amd64", "linux/arm64"]
    assert index_of(tmp_path / "nix.oci") == index_of(tmp_path / "embedded.oci")


def test_a_folder_with_something_in_it_is_not_printed_into(call: Caller, world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = call("image", world.pack, "--backend", "nix", "--print", tmp_path, *flags(world))
    assert done.code == 8
    assert "mine.txt" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_is_no_result_is_not_delivered(call: Caller, embedded: Path, tmp_path: Path) -> None:
    done = call("deliver", embedded, "--output", f"oci:{tmp_path}/out")
    assert done.code == 3
    assert "nix build" in done.err


def test_a_tree_that_is_another_than_planned_is_a_hash_mismatch(printed: Path, world: World, embedded: Path) -> None:
    """Whoever changes plan.json gets no other tree into the image."""
    plan = json.loads((printed / "plan.json").read_bytes())
    plan["trees"][world.lock.comfyui.tree_sha256] = "1" * 64
    (printed / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(HashMismatch, match="tree-ComfyUI") as caught:
        build(printed, world)
    assert caught.value.expected == "1" * 64
    assert caught.value.exit_code == 5


def test_another_file_at_an_address_is_a_hash_mismatch(world: World, tmp_path: Path) -> None:
    (tmp_path / "one.whl").write_bytes(b"another")
    expression = f"""{{ platform }}: {{
      image = import <nix/fetchurl.nix> {{
        name = "cpack-one.whl"; url = "file://{tmp_path}/one.whl"; sha256 = "{"2" * 64}"; }};
    }}"""
    (tmp_path / "default.nix").write_text(expression)
    with pytest.raises(HashMismatch, match=r"one\.whl") as caught:
        build(tmp_path, world)
    assert caught.value.expected == "2" * 64
    assert caught.value.actual == hashlib.sha256(b"another").hexdigest()


def test_a_plan_for_another_lock_says_what_to_do(printed: Path, world: World) -> None:
    (printed / "cpack.lock").write_bytes(world.lock.model_copy(update={"comfyui_args": ("--lowvram",)}).to_bytes())
    with pytest.raises(EngineFailed, match=r"plan\.json was made for another cpack\.lock.*--print"):
        build(printed, world)


def test_a_wheel_that_nobody_has_is_named_with_the_next_step(
    printed: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CPACK_HOME")
    with nix_store(tmp_path / "empty") as empty:
        for name, value in empty.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Unresolvable, match=r"(one|two)-.*has no address.*CPACK_HOME"):
            build(printed, world)


def test_a_layer_that_is_damaged_in_the_store_is_found_by_the_check(
    call: Caller, world: World, nix: NixStore, printed: Path, tmp_path: Path
) -> None:
    assert call("image", world.pack, "--backend", "nix", "--output", f"oci:{tmp_path}/o", *flags(world)).code == 0
    result = build(printed, world)
    assert check_image(result) == index_of(tmp_path / "o")["digest"]
    damaged = tmp_path / "damaged"
    shutil.copytree(result, damaged, symlinks=True)
    link = next(path for path in (damaged / "blobs" / "sha256").iterdir() if path.is_symlink())
    data = bytearray(link.read_bytes())
    data[600] ^= 1
    (damaged / "blobs" / "sha256").chmod(0o755)
    link.unlink()
    link.write_bytes(data)
    with pytest.raises(HashMismatch, match=link.name):
        check_image(damaged)


def test_models_that_share_layers_are_refused_from_the_lock_alone(world: World) -> None:
    many = tuple(
        world.lock.models[0].model_copy(update={"path": f"models/x/{n}", "sha256": f"{n:064x}"}) for n in range(130)
    )
    (refusal,) = NixBackend().refusals(request_for(world, world.lock.model_copy(update={"models": many})))
    assert "share layers" in refusal.message
    assert NixBackend().refusals(request_for(world, world.lock)) == []


def test_no_python_of_a_stranger_is_run_to_compile_not_even_for_another_platform(world: World, tmp_path: Path) -> None:
    here = {"service_code": world.lock.service_code, "platform": this_platform(), "bytecode": "compiled"}
    own = golden_lock().model_copy(update=here)
    other = {"linux/amd64": "linux/arm64", "linux/arm64": "linux/amd64"}[own.platform]
    interpreter = own.interpreter.model_copy(update={"path": "/usr/bin/evil"})
    foreign = own.model_copy(update={"platform": other, "interpreter": interpreter})
    request = replace(request_for(world, foreign), store=Store(tmp_path), siblings=(own,))
    vouch(own, store=request.store)
    backend = NixBackend(Farm(builder="ssh://builder.example x86_64-linux,aarch64-linux"))
    with pytest.raises(UnsafeInput, match="not resolved on this machine"), backend.built(request):
        pass
    with pytest.raises(UnsafeInput, match="not resolved on this machine"):
        NixBackend().written(request, tmp_path / "printed")
    assert not (tmp_path / "printed").exists()


def request_for(world: World, lock: Lock) -> Request:
    store = Store(world.folder / "home")
    return Request((lock,), {}, None, {lock.platform: Places()}, store, Sources())


def build(folder: Path, world: World) -> Path:
    """What Nix makes of the folder, as the backend calls it."""
    link = folder / "result"
    return Nix().build(folder, "image", link, platform=world.lock.platform, steps=1, progress=SILENT)
