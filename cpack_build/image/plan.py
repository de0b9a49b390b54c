"""What a build of a lock would do, told from the lock and the store's memory alone: nothing is fetched, nothing read.

The layers are the very recipes that a build uses, so their order and keys are those of the build; a layer that was
measured before is known with its digest and size, another is to be made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from cpack_build.errors import CpackError
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.tree import Tree
from cpack_build.image.base import known_base_layers
from cpack_build.image.build import FORMATS, Materials, compiler_identity
from cpack_build.image.bytecode import Compiler, Interpreter
from cpack_build.image.debs import StoredDeb
from cpack_build.image.layer import Recipe
from cpack_build.image.loader import stored_cache
from cpack_build.image.wheels import StoredWheel
from cpack_build.lock.form import recorded_compression
from cpack_build.lock.interpreter import compiling
from cpack_build.lock.machine import this_platform
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    Deb,
    DebInterpreter,
    Lock,
    NodeTree,
    PythonEnvironment,
)
from cpack_build.lock.service import service_files
from cpack_build.lock.wheels import wheels_of
from cpack_build.oci.compressed import known_size
from cpack_build.oci.modellayer import ModelLayer

__all__ = ["SHARED", "PlannedLayer", "plan", "sketched_parts"]

_NOWHERE = Path("/nonexistent")


SHARED = {
    "system": "images with the same system packages",
    "interpreter": "images with the same Python",
    "service": "images of this cpack-build with the same Python",
    "wheel": "images with this wheel and the same Python",
    "model": "every image with this model",
    "models": "images with the same small models in this group",
    "wheels": "images with the same other wheels and Python",
    "comfyui": "images with the same ComfyUI and Python",
    "node": "images with the same commit of the node, and Python",
    "app": "no other image",
}
"""By kind, whose layers are the same blob: all that their bytes are a function of (``docs/layering.md``)."""
_PYTHON = ("interpreter", "service", "wheel", "wheels", "comfyui", "node")


@dataclass(frozen=True)
class PlannedLayer:
    """One layer over the base. *size*, *compressed* and *digest* are known if it was measured or compressed before; a
    model's always are.

    *changed* is how many layers are another blob when what this one is made from changes, *pushed* the bytes that a
    registry then gets again (compressed where that is known), and *above* those from this layer up, which an engine
    that stacks layers unpacks again; of both, what is known.
    """

    kind: str
    name: str
    size: int | None
    digest: str | None
    compressed: int | None = None
    changed: int = 0
    pushed: int = 0
    above: int = 0

    @property
    def is_known(self) -> bool:
        return self.digest is not None

    @property
    def shared(self) -> str:
        """What else has the same layer."""
        return SHARED[self.kind]


def plan(
    lock: Lock, *, documents: Mapping[str, bytes], store: Store, siblings: Sequence[Lock] = ()
) -> list[PlannedLayer]:
    """The layers of *lock* over its base, from bottom to top.

    Over a base image the ``app`` layer counts as to be made: it holds the base's accounts, not looked up here.
    """
    parts = sketched_parts(lock, documents=documents, store=store, siblings=siblings)
    layers = [_planned(part, lock, store) for part in parts]
    explained = []
    for number, layer in enumerate(layers):
        changed = [other for other in layers if _follows(other, layer, lock)]
        pushed = sum(other.size or 0 if other.compressed is None else other.compressed for other in changed)
        above = sum(other.size or 0 for other in layers[number:])
        explained.append(replace(layer, changed=len(changed), pushed=pushed, above=above))
    return explained


def sketched_parts(
    lock: Lock, *, documents: Mapping[str, bytes], store: Store, siblings: Sequence[Lock] = ()
) -> list[Recipe | ModelLayer]:
    """The layers of *lock* over its base as the build orders and groups them, of things that lie nowhere: they say what
    they are made of, and cannot be read."""
    with _never_started(_compiling(lock, siblings), store) as compiler:
        sketched = _sketched(lock, documents, store)
        cache = None
        if lock.base.kind == "scratch":
            cache = stored_cache(sketched.system, sketched.interpreter_debs, store=store, is_made=False)
        return FORMATS[lock.image_revision].layers(
            lock,
            sketched,
            store=store,
            compiler=compiler,
            base_layers=known_base_layers(lock.base, store=store),
            loader_cache=cache,
        )


def _follows(layer: PlannedLayer, other: PlannedLayer, lock: Lock) -> bool:
    """Whether *layer* is another blob when *other* is: the top one always, for it holds the lock; all with bytecode
    when the interpreter is, which compiles it."""
    is_compiled = lock.bytecode == "compiled" and layer.kind in _PYTHON and other.kind == "interpreter"
    return layer is other or layer.kind == "app" or is_compiled


def _planned(part: Recipe | ModelLayer, lock: Lock, store: Store) -> PlannedLayer:
    if isinstance(part, ModelLayer):
        size = part.descriptor.size
        return PlannedLayer("model", part.title, size, part.digest, size)
    remembered = store.recall("layer", part.key)
    if remembered is None or (part.kind == "app" and isinstance(lock.base, BaseImage)):
        return PlannedLayer(part.kind, part.name, None, None)
    digest, _, length = remembered.partition(" ")
    return PlannedLayer(part.kind, part.name, int(length), digest, _compressed(part, digest, int(length), lock, store))


def _compressed(part: Recipe, diff_id: str, size: int, lock: Lock, store: Store) -> int | None:
    how = recorded_compression(lock)
    return size if how.algorithm == "none" or part.kind == "models" else known_size(diff_id, how, store=store)


def _compiling(lock: Lock, siblings: Sequence[Lock]) -> Lock:
    """Whose interpreter will compile; the lock's own where none of them runs here, since a plan starts nothing."""
    try:
        return compiling(lock, siblings, platform=this_platform()) if lock.bytecode == "compiled" else lock
    except CpackError:
        return lock


@contextmanager
def _never_started(lock: Lock, store: Store) -> Iterator[Compiler | None]:
    def unpack() -> NoReturn:
        raise AssertionError("a plan compiles nothing")

    if lock.bytecode == "none":
        yield None
        return
    interpreter = lock.interpreter
    with Compiler(Interpreter(interpreter.version, compiler_identity(lock), unpack), store) as compiler:
        yield compiler


def _sketched(lock: Lock, documents: Mapping[str, bytes], store: Store) -> Materials:
    """Materials that say what they are, and lie nowhere."""

    def debs(items: tuple[Deb, ...]) -> tuple[StoredDeb, ...]:
        return tuple(StoredDeb(item.name, item.version, item.sha256, _NOWHERE) for item in items)

    def wheels(environment: PythonEnvironment) -> tuple[StoredWheel, ...]:
        return tuple(
            StoredWheel(item.name, item.version, item.filename, item.sha256, _NOWHERE, item.size or 0)
            for item in wheels_of(environment)
        )

    def tree(pin: NodeTree) -> Tree:
        return Tree(_NOWHERE, pin.name, "", store)

    interpreter = lock.interpreter
    return Materials(
        base=None,
        system=debs(lock.system),
        interpreter_debs=debs(interpreter.packages) if isinstance(interpreter, DebInterpreter) else (),
        interpreter_archive=(
            StoredFile(_NOWHERE, interpreter.sha256, interpreter.size)
            if isinstance(interpreter, ArchiveInterpreter)
            else None
        ),
        service_wheels=wheels(lock.service),
        service_code=dict(service_files()),
        wheels=wheels(lock.python),
        comfyui=tree(lock.comfyui),
        nodes=tuple(map(tree, lock.custom_nodes)),
        models={model.sha256: StoredFile(_NOWHERE, model.sha256, model.size) for model in lock.models},
        documents=documents,
    )
