"""A pack, its lock and all that they name, made on the spot: a base of any size, many small wheels, a node, models.

Nothing comes from a network and nothing is resolved, so that what is measured is the build alone. Models are random
bytes, or holes that the store is told the (made-up) hashes of, where no byte of them may be read anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.settings import settings_for
from cpack_build.cpack.writer import write_pack
from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store, StoredFile, stamp_of
from cpack_build.image.layer import arrange, text
from cpack_build.lock.schema import BaseImage, BaseInterpreter, GitTree, Inputs, Lock, Model, PythonEnvironment
from cpack_build.lock.service import service_code
from cpack_build.lock.wheels import Wheel, pylock_text
from cpack_build.oci import tar
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import ModelFile, hash_model
from cpack_build.oci.types import LAYER, Descriptor, FileBlob
from tests.fetch.repositories import make_repository
from tests.making import make_wheel
from tests.oci.images import image_of, machine

__all__ = ["Scene", "make_scene", "random_file", "random_model", "sparse_model"]

COMFYUI, NODE = "https://code.example/ComfyUI", "https://code.example/node"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Scene:
    """Where things are."""

    place: Path
    pack: Path
    lock: Path
    models: tuple[Model, ...]

    @property
    def base(self) -> Path:
        return self.place / "base.oci"

    def model_path(self, model: Model) -> Path:
        return self.place / model.path

    def image(self, layout: Path) -> list[str | Path]:
        """The words of the command that builds it into *layout*."""
        return ["image", self.pack, "--lock", self.lock, "--output", f"oci:{layout}", "-q"]


def random_file(path: Path, size: int) -> str:
    """*size* random bytes at *path*; their sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(0, size, _CHUNK):
            data = os.urandom(min(_CHUNK, size - file.tell()))
            hasher.update(data)
            file.write(data)
    return hasher.hexdigest()


def random_model(place: Path, name: str, size: int) -> Model:
    """A model of *size* random bytes below *place*."""
    path = place / "models" / "checkpoints" / name
    sha256 = random_file(path, size)
    digest = hash_model(path, sha256, size)
    return Model(path=f"models/checkpoints/{name}", sha256=sha256, size=size, layer_digest=digest, sources=())


def sparse_model(place: Path, name: str, size: int, *, store: Store) -> Model:
    """A hole of *size* bytes, and *store* remembers hashes of it, as after an earlier build."""
    path = place / "models" / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    digest = f"sha256:{hashlib.sha256(sha256.encode()).hexdigest()}"
    store.remember_file(StoredFile(path, sha256, size, stamp_of(path.stat())))
    store.remember("model-layer-1", f"{sha256}:{size}", digest)
    return Model(path=f"models/checkpoints/{name}", sha256=sha256, size=size, layer_digest=digest, sources=())


def make_scene(
    place: Path, *, models: Sequence[Model], wheels: int = 20, base_size: int = 0, node: str = "one"
) -> Scene:
    """All but the models, which lie below *place* already. Again with another *node*, only the node is new."""
    mirrors = Mirrors({COMFYUI: str(place / "ComfyUI"), NODE: str(place / "node")})
    store = Store(place / "locking")
    pins = []
    for url, name, files in (
        (COMFYUI, "ComfyUI", {f"comfy/{number}.py": f"A = {number}\n" * 200 for number in range(300)}),
        (NODE, "node", {"__init__.py": f"# {node}\nNODE_CLASS_MAPPINGS = {{}}\n"}),
    ):
        commit = make_repository(place / name, files)
        tree = fetch_tree(url, commit, store=store, mirrors=mirrors)
        pins.append(
            GitTree(name=name, url=url, commit=commit, tree_sha256=tree.tree_digest(), committed_at=1_700_000_000)
        )
    pack, settings = place / "scene.cpack.zip", place / "scene.cpack.yaml"
    if not (place / "base.oci").exists():
        _make_base(place, base_size)
        for number in range(wheels):
            name = f"package{number:03}"
            make_wheel(place / "wheels", name, {f"{name}/{part}.py": b"A = 1\n" * 300 for part in range(20)})
    found = [
        Wheel(path.name.split("-")[0], "1.0", path.name, None, hashlib.sha256(path.read_bytes()).hexdigest(),
              path.stat().st_size)
        for path in sorted((place / "wheels").iterdir())
    ]  # fmt: skip
    snapshot = {
        "comfyui": pins[0].commit, "git_custom_nodes": {NODE: {"hash": pins[1].commit, "disabled": False}},
        "cnr_custom_nodes": {}, "file_custom_nodes": [], "pips": {}, "python": "3.11", "models": [],
    }  # fmt: skip
    workflow = {
        "1": {"class_type": "CPackInputInt", "inputs": {"value": 64}, "_meta": {"title": "size"}},
        "2": {"class_type": "CPackOutputImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"},
              "_meta": {"title": "picture"}},
    }  # fmt: skip
    write_pack(pack, snapshot_document=snapshot, workflow_api=workflow, workflow={}, inputs={})
    document = {
        "base": f"oci:{place}/base.oci", "system": {"packages": []}, "models": [str(place / "models")],
        "mirrors": dict(mirrors.prefixes), "python": {"find_links": [str(place / "wheels")]},
    }  # fmt: skip
    settings.write_text(json.dumps(document))
    chosen = settings_for(pack, inside=None)
    index = json.loads((place / "base.oci/index.json").read_bytes())
    lock = Lock(
        builder="0",
        inputs=Inputs(pack=read_pack(pack).content_sha256, settings=chosen.digest()),
        source_date_epoch=1_700_000_000,
        platform=f"linux/{machine()}",  # type: ignore[arg-type]
        base=BaseImage(reference="layout", digest=index["manifests"][0]["digest"]),
        system=(),
        interpreter=BaseInterpreter(version="3.11", path="/usr/bin/python3.11"),
        service=_environment(found[:5]),
        service_code=service_code(),
        python=_environment(found),
        comfyui=pins[0],
        nodes=(pins[1],),
        models=tuple(sorted(models, key=lambda model: model.path)),
        environment={},
        comfyui_args=(),
    )
    (place / "scene.cpack.lock").write_bytes(lock.to_bytes())
    return Scene(place, pack, place / "scene.cpack.lock", lock.models)


def _environment(wheels: list[Wheel]) -> PythonEnvironment:
    pylock = pylock_text(wheels, python_version="3.11")
    return PythonEnvironment(pylock=pylock, pylock_sha256=hashlib.sha256(pylock.encode()).hexdigest())


def _make_base(place: Path, size: int) -> None:
    random_file(place / "base.bin", size)
    files = [text("etc/passwd", b""), text("etc/group", b"")]
    files.append(tar.Entry("opt/base.bin", "file", content=ModelFile(place / "base.bin", size)))
    hasher, count = hashlib.sha256(), 0
    with (place / "base.tar").open("wb") as file:
        for chunk in tar.stream(arrange(files)):
            hasher.update(chunk)
            count += file.write(chunk)
    (place / "base.bin").unlink()
    layer = FileBlob(Descriptor(LAYER, f"sha256:{hasher.hexdigest()}", count), place / "base.tar")
    write_layout(image_of([layer]), place / "base.oci")
    (place / "base.tar").unlink()
