"""Which ComfyUI it is: the commit of a git checkout and what was changed in it, or else its release, or its content.

A ComfyUI without git (a release archive, ComfyUI Desktop's, a portable folder whose ``.git`` was removed) says which
version it is. Where that release can be had it is compared with it, file by file: then it is the release's commit, and
a patch for what differs. A fork, whose commits nobody finds in ComfyUI's own repository, is seen the same way. Where
nobody can be asked, its own files are captured, and pinned by one hash over them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import BadInput, CpackError
from cpack_build.workspace.capture import CapturedFile
from cpack_build.workspace.gitfolder import changes_from, names_in, observe
from cpack_build.workspace.gitprogram import BrokenRepository
from cpack_build.workspace.place import OWN_NODES, Comfyui
from cpack_build.workspace.upstream import Upstream

__all__ = ["Source", "find_source"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OURS = re.compile(
    r"(https://|ssh://(git@)?|git@)github\.com[/:](comfyanonymous|Comfy-Org)/ComfyUI(\.git)?/?", re.IGNORECASE
)
_NOT_SOURCE = ("models/", "input/", "output/", "temp/", "user/", "custom_nodes/")
_NOT_LISTED = frozenset({*(name.rstrip("/") for name in _NOT_SOURCE), "venv", "env", "__pycache__", "logs"})


@dataclass(frozen=True)
class Source:
    """*commit* is empty where none is known; then *files* are captured. *content* is one sha256 (hex) over *count*
    files of a ComfyUI that could not be compared with a commit.

    *patch* leads from the commit to the files as they are. *tracked* are names below ``models`` that are ComfyUI's own.
    """

    version: str
    commit: str = ""
    content: str = ""
    count: int = 0
    files: tuple[CapturedFile, ...] = ()
    patch: bytes = b""
    changed: tuple[str, ...] = ()
    tracked: frozenset[str] = field(default_factory=frozenset)
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """What a pack says of it beyond the commit."""
        said: dict[str, Any] = {"version": self.version} if self.version else {}
        return said | ({"content_sha256": self.content, "files": self.count} if self.content else {})


def find_source(comfyui: Comfyui, *, commit: str | None = None, upstream: Upstream | None = None) -> Source:
    """What *comfyui* is. *commit* is the user's word for one without git; else *upstream* is asked, if given.

    Raises :class:`BadInput`.
    """
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise BadInput(f"--comfyui-commit {commit!r} is no commit.", hint="Give all 40 hex digits.")
    tracked = frozenset(_own_models(comfyui))
    broken = ""
    if commit is None and os.path.lexists(comfyui.root / ".git"):
        try:
            git = observe(comfyui.root, untracked=False, outside=_NOT_SOURCE)
        except BrokenRepository as error:
            broken = f" (its repository is broken: {error})"
        else:
            notes = [f"ComfyUI {note}." for note in git.notes]
            if upstream is not None and not _OURS.fullmatch(git.url):
                whose = f"a clone of {git.url}" if git.url else "a clone that has no remote which others can reach"
                with suppress(CpackError, BrokenRepository):
                    repository, found = upstream.release(comfyui.version)
                    return _compared(comfyui, repository, found, tracked=tracked, what=f"is {whose}")
            if not git.url:
                notes.append("ComfyUI's repository has no remote that others can reach; its commit is taken as it is.")
            elif not _OURS.fullmatch(git.url):
                notes.append(
                    f"ComfyUI is a clone of {git.url}; a pack names the commit only, and takes it to be ComfyUI's own."
                )
            if git.changed:
                notes.append(f"ComfyUI has uncommitted changes, captured as a patch: {', '.join(git.changed[:5])}.")
            return Source(
                comfyui.version, git.commit, patch=git.patch, changed=git.changed, tracked=tracked, notes=tuple(notes)
            )
    why = "it was not looked up"
    if upstream is not None:
        try:
            repository, found = upstream.release(comfyui.version, commit)
            return _compared(comfyui, repository, found, tracked=tracked, what=f"is no git checkout{broken}")
        except (CpackError, BrokenRepository) as error:
            why = str(error).rstrip(".")
    content, files = _content(comfyui, tracked)
    if commit is not None:
        return Source(comfyui.version, commit, content=content, count=len(files), tracked=tracked)
    note = (
        f"ComfyUI {comfyui.version or 'of unknown version'} is no git checkout{broken}, and cannot be compared with "
        f"its release ({why}); it is pinned by its content, sha256 {content[:12]}."
    )
    return Source(comfyui.version, content=content, count=len(files), files=files, tracked=tracked, notes=(note,))


def _compared(comfyui: Comfyui, repository: Path, commit: str, *, tracked: frozenset[str], what: str) -> Source:
    """ComfyUI as the release at *commit*, and a patch for what was changed or added in its own folders."""
    listed = {path.parts[0] for path in map(PurePosixPath, names_in(repository, commit)) if len(path.parts) > 1}

    def is_source(name: str) -> bool:
        top, _, below = name.partition("/")
        return top in listed if below else name.endswith(".py")

    patch, changed, told = changes_from(repository, commit, folder=comfyui.root, fresh=is_source, outside=_NOT_SOURCE)
    notes = [f"ComfyUI {comfyui.version} {what}; it is taken to be commit {commit[:12]} of ComfyUI's own repository."]
    notes += [f"ComfyUI {note}." for note in told]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        notes.append(f"ComfyUI differs from that commit; what differs is captured as a patch: {shown}.")
    return Source(comfyui.version, commit, patch=patch, changed=changed, tracked=tracked, notes=tuple(notes))


def _own_models(comfyui: Comfyui) -> Iterator[str]:
    """What ComfyUI's repository has in ``models/``: configurations of the first checkpoints, and placeholders."""
    for path in sorted((comfyui.models / "configs").glob("*.yaml")):
        if path.stem in _CONFIGS:
            yield f"models/configs/{path.name}"


_CONFIGS = frozenset(
    {
        "anything_v3", "v1-inference", "v1-inference_clip_skip_2", "v1-inference_clip_skip_2_fp16",
        "v1-inference_fp16", "v1-inpainting-inference", "v2-inference", "v2-inference-v", "v2-inference-v_fp32",
        "v2-inference_fp32", "v2-inpainting-inference",
    }
)  # fmt: skip


def _content(comfyui: Comfyui, tracked: frozenset[str]) -> tuple[str, tuple[CapturedFile, ...]]:
    """sha256 over ``SHA256 SP PATH NUL`` of each of ComfyUI's own files, sorted by path; and the files."""
    digest, files = hashlib.sha256(), []
    own = {*tracked, *(f"custom_nodes/{name}" for name in OWN_NODES)}
    among = [(name, comfyui.root / name) for name in own if (comfyui.root / name).is_file()]
    for name, path in sorted([*_sources(comfyui.root), *among]):
        content = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    content.update(chunk)
            size = path.stat().st_size
        except OSError as error:
            raise BadInput(
                f"{path} cannot be read: {(error.strerror or str(error)).lower()}.", hint="Make it readable."
            ) from error
        digest.update(f"{content.hexdigest()} {name}".encode() + b"\0")
        files.append(CapturedFile(f"comfyui/{name}", path, size))
    return digest.hexdigest(), tuple(files)


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, below, names in os.walk(root):
        at_top = Path(folder) == root
        below[:] = [
            name
            for name in below
            if not name.startswith(".") and name != "__pycache__" and not (at_top and name in _NOT_LISTED)
            and not name.startswith("python_embed")
        ]  # fmt: skip
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or name.endswith((".pyc", ".log")) or path.is_symlink() or not path.is_file():
                continue
            if at_top and name in ("extra_model_paths.yaml",):
                continue
            relative = path.relative_to(root).as_posix()
            if not unsafe_name(relative):
                yield relative, path
