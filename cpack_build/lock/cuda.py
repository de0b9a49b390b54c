"""What fits what: torch ↔ CUDA ↔ base image ↔ oldest driver, as data, each table with its source.

A row that is missing is told and never guessed; ``docs/locking.md`` shows them side by side.
"""

from __future__ import annotations

from cpack_build.errors import BadSettings, Unresolvable

__all__ = ["BASES", "CUDA_BUILDS", "FAMILIES", "PLAIN_CUDA", "base_of", "driver_of"]

PLAIN_CUDA: dict[str, dict[str, str]] = {
    "linux/amd64": {
        "2.0": "11.7", "2.1": "12.1", "2.2": "12.1", "2.3": "12.1", "2.4": "12.1", "2.5": "12.4", "2.6": "12.4",
        "2.7": "12.6", "2.8": "12.8", "2.9": "12.8", "2.10": "12.8", "2.11": "13.0", "2.12": "13.0", "2.13": "13.0",
        "2.14": "13.0", "2.15": "13.2",
    },
    "linux/arm64": {"2.11": "13.0", "2.12": "13.0", "2.13": "13.0", "2.14": "13.0", "2.15": "13.2"},
}  # fmt: skip
"""Minor version of torch → CUDA of its wheels without a local label, where they have any.

Source: the ``nvidia-cuda-runtime`` that their metadata ask for (2.4 to 2.15 read on 2026-11-23), and for older ones
https://github.com/pytorch/pytorch/blob/main/RELEASE.md#release-compatibility-matrix.
"""

CUDA_BUILDS: dict[str, tuple[str, ...]] = {
    "2.4": ("11.8", "12.1", "12.4"), "2.5": ("11.8", "12.1", "12.4"), "2.6": ("11.8", "12.4", "12.6"),
    "2.7": ("11.8", "12.6", "12.8"), "2.8": ("12.6", "12.8", "12.9"), "2.9": ("12.6", "12.8", "13.0"),
    "2.10": ("12.6", "12.8", "13.0"), "2.11": ("12.6", "12.8", "13.0"), "2.12": ("12.6", "13.0", "13.2"),
    "2.13": ("12.6", "13.0", "13.2"),
}  # fmt: skip
"""Minor version of torch → the CUDAs that it was released for (stable and experimental columns of the same matrix)."""

_DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
"""Major CUDA → oldest Linux driver that runs it, by minor version compatibility (table 1 of
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html and table 2 of
https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/)."""

BASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "11.8": ("11.8.0", ("22.04",)), "12.1": ("12.1.1", ("22.04",)), "12.4": ("12.4.1", ("22.04",)),
    "12.6": ("12.6.3", ("22.04", "24.04")), "12.8": ("12.8.1", ("22.04", "24.04")),
    "12.9": ("12.9.1", ("22.04", "24.04")), "13.0": ("13.0.2", ("22.04", "24.04")),
    "13.2": ("13.2.1", ("22.04", "24.04")),
}  # fmt: skip
"""CUDA → the release that NVIDIA's images of it have, and the Ubuntus that these are made on, for both platforms.

Source: https://hub.docker.com/r/nvidia/cuda/tags, as public Dockerfiles name them (2026-11-23).
"""

_UBUNTU_OF_PYTHON = {"3.10": "22.04", "3.11": "22.04", "3.12": "24.04"}
"""Python → the Ubuntu that has it (https://packages.ubuntu.com/search?keywords=python3)."""

FAMILIES = {"cuda": "runtime", "cuda-base": "base", "cuda-devel": "devel"}
"""What ``base:`` may say instead of an image → the flavour of NVIDIA's images: with CUDA's libraries; with no more than
its driver's compatibility libraries; with its compilers, for nodes that compile when they run."""


def base_of(family: str, *, target: str, python: str) -> str:
    """The image of *family* that fits *target* (``cuda12.8``) and has that *python*, where some has it.

    Raises :class:`BadSettings` for a target that is not CUDA, :class:`Unresolvable` for a CUDA without images.
    """
    if not target.startswith("cuda"):
        raise BadSettings(
            f"base is {family!r}, and the target is {target}.", hint="Leave --base out, or name a --target of CUDA."
        )
    version = target.removeprefix("cuda")
    if version not in BASES:
        raise Unresolvable(
            f"Which of NVIDIA's images fits {target} is not known to this cpack-build.",
            hint=f"Name it: --base docker.io/nvidia/cuda:VERSION-{FAMILIES[family]}-ubuntuNN.NN.",
        )
    release, systems = BASES[version]
    system = _UBUNTU_OF_PYTHON.get(python, systems[-1])
    return f"docker.io/nvidia/cuda:{release}-{FAMILIES[family]}-ubuntu{system if system in systems else systems[-1]}"


def driver_of(target: str) -> str | None:
    """The oldest NVIDIA driver for Linux that runs *target*; ``None`` where it needs none, or is not known."""
    return _DRIVERS.get(target.removeprefix("cuda").partition(".")[0]) if target.startswith("cuda") else None
