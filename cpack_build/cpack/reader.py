"""A ``.cpack.zip`` → :class:`Pack`: its documents read and checked, its files named and ready to be streamed.

Reading a pack writes nothing and runs nothing of it. What old packs carry besides (``service.py``, ``comfy_pack/``) is
listed under :attr:`Pack.other` and never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cpack_build.cpack.archive import MEMBER_LIMIT, Archive, open_archive
from cpack_build.cpack.documents import parse_json
from cpack_build.cpack.schema import Snapshot
from cpack_build.cpack.snapshot import read_first_weeks, read_snapshot
from cpack_build.errors import BadInput, NotAPack, WorkflowError

if TYPE_CHECKING:
    from cpack_build.workflow.interface import Workflow

__all__ = ["Era", "Pack", "PackFile", "read_pack"]

Era = Literal["0.0", "0.1", "0.4"]
"""The first comfy-pack that wrote packs of this shape."""

LOCK_FILES = frozenset({"cpack.lock", "pylock.toml", "pylock.linux-amd64.toml", "pylock.linux-arm64.toml"})
"""What was made from the rest of the pack."""
_DOCUMENT_LIMIT = 64 << 20
"""Bytes of a JSON document."""
_SETTINGS_LIMIT = 1 << 20
_IN_MEMORY_LIMIT = 256 << 20
_DOCUMENTS = frozenset(
    {"snapshot.json", "workflow_api.json", "workflow.json", "cpack.yaml", "requirements.txt"}
    | {"models.json", "custom_nodes.json"}
)
_KNOWN = frozenset(
    {"comfyui", "git_custom_nodes", "cnr_custom_nodes", "file_custom_nodes", "pips", "python", "models", "custom_nodes"}
)
_INPUTS = ("input/", "inputs/")
"""comfy-pack 0.0 wrote ``inputs/``."""


@dataclass(frozen=True)
class PackFile:
    """A file of the pack: its *name* in the zip (``input/example.png``) and its *size* in bytes."""

    name: str
    size: int

    @property
    def path(self) -> str:
        """Its path below ComfyUI's ``input`` folder."""
        return self.name.partition("/")[2]


@dataclass(frozen=True)
class Pack:
    """A pack as it was read.

    *workflow_api* is what ComfyUI executes, *workflow* what its editor shows (``None`` if the pack has none);
    *settings_text* is the pack's own ``cpack.yaml``, unparsed.
    """

    path: Path
    era: Era
    snapshot: Snapshot
    workflow_api: dict[str, Any]
    workflow: dict[str, Any] | None
    inputs: tuple[PackFile, ...]
    settings_text: str | None
    other: tuple[str, ...]
    extra: dict[str, Any]
    """What ``snapshot.json`` holds besides, by its top keys: ``cpack`` is our own, others are anyone's."""
    _archive: Archive = field(repr=False, compare=False)

    @cached_property
    def sha256(self) -> str:
        """Hex, of the zip's bytes."""
        return _sha256(self.path)

    @cached_property
    def content_sha256(self) -> str:
        """Hex, over ``SHA256 SP NAME NUL`` of every entry that a lock or an image depends on, sorted by name.

        The zip's order, dates and compression do not count, so a pack that comes out of an image is the same as the one
        that went in; nor does ``cpack.yaml`` (settings are an input of their own), nor what is never used.
        """
        names = {name: name for name in self.sizes if _is_content(name)}
        names |= {f"input/{item.path}": item.name for item in self.inputs}
        digest = hashlib.sha256()
        with self.reading() as stream:
            for name in sorted(names, key=str.encode):
                content = hashlib.sha256()
                for chunk in stream(names[name]):
                    content.update(chunk)
                digest.update(f"{content.hexdigest()} ".encode() + name.encode() + b"\0")
        return digest.hexdigest()

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every file in the zip, with its size in bytes."""
        return self._archive.sizes

    @property
    def name(self) -> str:
        """What the pack is called: the file's name without ``.cpack.zip`` or ``.zip``."""
        return self.path.name.removesuffix(".zip").removesuffix(".cpack") or self.path.name

    def served(self) -> Workflow:
        """The workflow as it would be served, its parameters and results typed.

        Raises :class:`WorkflowError` when it cannot be, for want of an output node for example; a pack that is only
        restored needs none, so reading a pack does not ask.
        """
        from cpack_build.workflow.interface import read_workflow

        if not self.workflow_api:
            raise WorkflowError(
                f"{self.path} has no workflow: it was made from a list of nodes and packages alone.",
                hint="Put one in with `cpack-build import PACK -w WORKFLOW -o NEW`.",
            )
        return read_workflow(self.workflow_api, name=f"{self.path}: workflow_api.json")

    def documents(self) -> dict[str, bytes]:
        """What an image carries of the pack, by name: its documents, patches and input files as they lie in the zip.

        Local nodes (``nodes/``) are not among them: an image has each as a layer.
        """
        names = [name for name in sorted(self.sizes) if name in _DOCUMENTS or name.startswith("patches/")]
        found = {name: self.open_member(name) for name in names}
        return found | {f"input/{item.path}": self.open_member(item.name) for item in self.inputs}

    def open_member(self, name: str, *, limit: int = _IN_MEMORY_LIMIT) -> bytes:
        """The bytes of the entry *name*, at most *limit* of them.

        Raises :class:`~cpack_build.errors.UnsafeInput` beyond the limit, :class:`NotAPack` if the entry is damaged.
        """
        return self._archive.read(name, limit=limit)

    def stream_member(self, name: str, *, limit: int = MEMBER_LIMIT) -> Iterator[bytes]:
        """The bytes of the entry *name* in chunks. Raises as :meth:`open_member`."""
        return self._archive.stream(name, limit=limit)

    def reading(self) -> AbstractContextManager[Callable[[str], Iterator[bytes]]]:
        """What :meth:`stream_member` does, for many entries: ``with pack.reading() as stream: stream(name)``."""
        return self._archive.reading()


def read_pack(path: Path) -> Pack:
    """Read the pack at *path*, of any era. An empty workflow is read, too: such a pack can be restored, not served.

    Raises :class:`NotAPack` (no zip, truncated, a document missing), :class:`BadField` (a value of the wrong type),
    :class:`WorkflowError` (a workflow in the editor's format), :class:`UnsafeInput` (names that leave their place, zip
    bombs).
    """
    archive = open_archive(path)
    names = archive.sizes
    if "workflow_api.json" not in names:
        raise NotAPack(path, "it holds no workflow_api.json")
    requirements = _text(archive, "requirements.txt") if "requirements.txt" in names else None
    era: Era
    document: Any = None
    if "snapshot.json" in names:
        document = _json(archive, "snapshot.json")
        era = "0.4" if isinstance(document, dict) and "pips" in document else "0.1"
        snapshot = read_snapshot(document, requirements=requirements)
    elif "models.json" in names and "custom_nodes.json" in names:
        era = "0.0"
        snapshot = read_first_weeks(
            _json(archive, "models.json"), _json(archive, "custom_nodes.json"), requirements=requirements
        )
    else:
        raise NotAPack(path, "it holds no snapshot.json")
    workflow = _json(archive, "workflow.json") if "workflow.json" in names else None
    if workflow is not None and not isinstance(workflow, dict):
        raise BadInput(f"{path}: workflow.json must be an object.", hint="Make the pack again.")
    inputs = tuple(PackFile(name, names[name]) for name in sorted(names) if name.startswith(_INPUTS))
    return Pack(
        path=path,
        era=era,
        snapshot=snapshot,
        workflow_api=_workflow_api(_json(archive, "workflow_api.json"), path),
        workflow=workflow,
        inputs=inputs,
        settings_text=_text(archive, "cpack.yaml") if "cpack.yaml" in names else None,
        other=tuple(name for name in sorted(names) if name not in _DOCUMENTS and not name.startswith(_INPUTS)),
        extra={key: value for key, value in document.items() if key not in _KNOWN} if document else {},
        _archive=archive,
    )


def _is_content(name: str) -> bool:
    if name in _DOCUMENTS:
        return name != "cpack.yaml"
    return name.startswith(("nodes/", "patches/", "comfyui/")) and not name.endswith((".pyc", ".pyo"))


def _workflow_api(document: Any, path: Path) -> dict[str, Any]:
    if isinstance(document, dict) and ("last_node_id" in document or isinstance(document.get("nodes"), list)):
        raise WorkflowError(
            f"{path}: workflow_api.json is in the editor's format, which cannot be executed.",
            hint="Export it with 'Workflow > Export (API)' in ComfyUI, or pack it again.",
        )
    if not isinstance(document, dict):
        raise WorkflowError(f"{path}: workflow_api.json holds no nodes.", hint="Pack a workflow that has some.")
    for key, node in document.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(
                f"{path}: workflow_api.json: node {key!r:.40} has no class_type.", hint="Pack it again."
            )
        if not isinstance(node.get("inputs", {}), dict):
            raise WorkflowError(
                f"{path}: workflow_api.json: node {key!r:.40}: inputs must be an object.", hint="Pack it again."
            )
    return document


def _json(archive: Archive, name: str) -> Any:
    return parse_json(archive.read(name, limit=_DOCUMENT_LIMIT), name=f"{archive.path}: {name}")


def _text(archive: Archive, name: str) -> str:
    data = archive.read(name, limit=_SETTINGS_LIMIT)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{archive.path}: {name} is not UTF-8 text (byte {error.start}).", hint="Make it again."
        ) from error


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()
