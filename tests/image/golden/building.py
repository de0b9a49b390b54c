"""Builds the golden images from ``inputs/``, or a copy of it, and tells what they are, entry by entry."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.tree import Tree
from cpack_build.image.base import Base
from cpack_build.image.build import Materials, build, layers_of
from cpack_build.image.bytecode import Compiler, Interpreter, Launch
from cpack_build.image.debs import StoredDeb
from cpack_build.image.interpreter import archive_layer
from cpack_build.image.layer import Recipe, TarLayer
from cpack_build.image.models import shared_layer
from cpack_build.image.wheels import StoredWheel
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    BaseInterpreter,
    Deb,
    DebInterpreter,
    Lock,
    Model,
    read_lock,
)
from cpack_build.lock.wheels import wheels_of
from cpack_build.oci import tar
from cpack_build.oci.compressed import compressed_image, parse_compression
from cpack_build.oci.compression import ChunkReader
from cpack_build.oci.modellayer import prefix
from cpack_build.oci.types import LAYER, Blob, BytesBlob, Image, digest_of
from tests.fetch.repositories import make_repository

__all__ = [
    "DOCUMENTS",
    "GOLDEN",
    "INPUTS",
    "LOCK",
    "SERVICE_CODE",
    "STANDIN",
    "described",
    "golden_lock",
    "materials_from",
    "read_trees",
]

_HERE = Path(__file__).parent
INPUTS = _HERE / "inputs"
LOCK = _HERE / "cpack.lock"
GOLDEN = _HERE / "golden.json"
SERVICE_CODE = {"cpack_build/__init__.py": b"", "cpack_build/serve/__main__.py": b"print('serving')\n"}
"""What stands for the service, whose own modules change with every release."""
_BASE = BytesBlob(
    LAYER, b"".join(tar.stream([tar.Entry("etc/passwd", "file", content=tar.BytesContent(b"root:x:0:0::/:/\n"))]))
)
DOCUMENTS = {"workflow_api.json": b"{}", "snapshot.json": b"{}"}
_COMPILER = r"""
import hashlib, struct, sys
read, write = sys.stdin.buffer.read, sys.stdout.buffer.write
write(struct.pack("<II", 3, 11))
sys.stdout.buffer.flush()
while len(head := read(8)) == 8:
    name, size = struct.unpack("<II", head)
    data = b"compiled " + read(name) + hashlib.sha256(read(size)).digest()
    write(struct.pack("<I", len(data)) + data)
    sys.stdout.buffer.flush()
"""
"""What stands for a compiler: what a real one writes differs from one Python release to the next; where it lies and
what is written about it does not."""
_TREES: dict[str, dict[str, str | bytes]] = {
    "ComfyUI": {"main.py": "print('comfyui')\n", "run.sh": "#!/bin/sh\n", "größe.txt": "1", ".hidden": "", "-x": "-"},
    "node": {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n", "data/" + "x" * 110: b"\0\xff"},
}


def golden_lock() -> Lock:
    return read_lock(LOCK.read_bytes(), name=LOCK)


@contextmanager
def _repositories() -> Iterator[dict[str, tuple[Path, str]]]:
    """Each tree's repository and commit."""
    with TemporaryDirectory(prefix="cpack-golden-") as folder:
        yield {
            name: (
                Path(folder) / name,
                make_repository(
                    Path(folder) / name, files, executable=("run.sh",), links={"link": "main.py", "dangling": "gone"}
                ),
            )
            for name, files in _TREES.items()
        }


def _tree(name: str, path: Path, commit: str, store: Store) -> Tree:
    url = f"https://code.example/{name}"
    return fetch_tree(url, commit, store=store, mirrors=Mirrors({url: str(path)}))


def read_trees() -> dict[str, tuple[str, str]]:
    """Commit and hash of each tree, for the lock."""
    with TemporaryDirectory() as folder, _repositories() as made:
        store = Store(Path(folder))
        return {name: (commit, _tree(name, path, commit, store).tree_digest()) for name, (path, commit) in made.items()}


def described(inputs: Path, store: Store, *, workers: int = 2) -> dict[str, Any]:
    """What the golden images are: their IDs, the digests of their manifests plain and compressed, and of each layer its
    digest and its entries as lines of text."""
    lock = golden_lock()
    with materials_from(inputs, store) as materials:
        base = Base(
            {"config": {"Env": ["PATH=/base/bin", "KEPT=1"]}, "history": [{"created_by": "the base"}]}, (_BASE,)
        )
        over = lock.model_copy(
            update={
                "base": BaseImage(reference="registry.example/base:1", digest=digest_of(b"base")),
                "system": (),
                "interpreter": BaseInterpreter(version="3.11", path="/usr/bin/python3.11"),
            }
        )
        above = {**vars(materials), "base": base, "system": (), "interpreter_debs": ()}
        found: dict[str, Any] = {"layers": {}, "images": {}}
        with build(lock, materials, store=store, workers=workers) as image:
            found["images"]["on scratch"] = _summary(image, store, workers)
            found["layers"] |= {_name(layer): _layer(layer) for layer in image.layers}
        with build(over, Materials(**above), store=store, workers=workers) as image:
            found["images"]["over a base"] = _summary(image, store, workers)
            found["layers"]["app over a base"] = _layer(image.layers[-1])
        with Compiler(STANDIN, store) as compiler:
            for part in layers_of(lock, materials, store=store, compiler=compiler):
                if isinstance(part, Recipe) and part.kind != "app":
                    layer = part.measured(store)
                    found["layers"][f"{_name(layer)}, with bytecode"] = _layer(layer)
        found["layers"]["models"] = _layer(_shared(inputs).measured(store))
        found["layers"]["interpreter archive"] = _layer(_archive(inputs, store))
        found["layers"]["model of 9 GiB, its first 4096 bytes"] = {"digest": digest_of(prefix("0" * 64, 9 << 30))}
    return found


def _shared(inputs: Path) -> Recipe:
    """A layer that two models share."""
    models, files = [], {}
    for name in ("tiny.safetensors", "python.tar"):
        path = inputs / name
        sha256, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        models.append(Model(path=name, sha256=sha256, size=size, layer_digest=digest_of(b""), sources=()))
        files[sha256] = StoredFile(path, sha256, size)
    return shared_layer(3, models, files)


@contextmanager
def materials_from(inputs: Path, store: Store) -> Iterator[Materials]:
    """What :func:`golden_lock` names, from the folder *inputs*."""
    with _repositories() as repositories:
        trees = {name: _tree(name, *made, store) for name, made in repositories.items()}
        yield _materials(golden_lock(), inputs, trees)


def _materials(lock: Lock, inputs: Path, trees: dict[str, Tree]) -> Materials:
    assert isinstance(lock.interpreter, DebInterpreter)

    def debs(items: Iterable[Deb]) -> tuple[StoredDeb, ...]:
        return tuple(
            StoredDeb(item.name, item.version, item.sha256, inputs / item.url.rpartition("/")[2]) for item in items
        )

    def wheels(environment: Any) -> tuple[StoredWheel, ...]:
        return tuple(
            StoredWheel(
                wheel.name, wheel.version, wheel.filename, wheel.sha256, inputs / wheel.filename,
                wheel.size or 0,
            )
            for wheel in wheels_of(environment)
        )  # fmt: skip

    return Materials(
        base=None,
        system=debs(lock.system),
        interpreter_debs=debs(lock.interpreter.packages),
        interpreter_archive=None,
        service_wheels=wheels(lock.service),
        service_code=SERVICE_CODE,
        wheels=wheels(lock.python),
        comfyui=trees["ComfyUI"],
        nodes=(trees["node"],),
        models={
            model.sha256: StoredFile(inputs / "tiny.safetensors", model.sha256, model.size) for model in lock.models
        },
        documents=DOCUMENTS,
    )


@contextmanager
def _standin() -> Iterator[Launch]:
    yield Launch((sys.executable, "-c", _COMPILER))


STANDIN = Interpreter("3.11", "a stand-in", _standin)


def _archive(inputs: Path, store: Store) -> TarLayer:
    path = inputs / "python.tar"
    pin = ArchiveInterpreter(
        version="3.11", path="/opt/python/bin/python3.11", url="https://python.example/python.tar",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size,
    )  # fmt: skip
    return archive_layer(pin, StoredFile(path, pin.sha256, pin.size), store=store).measured(store)


def _summary(image: Image, store: Store, workers: int) -> dict[str, Any]:
    digests = {"plain": image.digest}
    for how in ("zstd", "gzip"):
        compression = parse_compression(how)
        packed = compressed_image(image, compression, store=store, workers=workers)
        digests[f"{compression} by {compression.compressor}"] = packed.digest
    return {"id": image.id, "config": json.loads(image.config.data), "manifests": digests}


def _name(layer: Blob) -> str:
    notes = layer.descriptor.annotations
    kind = notes["io.cpack.layer.kind"]
    return f"{kind} {notes['io.cpack.layer.name']}" if kind in ("node", "wheel") else kind


def _layer(layer: Blob) -> dict[str, Any]:
    with tarfile.open(fileobj=ChunkReader(layer.chunks()), mode="r|", encoding="utf-8") as archive:
        entries = [_line(archive, info) for info in archive]
    return {"digest": layer.descriptor.digest, "entries": entries}


def _line(archive: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    file = archive.extractfile(info) if info.isreg() else None
    content = hashlib.sha256(file.read()).hexdigest()[:16] if file is not None else info.linkname
    pax = ",".join(sorted(info.pax_headers))
    kind = {"0": "file", "1": "hardlink", "2": "symlink", "5": "directory"}[info.type.decode()]
    return f"{info.name} {kind} {info.mode:04o} {info.mtime:.0f} {info.size} {content} {pax}".rstrip()
