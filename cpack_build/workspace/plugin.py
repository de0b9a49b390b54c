"""The ComfyUI plugin of this very version in a workspace: putting it there, seeing what is there, taking it away.

A copy is the plugin's files with a list of them and their hashes, so that it is known as a copy and whether somebody
edited it. A folder without that list, or with other files than it names, is somebody else's and is never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpack_build import __version__
from cpack_build.errors import BadInput, UnsafeInput
from cpack_build.workspace.capture import CapturedFile
from cpack_build.workspace.place import Comfyui

__all__ = ["FOLDER", "Plugin", "install_plugin", "look_at_plugin", "own_files", "plugin_files", "remove_plugin"]

FOLDER = "cpack-build"
LISTED = "cpack-plugin.json"
TOOL = ".cpack-tool"
"""Which program the plugin is to run; of this machine alone, so it is in no list and no pack."""
_LISTED_LIMIT = 1 << 20
_PACKAGE = Path(__file__).resolve().parents[1]
_PARTS = ("__init__.py", "filesystem.py", "nodes", "web")
DOOR = '''"""The door through which ComfyUI finds the plugin when this repository is cloned into ``custom_nodes``.

Nothing else belongs into this file; the program is in ``cpack_build/``, the plugin in ``cpack_build/nodes`` and
``cpack_build/web``.
"""

from __future__ import annotations

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

WEB_DIRECTORY: str | None = "./cpack_build/web"

if __package__:  # not where a tool reads this file by itself
    from .cpack_build.nodes.registration import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, start

    if not start():
        NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY = {}, {}, None
'''

State = Literal["absent", "current", "outdated", "linked", "edited", "clone", "foreign"]


@dataclass(frozen=True)
class Plugin:
    """What lies at *path*: a copy of this *version*, of another one, a link, a copy that somebody *edited* (*changed*
    are its files), a clone of the repository, or something foreign."""

    path: Path
    state: State
    version: str = ""
    changed: tuple[str, ...] = ()


def look_at_plugin(comfyui: Comfyui) -> Plugin:
    """What the workspace has of the plugin, in any of its folders of custom nodes."""
    for folder in comfyui.node_folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (path / "cpack_build" / "nodes" / "registration.py").is_file() or path.name == FOLDER:
                return _looked_at(path)
    return Plugin(comfyui.node_folders[0] / FOLDER, "absent")


def _looked_at(path: Path) -> Plugin:
    if path.is_symlink():
        is_ours = (path / "cpack_build" / "nodes" / "registration.py").is_file()
        return Plugin(path, "linked" if is_ours else "foreign")
    listed = _listed(path)
    if listed is None:
        is_clone = (path / "cpack_build" / "nodes" / "registration.py").is_file()
        return Plugin(path, "clone" if is_clone else "foreign")
    version, files = listed
    changed = _changed(path, files)
    if changed:
        return Plugin(path, "edited", version, changed)
    same = version == __version__ and files == {name: _sha256(data) for name, data in _files().items()}
    return Plugin(path, "current" if same else "outdated", version)


def own_files(path: Path) -> tuple[CapturedFile, ...]:
    """The files of the copy at *path*, as a pack has them; none if it is no copy, or an edited one."""
    listed = _listed(path) if path.is_dir() and not path.is_symlink() else None
    if listed is None or _changed(path, listed[1]):
        return ()
    names = sorted((*listed[1], LISTED))
    return tuple(CapturedFile(f"nodes/{path.name}/{name}", path / name, (path / name).stat().st_size) for name in names)


def install_plugin(comfyui: Comfyui, *, link: bool = False, dry_run: bool = False) -> tuple[Plugin, str]:
    """Put the plugin into the workspace; returns it and what was done: ``installed``, ``updated`` or ``kept``.

    A *link* leads to the clone that this program runs from. Raises :class:`UnsafeInput` where something else is in the
    way, and :class:`BadInput` for a link without a clone.
    """
    found = look_at_plugin(comfyui)
    root = _PACKAGE.parent
    if link and not (root / "__init__.py").is_file():
        raise BadInput(
            "There is no clone of cpack-build to link to: this program was installed as a package.",
            hint="Leave out --link, and the plugin's files are copied.",
        )
    if found.state == "linked" and found.path.resolve() == root:
        return found, "kept"
    if found.state in ("foreign", "edited", "clone", "linked"):
        raise UnsafeInput(f"{found.path} {_WHAT[found.state]}.{_some(found.changed)}", hint=_HINTS[found.state])
    if found.state == "current" and not link:
        return found, "kept"
    done = "installed" if found.state == "absent" else "updated"
    if dry_run:
        return found, done
    found.path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", suffix=".disabled", dir=found.path.parent))
    try:
        made = aside / "new"
        if link:
            made.symlink_to(root, target_is_directory=True)
        else:
            _write(made)
        if found.state != "absent":
            found.path.rename(aside / "old")
        try:
            made.rename(found.path)
        except OSError:
            if found.state != "absent":
                (aside / "old").rename(found.path)
            raise
    finally:
        shutil.rmtree(aside)
    return _looked_at(found.path), done


def remove_plugin(comfyui: Comfyui, *, dry_run: bool = False) -> tuple[Plugin, str]:
    """Take the plugin's copy, or the link to it, out of the workspace; returns what was there, and ``removed`` or
    ``kept`` where there was none. Raises :class:`UnsafeInput` for what is not a copy as it was made."""
    found = look_at_plugin(comfyui)
    if found.state == "absent":
        return found, "kept"
    if found.state in ("foreign", "edited", "clone"):
        raise UnsafeInput(
            f"{found.path} {_WHAT[found.state]}.{_some(found.changed)}", hint="Remove it yourself if nobody needs it."
        )
    if not dry_run:
        if found.path.is_symlink():
            found.path.unlink()
        else:
            gone = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", suffix=".disabled", dir=found.path.parent))
            found.path.rename(gone / "old")
            shutil.rmtree(gone)
    return found, "removed"


_WHAT = {
    "foreign": "is not a copy of this plugin",
    "edited": "is a copy of the plugin that somebody has edited",
    "clone": "is a clone of the repository",
    "linked": "is a link to another clone",
}
_HINTS = {
    "foreign": "Nothing was touched. Move it away, or leave it.",
    "edited": "Nothing was touched. Move it away to keep the changes, then run this again.",
    "clone": "It works as it is; `git pull` brings it up to date.",
    "linked": "Nothing was touched. `cpack-build plugin remove` takes the link away.",
}


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" Changed: {', '.join(names[:5])}{more}." if names else ""


def _files() -> dict[str, bytes]:
    """The plugin's files by name."""
    found = {"__init__.py": DOOR.encode()}
    for part in _PARTS:
        start = _PACKAGE / part
        paths = [start] if start.is_file() else sorted(path for path in start.rglob("*") if path.is_file())
        for path in paths:
            if "__pycache__" not in path.parts:
                found[f"cpack_build/{path.relative_to(_PACKAGE).as_posix()}"] = path.read_bytes()
    # ComfyUI looks for these at the top; they are there in a clone, and in the package where it is installed.
    places = [place / "locales" for place in (_PACKAGE, _PACKAGE.parent) if (place / "locales").is_dir()]
    for path in sorted(places[0].rglob("*.json")):
        found[f"locales/{path.relative_to(places[0]).as_posix()}"] = path.read_bytes()
    return found


def plugin_files() -> dict[str, bytes]:
    """The files of a copy by name, its list among them."""
    files = _files()
    listed = {"version": __version__, "files": {name: _sha256(data) for name, data in sorted(files.items())}}
    return {**files, LISTED: (json.dumps(listed, indent=1) + "\n").encode()}


def _write(folder: Path) -> None:
    for name, data in plugin_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    program = Path(sys.executable).with_name("cpack-build.exe" if os.name == "nt" else "cpack-build")
    if program.is_file():
        (folder / TOOL).write_text(f"{program}\n", encoding="utf-8")


def _listed(path: Path) -> tuple[str, dict[str, str]] | None:
    """The version and the files that the list in *path* names, if it has one."""
    file = path / LISTED
    try:
        if not file.is_file() or file.stat().st_size > _LISTED_LIMIT:
            return None
        document = json.loads(file.read_bytes())
        version, files = document["version"], document["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(version, str) or not isinstance(files, dict) or "__init__.py" not in files:
        return None
    safe = all(isinstance(sha256, str) and ".." not in Path(name).parts for name, sha256 in files.items())
    return (version, files) if safe and not any(Path(name).is_absolute() for name in files) else None


def _changed(path: Path, files: dict[str, str]) -> tuple[str, ...]:
    """What differs from the list: files edited, lost or added; what Python leaves behind does not count."""
    here = {
        found.relative_to(path).as_posix(): found
        for found in path.rglob("*")
        if (found.is_symlink() or not found.is_dir()) and "__pycache__" not in found.parts
    }
    extra = here.keys() - files.keys() - {LISTED, TOOL}
    edited = {
        name
        for name, sha256 in files.items()
        if name not in here or here[name].is_symlink() or _sha256(here[name].read_bytes()) != sha256
    }
    return tuple(sorted(extra | edited))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
