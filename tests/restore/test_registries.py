"""Out of a registry: a pack that was pushed, and an image whose download breaks or is needless."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store
from cpack_build.oci.artifact import LOCK, PACK, file_artifact
from cpack_build.oci.modellayer import ModelFile, entries
from cpack_build.oci.reference import parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.oci.tar import stream
from cpack_build.oci.types import LAYER, BytesBlob, Descriptor, Image
from tests.cli.calling import Caller
from tests.engines import Registry
from tests.oci.images import machine
from tests.oci.misbehaving import Fault, Misbehaving, Request, run_misbehaving
from tests.restore.images import MODEL, WEIGHTS, World, make_world
from tests.restore.test_restore import check_packages, check_workspace, mirrored

OTHER = b"another" * 999
PLATFORM = f"linux/{machine()}"


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cpack_build.oci.connection.pause", lambda attempt, after, stop: None)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def fake() -> Iterator[Misbehaving]:
    with run_misbehaving() as running:
        running.has_referrers = True
        yield running


def image_of_world(world: World) -> Image:
    return open_source(parse_image_name(f"oci:{world.layout}")).as_image(PLATFORM)


# -- a pack that was pushed --------------------------------------------------------------------------------------------


def test_a_pushed_pack_is_restored_by_the_lock_that_is_attached_to_it(
    world: World, call: Caller, registry: Registry, tmp_path: Path
) -> None:
    reference = f"{registry.host}/restore/pushed:1"
    assert call("push", world.pack, reference, "--attach", world.lock_path).code == 0
    root = tmp_path / "w"
    flags = ["--find-links", world.wheels, "--models-dir", world.folder / "models", *mirrored(world)]
    outcome = call("restore", reference, "-d", root, *flags, "--json")
    check_workspace(root, outcome)
    check_packages(root)
    assert outcome.document["name"] == "small", "as the file was called that was pushed"
    assert (root / ".cpack/cpack.lock").read_bytes() == world.lock_path.read_bytes()
    again = call("restore", reference, "-d", root, *flags, "--json")
    assert (again.code, again.document["made"]) == (0, 0), again


def test_a_pushed_pack_and_its_lock_are_exported_byte_for_byte(
    world: World, call: Caller, registry: Registry, tmp_path: Path
) -> None:
    reference = f"{registry.host}/restore/exported:1"
    assert call("push", world.pack, reference, "--attach", world.lock_path).code == 0
    outcome = call("export", reference, "-o", tmp_path / "again.cpack.zip", "--json")
    assert outcome.code == 0, outcome
    assert (tmp_path / "again.cpack.zip").read_bytes() == world.pack.read_bytes()
    assert (tmp_path / "again.cpack.lock").read_bytes() == world.lock_path.read_bytes()
    assert outcome.document["next"].endswith("--frozen")
    alone = f"{registry.host}/restore/alone:1"
    assert call("push", world.pack, alone, "--also", f"{registry.host}/restore/other:1").code == 0
    outcome = call("export", alone, "-o", tmp_path / "alone.cpack.zip", "--json")
    assert (outcome.code, outcome.document["lock"]) == (0, None), outcome
    assert not (tmp_path / "alone.cpack.lock").exists()


def test_the_flags_of_a_pushed_pack_are_told_without_locking_it(
    world: World, call: Caller, registry: Registry, home: Path
) -> None:
    reference = f"{registry.host}/restore/flags:1"
    assert call("push", world.pack, reference).code == 0
    outcome = call("run", reference, "--help")
    assert outcome.code == 0, outcome
    assert "--photo FILE" in outcome.out
    assert not list((home / "store/packs").rglob("*.lock"))


def test_how_a_registry_may_be_reached_is_asked_of_every_verb(call: Caller) -> None:
    for verb in (("restore",), ("unpack",), ("export",), ("run",), ("run", "--help")):
        outcome = call(verb[0], "r.example/x:1", "--insecure-registry", "http://r.example/", *verb[1:])
        assert outcome.code == 2, (verb, outcome)
        assert "is no host" in outcome.err


def test_a_pushed_pack_that_is_another_is_refused_and_nothing_is_written(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path
) -> None:
    pack = file_artifact(world.pack, PACK)
    fake.hold(pack)
    digest = pack.layers[0].descriptor.digest
    fake.fault = lambda request: Fault(spoil=True) if digest in request.path else None
    outcome = call("restore", f"{fake.host}/x:v1", "-d", tmp_path / "w")
    assert outcome.code == 5, outcome
    assert not (tmp_path / "w").exists()
    assert not list((home / "store/packs").glob("*/*"))


def test_what_was_changed_among_the_kept_packs_is_not_believed(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path
) -> None:
    fake.hold(file_artifact(world.pack, PACK))
    assert call("export", f"{fake.host}/x:v1", "-o", tmp_path / "a.cpack.zip").code == 0
    [kept] = (home / "store/packs").rglob("*.cpack.zip")
    kept.write_bytes(b"something else")
    assert call("export", f"{fake.host}/x:v1", "-o", tmp_path / "b.cpack.zip").code == 0
    assert (tmp_path / "b.cpack.zip").read_bytes() == world.pack.read_bytes()


def test_a_name_of_a_pushed_pack_never_leaves_its_folder(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path
) -> None:
    pack = file_artifact(world.pack, PACK)
    document = json.loads(pack.manifest.data)
    document["layers"][0]["annotations"]["org.opencontainers.image.title"] = "../../../evil.cpack.zip"
    data = json.dumps(document).encode()
    fake.hold(replace(pack, manifest=replace(pack.manifest, data=data)))
    assert call("export", f"{fake.host}/x:v1", "-o", tmp_path / "a.cpack.zip").code == 0
    [kept] = home.rglob("*.cpack.zip")
    assert kept.is_relative_to(home / "store/packs")
    assert kept.name == "x.cpack.zip"


def test_another_artifact_is_neither_restored_nor_exported(
    world: World, call: Caller, fake: Misbehaving, tmp_path: Path
) -> None:
    fake.hold(file_artifact(world.lock_path, LOCK))
    for verb in ("restore", "export"):
        outcome = call(verb, f"{fake.host}/x:v1")
        assert outcome.code == 2, outcome
        assert "neither an image nor a pack" in outcome.err
    fake.hold(file_artifact(world.pack, PACK))
    outcome = call("restore", "--best-effort", f"{fake.host}/x:v1", "-d", tmp_path / "w")
    assert outcome.code == 2, outcome
    assert "is a pack" in outcome.err


# -- an image ----------------------------------------------------------------------------------------------------------


def test_a_download_that_broke_goes_on_where_it_was(
    world: World, call: Caller, fake: Misbehaving, tmp_path: Path
) -> None:
    image = image_of_world(world)
    fake.hold(image, "small")
    wanted = world.lock.models[0].layer_digest

    breaks = True

    def fault(request: Request) -> Fault | None:
        if not breaks or wanted not in request.path or asked_from(request) == 0:
            return None
        return Fault(send=10_000) if asked_from(request) == 4096 else Fault(status=503)

    fake.fault = fault
    root = tmp_path / "w"
    flags = ["--no-venv", "--offline"]
    assert call("restore", f"{fake.host}/small:v1", "-d", root, *flags).code == 6
    assert not (root / MODEL).exists()
    breaks = False
    before = len(fake.seen)
    outcome = call("restore", f"{fake.host}/small:v1", "-d", root, *flags, "--json")
    check_workspace(root, outcome)
    asked = [request for request in fake.seen[before:] if "/blobs/" in request.path]
    again = [request for request in asked if wanted in request.path]
    assert [asked_from(request) for request in again] == [0, 4096 + 10_000], "its head, and the rest"
    layers = {layer.descriptor.digest for layer in image.layers}
    assert {request.path.rpartition("/")[2] for request in asked} & layers == {wanted}, "the others had come"


@pytest.mark.parametrize("kind", ["comfyui", "model"])
def test_a_layer_that_is_another_is_refused_and_nothing_of_it_used(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path, kind: str
) -> None:
    image = image_of_world(world)
    fake.hold(image, "small")
    [digest] = [
        layer.descriptor.digest for layer in image.layers
        if layer.descriptor.annotations["io.cpack.layer.kind"] == kind
    ]  # fmt: skip
    # Of a model's layer the head, which is asked for first, comes rightly.
    fake.fault = lambda request: (
        Fault(spoil=True) if digest in request.path and not request.headers.get("range", "").endswith("-4095") else None
    )
    root = tmp_path / "w"
    outcome = call("restore", f"{fake.host}/small:v1", "-d", root, "--no-venv", "--offline")
    assert outcome.code == 5, outcome
    assert Store(home / "store").find(digest) is None
    assert Store(home / "store").find(world.lock.models[0].sha256) is None
    assert not (root / MODEL).exists()
    assert (root / "main.py").exists() is (kind == "model")


def asked_from(request: Request) -> int:
    return int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


def test_a_model_that_the_store_has_is_not_asked_for(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path
) -> None:
    fake.hold(image_of_world(world), "small")
    Store(home / "store").put([WEIGHTS], what="a model")
    outcome = call("restore", f"{fake.host}/small:v1", "-d", tmp_path / "w", "--no-venv", "--offline", "--json")
    check_workspace(tmp_path / "w", outcome)
    assert not [request for request in fake.seen if world.lock.models[0].layer_digest in request.path]


def with_shared_layer(world: World, data: bytes, models: Iterable[str]) -> tuple[Image, Descriptor]:
    """The world's image with its model's layer replaced by *data*, which says that *models* share it."""
    annotations = {"io.cpack.layer.kind": "models", "io.cpack.models.sha256": ",".join(sorted(models))}
    layer = BytesBlob(LAYER, data, annotations)
    image = image_of_world(world)
    digests = [layer.descriptor.digest for layer in image.layers]
    index = digests.index(world.lock.models[0].layer_digest)
    config, manifest = json.loads(image.config.data), json.loads(image.manifest.data)
    config["rootfs"]["diff_ids"][index] = layer.descriptor.digest
    new_config = replace(image.config, data=json.dumps(config).encode())
    manifest["layers"][index] = layer.descriptor.to_json()
    manifest["config"] = new_config.descriptor.to_json()
    layers = (*image.layers[:index], layer, *image.layers[index + 1 :])
    new_manifest = replace(image.manifest, data=json.dumps(manifest).encode())
    return Image(new_manifest, new_config, layers), layer.descriptor


def shared_image(world: World, tmp_path: Path) -> tuple[Image, Descriptor]:
    """The same with a layer that the world's model shares with another."""
    files = []
    for name, data in (("one", WEIGHTS), ("two", OTHER)):
        (tmp_path / name).write_bytes(data)
        files.append((hashlib.sha256(data).hexdigest(), ModelFile(tmp_path / name, len(data))))
    return with_shared_layer(world, b"".join(stream(entries(files))), [sha256 for sha256, _ in files])


def test_models_that_share_a_layer_are_taken_out_of_it_in_one_go(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path
) -> None:
    image, shared = shared_image(world, tmp_path)
    fake.hold(image, "small")
    outcome = call("restore", f"{fake.host}/small:v1", "-d", tmp_path / "w", "--no-venv", "--offline", "--json")
    check_workspace(tmp_path / "w", outcome)
    store = Store(home / "store")
    assert store.find(hashlib.sha256(OTHER).hexdigest()), "it came along"
    assert len([request for request in fake.seen if shared.digest in request.path]) == 1


def test_a_shared_layer_whose_models_are_all_here_is_not_asked_for(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path
) -> None:
    image, shared = shared_image(world, tmp_path)
    fake.hold(image, "small")
    store = Store(home / "store")
    for data in (WEIGHTS, OTHER):
        store.put([data], what="a model")
    outcome = call("pull", f"{fake.host}/small:v1", "-o", f"oci:{tmp_path}/pulled", "--json")
    assert outcome.code == 0, outcome
    assert not [request for request in fake.seen if shared.digest in request.path]
    made = tmp_path / "pulled/blobs/sha256" / shared.digest[7:]
    assert hashlib.sha256(made.read_bytes()).hexdigest() == shared.digest[7:]


def test_a_shared_layer_with_another_file_under_a_model_s_name_is_refused(
    world: World, call: Caller, fake: Misbehaving, home: Path, tmp_path: Path
) -> None:
    sha256 = world.lock.models[0].sha256
    lie = b"x" * len(WEIGHTS)
    (tmp_path / "lie").write_bytes(lie)
    data = b"".join(stream(entries([(sha256, ModelFile(tmp_path / "lie", len(lie)))])))
    fake.hold(with_shared_layer(world, data, [sha256])[0], "small")
    outcome = call("restore", f"{fake.host}/small:v1", "-d", tmp_path / "w", "--no-venv", "--offline")
    assert outcome.code == 5, outcome
    assert Store(home / "store").find(sha256) is None
    assert not (tmp_path / "w" / MODEL).exists()


# -- nothing read ------------------------------------------------------------------------------------------------------


def test_not_a_byte_of_a_model_in_the_store_is_read(tmp_path: Path) -> None:
    """By the kernel's count of what the process has read (proc_pid_io(5)), beside the same run without models."""
    weights = os.urandom(1 << 16) * 512
    world = make_world(tmp_path / "world", weights=weights)
    counter = (
        "import sys; from cpack_build.cli import run; code = run(sys.argv[1:]); "
        "print(code, open('/proc/self/io').readline().split()[1])"
    )

    def read_by(place: str, *flags: str) -> int:
        command = [
            sys.executable, "-c", counter, "restore", f"oci:{world.layout}", "-d", str(tmp_path / place),
            "--no-venv", "--offline", "-q", *flags,
        ]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        code, count = done.stdout.splitlines()[-1].split()
        assert code == "0", done.stderr
        return int(count)

    first = read_by("a")
    without = read_by("b", "--models", "none")
    linked = read_by("c")
    nothing = read_by("c")
    assert first - without > len(weights), "the counter counts"
    assert (tmp_path / "c" / MODEL).stat().st_size == len(weights)
    for count in (linked, nothing):
        assert count - without < len(weights) // 20
