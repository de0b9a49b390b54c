"""The layers of models: the universal one for each, and the shared ones where there are more models than layers.

Neither writes a byte of a model: both are streamed from the files where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.image.layer import Recipe, key_of
from cpack_build.lock.models import fetch_model
from cpack_build.lock.proof import is_layer_proved
from cpack_build.lock.schema import Model
from cpack_build.oci import tar
from cpack_build.oci.modellayer import ModelFile, ModelLayer, entries
from cpack_build.oci.sharedlayer import SHARED
from cpack_build.progress import SILENT, Progress

__all__ = ["found_layer", "model_layer", "shared_layer"]


def model_layer(model: Model, file: StoredFile, *, store: Store) -> ModelLayer:
    """The layer of *model*, whose *file* was proved.

    It carries a proof only where this machine computed the layer's digest itself, and the file is the one that it
    hashed: what a lock says is proved by whoever writes the bytes.
    """
    proof = file.stamp if is_layer_proved(model, file, store=store) else None
    return ModelLayer(file.path, model.sha256, model.size, model.layer_digest, model.path, proof)


def found_layer(
    model: Model, *, folders: Sequence[str], store: Store, sources: Sources, progress: Progress = SILENT
) -> ModelLayer:
    """The layer of *model*, wherever its file is found. Raises what :func:`~cpack_build.lock.models.fetch_model`
    raises."""
    file = fetch_model(model, folders=folders, store=store, sources=sources, progress=progress)
    return model_layer(model, file, store=store)


def shared_layer(number: int, models: Sequence[Model], files: Mapping[str, StoredFile]) -> Recipe:
    """The layer that *models* share, as number *number*; *files* are by sha256."""
    listed = sorted((model.sha256, model.size) for model in models)

    def every() -> Iterator[tar.Entry]:
        return entries((sha256, ModelFile(files[sha256].path, size)) for sha256, size in listed)

    count = f"{len(listed)} models" if len(listed) > 1 else "1 model"
    return Recipe(
        "models",
        f"{count} of group {number:x}",
        key_of("models", listed),
        every,
        annotations={SHARED: ",".join(sha256 for sha256, _ in listed)},
        inputs=tuple(files[sha256] for sha256, _ in listed),
    )
