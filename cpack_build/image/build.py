"""The stage: a lock and the things it names become an image.

:func:`layers_of` puts the layers in the order of ``docs/layering.md``: what most images share at the bottom, what
changes most on top. :func:`build` measures them and writes config and manifest. The things themselves come as
:class:`Materials`, already checked by hash (:mod:`.gather` brings them). No byte of a model is written, and no tar is
kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cpack_build.errors import Unresolvable
from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree
from cpack_build.image.app import app_layer
from cpack_build.image.base import Base
from cpack_build.image.bytecode import Compiler, identity_of
from cpack_build.image.config import COMFYUI_ENV, SERVICE_ENV, image_config, image_manifest
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.image.interpreter import archive_layer, runnable
from cpack_build.image.layer import Recipe, TarLayer, text
from cpack_build.image.trees import comfyui_layer, node_layer
from cpack_build.image.wheels import Environment, StoredWheel, environment_entries, wheel_layer
from cpack_build.lock.models import is_layer_known
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    DebInterpreter,
    Lock,
    Model,
)
from cpack_build.oci import tar
from cpack_build.oci.modellayer import ModelLayer, stamp
from cpack_build.oci.types import Blob, Image
from cpack_build.progress import SILENT, Progress, working

__all__ = ["HEAVY", "LAYER_BUDGET", "Materials", "build", "compiler_identity", "layers_of", "model_layer"]

HEAVY = 64 * 1024 * 1024
"""Wheels of this many bytes and more get a layer of their own."""
LAYER_BUDGET = 120
"""Layers over the base's, where it leaves room for them."""
_IN_ALL = 125
"""Where moby's graph drivers stop (FACTS.md §5)."""
_WORKERS = os.cpu_count() or 1


@dataclass(frozen=True)
class Materials:
    """Everything that the lock names, on this machine and checked by hash."""

    base: Base | None
    system: tuple[StoredDeb, ...]
    interpreter_debs: tuple[StoredDeb, ...]
    interpreter_archive: Path | None
    service_wheels: tuple[StoredWheel, ...]
    service_code: Mapping[str, bytes]
    """Relative path below site-packages → content."""
    wheels: tuple[StoredWheel, ...]
    comfyui: Tree
    nodes: tuple[Tree, ...]
    """In the order of ``lock.custom_nodes``."""
    models: Mapping[str, Path]
    """sha256 → file."""
    documents: Mapping[str, bytes]
    """What goes below ``/app/cpack`` beside the lock."""


@contextmanager
def build(lock: Lock, materials: Materials, *, store: Store, progress: Progress = SILENT) -> Iterator[Image]:
    """The image of *lock*, for as long as the context lasts: publish it there.

    Reads what has not been measured before. Writes no layer, only the store's memo and bytecode.
    """
    with _compiler(lock, materials, store=store) as compiler:
        parts = layers_of(lock, materials, store=store, compiler=compiler)
        recipes = [part for part in parts if isinstance(part, Recipe)]
        with working(_WORKERS, progress) as (pool, reports):
            layers = pool.map(lambda recipe: recipe.measured(store, progress=reports), recipes)
            measured = dict(zip((recipe.key for recipe in recipes), layers, strict=True))
        ours = [measured[part.key] if isinstance(part, Recipe) else part for part in parts]
        base = materials.base
        below: tuple[Blob, ...] = base.layers if base is not None else ()
        every: tuple[Blob, ...] = (*below, *ours)
        config = image_config(
            lock,
            history=[_history(layer) for layer in ours],
            diff_ids=[layer.descriptor.digest for layer in every],
            base=base.config if base is not None else None,
        )
        yield Image(image_manifest(lock, config=config, layers=every), config, every)


@contextmanager
def _compiler(lock: Lock, materials: Materials, *, store: Store) -> Iterator[Compiler | None]:
    """The image's own interpreter as compiler, if the lock wants bytecode."""
    if lock.bytecode == "none":
        yield None
        return
    interpreter = lock.interpreter
    entries: Callable[[], Iterable[tar.Entry]]
    if isinstance(interpreter, DebInterpreter):
        debs = (*materials.system, *materials.interpreter_debs)
        entries = deb_layer("interpreter", "files", debs, store=store, is_root=False).entries
    elif isinstance(interpreter, ArchiveInterpreter):
        assert materials.interpreter_archive is not None
        entries = archive_layer(interpreter, materials.interpreter_archive, store=store).entries
    else:
        assert materials.base is not None
        entries = partial(materials.base.interpreter_files, interpreter.version)
    runner = runnable(interpreter.version, interpreter.path, compiler_identity(lock), entries)
    with Compiler(runner, store) as compiler:
        yield compiler


def compiler_identity(lock: Lock) -> str:
    """What bytecode depends on beside its sources: the interpreter's own packages, its archive, or the base with it."""
    interpreter = lock.interpreter
    if isinstance(interpreter, DebInterpreter):
        return identity_of(*(deb.sha256 for deb in interpreter.packages))
    if isinstance(interpreter, ArchiveInterpreter):
        return identity_of(interpreter.sha256)
    assert isinstance(lock.base, BaseImage)
    return identity_of(lock.base.digest)


def layers_of(
    lock: Lock, materials: Materials, *, store: Store, compiler: Compiler | None
) -> list[Recipe | ModelLayer]:
    """Our layers over the base, from bottom to top."""
    service = Environment(SERVICE_ENV, lock.interpreter.version, lock.interpreter.path)
    comfyui = Environment(COMFYUI_ENV, lock.interpreter.version, lock.interpreter.path)
    heavy = [wheel for wheel in materials.wheels if wheel.size >= HEAVY]
    heavy.sort(key=lambda wheel: (-wheel.size, wheel.name))
    models = sorted({model.sha256: model for model in lock.models}.values(), key=lambda model: model.sha256)
    pins = lock.custom_nodes
    fixed = 6 + len(pins)
    budget = min(LAYER_BUDGET, _IN_ALL - (len(materials.base.layers) if materials.base is not None else 0))
    heavy = heavy[: max(0, budget - fixed - len(models))]
    light = [wheel for wheel in materials.wheels if wheel not in heavy]
    if fixed + len(heavy) + len(models) > budget:
        raise Unresolvable(
            f"{len(models)} models and {len(pins)} custom nodes need more than {budget} layers.",
            hint="Leave some of them out of the pack; this cpack-build gives each a layer of its own.",
        )

    parts: list[Recipe | ModelLayer] = []
    if materials.system:
        is_root = lock.base.kind == "scratch"
        parts.append(deb_layer("system", "system packages", materials.system, store=store, is_root=is_root))
    if materials.interpreter_debs:
        name = f"python {lock.interpreter.version}"
        parts.append(
            deb_layer("interpreter", name, materials.interpreter_debs, store=store, is_root=False, compiler=compiler)
        )
    if isinstance(lock.interpreter, ArchiveInterpreter) and materials.interpreter_archive is not None:
        parts.append(archive_layer(lock.interpreter, materials.interpreter_archive, store=store))
    code = [text(f"{service.site_packages}/{path}", data) for path, data in materials.service_code.items()]
    parts.append(
        wheel_layer(
            "service",
            "BentoML service",
            service,
            materials.service_wheels,
            extra=[*environment_entries(service), *code],
            compiler=compiler,
        )
    )
    for wheel in sorted(heavy, key=lambda wheel: wheel.name):
        parts.append(wheel_layer("wheel", f"{wheel.name} {wheel.version}", comfyui, [wheel], compiler=compiler))
    parts += [model_layer(model, materials.models[model.sha256], store=store) for model in models]
    parts.append(
        wheel_layer("wheels", "Python packages", comfyui, light, extra=environment_entries(comfyui), compiler=compiler)
    )
    parts.append(comfyui_layer(lock.comfyui, materials.comfyui, compiler=compiler))
    parts += [node_layer(pin, tree, compiler=compiler) for pin, tree in zip(pins, materials.nodes, strict=True)]
    accounts = materials.base.accounts() if materials.base is not None else None
    documents = {**materials.documents, "cpack.lock": lock.to_bytes()}
    parts.append(app_layer(lock.models, documents, base_accounts=accounts))
    return parts


def model_layer(model: Model, path: Path, *, store: Store) -> ModelLayer:
    """The layer of *model*, whose file is at *path*.

    It carries a proof only where this machine computed the layer's digest itself and the file is still the one that it
    hashed: what a lock says is proved by whoever writes the bytes.
    """
    status = path.stat() if path.exists() else None  # before the store looks: what changes after that has no proof
    found = store.find(model.sha256)
    is_proved = found is not None and found.path == path and is_layer_known(model, store=store)
    proof = stamp(status) if is_proved and status is not None else None
    return ModelLayer(path, model.sha256, model.size, model.layer_digest, model.path, proof)


def _history(layer: ModelLayer | TarLayer) -> str:
    if isinstance(layer, ModelLayer):
        return f"model {layer.title}"
    return layer.recipe.title
