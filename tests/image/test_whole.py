"""Whole images of small parts: 300 models run on an old Docker, a kill costs nothing, damage in the store is told."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpack_build.errors import BadInput, HashMismatch
from cpack_build.fetch.housekeeping import collect
from cpack_build.fetch.store import Store
from cpack_build.image.base import Base
from cpack_build.image.build import build
from cpack_build.image.layer import text
from cpack_build.image.plan import plan
from cpack_build.lock.wheels import wheels_of
from cpack_build.oci.archive import write_archive
from cpack_build.oci.engines import DockerEngine
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.types import Image
from tests.engines import Docker
from tests.image.small import gathered, make_parts
from tests.oci.images import BrokenBlob, layer


@pytest.mark.docker
def test_an_image_of_300_models_runs_on_an_engine_with_few_layers(docker: Docker, tmp_path: Path) -> None:
    lock = make_parts(tmp_path, models=range(1, 901, 3), busybox=True)
    assert len(lock.models) == 300
    store = Store(tmp_path / "store")
    name = parse_reference("cpack-many:v1")
    with build(lock, gathered(tmp_path, lock, store=store), store=store) as image:
        assert 100 < len(image.layers) <= 125
        DockerEngine().load(image, name)
        assert DockerEngine().image_id(name) == image.id
    try:
        run = ("run", "--rm", "--entrypoint", "/bin/busybox", "cpack-many:v1")
        listed = docker(*run, "ls", "-L", "/app/comfyui/models/loras").stdout.split()
        assert listed == [f"{number:03}.safetensors" for number in range(300)]
        paths = [f"/app/comfyui/{model.path}" for model in lock.models]
        sums = docker(*run, "sha256sum", *paths).stdout.split()
        assert dict(zip(sums[1::2], sums[::2], strict=True)) == {
            f"/app/comfyui/{model.path}": model.sha256 for model in lock.models
        }
    finally:
        docker("rmi", "--force", "cpack-many:v1", check=False)
    assert not [path for path in store.root.rglob("*") if path.name in {model.sha256 for model in lock.models}]


def test_a_plan_of_many_models_is_what_is_built_then(tmp_path: Path) -> None:
    lock = make_parts(tmp_path, models=range(1, 901, 3))
    store = Store(tmp_path / "store")
    materials = gathered(tmp_path, lock, store=store)
    before = plan(lock, documents=materials.documents, store=store)
    assert {layer.kind for layer in before if layer.is_known} == {"model"}
    assert sum(layer.kind == "models" for layer in before) == 16
    with build(lock, materials, store=store) as image:
        below = len(image.layers) - len(before)
        built = [layer.descriptor for layer in image.layers[below:]]
    after = plan(lock, documents=materials.documents, store=store)
    assert [(one.digest, one.size) for one in after[:-1]] == [(one.digest, one.size) for one in built[:-1]]
    kinds = [one.annotations["io.cpack.layer.kind"] for one in built]
    assert kinds == [layer.kind for layer in before]


def test_a_build_killed_at_any_of_50_moments_leaves_nothing_wrong(tmp_path: Path) -> None:
    lock = make_parts(tmp_path / "parts", models=[1000, 2000, 300_000])
    store = Store(tmp_path / "store")
    with build(lock, gathered(tmp_path / "parts", lock, store=store), store=store) as image:
        expected = image.digest
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "tests.image.killing", str(tmp_path), "50"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 50
    assert any(one["killed"] for one in found)  # how many of the moments came before the end is the machine's business
    assert [one for one in found if one["digest"] != expected or one["damaged"]] == []


_PAUSED = """
import sys
from pathlib import Path
from cpack_build.fetch.store import Store
from cpack_build.image.build import build
from cpack_build.lock.schema import read_lock
from cpack_build.oci.layout import write_layout
from tests.image.small import gathered
folder = Path(sys.argv[1])
lock, store = read_lock((folder / "cpack.lock").read_bytes(), name="lock"), Store(folder / "store")
materials = gathered(folder, lock, store=store)
print("gathered", flush=True)
sys.stdin.readline()
with build(lock, materials, store=store) as image:
    write_layout(image, folder / "layout")
    print(image.digest)
"""


def test_gc_beside_a_build_in_progress_takes_nothing_from_it(tmp_path: Path) -> None:
    """What the build has found is needed only later: its wheels and packages lie in the store and nowhere else."""
    lock = make_parts(tmp_path, models=[1000])
    with build(
        lock, gathered(tmp_path, lock, store=Store(tmp_path / "other")), store=Store(tmp_path / "other")
    ) as image:
        expected = image.digest
    store = Store(tmp_path / "store")
    for path in (tmp_path / "tool.deb", *(tmp_path / "wheels").iterdir()):
        store.put([path.read_bytes()], what=path)
        path.unlink()
    unused = store.put([b"of no build"], what="x").path
    del store  # and with it, what this process holds
    looking = Store(tmp_path / "store", leased=False)
    building = subprocess.Popen(
        [sys.executable, "-c", _PAUSED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with building as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "gathered\n"
        beside = collect(looking, max_size=0)
        assert [removal.path for removal in beside.removals] == [unused]
        assert beside.in_use == 3
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.read().split() == [expected]
    assert process.returncode == 0
    assert len(collect(looking, max_size=0).removals) >= 3, "when it has ended, nothing is held"


@pytest.mark.parametrize("what", ["tool.deb", "one-1.0", "models"])
def test_a_file_that_changes_after_it_was_hashed_spoils_no_later_build(tmp_path: Path, what: str) -> None:
    """The one between hash and layer is told, and the digest of what it was read as is not remembered."""
    lock = make_parts(tmp_path, models=range(1, 901, 3))
    store = Store(tmp_path / "store")
    materials = gathered(tmp_path, lock, store=store)
    (path,) = list(tmp_path.glob(f"*/{what}*.whl")) or list(tmp_path.glob(what))
    path = path if path.is_file() else materials.models[min(lock.models, key=lambda model: model.size).sha256].path
    original = path.read_bytes()
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(Exception, match=r"changed|hash|sha256|cannot be read"), build(lock, materials, store=store):
        pass
    path.write_bytes(original)
    with build(lock, gathered(tmp_path, lock, store=store), store=store) as image:
        write_layout(image, tmp_path / "again")
        after = image.digest
    fresh = Store(tmp_path / "fresh")
    with build(lock, gathered(tmp_path, lock, store=fresh), store=fresh) as image:
        assert image.digest == after


@pytest.mark.parametrize("write", [write_layout, write_archive])
def test_a_model_of_the_same_size_and_time_that_takes_the_place_of_a_proved_one_gets_into_no_image(
    write: Callable[[Image, Path], object], tmp_path: Path
) -> None:
    """A build reads no model of a layer of its own: it is read when the image is written."""
    lock = make_parts(tmp_path, models=[300_000])
    store = Store(tmp_path / "store")
    with build(lock, gathered(tmp_path, lock, store=store), store=store) as image:
        path = tmp_path / "models/loras/000.safetensors"
        data, status = path.read_bytes(), path.stat()
        (tmp_path / "new").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new").replace(path)
        with pytest.raises(HashMismatch, match=r"models/loras/000\.safetensors"):
            write(image, tmp_path / "image")
    assert not (tmp_path / "image").exists()
    with pytest.raises(HashMismatch, match=lock.models[0].sha256):
        gathered(tmp_path, lock, store=store)


def test_the_base_s_accounts_are_read_from_its_layers_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    whole = layer([text("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), text("etc/group", b"caf\xe9:x:1:\n")])
    expected = (b"root:x:0:0::/root:/bin/sh\n", b"caf\xe9:x:1:\n")
    assert Base({}, (whole,), store).accounts() == expected
    unread = BrokenBlob(whole.descriptor, b"", AssertionError("read again"))
    assert Base({}, (unread,), Store(tmp_path / "store")).accounts() == expected


def test_a_flipped_bit_in_the_store_never_gets_into_an_image(tmp_path: Path) -> None:
    """Whichever file it is in: it is told by name, or the file is made again."""
    lock = make_parts(tmp_path, models=[1000])
    store = Store(tmp_path / "store")

    def built() -> str:
        with build(lock, gathered(tmp_path, lock, store=store), store=store) as image:
            write_layout(image, tmp_path / f"layout{len(list(tmp_path.iterdir()))}")
            return image.digest

    expected = built()
    for number, source in enumerate([*lock.system, *wheels_of(lock.python)]):  # as if they had been downloaded
        path = tmp_path / (f"{source.name}.deb" if number == 0 else f"wheels/{source.filename}")  # type: ignore[union-attr]
        store.put([path.read_bytes()], what="x")
    assert built() == expected
    blobs = sorted((store.root / "blobs/sha256").iterdir())
    assert len(blobs) >= 4
    told: list[str] = []
    for blob in blobs:
        with sqlite3.connect(store.root / "memo.sqlite") as memo:
            memo.execute("DELETE FROM memo WHERE kind = 'layer'")
        memo.close()
        original = blob.read_bytes()
        blob.chmod(0o644)
        middle = len(original) // 2
        blob.write_bytes(original[:middle] + bytes([original[middle] ^ 4]) + original[middle + 1 :])
        try:
            assert built() == expected, blob
        except (HashMismatch, BadInput) as error:
            told.append(str(error))
        blob.unlink(missing_ok=True)
        store.put([original], what="x")
    assert len(told) >= 3
    named = (*(blob.name for blob in blobs), "one-1.0", "two-1.0", "tool 1")
    assert [error for error in told if not any(name in error for name in named)] == []
