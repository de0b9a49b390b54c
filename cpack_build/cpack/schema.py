"""What a pack says, in one shape for every era of the format.

:mod:`cpack_build.cpack.snapshot` reads the documents of comfy-pack and ComfyUI-Manager into these; nothing here is as
it lies in the zip. Names and hashes have been checked, Windows' separators turned, trailing newlines removed; whether a
thing can be had is the lock's question.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["COMFYUI_URL", "FileNode", "GitPin", "ModelEntry", "NodePin", "Snapshot"]

COMFYUI_URL = "https://github.com/comfyanonymous/ComfyUI.git"
"""Where a snapshot's ComfyUI commit lies: no era names the repository, comfy-pack always uses this one."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class GitPin(_Document):
    """A commit (40 or 64 lowercase hex digits) of the repository at *url*."""

    url: str
    commit: str


class NodePin(_Document):
    """A custom node that is a git repository. *name* is its folder below ``custom_nodes``, one safe path component."""

    name: str
    url: str
    commit: str
    disabled: bool = False


class FileNode(_Document):
    """A custom node that is a single file; a pack of ours holds its content as ``nodes/<filename>``."""

    filename: str
    disabled: bool = False


class ModelEntry(_Document):
    """A model file of the workspace.

    *filename* is relative to ComfyUI with ``/`` (``models/upscale_models/x.safetensors``), *size* in bytes, *sha256* in
    lowercase hex. *urls* are http(s) addresses from which it may be downloaded, the likeliest first. Every model that
    was on the disk is listed; those that were not chosen are *disabled*.
    """

    filename: str
    size: int | None = Field(default=None, ge=0)
    sha256: str | None = None
    disabled: bool = False
    urls: tuple[str, ...] = ()


class Snapshot(_Document):
    """``snapshot.json`` of any era, normalised. *python* is the minor version, as ``"3.11"``; ``None`` where a pack of
    November 2024 or another tool's snapshot does not say."""

    python: str | None
    comfyui: GitPin | None
    nodes: tuple[NodePin, ...] = ()
    registry_nodes: dict[str, str] = Field(default_factory=dict)
    """Registry id → version (``cnr_custom_nodes``)."""
    file_nodes: tuple[FileNode, ...] = ()
    requirements: tuple[str, ...] = ()
    """PEP 508, sorted by name; pins as the workspace had them."""
    models: tuple[ModelEntry, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be taken over as it was written, one sentence each, for people."""
