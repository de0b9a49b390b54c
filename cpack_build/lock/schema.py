"""``cpack.lock``: every byte that enters an image, by hash. Canonical JSON; the same inputs give the same bytes.

Nothing that is not in the lock enters the image. A lock holds no path of the machine that made it: files that came from
a local folder are named by file name and hash, sources by their original URL (a mirror leaves no trace).

A :class:`Lock` is for one platform, and so is the image that is made of it. The file may hold several: what they share
once, the rest by platform (:class:`LockIndex`). :func:`read_locks` and :func:`locks_to_bytes` are the way in and out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
)

from cpack_build.cpack.settings import AcceleratorName, AnyPlatform, Platform, Text, VariableName
from cpack_build.errors import BadField, BadInput, Unresolvable

__all__ = [
    "IMAGE_REVISIONS",
    "LOCK_REVISION",
    "WHEEL_NAME",
    "Access",
    "ArchiveInterpreter",
    "BaseImage",
    "BaseInterpreter",
    "BaseSummary",
    "BuiltWheel",
    "Compression",
    "Deb",
    "DebInterpreter",
    "GitTree",
    "Inputs",
    "Installed",
    "Interpreter",
    "LocalTree",
    "Lock",
    "LockIndex",
    "Model",
    "NodeTree",
    "PinnedWheels",
    "Platform",
    "PlatformPart",
    "PythonEnvironment",
    "RegistryNode",
    "ScratchBase",
    "ServiceCode",
    "SourceArchive",
    "SourceTree",
    "load_lock",
    "load_locks",
    "locks_to_bytes",
    "read_lock",
    "read_locks",
]

LOCK_REVISION = 1
IMAGE_REVISIONS = (1,)
"""Of the image format: those that can be built (:data:`cpack_build.image.build.FORMATS`)."""

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
WHEEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,254}\.whl"
"""The file name of a wheel, as far as that is one word; ``packaging`` takes line ends in it."""
Access = Literal["public", "gated", "private"]
FolderName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f\x7f]{1,255}$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Inputs(_Document):
    """What the lock was resolved from; a change of either makes it stale."""

    pack: Sha256
    """Of the pack's files (``cpack.reader.Pack.content_sha256``)."""
    settings: Sha256
    """Of the settings that shape the image (``Settings.digest``), machine-local ones left out."""


class ScratchBase(_Document):
    """No base: the system packages are all there is."""

    kind: Literal["scratch"] = "scratch"


AccountLines = Annotated[str, StringConstraints(max_length=1 << 16, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")]
"""Of ``/etc/passwd`` or ``/etc/group``: text, which no terminal obeys when a lock is reviewed."""


class BaseSummary(_Document):
    """What a build for a registry asks of a base image besides manifest and config, so that its layers need not come.

    It is believed only where they are not at hand (:mod:`cpack_build.image.base`)."""

    passwd: AccountLines
    group: AccountLines
    layers: Annotated[tuple[Size, ...], Field(max_length=512)]
    """Bytes of each when it is not compressed, from bottom to top."""


class BaseImage(_Document):
    """An image to build upon."""

    kind: Literal["image"] = "image"
    reference: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,512}$")]
    """As a person names it, without its digest: ``registry/name:tag``, or ``layout`` for a local folder."""
    digest: Digest
    """Of the platform's manifest, never of an index."""
    summary: BaseSummary | None = None
    """``None`` in older locks, and where accounts are no text: then the layers are read."""


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


class HostInterpreter(_Document):
    """Whatever Python of that *version* the machine has: of a workspace's lock, and of no image."""

    kind: Literal["host"] = "host"
    version: MinorVersion

    @property
    def path(self) -> str:
        """Where it lies in an image. Raises :class:`Unresolvable`, for it is in none."""
        raise Unresolvable(
            "The lock is a workspace's, with no system below it, and no image can be made of it.",
            hint="Lock the pack with `cpack-build lock`.",
        )


Interpreter = Annotated[
    DebInterpreter | BaseInterpreter | ArchiveInterpreter | HostInterpreter, Field(discriminator="kind")
]


class PinnedWheels(_Document):
    """A set of wheels as PEP 751 ``pylock.toml``; wheels from local folders carry ``path = "<file name>"``."""

    pylock: str
    pylock_sha256: Sha256


class SourceArchive(_Document):
    """A source distribution; no *url* for one from a local folder."""

    kind: Literal["sdist"] = "sdist"
    filename: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,254}$")]
    url: str | None
    sha256: Sha256
    size: Size


class SourceTree(_Document):
    """A package in a git repository, below *subdirectory* of it. *tree_sha256* as for a :class:`GitTree`."""

    kind: Literal["git"] = "git"
    url: str
    commit: Commit
    tree_sha256: Sha256
    subdirectory: str = ""


class BuiltWheel(_Document):
    """How a wheel that no index has was made, so that another machine can make it again and compare."""

    filename: Annotated[str, StringConstraints(pattern=f"^{WHEEL_NAME}$")]
    sha256: Sha256
    source: Annotated[SourceArchive | SourceTree, Field(discriminator="kind")]
    requires: PinnedWheels
    """The build requirements (PEP 518 and 517), all of them."""
    python: Annotated[str, StringConstraints(pattern=r"^3\.[0-9]{1,2}\.[0-9]{1,3}$")]
    """The Python that built it."""
    platform: Platform
    """The machine that built it."""
    frontend: str
    """What called the build backend: ``build 1.3.0``."""


class PythonEnvironment(PinnedWheels):
    """What is laid out as one environment. *built* tells of those wheels that were made from source for this lock."""

    built: tuple[BuiltWheel, ...] = ()

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialise(self)
        return document if self.built else {key: value for key, value in document.items() if key != "built"}


class ServiceCode(_Document):
    """cpack-build's own modules that run in the image."""

    version: str
    tree_sha256: Sha256


class Installed(_Document):
    """A node's ``install.py`` has run, once, when the lock was made (``nodes.install`` in ``cpack.yaml``). The node's
    own ``tree_sha256`` is then of what it left; *sha256* and *size* are of the tar that holds that."""

    sha256: Sha256
    size: Size
    script_sha256: Sha256
    from_tree_sha256: Sha256
    """Of the tree that the script was given."""
    platform: AnyPlatform
    """On which it ran."""
    packages: tuple[str, ...] = ()
    """The Python packages that it installed, as requirements; the lock's environment has them."""
    models: tuple[str, ...] = ()
    """The paths of the models that it fetched; they are among the lock's."""


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
    installed: Installed | None = None


class LocalTree(_Document):
    """Files that the pack itself holds: a custom node that nobody else has, or ComfyUI."""

    name: FolderName
    """Folder or file name below ``custom_nodes``; ``ComfyUI`` for ComfyUI itself."""
    kind: Literal["comfyui", "folder", "file"] = "folder"
    tree_sha256: Sha256
    installed: Installed | None = None


class RegistryNode(_Document):
    """A custom node from the Comfy registry: the archive of one version, and the hash of the tree that it holds."""

    name: FolderName
    """Its id in the registry, and folder name below ``custom_nodes``."""
    version: str
    url: str
    sha256: Sha256
    size: Size
    tree_sha256: Sha256
    installed: Installed | None = None


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
    access: Access | None = None
    """Who may download it, as far as its sources said: none was given a token."""


class Compression(_Document):
    """How the layers of the image are compressed when it is pushed; its digest in a registry depends on it."""

    algorithm: Literal["zstd", "gzip", "none"]
    level: Annotated[int, Field(ge=0, le=19)]
    compressor: Annotated[str, StringConstraints(pattern=r"^[ -~]{0,80}$")]
    """The library and its version, since the bytes of two may differ (``docs/decisions/025-compression.md``)."""


class _Shared(_Document):
    """What is the same on every platform."""

    lock_revision: Literal[1] = 1
    image_revision: Literal[1] = 1
    """Of the image format (``docs/image-format.md``)."""
    builder: Annotated[str, StringConstraints(pattern=r"^[ -~]{0,80}$")]
    """Version of cpack-build that resolved it."""
    inputs: Inputs
    source_date_epoch: Seconds
    service_code: ServiceCode
    comfyui: GitTree | LocalTree
    nodes: tuple[GitTree, ...]
    registry_nodes: tuple[RegistryNode, ...] = ()
    local_nodes: tuple[LocalTree, ...] = ()
    models: tuple[Model, ...]
    environment: dict[VariableName, Text]
    comfyui_args: tuple[Text, ...]
    compression: Compression | None = None
    """``None`` in the lock that an image carries: its ID depends on no compressor."""


class PlatformPart(_Document):
    """What differs from platform to platform."""

    target: AcceleratorName = "cpu"
    """What the locked torch computes on."""
    base: Annotated[ScratchBase | BaseImage, Field(discriminator="kind")]
    system: tuple[Deb, ...]
    interpreter: Interpreter
    bytecode: Literal["compiled", "none"] = "none"
    """Whether layers carry bytecode, made by the interpreter itself (``docs/decisions/004-bytecode.md``)."""
    service: PythonEnvironment
    python: PythonEnvironment


class Lock(_Shared, PlatformPart):
    """The whole lock, for one platform."""

    platform: AnyPlatform

    @property
    def carried(self) -> Lock:
        """The lock as its image holds it and is named for: all of it but the compression."""
        return self.model_copy(update={"compression": None})

    def to_bytes(self) -> bytes:
        """Canonical JSON, indented for review, with a final newline."""
        return _canonical(self)

    @property
    def custom_nodes(self) -> tuple[NodeTree, ...]:
        """Every one, in the order of their layers."""
        return (*self.nodes, *self.registry_nodes, *self.local_nodes)

    @property
    def sha256(self) -> str:
        """Of :meth:`to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class LockIndex(_Shared):
    """The whole lock, for several platforms; each of them with the shared part is a :class:`Lock`."""

    platforms: Annotated[dict[Platform, PlatformPart], Field(min_length=2)]


def locks_to_bytes(locks: Sequence[Lock]) -> bytes:
    """The file that holds *locks*, one for each platform: for one that lock itself, for several a :class:`LockIndex`.

    Raises ``ValueError`` when they do not share what all platforms share, or two are for one platform.
    """
    first, *others = locks
    if not others:
        return first.to_bytes()
    shared = first.model_dump(include=set(_Shared.model_fields))
    if any(lock.model_dump(include=set(_Shared.model_fields)) != shared for lock in others):
        raise ValueError("locks of one file differ in what all platforms share")
    parts = {lock.platform: lock.model_dump(mode="json", include=set(PlatformPart.model_fields)) for lock in locks}
    if len(parts) != len(locks):
        raise ValueError("two locks of one file are for one platform")
    document = {**first.model_dump(mode="json", include=set(_Shared.model_fields)), "platforms": parts}
    return _canonical(LockIndex.model_validate_json(json.dumps(document)))


def _canonical(document: BaseModel) -> bytes:
    # What is ``None`` is left out, so a field that is added later leaves the bytes of the locks that are in images.
    plain = document.model_dump(mode="json", exclude_none=True)
    return (json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def read_locks(data: bytes, *, name: object) -> tuple[Lock, ...]:
    """The locks in a file, by platform; *name* is what errors call it. Raises :class:`BadInput`, :class:`BadField`."""
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is not JSON.", hint="Make it again with `cpack-build lock`.") from error
    revision = document.get("lock_revision") if isinstance(document, dict) else None
    if isinstance(revision, int) and revision > LOCK_REVISION:
        raise BadInput(
            f"{name} has lock revision {revision}; this cpack-build knows {LOCK_REVISION}.", hint="Update cpack-build."
        )
    revision = document.get("image_revision") if isinstance(document, dict) else None
    if isinstance(revision, int) and revision > max(IMAGE_REVISIONS):
        known = ", ".join(map(str, IMAGE_REVISIONS))
        raise BadInput(
            f"{name} is for images of format revision {revision}; this cpack-build makes {known}.",
            hint="Update cpack-build, or make the lock again with `cpack-build lock`.",
        )
    try:
        if not (isinstance(document, dict) and "platforms" in document):
            return (Lock.model_validate_json(data),)
        index = LockIndex.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadField(name, ".".join(str(part) for part in first["loc"]), first["msg"]) from error
    shared = {field: getattr(index, field) for field in _Shared.model_fields}
    return tuple(
        Lock(**shared, platform=platform, **{field: getattr(part, field) for field in PlatformPart.model_fields})
        for platform, part in sorted(index.platforms.items())
    )


def read_lock(data: bytes, *, name: object, platform: Platform | None = None) -> Lock:
    """The lock in *data* for *platform*; without that there must be only one.

    Raises :class:`Unresolvable` when there is none for it, else as :func:`read_locks`.
    """
    return _only(read_locks(data, name=name), name, platform)


def load_locks(path: Path) -> tuple[Lock, ...]:
    """Read the locks in the file at *path*, by platform."""
    try:
        return read_locks(path.read_bytes(), name=path)
    except FileNotFoundError as error:
        raise BadInput(f"There is no lock {path}.", hint="Make it with `cpack-build lock`.") from error


def load_lock(path: Path, *, platform: Platform | None = None) -> Lock:
    """Read the lock in the file at *path*, for *platform*; as :func:`read_lock`."""
    return _only(load_locks(path), path, platform)


def _only(locks: tuple[Lock, ...], name: object, platform: Platform | None) -> Lock:
    found = [lock for lock in locks if platform in (None, lock.platform)]
    if len(found) == 1:
        return found[0]
    have = " and ".join(lock.platform for lock in locks)
    if platform is not None:
        raise Unresolvable(f"{name} is for {have}, not for {platform}.", hint="Lock it for that platform as well.")
    raise Unresolvable(f"{name} is for {have}.", hint="Name one of them with --platform.")
