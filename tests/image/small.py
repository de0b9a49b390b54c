"""A whole small image from parts made on the spot: two git trees, two wheels, a .deb, models, over a base of busybox.

It is locked by hand, and built as ``cpack-build image`` builds: :func:`gathered` brings the parts, ``build`` makes them
an image.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.build import Materials, build
from cpack_build.image.gather import Places, gather
from cpack_build.image.layer import arrange, text
from cpack_build.lock.schema import (
    BaseImage,
    BaseInterpreter,
    Deb,
    GitTree,
    Inputs,
    Lock,
    Model,
    PythonEnvironment,
    read_lock,
)
from cpack_build.lock.service import service_code
from cpack_build.lock.wheels import Wheel, pylock_text
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import hash_model
from tests import need
from tests.fetch.repositories import make_repository
from tests.making import make_deb, make_wheel, member
from tests.oci.images import image_of, layer, machine

__all__ = ["gathered", "make_parts"]

CODE = "https://code.example/"
DEBS = "https://deb.example/"
ZERO = "0" * 64


def make_parts(folder: Path, *, models: Iterable[int], seed: int = 1, busybox: bool = False) -> Lock:
    """Make the parts in *folder* and lock them; *models* are sizes in bytes."""
    store = Store(folder / "locking")
    mirrors = Mirrors({CODE: f"{folder}/"})
    trees = []
    for name in ("ComfyUI", "node"):
        commit = make_repository(folder / name, {"main.py": f"print({name!r})\n" * 50, "a/b.txt": name})
        tree = fetch_tree(f"{CODE}{name}", commit, store=store, mirrors=mirrors)
        trees.append(GitTree(name=name, url=f"{CODE}{name}", commit=commit, tree_sha256=tree.tree_digest(),
                             committed_at=1_700_000_000))  # fmt: skip
    noise = random.Random(seed)
    made = [
        make_wheel(folder / "wheels", name, {f"{name}/__init__.py": b"A = 1\n", f"{name}/x": noise.randbytes(99_999)})
        for name in ("one", "two")
    ]
    wheels = [Wheel(wheel.name, wheel.version, wheel.filename, None, wheel.sha256, wheel.size) for wheel in made]
    deb = make_deb(folder / "tool.deb", "Package: tool\nVersion: 1\nArchitecture: all\n",
                   [(member("./usr/share/tool/data"), noise.randbytes(50_000))])  # fmt: skip
    files = [text("etc/passwd", b""), text("etc/group", b"")]
    if busybox:
        files.append(text("bin/busybox", Path(need.tool("busybox")).read_bytes(), 0o755))
    base = image_of([layer(arrange(files))])
    write_layout(base, folder / "base.oci")
    lock = Lock(
        builder="0",
        inputs=Inputs(pack=ZERO, settings=ZERO),
        source_date_epoch=1_700_000_000,
        platform=f"linux/{machine()}",  # type: ignore[arg-type]
        base=BaseImage(reference="layout", digest=base.digest),
        system=(
            Deb(name="tool", version="1", architecture="all", source="tool", url=f"{DEBS}tool.deb", sha256=_sha256(deb),
                size=deb.stat().st_size),
        ),
        interpreter=BaseInterpreter(version="3.11", path="/usr/bin/python3.11"),
        service=_environment(wheels[:1]),
        service_code=service_code(),
        python=_environment(wheels),
        comfyui=trees[0],
        nodes=(trees[1],),
        models=tuple(_model(folder, number, noise.randbytes(size)) for number, size in enumerate(models)),
        environment={},
        comfyui_args=(),
    )  # fmt: skip
    (folder / "cpack.lock").write_bytes(lock.to_bytes())
    return lock


def gathered(
    folder: Path, lock: Lock, *, store: Store, meanwhile: Callable[[Materials], object] | None = None
) -> Materials:
    """The parts in *folder*, proved."""
    places = Places(base=f"oci:{folder}/base.oci", models=[str(folder / "models")], find_links=[str(folder / "wheels")])
    sources = Sources(Mirrors({CODE: f"{folder}/", DEBS: f"{folder}/"}))
    return gather(
        lock, documents={"snapshot.json": b"{}"}, places=places, store=store, sources=sources, meanwhile=meanwhile
    )


def _environment(wheels: list[Wheel]) -> PythonEnvironment:
    pylock = pylock_text(wheels, python_version="3.11")
    return PythonEnvironment(pylock=pylock, pylock_sha256=hashlib.sha256(pylock.encode()).hexdigest())


def _model(folder: Path, number: int, data: bytes) -> Model:
    path = folder / "models" / "loras" / f"{number:03}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    digest = hash_model(path, sha256, len(data))
    return Model(path=f"models/loras/{path.name}", sha256=sha256, size=len(data), layer_digest=digest, sources=())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(folder: Path, store: Path, layout: Path) -> str:
    """Build the parts in *folder* into *layout*; the manifest's digest."""
    lock = read_lock((folder / "cpack.lock").read_bytes(), name="cpack.lock")
    opened = Store(store)
    with build(lock, gathered(folder, lock, store=opened), store=opened) as image:
        write_layout(image, layout)
        return image.digest
