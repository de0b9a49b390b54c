"""Models in an image: cold, warm, a change above, a new model; beside hashing the same bytes once with all cores, and
beside ``docker build`` (BuildKit, a private daemon), ``buildah`` and ``umoci``.

``CPACK_BENCH_MODELS`` says which (``1x2048 8x1024``: so many models of so many MiB), ``CPACK_BENCH_BASE`` how large
the base is (188 MiB). The other builders are timed on the first of them. Ours writes to an OCI layout, as a user would
have it: one that is not there (``unhashed``), and one that has the layers, with a store that knows nothing (``cold``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.measure import BenchError, Row, Run, cpack_build, run, timed, unmount
from bench.scene import Scene, make_scene, random_file, random_model, sparse_model
from cpack_build.fetch.store import Store
from cpack_build.oci.modellayer import layer_size

_MIB = 1 << 20
_REPEATED = 3
"""Times that what costs little is done; the best counts, on each side."""
_LOCK = """
import sys
from pathlib import Path
from cpack_build.cpack.schema import ModelEntry
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.models import lock_models
from cpack_build.lock.schema import load_lock
lock = load_lock(Path(sys.argv[1]))
entries = [ModelEntry(filename=model.path, size=model.size, sha256=model.sha256) for model in lock.models]
models, missing = lock_models(entries, folders=[sys.argv[2]], store=Store(), sources=Sources())
assert tuple(models) == lock.models and not missing
"""


def rows(place: Path) -> Iterator[Row]:
    """Measure each set of models, and then what is warm at any size."""
    for number, text in enumerate(os.environ.get("CPACK_BENCH_MODELS", "1x2048 8x1024").split()):
        count, _, mib = text.partition("x")
        folder = place / text
        yield from _models(folder, int(count), int(mib) * _MIB, peers=number == 0)
        shutil.rmtree(folder)
    yield from _warm(place / "warm")


def _models(place: Path, count: int, size: int, *, peers: bool) -> Iterator[Row]:
    name = f"{count} x {size // _MIB} MiB"
    base = int(os.environ.get("CPACK_BENCH_BASE", "188")) * _MIB
    scene = make_scene(
        place, models=[random_model(place, f"{n}.safetensors", size) for n in range(count)], base_size=base
    )
    bytes_once = [*(place / "models").rglob("*.safetensors"), *(place / "wheels").iterdir(), *_blobs(scene.base)]
    hashed = min(timed(lambda: _hash(bytes_once)) for _ in range(_REPEATED))
    once = "sha256, all cores"

    locking = run([sys.executable, "-c", _LOCK, scene.lock, place / "models"], environment=_home(place / "lock-home"))
    yield Row("layers", f"{name}: locked, unhashed", locking.seconds, once, hashed, peak_mb=locking.peak_mb,
              note=_written(locking))  # fmt: skip
    layout = place / "image.oci"
    home = place / "home"
    ours: dict[str, Run] = {"into a layout, unhashed": cpack_build(*scene.image(layout), home=home)}
    # The layout has every layer by now: what is left is to prove the models, make the image, and write its index.
    colds = [cpack_build(*scene.image(layout), home=place / f"cold-{number}") for number in range(_REPEATED)]
    cold = min(colds, key=lambda done: done.seconds)
    yield Row("layers", f"{name}: cold, from the lock", cold.seconds, once, hashed, 1.1, cold.peak_mb, _written(cold))
    again = [cpack_build(*scene.image(layout), home=home) for _ in range(_REPEATED)]
    ours["nothing changed"] = min(again, key=lambda done: done.seconds)
    scene = make_scene(place, models=scene.models, node="two")
    ours["a node changed"] = cpack_build(*scene.image(layout), home=home)
    other = random_model(place, "new.safetensors", size)
    scene = make_scene(place, models=[*scene.models[1:], other], node="two")
    ours["a model changed"] = cpack_build(*scene.image(layout), home=home)
    shutil.rmtree(layout)
    goals = {"nothing changed": 0.5, "a node changed": 1.0}
    for what, done in ours.items():
        yield Row("layers", f"{name}: {what}", done.seconds, "", goal=goals.get(what), peak_mb=done.peak_mb,
                  note=_written(done))  # fmt: skip
    if peers:
        yield from _beside(place, name, scene, ours)


def _home(path: Path) -> dict[str, str]:
    here = str(Path(__file__).resolve().parents[2])
    # The last as the command line itself sets it.
    return {"CPACK_HOME": str(path), "PYTHONPATH": here, "PYDANTIC_DISABLE_PLUGINS": "__all__"}


def _written(done: Run) -> str:
    return f"{done.written_mb:.0f} MB written"


def _blobs(layout: Path) -> list[Path]:
    return sorted((layout / "blobs/sha256").iterdir())


def _hash(paths: list[Path]) -> None:
    def one(path: Path) -> str:
        hasher = hashlib.sha256()
        buffer = memoryview(bytearray(_MIB))
        with path.open("rb", buffering=0) as file:
            while length := file.readinto(buffer):
                hasher.update(buffer[:length])
        return hasher.hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, sorted(paths, key=lambda path: -path.stat().st_size)))


def _warm(place: Path) -> Iterator[Row]:
    """20 GB of models, of which no byte can be read: their hashes are made up."""
    home, layout = place / "home", place / "image.oci"
    store = Store(home)
    cpack_build(*make_scene(place, models=[], wheels=200).image(layout), home=home)
    models = [sparse_model(place, f"{number}.safetensors", 1 << 30, store=store) for number in range(20)]
    for model in models:
        with (layout / "blobs/sha256" / model.layer_digest.removeprefix("sha256:")).open("wb") as file:
            file.truncate(layer_size(model.size))
    scene = make_scene(place, models=models, wheels=200)
    cpack_build(*scene.image(layout), home=home)
    done = min((cpack_build(*scene.image(layout), home=home) for _ in range(_REPEATED)), key=lambda done: done.seconds)
    yield Row("layers", "20 GB, 200 wheels: nothing changed", done.seconds, "", goal=0.5, peak_mb=done.peak_mb,
              note=_written(done))  # fmt: skip


# -- the others --------------------------------------------------------------------------------------------------------


def _beside(place: Path, name: str, scene: Scene, ours: Mapping[str, Run]) -> Iterator[Row]:
    """The same four builds by each builder that is here; docker's ratio to beat when warm is 2, buildah's 10."""
    context = place / "context"
    for peer, program, goal, builder in (
        ("docker build", "dockerd", 0.5, _docker),
        ("buildah", "buildah", 0.1, _buildah),
        ("umoci", "umoci", None, _umoci),
    ):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None or os.geteuid():
            print(f"layers: {peer} is not here (or this is not root)", file=sys.stderr)
            continue
        shutil.rmtree(context, ignore_errors=True)
        (context / "models").mkdir(parents=True)
        os.link(scene.model_path(scene.models[-1]), context / "models/model.safetensors")
        (context / "node.py").write_text("one")
        (context / "Dockerfile").write_text("FROM bench-base\nCOPY models /models\nCOPY node.py /app/node.py\n")
        with ExitStack() as stack:
            try:
                build = builder(stack, place, context, scene)
                theirs = {"into a layout, unhashed": build()}
                if builder is not _umoci:
                    theirs["nothing changed"] = min(build() for _ in range(_REPEATED))
                    (context / "node.py").write_text("two")
                    theirs["a node changed"] = build()
                    (context / "models/model.safetensors").unlink()
                    random_file(context / "models/model.safetensors", scene.models[-1].size)
                    theirs["a model changed"] = build()
            except (BenchError, AssertionError) as error:
                print(f"layers: {peer} could not be timed: {error}", file=sys.stderr)
                continue
        for what, seconds in theirs.items():
            is_warm = what in ("nothing changed", "a node changed")
            yield Row("layers", f"{name}: {what}", ours[what].seconds, peer, seconds, goal if is_warm else None)
    shutil.rmtree(context, ignore_errors=True)


def _docker(stack: ExitStack, place: Path, context: Path, scene: Scene) -> Callable[[], float]:
    from tests.engines import run_docker

    program = next(filter(_has_buildkit, _every("docker")), None)
    if program is None:
        raise BenchError("no docker command here has BuildKit (buildx is not installed)")
    docker = stack.enter_context(run_docker())
    docker("import", str(_largest(scene.base)), "bench-base")
    environment = {**docker.environment, "DOCKER_BUILDKIT": "1"}
    return lambda: run([program, "build", "-q", "-t", "bench", context], environment=environment).seconds


def _every(program: str) -> list[str]:
    """Every program of that name on the path."""
    places = (Path(folder) / program for folder in os.get_exec_path())
    return [str(path) for path in places if os.access(path, os.X_OK)]


def _has_buildkit(docker: str) -> bool:
    """Before release 23 the command itself speaks BuildKit; from then on its plugin buildx does."""
    said = subprocess.run([docker, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)", said)
    plugin = subprocess.run([docker, "buildx", "version"], capture_output=True)
    return plugin.returncode == 0 or (version is not None and int(version[1]) < 23)


def _buildah(stack: ExitStack, place: Path, context: Path, scene: Scene) -> Callable[[], float]:
    storage = place / "buildah"
    stack.callback(shutil.rmtree, storage, ignore_errors=True)
    stack.callback(unmount, storage)
    where = ["--root", storage / "root", "--runroot", storage / "run", "--storage-driver", "overlay"]
    # Not `FROM oci:DIR`, of whose path buildah makes a name, which few paths are.
    container = run(["buildah", *where, "from", "scratch"]).stdout.strip()
    run(["buildah", *where, "add", "-q", container, _largest(scene.base), "/"])
    run(["buildah", *where, "commit", "-q", "--rm", container, "bench-base"])
    words = ["bud", "-q", "--pull-never", "--layers", "--isolation", "chroot", "-t", "bench", context]
    return lambda: run(["buildah", *where, *words]).seconds


def _umoci(stack: ExitStack, place: Path, context: Path, scene: Scene) -> Callable[[], float]:
    layout = place / "umoci"
    stack.callback(shutil.rmtree, layout, ignore_errors=True)
    shutil.copytree(scene.base, layout)
    model = context / "models/model.safetensors"
    return lambda: run(["umoci", "insert", "--image", f"{layout}:latest", model, "/models/model.safetensors"]).seconds


def _largest(layout: Path) -> Path:
    return max(_blobs(layout), key=lambda path: path.stat().st_size)
