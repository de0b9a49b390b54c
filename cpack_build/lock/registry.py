"""Custom nodes from the Comfy registry: an id and a version become an archive, pinned by its hash and its tree's.

The registry's documented API says where the archive of a version lies (``GET /nodes/{nodeId}/install?version=``,
https://docs.comfy.org/registry/api-reference/overview). It gives no hash: the lock's is of what came the first time,
and every build proves it.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote

from cpack_build.cpack.archive import open_archive
from cpack_build.errors import BadInput, HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.tree import Tree, import_tree
from cpack_build.fetch.urls import check_http, redact, without_credentials
from cpack_build.lock.schema import RegistryNode
from cpack_build.progress import SILENT, Progress

__all__ = ["REGISTRY", "lock_registry_node", "open_registry_node"]

REGISTRY = "https://api.comfy.org"
_MEMO = "comfy-registry-1"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,3}([-+.][0-9A-Za-z.+-]+)?")
_ANSWER_LIMIT = 1 << 20
_FILE_LIMIT = 256 << 20


def lock_registry_node(
    name: str, version: str, *, store: Store, sources: Sources, progress: Progress = SILENT
) -> RegistryNode:
    """The archive of *version* of the node *name*; what was asked once is remembered, for versions do not change.

    Raises :class:`Unresolvable`, :class:`NetworkError`, :class:`UnsafeInput`.
    """
    way_out = f"Leave it out with nodes.exclude: [{name}] in cpack.yaml, or install it from git and pack again."
    if not _ID.fullmatch(name):
        raise UnsafeInput(f"{name!r} is no id of a node in the Comfy registry.", hint="Correct it in the pack.")
    if not _VERSION.fullmatch(version):
        raise Unresolvable(
            f"The custom node {name} has the version {version!r:.40}, which no one can fetch.", hint=way_out
        )
    if (known := store.recall(_MEMO, f"{name}@{version}")) is not None:
        pin = RegistryNode.model_validate_json(known)
        open_registry_node(pin, store=store, sources=sources, progress=progress)
        return pin
    asked = f"{REGISTRY}/nodes/{quote(name)}/install?version={quote(version)}"
    try:
        answer = download(asked, store=store, sources=sources, what=f"{name} {version} in the registry")
    except NetworkError as error:
        if "HTTP 404" not in error.message:
            raise NetworkError(
                f"The custom node {name} {version} cannot be had: {error.message}", hint=way_out
            ) from error
        raise Unresolvable(f"The Comfy registry has no {name} {version}.", hint=way_out) from error
    url = _address(answer, name, version, way_out)
    file = download(url, store=store, sources=sources, what=f"{name} {version}", progress=progress)
    tree = _tree(file, name, url, store)
    pin = RegistryNode(
        name=name,
        version=version,
        url=without_credentials(url),
        sha256=file.sha256,
        size=file.size,
        tree_sha256=tree.tree_digest(),
    )
    store.remember(_MEMO, f"{name}@{version}", pin.model_dump_json())
    return pin


def open_registry_node(pin: RegistryNode, *, store: Store, sources: Sources, progress: Progress = SILENT) -> Tree:
    """The tree of a locked node, its archive and itself proved by hash. Raises :class:`HashMismatch` as well."""
    file = download(
        pin.url,
        store=store,
        sources=sources,
        sha256=pin.sha256,
        size=pin.size,
        what=f"{pin.name} {pin.version}",
        progress=progress,
    )
    tree = _tree(file, pin.name, pin.url, store)
    if (actual := tree.tree_digest()) != pin.tree_sha256:
        raise HashMismatch(f"The tree of {pin.name} {pin.version}", expected=pin.tree_sha256, actual=actual)
    return tree


def _address(answer: StoredFile, name: str, version: str, way_out: str) -> str:
    """Where the registry's *answer* says that the archive lies."""
    try:
        document = json.loads(answer.path.read_bytes()) if answer.size <= _ANSWER_LIMIT else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("downloadUrl"), str):
        raise Unresolvable(f"The Comfy registry names no archive of {name} {version}.", hint=way_out)
    if document.get("version", version) != version:
        raise Unresolvable(f"The Comfy registry has no {name} {version}.", hint=way_out)
    return check_http(document["downloadUrl"], what=f"The registry's {name} {version}")


def _tree(file: StoredFile, name: str, url: str, store: Store) -> Tree:
    try:
        archive = open_archive(file.path)
        with archive.reading(limit=_FILE_LIMIT) as stream:
            return import_tree(archive.sizes, stream, name=url, sha256=file.sha256, store=store)
    except UnsafeInput as error:
        raise UnsafeInput(f"The archive of the custom node {name} ({redact(url)}): {error.message}") from error
    except BadInput as error:
        raise Unresolvable(
            f"The archive of the custom node {name} ({redact(url)}) is no usable zip: {error.message}",
            hint=f"Leave it out with nodes.exclude: [{name}] in cpack.yaml.",
        ) from error
