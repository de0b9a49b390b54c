"""A base image under Nix: its layers are fixed outputs by their digests, its own Python compiles, and the image is the
embedded backend's, wherever it goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import EngineFailed, HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.store import Store
from cpack_build.image.layer import arrange, text
from cpack_build.lock.schema import BaseImage, BaseInterpreter, BaseSummary, Lock
from cpack_build.oci.compressed import compressed_image, parse_compression
from cpack_build.oci.layout import write_layout
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import Blob, Image
from cpack_build.oci.uncompressed import decompressed
from tests import need
from tests.backends.nixstore import NixStore, nix_store
from tests.backends.test_nix import build, index_of
from tests.cli.calling import Caller
from tests.engines import Registry
from tests.oci.images import image_of, layer
from tests.restore.images import World, make_world

PASSWD, GROUP = b"root:x:0:0::/root:/bin/sh\n", b"root:x:0:\n"
STDLIB = Path(sysconfig.get_path("stdlib"))
PACKAGES = ("collections", "concurrent", "concurrent/futures", "encodings", "importlib", "multiprocessing", "re")
"""Of the standard library, beside its modules: enough to compile."""


VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def python_files() -> dict[str, Path]:
    """The files of a Python in an image, by where they lie there: this machine's, its library and what it loads."""
    executable = Path(sys.executable).resolve()
    found = {f"usr/bin/python{VERSION}": executable}
    said = subprocess.run(["ldd", executable], capture_output=True, text=True, check=True).stdout
    found |= {f"usr/lib/{Path(word).name}": Path(word) for word in said.split() if word.startswith("/")}
    modules = [path for name in ("", *PACKAGES) for path in (STDLIB / name).glob("*.py")]
    for path in (*modules, *(STDLIB / "lib-dynload").iterdir()):
        if path.stat().st_size < 400_000:
            found[f"usr/lib/python{VERSION}/{path.relative_to(STDLIB)}"] = path
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A base with this machine's Python, in two layers that somebody has compressed, and one that nobody has."""
    found = python_files().items()
    python = layer(arrange([text(name, path.read_bytes(), 0o755) for name, path in found]))
    accounts = layer(arrange([text("etc/passwd", PASSWD), text("etc/group", GROUP)]))
    packed = image_of([python, accounts], config={"Env": ["BASE=yes"], "User": "nobody"})
    return compressed_image(packed, parse_compression("gzip:1"), store=Store(tmp_path_factory.mktemp("elsewhere")))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"), other={"nodes/own/__init__.py": b"OWN = 1\n"})
    store = Store(made.folder / "home")
    for wheel in made.wheels.iterdir():
        store.put([wheel.read_bytes()], what=wheel.name)
    return made


@pytest.fixture(autouse=True)
def nix(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[NixStore]:
    """A store that has nothing; no test reaches the Nix of this machine."""
    monkeypatch.setenv("CPACK_HOME", str(world.folder / "home"))
    with nix_store(tmp_path / "nix") as store:
        store.environment["CPACK_HOME"] = str(world.folder / "home")
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Caller:
    return Caller(capsys)


def locked(world: World, base: Image, place: Path, *, reference: str = "layout", summary: bool = True) -> list[object]:
    """The options that build the world's lock over *base*, whose own Python compiles."""
    sizes = tuple(sum(map(len, decompressed(one))) for one in base.layers)
    said = BaseSummary(passwd=PASSWD.decode(), group=GROUP.decode(), layers=sizes) if summary else None
    pinned = BaseImage(reference=reference, digest=base.digest, summary=said)
    return written(world, world.lock.model_copy(update=over(pinned)), place)


def forget(world: World, base: Image) -> None:
    """Take the layers of *base* out of cpack-build's store."""
    store = Store(world.folder / "home")
    for one in base.layers:
        if (found := store.find(one.descriptor.digest)) is not None:
            found.path.unlink()


def over(pinned: BaseImage) -> dict[str, object]:
    interpreter = BaseInterpreter(version=VERSION, path=f"/usr/bin/python{VERSION}")
    return {"base": pinned, "interpreter": interpreter, "bytecode": "compiled"}


def written(world: World, lock: Lock, place: Path) -> list[object]:
    (place / "over.lock").write_bytes(lock.to_bytes())
    models = ["--models", f"{world.folder}/models", "--find-links", str(world.wheels)]
    mirrors = [word for pair in world.mirrors.items() for word in ("--mirror", "=".join(pair))]
    return [world.pack, "--lock", place / "over.lock", "--frozen", "--trust", *models, *mirrors]


def test_over_a_base_from_a_registry_it_is_the_embedded_image_on_disk_and_in_a_registry(
    call: Caller, world: World, base: Image, registry: Registry, nix: NixStore, tmp_path: Path
) -> None:
    push(base, [parse_reference(f"{registry.host}/bases/python:1")])
    options = locked(world, base, tmp_path, reference=f"{registry.host}/bases/python:1")
    made: dict[str, dict[str, Any]] = {}
    for backend in ("nix", "embedded"):
        wanted = ["--output", f"oci:{tmp_path}/{backend}.oci", "--push", f"{registry.host}/{backend}/over:1"]
        done = call("image", *options, "--backend", backend, *wanted, "--json")
        assert done.code == 0, done.err
        made[backend] = done.document
    assert made["nix"]["digest"] == made["embedded"]["digest"] == index_of(tmp_path / "nix.oci")["digest"]
    pushed = [document["pushed"][0]["reference"].partition("@")[2] for document in made.values()]
    assert pushed[0] == pushed[1]
    theirs, ours = ({path.name for path in (tmp_path / f"{one}.oci/blobs/sha256").iterdir()} for one in made)
    assert theirs == ours
    names = {name for name in nix.names() if "base" in name}
    layers = {f"cpack-base-layer-{one.descriptor.digest.removeprefix('sha256:')}" for one in base.layers}
    assert names >= {*layers, "cpack-base"}

    before = set(nix.names_with_hashes())
    lock = json.loads((tmp_path / "over.lock").read_bytes())
    (tmp_path / "over.lock").write_text(json.dumps({**lock, "comfyui_args": ["--lowvram"]}))
    done = call("image", *options, "--backend", "nix", "--output", f"oci:{tmp_path}/again.oci")
    assert done.code == 0, done.err
    new = {name[33:] for name in set(nix.names_with_hashes()) - before if not name.endswith((".drv", ".lock"))}
    assert "cpack-image" in new
    assert not [name for name in new if "layer" in name or "base" in name], "the base is read once"


def test_nix_itself_takes_the_base_from_its_registry_and_then_needs_no_network(
    call: Caller, world: World, base: Image, registry: Registry, nix: NixStore, tmp_path: Path
) -> None:
    """What was printed, built without cpack-build; then in a network namespace without even loopback."""
    push(base, [parse_reference(f"{registry.host}/bases/printed:1")])
    options = locked(world, base, tmp_path, reference=f"{registry.host}/bases/printed:1")
    printed = tmp_path / "printed"
    done = call("image", *options, "--backend", "nix", "--print", printed)
    assert done.code == 0, done.err
    forget(world, base)
    nix("nix-build", printed, "--out-link", tmp_path / "result")
    done = call("image", *options, "--output", f"oci:{tmp_path}/embedded.oci")
    assert done.code == 0, done.err
    digest = index_of(tmp_path / "embedded.oci")["digest"]
    assert index_of(tmp_path / "result")["digest"] == digest

    alone = [need.tool("unshare"), "--net", *(["--map-root-user"] if os.geteuid() else [])]
    nix(*alone, "nix-build", printed, "-A", "check", "--out-link", tmp_path / "checked")
    assert (tmp_path / "checked").read_text().strip() == digest
    whole = tmp_path / "whole"
    nix(*alone, "nix-build", printed, "-A", "image-with-models", "--out-link", whole)
    copy = ["copy", "--quiet", "--preserve-digests", f"oci:{whole}:latest", f"oci:{tmp_path}/copy:latest"]
    nix(need.tool("skopeo"), *copy)
    assert index_of(tmp_path / "copy")["digest"] == digest
    done = call(
        "deliver",
        tmp_path / "result",
        "--output",
        f"oci:{tmp_path}/out.oci",
        "--push",
        f"{registry.host}/delivered/printed:1",
        "--models",
        f"{world.folder}/models",
        "--offline",
        "--json",
    )
    assert done.code == 0, done.err
    assert index_of(tmp_path / "out.oci")["digest"] == digest
    (pushed,) = done.document["pushed"]
    # And what other tests have pushed there, to which this is another repository.
    assert pushed["mounted"] >= sum(one.descriptor.size for one in base.layers), "the registry has the base already"


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_a_base_in_a_folder_or_archive_goes_into_nix_s_store_without_a_network(
    kind: str, call: Caller, world: World, base: Image, tmp_path: Path
) -> None:
    write_layout(base, tmp_path / "base.oci", tag="base")
    if kind == "oci-archive":
        subprocess.run(["tar", "-C", tmp_path / "base.oci", "-cf", tmp_path / "base.tar", "."], check=True)
    options = locked(world, base, tmp_path, summary=kind == "oci")
    place = tmp_path / ("base.oci" if kind == "oci" else "base.tar")
    made = set()
    for backend in ("nix", "embedded"):
        done = call(
            "image", *options, "--base", f"{kind}:{place}", "--offline", "--backend", backend,
            "--output", f"oci:{tmp_path}/{backend}.oci", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        made.add(done.document["digest"])
    assert len(made) == 1


def test_a_base_that_is_not_what_the_lock_says_gets_into_no_image(
    call: Caller, world: World, base: Image, nix: NixStore, tmp_path: Path
) -> None:
    write_layout(base, tmp_path / "base.oci", tag="base")
    locked(world, base, tmp_path)
    lock = Lock.model_validate_json((tmp_path / "over.lock").read_bytes())
    assert isinstance(lock.base, BaseImage)
    assert lock.base.summary is not None
    false = lock.base.summary.model_copy(update={"passwd": "root::0:0::/root:/bin/sh\n"})
    lying = lock.model_copy(update={"base": lock.base.model_copy(update={"summary": false})})
    printed = tmp_path / "printed"
    done = call(
        "image", *written(world, lying, tmp_path), "--base", f"oci:{tmp_path}/base.oci", "--backend", "nix",
        "--print", printed,
    )  # fmt: skip
    assert done.code == 0, done.err
    forget(world, base)
    with pytest.raises(Unresolvable, match=r"The base image lay in a folder.*--backend nix"):
        build(printed, world)
    for one in base.layers:
        path = blob_at(tmp_path, one)
        nix("nix", "store", "add-file", "--name", f"cpack-base-layer-{path.name}", path)
    with pytest.raises(UnsafeInput, match="has other accounts in /etc/passwd and /etc/group"):
        build(printed, world)

    config = printed / "base" / world.lock.platform.replace("/", "-") / "config.json"
    config.write_bytes(config.read_bytes().replace(b"nobody", b"nobodi"))
    with pytest.raises(HashMismatch, match=r"What base is made of|The config of the base"):
        build(printed, world)
    manifest = config.with_name("manifest.json")
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(EngineFailed, match=r"another base image than cpack\.lock.*--print"):
        build(printed, world)


def blob_at(folder: Path, blob: Blob) -> Path:
    return folder / "base.oci" / "blobs" / "sha256" / blob.descriptor.digest.removeprefix("sha256:")
