"""What a build of a lock would do, told from the lock and the store's memory alone: nothing is fetched, nothing read.

The layers are the very recipes that a build uses, so their order and keys are those of the build; a layer that was
measured before is known with its digest and size, another is to be made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from cpack_build.image.build import Materials, compiler_identity, layers_of
from cpack_build.image.bytecode import Compiler, Interpreter
from cpack_build.image.debs import StoredDeb
from cpack_build.image.layer import Recipe
from cpack_build.image.wheels import StoredWheel
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
from cpack_build.oci.modellayer import ModelLayer

__all__ = ["PlannedLayer", "plan"]

_NOWHERE = Path("/nonexistent")


@dataclass(frozen=True)
class PlannedLayer:
    """One layer over the base. *size* and *digest* are known if it was measured before; a model's always are.

    *above* is the bytes of the known layers from this one up: what an engine that stacks layers unpacks again when this
    one changes. A registry gets only the changed layer and the ``app`` layer again.
    """

    kind: str
    name: str
    size: int | None
    digest: str | None
    above: int = 0

    @property
    def is_known(self) -> bool:
        return self.digest is not None


def plan(lock: Lock, *, documents: Mapping[str, bytes], store: Store) -> list[PlannedLayer]:
    """The layers of *lock* over its base, from bottom to top.

    Over a base image the ``app`` layer counts as to be made: it holds the base's accounts, not looked up here.
    """
    with _never_started(lock, store) as compiler:
        parts = layers_of(lock, _sketched(lock, documents, store), store=store, compiler=compiler)
    layers = [_planned(part, lock, store) for part in parts]
    above = 0
    stacked = []
    for layer in reversed(layers):
        above += layer.size or 0
        stacked.append(PlannedLayer(layer.kind, layer.name, layer.size, layer.digest, above))
    return stacked[::-1]


def _planned(part: Recipe | ModelLayer, lock: Lock, store: Store) -> PlannedLayer:
    if isinstance(part, ModelLayer):
        return PlannedLayer("model", part.title, part.descriptor.size, part.digest)
    remembered = store.recall("layer", part.key)
    if remembered is None or (part.kind == "app" and isinstance(lock.base, BaseImage)):
        return PlannedLayer(part.kind, part.name, None, None)
    digest, _, size = remembered.partition(" ")
    return PlannedLayer(part.kind, part.name, int(size), digest)


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
        interpreter_archive=_NOWHERE if isinstance(interpreter, ArchiveInterpreter) else None,
        service_wheels=wheels(lock.service),
        service_code=dict(service_files()),
        wheels=wheels(lock.python),
        comfyui=tree(lock.comfyui),
        nodes=tuple(map(tree, lock.custom_nodes)),
        models={model.sha256: _NOWHERE for model in lock.models},
        documents=documents,
    )
