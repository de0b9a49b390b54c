"""Which ComfyUI it is: the commit of a git checkout and what was changed in it, or else its version and content.

A ComfyUI without git (a release archive, a portable folder whose ``.git`` was removed) is pinned by one hash over its
own files, so that it can be told from any other; a pack can name a commit for it only where the user does.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpack_build.errors import BadInput
from cpack_build.workspace.gitfolder import BrokenRepository, observe
from cpack_build.workspace.place import Comfyui

__all__ = ["Source", "find_source"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OURS = re.compile(r"https://github\.com/(comfyanonymous|Comfy-Org)/ComfyUI(\.git)?/?", re.IGNORECASE)
_NOT_SOURCE = ("models/", "input/", "output/", "temp/", "user/", "custom_nodes/")
_NOT_LISTED = frozenset({*(name.rstrip("/") for name in _NOT_SOURCE), "venv", "env", "__pycache__", "logs"})


@dataclass(frozen=True)
class Source:
    """*commit* is empty where none is known; then *content* (sha256 hex over the files) and *files* tell what it is.

    *patch* leads from the commit to the files as they are. *tracked* are names below ``models`` that are ComfyUI's own.
    """

    version: str
    commit: str = ""
    content: str = ""
    files: int = 0
    patch: bytes = b""
    changed: tuple[str, ...] = ()
    tracked: frozenset[str] = field(default_factory=frozenset)
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """What a pack says of it beyond the commit."""
        said: dict[str, Any] = {"version": self.version} if self.version else {}
        return said | ({"content_sha256": self.content, "files": self.files} if self.content else {})


def find_source(comfyui: Comfyui, *, commit: str | None = None) -> Source:
    """What *comfyui* is. *commit* is the user's word for one without git. Raises :class:`BadInput`."""
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise BadInput(f"--comfyui-commit {commit!r} is no commit.", hint="Give all 40 hex digits.")
    tracked = frozenset(_own_models(comfyui))
    broken = ""
    if commit is None and os.path.lexists(comfyui.root / ".git"):
        try:
            git = observe(comfyui.root, untracked=False, outside=_NOT_SOURCE)
        except BrokenRepository as error:
            broken = f"ComfyUI's git repository is broken: {error}. "
        else:
            notes = [f"ComfyUI {note}." for note in git.notes]
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
    content, count = _content(comfyui.root)
    note = (
        f"{broken}ComfyUI {comfyui.version or 'of unknown version'} is no git checkout; it is pinned by its content, "
        f"sha256 {content[:12]}. Name the commit with --comfyui-commit if you know it."
    )
    return Source(
        comfyui.version, commit or "", content=content, files=count, tracked=tracked, notes=() if commit else (note,)
    )


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


def _content(root: Path) -> tuple[str, int]:
    """sha256 over ``SHA256 SP PATH NUL`` of each of ComfyUI's own files, sorted by path; and how many there are."""
    digest, count = hashlib.sha256(), 0
    for name, path in sorted(_sources(root)):
        content = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    content.update(chunk)
        except OSError as error:
            raise BadInput(
                f"{path} cannot be read: {(error.strerror or str(error)).lower()}.", hint="Make it readable."
            ) from error
        digest.update(f"{content.hexdigest()} ".encode() + name + b"\0")
        count += 1
    return digest.hexdigest(), count


def _sources(root: Path) -> Iterator[tuple[bytes, Path]]:
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
            yield os.fsencode(path.relative_to(root).as_posix()), path
