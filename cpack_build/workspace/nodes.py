"""The custom nodes of a workspace, each by what it is: git, registry, a single file, or somebody's own folder.

ComfyUI-Manager's ways are known (``.disabled`` as suffix and as folder, ``.tracking``, ``.git/.cnr-id``), but it need
not be there. A node is only looked at: its code is neither imported nor run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import BadInput
from cpack_build.workspace.address import public_url
from cpack_build.workspace.capture import COMPILED, SKIPPED, CapturedFile, captured
from cpack_build.workspace.gitfolder import GitFolder, observe
from cpack_build.workspace.gitprogram import BrokenRepository
from cpack_build.workspace.place import OWN_NODES, Comfyui
from cpack_build.workspace.plugin import own_files
from cpack_build.workspace.upstream import Upstream

__all__ = ["Node", "find_nodes"]

_TOML_LIMIT = 1 << 20
_UNPACKING = 5_000_000_000
"""Nanoseconds within which files and their list are of one installation."""
_REGISTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REGISTRY_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")

Kind = Literal["git", "registry", "file", "local"]


@dataclass(frozen=True)
class Node:
    """One custom node, called *name* as its folder (or file) is without ``.disabled``.

    A ``git`` node has *git*; a ``registry`` node *registry_id* and *version*; a ``local`` one, and a ``file`` that is
    not ComfyUI's own, *files* that a pack would capture whole. *notes* are for people, *reason* says why it is local.
    *is_known*: the files are those of this program's own plugin, so nobody needs to be asked whether they may travel.
    """

    name: str
    kind: Kind
    disabled: bool = False
    git: GitFolder | None = None
    registry_id: str = ""
    version: str = ""
    files: tuple[CapturedFile, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()
    is_known: bool = False


def find_nodes(
    comfyui: Comfyui, *, exclude: tuple[str, ...] = (), capture: tuple[str, ...] = (), upstream: Upstream | None = None
) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """Every custom node, sorted by name, but those named in *exclude*; and notes about what is none.

    Those named in *capture* are taken as local ones, whatever they are. *upstream* tells what a registry node was
    before it was edited. Raises :class:`BadInput` for a name that is not there.
    """
    nodes: list[Node] = []
    notes: list[str] = []
    named = set()
    for folder in comfyui.node_folders:
        for path, name, disabled in _entries(folder, notes):
            named.add(name)
            if name in exclude:
                continue
            if problem := unsafe_name(name):
                notes.append(f"The custom node {name!a:.80} is passed over: its name {problem}.")
                continue
            try:
                is_folder = path.is_dir()
            except OSError as error:
                notes.append(f"The custom node {name} is passed over: {(error.strerror or str(error)).lower()}.")
                continue
            if not is_folder:
                nodes.append(_file_node(path, name, disabled))
            elif name in capture and not disabled:
                nodes.append(_local_node(path, name, disabled, reason="as you asked"))
            else:
                nodes.append(_folder_node(path, name, disabled, upstream))
    for option, names in (("--exclude-node", exclude), ("--capture-node", capture)):
        if unknown := sorted(set(names) - named):
            raise BadInput(
                f"{option} {unknown[0]!r} is no custom node of the workspace.",
                hint=f"It has: {', '.join(sorted(named)) or 'none'}.",
            )
    return tuple(sorted(nodes, key=lambda node: (node.name, node.disabled))), tuple(notes)


def _entries(folder: Path, notes: list[str]) -> list[tuple[Path, str, bool]]:
    """Path, name and whether it is disabled, of what lies in a folder of custom nodes."""
    found = []
    for path in _listed(folder, notes):
        name = path.name
        if name == ".disabled" and path.is_dir():
            # ComfyUI-Manager 3 moves nodes there, as NAME@1_2_3 or NAME@nightly.
            found += [(below, below.name.partition("@")[0], True) for below in _listed(path, notes)]
            continue
        disabled = name.lower().endswith(".disabled")
        name = name[: -len(".disabled")] if disabled else name
        if name.startswith(".") or name in SKIPPED or name.lower().endswith((".example", *COMPILED)):
            continue
        if path.is_dir() or name.endswith(".py"):
            found.append((path, name, disabled))
        elif path.is_symlink() and not path.exists():
            notes.append(f"The custom node {name!a:.80} is passed over: a link that leads nowhere.")
    return found


def _listed(folder: Path, notes: list[str]) -> list[Path]:
    try:
        return sorted((Path(entry.path) for entry in os.scandir(folder)), key=lambda path: os.fsencode(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{folder.name} cannot be listed: {(error.strerror or str(error)).lower()}.")
        return []


def _file_node(path: Path, name: str, disabled: bool) -> Node:
    if name in OWN_NODES:
        return Node(name, "file", disabled)
    size = path.stat().st_size if path.is_file() else 0
    files = (CapturedFile(f"nodes/{name}", path, size),) if path.is_file() and os.access(path, os.R_OK) else ()
    notes = () if files else (f"{name} cannot be read; its content is not in the pack.",)
    return Node(name, "file", disabled, files=() if disabled else files, reason="a single file", notes=notes)


def _folder_node(path: Path, name: str, disabled: bool, upstream: Upstream | None) -> Node:
    reason = "no git repository, and not from the registry"
    notes: list[str] = []
    project = _project(path, notes)
    if os.path.lexists(path / ".git"):
        try:
            git = observe(path)
        except BrokenRepository as error:
            reason = f"its git repository is broken: {error}"
        else:
            if git.url:
                told = [f"{name} {note}." for note in git.notes]
                if git.private:
                    told.append(f"{name} comes from {git.url}: whoever builds the pack needs access to it.")
                if git.lfs and not disabled:
                    told.append(
                        f"{name} keeps files in Git LFS, which are to come from its remote: {_some(git.lfs)}. "
                        f"--capture-node {name} packs the node with these files."
                    )
                if git.changed:
                    told.append(f"{name} has uncommitted changes, captured as a patch: {_some(git.changed)}.")
                return Node(name, "git", disabled, git=git, notes=tuple(told))
            reason = "its git repository has no remote that others can reach"
    elif ours := own_files(path):
        files = () if disabled else ours
        return Node(name, "local", disabled, files=files, reason="cpack-build's own plugin", is_known=True)
    elif (path / ".tracking").is_file():
        if (found := _registered(project)) is not None:
            beyond, edited = ([], []) if disabled else _since_installed(path, *found, upstream)
            for what, names in (
                ("files that did not come", beyond),
                ("files that were edited since they came", edited),
            ):
                if names:
                    notes.append(
                        f"{name} has {what} from the registry, which are not packed: {_some(names)}. "
                        f"--capture-node {name} packs the node as it is."
                    )
            return Node(name, "registry", disabled, registry_id=found[0], version=found[1], notes=tuple(notes))
        reason = "it was installed from the registry, but its pyproject.toml does not say which version it is"
    if home := _repository_hint(project):
        notes.append(f"{name} names {home} as its repository; a clone of it would be packed by its commit.")
    return _local_node(path, name, disabled, reason=reason, notes=notes)


def _local_node(path: Path, name: str, disabled: bool, *, reason: str, notes: Sequence[str] = ()) -> Node:
    if disabled:
        return Node(name, "local", True, reason=reason, notes=tuple(notes))
    found = captured(path, f"nodes/{name}")
    return Node(name, "local", files=tuple(found.files), reason=reason, notes=(*notes, *found.notes))


# -- the registry ------------------------------------------------------------------------------------------------------


def _project(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """``[project]`` of a node's pyproject.toml."""
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    file = path / "pyproject.toml"
    try:
        if not file.is_file() or file.stat().st_size > _TOML_LIMIT:
            return {}
        document = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name}: its pyproject.toml cannot be read ({(str(error).splitlines() or ['?'])[0]:.80}).")
        return {}
    project = document.get("project")
    return project if isinstance(project, dict) else {}


def _registered(project: Mapping[str, Any]) -> tuple[str, str] | None:
    """Id and version, as ComfyUI-Manager's ``cnr_utils.read_cnr_info`` takes them."""
    name, version = project.get("name"), project.get("version")
    if not isinstance(name, str) or not isinstance(version, str):
        return None
    name, version = name.strip().lower(), version.strip()
    if not _REGISTRY_ID.fullmatch(name) or not _REGISTRY_VERSION.fullmatch(version):
        return None
    return name, version


def _repository_hint(project: Mapping[str, Any]) -> str:
    urls = project.get("urls")
    value = urls.get("Repository") if isinstance(urls, dict) else None
    return public_url(value) if isinstance(value, str) else ""


def _since_installed(path: Path, node: str, version: str, upstream: Upstream | None) -> tuple[list[str], list[str]]:
    """Files that ``.tracking`` does not list, and those of it that were edited.

    Where nobody has the registry's archive their times tell: ComfyUI-Manager writes that list after it unpacked the
    node, so what is clearly younger was edited since. Where all of it is younger the folder was copied, and nothing can
    be told.
    """
    record = path / ".tracking"
    try:
        text, unpacked = record.read_bytes().decode("utf-8", "replace"), record.stat().st_mtime_ns
    except OSError:
        return [], []
    listed = {line.strip().replace("\\", "/") for line in text.splitlines()} | {".tracking"}
    prefix = f"nodes/{path.name}/"
    files = {file.name[len(prefix) :]: file for file in captured(path, prefix[:-1]).files}
    beyond = [name for name in files if name not in listed]
    tracked = {name: files[name].path for name in sorted(files.keys() & listed - {".tracking"})}
    if upstream is not None and (differing := upstream.differing(node, version, tracked)) is not None:
        return beyond, differing
    edited = [name for name, place in tracked.items() if place.stat().st_mtime_ns > unpacked + _UNPACKING]
    return beyond, edited if len(edited) < len(tracked) else []


def _some(names: tuple[str, ...] | list[str]) -> str:
    """The first few of *names*."""
    shown = ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
