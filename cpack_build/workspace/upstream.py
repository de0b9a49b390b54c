"""What a workspace's parts were before somebody changed them: ComfyUI's releases, and the registry's archives of nodes.

A workspace without git does not say itself what was changed in it; compared with what was published it does. Asking is
never needed: without a network nobody knows, and that is all. What was fetched once is in the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from cpack_build.cpack.archive import Archive, open_archive
from cpack_build.cpack.schema import COMFYUI_URL
from cpack_build.errors import CpackError
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.git import fetch_tree, named_commit
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.store import Store
from cpack_build.fetch.urls import check_http
from cpack_build.progress import SILENT, Progress

__all__ = ["Upstream"]

_REGISTRY = "https://api.comfy.org"
_RELEASE, _ARCHIVE = "comfyui-release-1", "registry-archive-1"


class Upstream:
    """Asks where the store does not know; *offline* asks nobody."""

    def __init__(self, store: Store, sources: Sources, *, offline: bool = False, progress: Progress = SILENT) -> None:
        self._store, self._sources, self._progress = store, sources, progress
        self._mirrors = replace(sources.mirrors, is_offline=offline or sources.mirrors.is_offline)
        self._asker = Asker(sources, offline=offline)

    def release(self, version: str, commit: str | None = None) -> tuple[Path, str]:
        """A bare repository that has ComfyUI's release *version*, and its commit; or *commit*, if one is named.

        Raises :class:`~cpack_build.errors.CpackError`: no such release, no network, no git.
        """
        commit = commit or self._store.recall(_RELEASE, version)
        if commit is None:
            with self._progress.task(f"Asking for ComfyUI {version}", unit="releases"):
                commit = named_commit(COMFYUI_URL, f"v{version}", mirrors=self._mirrors)
            self._store.remember(_RELEASE, version, commit)
        tree = fetch_tree(
            COMFYUI_URL, commit, store=self._store, mirrors=self._mirrors, name="ComfyUI", progress=self._progress
        )
        return tree.repository, commit

    def differing(self, node: str, version: str, files: Mapping[str, Path]) -> list[str] | None:
        """Which of *files*, by name, are not as the registry's *node* has them; ``None`` if nobody knows."""
        archive = self._archive(node, version)
        if archive is None:
            return None
        try:
            return [name for name, path in sorted(files.items()) if not _is_same(archive, name, path)]
        except (CpackError, OSError):
            return None

    def _archive(self, node: str, version: str) -> Archive | None:
        key = f"{node}@{version}"
        known = self._store.recall(_ARCHIVE, key)
        file = self._store.find(known) if known is not None else None
        try:
            if file is None:
                answer = self._asker.get(f"{_REGISTRY}/nodes/{quote(node)}/install?version={quote(version)}")
                url = answer.get("downloadUrl") if isinstance(answer, Mapping) else None
                if not isinstance(url, str) or answer.get("version", version) != version:
                    return None
                file = download(
                    check_http(url, what=f"The registry's {node}"), store=self._store, sources=self._sources,
                    what=f"{node} {version}", progress=self._progress, sleep=lambda seconds: None,
                )  # fmt: skip
                self._store.remember(_ARCHIVE, key, file.sha256)
            return open_archive(file.path)
        except CpackError:
            return None


def _is_same(archive: Archive, name: str, path: Path) -> bool:
    if archive.sizes.get(name) != path.stat().st_size:
        return False
    ours, theirs = hashlib.sha256(), hashlib.sha256()
    for chunk in archive.stream(name):
        theirs.update(chunk)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            ours.update(chunk)
    return ours.digest() == theirs.digest()
