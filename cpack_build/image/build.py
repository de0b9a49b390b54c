"""The stage: a lock and the things it names become an image.

:func:`layers_of` puts the layers in the order of ``docs/layering.md``: what most images share at the bottom, what
changes most on top. :func:`build` measures them and writes config and manifest. The things themselves come as
:class:`Materials`, already checked by hash (:mod:`.gather` brings them). No byte of a model is written, and no tar is
kept."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.errors import Unresolvable
from cpack_build.fetch.git import Tree
from cpack_build.fetch.store import Store
from cpack_build.image.app import app_layer
from cpack_build.image.config import COMFYUI_ENV, SERVICE_ENV, image_config, image_manifest
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.image.interpreter import archive_layer
from cpack_build.image.layer import Recipe, TarLayer, text
from cpack_build.image.trees import comfyui_layer, node_layer
from cpack_build.image.wheels import Environment, StoredWheel, environment_entries, wheel_layer
from cpack_build.lock.schema import ArchiveInterpreter, Lock, Model
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.types import Blob, Image
from cpack_build.progress import SILENT, Progress

__all__ = ["HEAVY", "LAYER_BUDGET", "Base", "Materials", "build", "layers_of"]

HEAVY = 64 * 1024 * 1024
"""Wheels of this many bytes and more get a layer of their own."""
LAYER_BUDGET = 120
"""Layers over the base's; moby's graph drivers stop at 125 in all (FACTS.md §5)."""


@dataclass(frozen=True)
class Base:
    """A base image at hand: its *config* document, uncompressed layers, and the accounts it has."""

    config: Mapping[str, Any]
    layers: tuple[Blob, ...]
    passwd: bytes
    group: bytes


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
    """In the order of ``lock.nodes``."""
    models: Mapping[str, Path]
    """sha256 → file."""
    documents: Mapping[str, bytes]
    """What goes below ``/app/cpack`` beside the lock."""


def build(lock: Lock, materials: Materials, *, store: Store, progress: Progress = SILENT) -> Image:
    """The image of *lock*. Reads what has not been measured before, and writes nothing but the store's memo."""
    parts = layers_of(lock, materials, store=store)
    recipes = [part for part in parts if isinstance(part, Recipe)]
    with ThreadPoolExecutor(2) as pool:
        measured = dict(
            zip(
                (recipe.key for recipe in recipes),
                pool.map(lambda recipe: recipe.measured(store, progress=progress), recipes),
                strict=True,
            )
        )
    ours: list[ModelLayer | TarLayer] = [measured[part.key] if isinstance(part, Recipe) else part for part in parts]
    base = materials.base
    below: tuple[Blob, ...] = base.layers if base is not None else ()
    layers: tuple[Blob, ...] = (*below, *ours)
    config = image_config(
        lock,
        history=[_history(layer) for layer in ours],
        diff_ids=[layer.descriptor.digest for layer in layers],
        base=base.config if base is not None else None,
    )
    return Image(image_manifest(lock, config=config, layers=layers), config, layers)


def layers_of(lock: Lock, materials: Materials, *, store: Store) -> list[Recipe | ModelLayer]:
    """Our layers over the base, from bottom to top."""
    service = Environment(SERVICE_ENV, lock.interpreter.version, lock.interpreter.path)
    comfyui = Environment(COMFYUI_ENV, lock.interpreter.version, lock.interpreter.path)
    heavy = [wheel for wheel in materials.wheels if wheel.path.stat().st_size >= HEAVY]
    heavy.sort(key=lambda wheel: -wheel.path.stat().st_size)
    models = sorted({model.sha256: model for model in lock.models}.values(), key=lambda model: model.sha256)
    fixed = 6 + len(lock.nodes)
    heavy = heavy[: max(0, LAYER_BUDGET - fixed - len(models))]
    light = [wheel for wheel in materials.wheels if wheel not in heavy]
    if fixed + len(heavy) + len(models) > LAYER_BUDGET:
        raise Unresolvable(
            f"{len(models)} models and {len(lock.nodes)} custom nodes need more than {LAYER_BUDGET} layers.",
            hint="Leave some of them out of the pack; this cpack-build gives each a layer of its own.",
        )

    parts: list[Recipe | ModelLayer] = []
    if materials.system:
        is_root = lock.base.kind == "scratch"
        parts.append(deb_layer("system", "system packages", materials.system, store=store, is_root=is_root))
    if materials.interpreter_debs:
        name = f"python {lock.interpreter.version}"
        parts.append(deb_layer("interpreter", name, materials.interpreter_debs, store=store, is_root=False))
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
        )
    )
    for wheel in sorted(heavy, key=lambda wheel: wheel.name):
        parts.append(wheel_layer("wheel", f"{wheel.name} {wheel.version}", comfyui, [wheel]))
    parts += [_model_layer(model, materials.models[model.sha256]) for model in models]
    parts.append(wheel_layer("wheels", "Python packages", comfyui, light, extra=environment_entries(comfyui)))
    parts.append(comfyui_layer(lock.comfyui, materials.comfyui))
    parts += [node_layer(pin, tree) for pin, tree in zip(lock.nodes, materials.nodes, strict=True)]
    accounts = (materials.base.passwd, materials.base.group) if materials.base is not None else None
    documents = {**materials.documents, "cpack.lock": lock.to_bytes()}
    parts.append(app_layer(lock.models, documents, base_accounts=accounts))
    return parts


def _model_layer(model: Model, path: Path) -> ModelLayer:
    return ModelLayer(path, model.sha256, model.size, model.layer_digest, model.path)


def _history(layer: ModelLayer | TarLayer) -> str:
    if isinstance(layer, ModelLayer):
        return f"model {layer.title}"
    return f"{layer.recipe.kind} {layer.recipe.name}"
