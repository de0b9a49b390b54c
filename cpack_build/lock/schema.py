"""``cpack.lock``: every byte that enters an image, by hash. Canonical JSON; the same inputs give the same bytes.

Nothing that is not in the lock enters the image. A lock holds no path of the machine that made it: files that came from
a local folder are named by file name and hash, sources by their original URL (a mirror leaves no trace).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from cpack_build.cpack.settings import AcceleratorName, Text, VariableName
from cpack_build.errors import BadField, BadInput

__all__ = [
    "LOCK_REVISION",
    "ArchiveInterpreter",
    "BaseImage",
    "BaseInterpreter",
    "Deb",
    "DebInterpreter",
    "GitTree",
    "Inputs",
    "Interpreter",
    "LocalTree",
    "Lock",
    "Model",
    "NodeTree",
    "PythonEnvironment",
    "RegistryNode",
    "ScratchBase",
    "ServiceCode",
    "read_lock",
]

LOCK_REVISION = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$|^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]
Seconds = Annotated[int, Field(ge=0, le=253_402_300_799)]
"""Since 1970, up to the end of the year 9999, beyond which no RFC 3339 date goes."""
MinorVersion = Annotated[str, StringConstraints(pattern=r"^3\.[0-9]{1,2}$")]
ImagePath = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$")]
"""An absolute path in the image, without ``.`` and ``..``: the interpreter's, which is also started on this machine."""
PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
"""Debian policy 5.6.1; it names a file in the image."""
FolderName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f\x7f]{1,255}$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Inputs(_Document):
    """What the lock was resolved from; a change of either makes it stale."""

    pack: Sha256
    """Of the pack's files (``cpack.reader.Pack.content_sha256``)."""
    settings: Sha256
    """Of the settings that shape the image (``Settings.digest``), machine-local ones left out."""


class ScratchBase(_Document):
    """No base: the system packages are all there is."""

    kind: Literal["scratch"] = "scratch"


class BaseImage(_Document):
    """An image to build upon."""

    kind: Literal["image"] = "image"
    reference: str
    """As a person names it, without its digest: ``registry/name:tag``, or ``layout`` for a local folder."""
    digest: Digest
    """Of the platform's manifest, never of an index."""


class Deb(_Document):
    """One system package (deb-src-control: Package, Version, Architecture, Source)."""

    name: PackageName
    version: str
    architecture: str
    source: str
    """Source package's name, without its version."""
    url: str
    sha256: Sha256
    size: Size


class DebInterpreter(_Document):
    """Python from the system packages."""

    kind: Literal["deb"] = "deb"
    version: MinorVersion
    path: ImagePath
    packages: tuple[Deb, ...]
    """The packages of the interpreter itself; what they depend on is among the system packages."""


class BaseInterpreter(_Document):
    """Python that the base image already has."""

    kind: Literal["base"] = "base"
    version: MinorVersion
    path: ImagePath


class ArchiveInterpreter(_Document):
    """A standalone Python, a tar.gz or tar.zst by URL and hash, laid at ``/opt/python``."""

    kind: Literal["archive"] = "archive"
    version: MinorVersion
    path: ImagePath
    url: str
    sha256: Sha256
    size: Size


Interpreter = Annotated[DebInterpreter | BaseInterpreter | ArchiveInterpreter, Field(discriminator="kind")]


class PythonEnvironment(_Document):
    """A set of wheels as PEP 751 ``pylock.toml``; wheels from local folders carry ``path = "<file name>"``."""

    pylock: str
    pylock_sha256: Sha256


class ServiceCode(_Document):
    """cpack-build's own modules that run in the image."""

    version: str
    tree_sha256: Sha256


class GitTree(_Document):
    """A repository at one commit. *tree_sha256* is of the exported tree (``fetch.tree.Tree.tree_digest``), with the
    patch applied where there is one."""

    name: FolderName
    """Folder name below ``custom_nodes``; ``ComfyUI`` for ComfyUI itself."""
    url: str
    commit: Commit
    tree_sha256: Sha256
    committed_at: Seconds
    """Committer date, seconds since 1970."""
    patch_sha256: Sha256 | None = None
    """Of the pack's ``patches/<name>.patch``: changes that were never committed."""


class LocalTree(_Document):
    """Files that the pack itself holds: a custom node that nobody else has, or ComfyUI."""

    name: FolderName
    """Folder or file name below ``custom_nodes``; ``ComfyUI`` for ComfyUI itself."""
    kind: Literal["comfyui", "folder", "file"] = "folder"
    tree_sha256: Sha256


class RegistryNode(_Document):
    """A custom node from the Comfy registry: the archive of one version, and the hash of the tree that it holds."""

    name: FolderName
    """Its id in the registry, and folder name below ``custom_nodes``."""
    version: str
    url: str
    sha256: Sha256
    size: Size
    tree_sha256: Sha256


NodeTree = GitTree | RegistryNode | LocalTree
"""A custom node, wherever it is from."""


class Model(_Document):
    """A model file. *layer_digest* is that of its universal layer (``oci.modellayer``)."""

    path: str
    """Relative to ComfyUI, with ``/``: ``models/upscale_models/x.safetensors``."""
    sha256: Sha256
    size: Size
    layer_digest: Digest
    sources: tuple[str, ...]


class Lock(_Document):
    """The whole lock, for one platform."""

    lock_revision: Literal[1] = 1
    image_revision: Literal[1] = 1
    builder: str
    """Version of cpack-build that resolved it."""
    inputs: Inputs
    source_date_epoch: Seconds
    platform: Literal["linux/amd64", "linux/arm64"]
    target: AcceleratorName = "cpu"
    """What the locked torch computes on."""
    base: Annotated[ScratchBase | BaseImage, Field(discriminator="kind")]
    system: tuple[Deb, ...]
    interpreter: Interpreter
    bytecode: Literal["compiled", "none"] = "none"
    """Whether layers carry bytecode, made by the interpreter itself (``docs/decisions/004-bytecode.md``)."""
    service: PythonEnvironment
    service_code: ServiceCode
    python: PythonEnvironment
    comfyui: GitTree | LocalTree
    nodes: tuple[GitTree, ...]
    registry_nodes: tuple[RegistryNode, ...] = ()
    local_nodes: tuple[LocalTree, ...] = ()
    models: tuple[Model, ...]
    environment: dict[VariableName, Text]
    comfyui_args: tuple[Text, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON, indented for review, with a final newline."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @property
    def custom_nodes(self) -> tuple[NodeTree, ...]:
        """Every one, in the order of their layers."""
        return (*self.nodes, *self.registry_nodes, *self.local_nodes)

    @property
    def sha256(self) -> str:
        """Of :meth:`to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def read_lock(data: bytes, *, name: object) -> Lock:
    """Parse a lock; *name* is what errors call it. Raises :class:`BadInput`, :class:`BadField`."""
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is not JSON.", hint="Make it again with `cpack-build lock`.") from error
    revision = document.get("lock_revision") if isinstance(document, dict) else None
    if isinstance(revision, int) and revision > LOCK_REVISION:
        raise BadInput(
            f"{name} has lock revision {revision}; this cpack-build knows {LOCK_REVISION}.", hint="Update cpack-build."
        )
    try:
        return Lock.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadField(name, ".".join(str(part) for part in first["loc"]), first["msg"]) from error


def load_lock(path: Path) -> Lock:
    """Read the lock in the file at *path*."""
    try:
        return read_lock(path.read_bytes(), name=path)
    except FileNotFoundError as error:
        raise BadInput(f"There is no lock {path}.", hint="Make it with `cpack-build lock`.") from error
