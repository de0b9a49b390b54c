"""The documents of a pack as they lie in the zip, as pydantic models; from these comes the JSON Schema of a pack.

What comfy-pack 0.4 writes and this program writes and reads. The reader (:mod:`cpack_build.cpack.snapshot`) checks the
same by hand, for its messages; a test holds the two to each other, field by field.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cpack_build.cpack.settings import Settings

__all__ = ["PackDocuments", "SnapshotDocument", "pack_schema", "settings_schema"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_Commit = Annotated[str, StringConstraints(pattern=r"^\s*([0-9a-fA-F]{40}|[0-9a-fA-F]{64})\s*$")]


class _Open(BaseModel):
    """A part of a document that others may extend: what is not named here is passed over."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)


class GitNodeDocument(_Open):
    """A custom node that is a git repository; its address is the key."""

    hash: _Commit
    disabled: bool | None = None
    path: str | None = None
    """Its folder below ``custom_nodes``, where that is not the repository's name."""


class FileNodeDocument(_Open):
    """A custom node that is a single file of ``custom_nodes``; its content may lie in the pack as ``nodes/<name>``."""

    filename: str
    disabled: bool | None = None


class SourceDocument(_Open):
    """Where a model may be had. Hugging Face has ``repo, commit, path``, Civitai integers for ``repo, commit``."""

    download_url: str | None = None
    url: str | None = None
    urls: list[str] | None = None
    """All addresses, the likeliest first; ``download_url`` is the first of them."""


class ModelDocument(_Open):
    """A model of the workspace; every one on the disk is listed, those that were not chosen are ``disabled``."""

    filename: str
    """Relative to ComfyUI, with ``/`` (or ``\\`` from Windows)."""
    size: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Bytes."""
    atime: float | None = None
    ctime: float | None = None
    disabled: bool | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^\s*([0-9a-fA-F]{64})?\s*$")] | None = None
    source: SourceDocument | None = None


class ComfyuiDocument(_Open):
    """ComfyUI beyond its commit. Without one its files lie in the pack as ``comfyui/**``."""

    version: str | None = None
    """What it says of itself, as ``0.3.64``."""
    content_sha256: Annotated[str, StringConstraints(pattern=r"^\s*([0-9a-fA-F]{64})?\s*$")] | None = None
    """sha256 over ``SHA256 SP PATH NUL`` of each of its files, sorted by path."""
    files: Annotated[int, Field(ge=0)] | None = None


class DisabledNodeDocument(_Open):
    """A disabled custom node that ComfyUI-Manager's snapshot has no place for; the pack does not bring it."""

    name: str
    kind: str
    """``registry`` or ``local``."""
    id: str | None = None
    version: str | None = None


class OursDocument(_Open):
    """What cpack-build notes besides; comfy-pack passes it over."""

    comfyui: ComfyuiDocument | None = None
    local_nodes: list[str] | None = None
    """Custom nodes that nobody else has; their files lie in the pack as ``nodes/<name>/**``."""
    disabled_nodes: list[DisabledNodeDocument] | None = None


class SnapshotDocument(_Open):
    """``snapshot.json``: ComfyUI-Manager's snapshot, with ``python`` and ``models``."""

    comfyui: Annotated[str, StringConstraints(pattern=r"^\s*([0-9a-fA-F]{40}|[0-9a-fA-F]{64})?\s*$")] | None = None
    """Commit of ComfyUI; null when it was no git checkout."""
    git_custom_nodes: dict[str, GitNodeDocument] | None = None
    """Address → node."""
    cnr_custom_nodes: dict[str, str] | None = None
    """Id in the Comfy registry → version."""
    file_custom_nodes: list[FileNodeDocument] | None = None
    pips: dict[str, str | None] | None
    """``{"name==version": ""}``, or ``{"name": "git+https://…"}``."""
    python: Annotated[str, StringConstraints(pattern=r"^\s*3\.[0-9]{1,2}(\.[0-9A-Za-z.+-]*)?\s*$")]
    models: list[ModelDocument] | None = None
    cpack: OursDocument | None = None


class WorkflowNodeDocument(_Open):
    """One node of ``workflow_api.json``."""

    class_type: str
    inputs: dict[str, Any] = Field(default_factory=dict)


class PackDocuments(_Open):
    """The documents of a ``.cpack.zip``, by their names in it; ``input/**`` lie beside them as files, and what nobody
    else has: ``nodes/**``, ``patches/<name>.patch``, ``comfyui/**``."""

    snapshot: SnapshotDocument = Field(alias="snapshot.json")
    workflow_api: dict[str, WorkflowNodeDocument] = Field(alias="workflow_api.json")
    """The workflow in ComfyUI's API format; ``{}`` for a pack that can only be restored."""
    workflow: dict[str, Any] | None = Field(default=None, alias="workflow.json")
    """The workflow as ComfyUI's editor keeps it."""


def pack_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a pack's documents."""
    return {"$schema": _DRAFT, **PackDocuments.model_json_schema(by_alias=True)}


def settings_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``cpack.yaml``."""
    return {"$schema": _DRAFT, **Settings.model_json_schema()}
