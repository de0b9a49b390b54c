"""What a deployment must know of an image: its name by digest, what it can run on, and the models that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MIB", "ModelFile", "ModelVolume", "Subject"]

MIB = 1 << 20


@dataclass(frozen=True)
class ModelFile:
    """A model of the image: its *path* relative to ComfyUI, and bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class ModelVolume:
    """A model that comes as an image of its own, *reference* by digest (:mod:`cpack_build.oci.modelimage`)."""

    sha256: str
    reference: str


@dataclass(frozen=True)
class Subject:
    """An image of ours.

    *reference* is ``registry/repository@sha256:…``, or what a local engine knows it by. *target* is the lock's
    (``cpu``, ``cuda12.8``, ``rocm6.4``), *driver* the oldest NVIDIA driver that runs it. *required* are the parameters
    without a value of their own: with one of them the workflow cannot be run before somebody asks; ``None`` where that
    is not known.
    """

    reference: str
    name: str
    platforms: tuple[str, ...]
    target: str
    models: tuple[ModelFile, ...] = ()
    driver: str | None = None
    required: tuple[str, ...] | None = None
    has_models: bool = True
    """Whether they are in it: one that was pushed without needs them as volumes."""

    @property
    def vendor(self) -> Literal["nvidia", "amd"] | None:
        """Whose GPU its torch computes on."""
        if self.target.startswith("cuda"):
            return "nvidia"
        return "amd" if self.target.startswith("rocm") else None

    @property
    def architectures(self) -> tuple[str, ...]:
        """``amd64``, ``arm64``."""
        return tuple(sorted(platform.partition("/")[2] for platform in self.platforms))

    @property
    def model_bytes(self) -> int:
        """Of all models together, each once."""
        return sum({model.sha256: model.size for model in self.models}.values())

    @property
    def memory_mib(self) -> int:
        """A first guess at the memory that it needs: Python, torch and ComfyUI (2 GiB), and the models a quarter over
        their files, since ComfyUI keeps in memory what it moved off a GPU. In whole GiB."""
        need = 2048 * MIB + self.model_bytes * 5 // 4
        return -(-need // (1024 * MIB)) * 1024
