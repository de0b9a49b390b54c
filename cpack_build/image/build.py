"""The stage: a lock and the things it names become an image.

:func:`layers_of` puts the layers in the order of ``docs/layering.md``: what most images share at the bottom, what
changes most on top. :func:`build` measures them and writes config and manifest. The things themselves come as
:class:`Materials`, already checked by hash (:mod:`.gather` brings them). No byte of a model is written, and no tar is
kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.tree import Tree
from cpack_build.image.app import app_layer
from cpack_build.image.base import Base
from cpack_build.image.budget import allot
from cpack_build.image.bytecode import Compiler, identity_of
from cpack_build.image.config import image_config, image_manifest
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.image.interpreter import archive_layer, runnable
from cpack_build.image.layer import Recipe, TarLayer
from cpack_build.image.loader import stored_cache
from cpack_build.image.models import model_layer, shared_layer
from cpack_build.image.overlaps import overlaps
from cpack_build.image.packages import heavy_layer, packaged_interpreter, packages_layer, service_layer, system_layer
from cpack_build.image.trees import comfyui_layer, node_layer
from cpack_build.image.wheels import StoredWheel
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    DebInterpreter,
    Lock,
)
from cpack_build.oci import tar
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.types import Blob, BytesBlob, Image
from cpack_build.progress import SILENT, Progress, working

__all__ = ["FORMATS", "Materials", "build", "compiler_identity", "history_of", "layers_of", "measure_ahead"]

_WORKERS = os.cpu_count() or 1


@dataclass(frozen=True)
class Materials:
    """Everything that the lock names, on this machine and checked by hash."""

    base: Base | None
    system: tuple[StoredDeb, ...]
    interpreter_debs: tuple[StoredDeb, ...]
    interpreter_archive: StoredFile | None
    service_wheels: tuple[StoredWheel, ...]
    service_code: Mapping[str, bytes]
    """Relative path below site-packages → content."""
    wheels: tuple[StoredWheel, ...]
    comfyui: Tree
    nodes: tuple[Tree, ...]
    """In the order of ``lock.custom_nodes``."""
    models: Mapping[str, StoredFile]
    """sha256 → file."""
    documents: Mapping[str, bytes]
    """What goes below ``/app/cpack`` beside the lock."""
    compiler: Lock | None = None
    """The lock of another platform whose interpreter compiles alike and runs here, where the image's own does not."""
    compiler_debs: tuple[StoredDeb, ...] = ()
    """Of that lock, all system packages and the interpreter's."""

    def files(self) -> Mapping[Path, tuple[int, ...]] | None:
        """Every file on this machine that the image is made of, with its stamp of when it was proved or about to be
        read. ``None`` when they cannot all be named."""
        base = self.base.sources if self.base is not None else {}
        if base is None:
            return None
        packages = (*self.system, *self.interpreter_debs, *self.compiler_debs, *self.service_wheels, *self.wheels)
        archive = (self.interpreter_archive,) if self.interpreter_archive is not None else ()
        trees = (self.comfyui, *self.nodes)
        large = (file for tree in trees for file in tree.lfs.values())
        files = [(file.path, file.stamp) for file in (*packages, *archive, *large, *self.models.values())]
        found = dict(base)
        for path, stamp in (*files, *((tree.head, tree.stamp) for tree in trees)):
            if stamp is None or found.setdefault(path, stamp) != stamp:
                return None
        return found


@contextmanager
def build(
    lock: Lock, materials: Materials, *, store: Store, workers: int = _WORKERS, progress: Progress = SILENT
) -> Iterator[Image]:
    """The image of *lock*, for as long as the context lasts: publish it there. Up to *workers* layers are made at once.

    Reads what has not been measured before. Writes no layer, only the store's memo and bytecode.
    """
    with _compiler(lock, materials, store=store) as compiler:
        form = FORMATS[lock.image_revision]
        parts = _parts(lock, materials, store=store, compiler=compiler)
        recipes = [part for part in parts if isinstance(part, Recipe)]
        measured = _measured(recipes, store=store, workers=workers, progress=progress)
        ours = [measured[part.key] if isinstance(part, Recipe) else part for part in parts]
        base = materials.base
        below: tuple[Blob, ...] = base.layers if base is not None else ()
        every: tuple[Blob, ...] = (*below, *ours)
        config = form.config(
            lock,
            history=[history_of(layer) for layer in ours],
            diff_ids=[layer.descriptor.digest for layer in every],
            base=base.config if base is not None else None,
        )
        for note in _overlaps(recipes, materials, store=store):
            progress.note(note)
        yield Image(form.manifest(lock, config=config, layers=every), config, every)


def measure_ahead(lock: Lock, materials: Materials, *, store: Store, progress: Progress = SILENT) -> None:
    """Measure the layers of *lock* that need no model, of *materials* without any: the store knows them when
    :func:`build` asks. It is for the time in which models are hashed."""
    lock = lock.model_copy(update={"models": ()})
    with _compiler(lock, materials, store=store) as compiler:
        parts = _parts(lock, materials, store=store, compiler=compiler)
        # the topmost has the lock, with its models
        recipes = [part for part in parts if isinstance(part, Recipe) and part.kind != "app"]
        _measured(recipes, store=store, workers=_WORKERS, progress=progress)
        _overlaps(recipes, materials, store=store)  # known when it is asked again


def _parts(lock: Lock, materials: Materials, *, store: Store, compiler: Compiler | None) -> list[Recipe | ModelLayer]:
    cache = None
    if lock.base.kind == "scratch":
        cache = stored_cache(materials.system, materials.interpreter_debs, store=store)
    base_layers = len(materials.base.layers) if materials.base is not None else 0
    return FORMATS[lock.image_revision].layers(
        lock, materials, store=store, compiler=compiler, base_layers=base_layers, loader_cache=cache
    )


def _measured(recipes: Sequence[Recipe], *, store: Store, workers: int, progress: Progress) -> Mapping[str, TarLayer]:
    """Key → layer. Up to *workers* are made at once."""
    with working(workers, progress) as (pool, reports):
        layers = pool.map(lambda recipe: recipe.measured(store, progress=reports), recipes)
        return dict(zip((recipe.key for recipe in recipes), layers, strict=True))


def _overlaps(recipes: Sequence[Recipe], materials: Materials, *, store: Store) -> list[str]:
    own = {recipe.inputs[0].sha256 for recipe in recipes if recipe.kind == "wheel"}
    return overlaps(materials.wheels, own=own, store=store)


@contextmanager
def _compiler(lock: Lock, materials: Materials, *, store: Store) -> Iterator[Compiler | None]:
    """The image's own interpreter as compiler, or its sibling's, if the lock wants bytecode."""
    if lock.bytecode == "none":
        yield None
        return
    lock = materials.compiler or lock
    interpreter = lock.interpreter
    entries: Callable[[], Iterable[tar.Entry]]
    if isinstance(interpreter, DebInterpreter):
        debs = materials.compiler_debs or (*materials.system, *materials.interpreter_debs)
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
    lock: Lock,
    materials: Materials,
    *,
    store: Store,
    compiler: Compiler | None,
    base_layers: int = 0,
    loader_cache: bytes | None = None,
) -> list[Recipe | ModelLayer]:
    """Our layers over the base's *base_layers*, from bottom to top. Raises :class:`Unresolvable` for want of room."""
    python = lock.interpreter
    models = {model.sha256: model for model in sorted(lock.models, key=lambda model: model.sha256)}
    pins = lock.custom_nodes
    allotted = allot(
        {wheel.sha256: wheel.size for wheel in materials.wheels},
        {sha256: model.size for sha256, model in models.items()},
        nodes=len(pins),
        base_layers=base_layers,
    )
    heavy = [wheel for wheel in materials.wheels if wheel.sha256 in allotted.wheels]
    light = [wheel for wheel in materials.wheels if wheel.sha256 not in allotted.wheels]

    parts: list[Recipe | ModelLayer] = []
    if materials.system:
        parts.append(system_layer(materials.system, is_root=lock.base.kind == "scratch", store=store))
    if materials.interpreter_debs:
        parts.append(packaged_interpreter(python, materials.interpreter_debs, store=store, compiler=compiler))
    if isinstance(python, ArchiveInterpreter) and materials.interpreter_archive is not None:
        parts.append(archive_layer(python, materials.interpreter_archive, store=store))
    parts.append(service_layer(python, materials.service_wheels, code=materials.service_code, compiler=compiler))
    for wheel in sorted(heavy, key=lambda wheel: wheel.name):
        parts.append(heavy_layer(python, wheel, compiler=compiler))
    for number, group in sorted(allotted.shared.items()):
        parts.append(shared_layer(number, [models[sha256] for sha256 in group], materials.models))
    for sha256 in sorted(allotted.models):
        parts.append(model_layer(models[sha256], materials.models[sha256], store=store))
    parts.append(packages_layer(python, light, compiler=compiler))
    parts.append(comfyui_layer(lock.comfyui, materials.comfyui, compiler=compiler))
    parts += [node_layer(pin, tree, compiler=compiler) for pin, tree in zip(pins, materials.nodes, strict=True)]
    accounts = materials.base.accounts() if materials.base is not None else None
    documents = {**materials.documents, "cpack.lock": lock.carried.to_bytes()}
    parts.append(app_layer(lock.models, documents, base_accounts=accounts, loader_cache=loader_cache))
    return parts


@dataclass(frozen=True)
class Format:
    """One revision of the image format. Those that there were stay, so that their locks stay buildable."""

    layers: Callable[..., list[Recipe | ModelLayer]]
    config: Callable[..., BytesBlob]
    manifest: Callable[..., BytesBlob]


FORMATS: Mapping[int, Format] = {1: Format(layers_of, image_config, image_manifest)}
"""By the lock's ``image_revision``."""


def history_of(layer: ModelLayer | TarLayer) -> str:
    """What ``docker history`` shows of it."""
    if isinstance(layer, ModelLayer):
        return f"model {layer.title}"
    return layer.recipe.title
