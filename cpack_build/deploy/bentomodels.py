"""Models in BentoML's store: one for each sha256, whichever Bento it is in; no second copy where the disk can share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import HashMismatch
from cpack_build.oci.storage import shared_copy
from cpack_build.progress import Progress

__all__ = ["MODEL_FILE", "Linked", "ModelSource", "add_models", "make_readable", "model_tag"]

MODELS = "cpack-model"
"""The repository of all models in BentoML's store; comfy-pack's has the same name and shorter versions."""
MODEL_FILE = "model.bin"
"""What a model's file is called in it, as in comfy-pack's."""


@dataclass(frozen=True)
class ModelSource:
    """The file of a model, proved to be what its sha256 says. *is_own*: it is the store's, so it may be hard linked."""

    path: Path
    sha256: str
    size: int
    is_own: bool


@dataclass(frozen=True)
class Linked:
    """Bytes that were *written* for models, and that are *shared* with files that were there."""

    written: int = 0
    shared: int = 0


def model_tag(sha256: str) -> str:
    """The tag of the model in BentoML's store. A version has at most 63 characters: 40 hex digits are 160 bits."""
    return f"{MODELS}:{sha256[:40]}"


def add_models(
    models: Sequence[ModelSource], sha256_of: Callable[[Path], str], progress: Progress
) -> tuple[dict[str, str], Linked]:
    """Tags by sha256 of the models in BentoML's store, where those that are missing are put."""
    import bentoml

    tags: dict[str, str] = {}
    written = shared = 0
    with progress.task("Models", total=sum(model.size for model in models)) as task:
        for model in models:
            tags[model.sha256] = tag = model_tag(model.sha256)
            try:
                stored = bentoml.models.get(tag)
            except bentoml.exceptions.NotFound:
                metadata = {"sha256": model.sha256, "size": model.size}
                with bentoml.models.create(tag, labels={"made-by": "cpack-build"}, metadata=metadata):
                    pass  # its file comes apart, for BentoML would copy it twice
                stored = bentoml.models.get(tag)
                make_readable(Path(stored.path))
            place = Path(stored.path_of(MODEL_FILE))
            if place.is_file() and place.stat().st_size == model.size:
                _require_same(place, model, tag, sha256_of)
                shared += model.size
            elif shared_copy(model.path, place, may_link=model.is_own):
                shared += model.size
            else:
                written += model.size
            task.advance(model.size)
    return tags, Linked(written, shared)


def _require_same(place: Path, model: ModelSource, tag: str, sha256_of: Callable[[Path], str]) -> None:
    if (actual := sha256_of(place)) != model.sha256:
        hint = f"Delete it with `bentoml models delete {tag}`."
        raise HashMismatch(place, expected=model.sha256, actual=actual, hint=hint)


def make_readable(folder: Path) -> None:
    """Let everybody read what BentoML made for its owner alone: a container may run as anybody."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
