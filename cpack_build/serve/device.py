"""Decides whether ComfyUI gets ``--cpu``: without an accelerator it would not start at all.

The machine and the PyTorch in ComfyUI's environment must both have one. Both are read from files; nothing is imported
or run, so the decision costs no time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Device", "choose_device"]

# ComfyUI's own ways to choose a device or memory regime; `--cpu` cannot be combined with some of them.
_CHOICES = frozenset({"--cpu", "--directml", "--oneapi-device-selector"})


@dataclass(frozen=True)
class Device:
    """Whether to run on the CPU, and the reason in a few words, for the log."""

    cpu: bool
    why: str


# The variables by which a program's GPUs are chosen; set to nothing or to -1 they hide all of them.
_HIDING = {"cuda": ("CUDA_VISIBLE_DEVICES",), "hip": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")}


def choose_device(
    python: Path, arguments: Sequence[str], *, environ: Mapping[str, str], dev: Path = Path("/dev")
) -> Device:
    """The device for the ComfyUI whose interpreter is *python*, with *arguments* and *environ*."""
    for argument in arguments:
        if argument.split("=")[0] in _CHOICES:
            return Device(cpu=False, why=f"as {argument} says")
    built_for = _torch_accelerator(python)
    if built_for == "none":
        return Device(cpu=True, why="on the CPU: the PyTorch in ComfyUI's environment is built without GPU support")
    for name in _HIDING.get(built_for, ()):
        if environ.get(name, "0").strip() in ("", "-1"):
            return Device(cpu=True, why=f"on the CPU: {name} hides every GPU")
    found = [name for pattern in ("nvidia[0-9]*", "dxg", "kfd", "accel/accel*") for name in sorted(dev.glob(pattern))]
    if built_for == "xpu":
        found += sorted(dev.glob("dri/renderD*"))
    if not found:
        return Device(
            cpu=True, why="on the CPU: no GPU is visible here (with Docker and an NVIDIA GPU, run with --gpus all)"
        )
    if not any(os.access(path, os.R_OK | os.W_OK) for path in found):
        return Device(cpu=True, why=f"on the CPU: this user may not use {found[0]}")
    return Device(cpu=False, why=f"on the GPU at {found[0]}")


def _torch_accelerator(python: Path) -> str:
    """What the PyTorch beside *python* is built for: ``cuda``, ``hip``, ``xpu``, ``none``, or ``unknown``."""
    for version_file in sorted(python.parent.parent.glob("lib/python3*/site-packages/torch/version.py")):
        text = version_file.read_text(errors="replace")
        for name in ("cuda", "hip", "xpu"):
            if re.search(rf"^{name}\s*(:[^=]+)?=\s*['\"]", text, flags=re.MULTILINE):
                return name
        return "none"
    return "unknown"
