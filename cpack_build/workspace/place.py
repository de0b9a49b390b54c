"""Where a ComfyUI install lies, what version it is, and where its model folders are: what ``folder_paths`` would say.

ComfyUI's own modules are read as text, never imported: a workspace's code is not ours to run.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import BadInput
from cpack_build.filesystem import expanded
from cpack_build.workspace.folders import RunningFolders

__all__ = ["EXTENSIONS", "OWN_NODES", "Comfyui", "ModelFolder", "find_comfyui", "lexical", "walk"]

EXTENSIONS = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
"""``folder_paths.supported_pt_extensions``."""

OWN_NODES = frozenset({"websocket_image_save.py"})
"""What lies in ``custom_nodes`` and is ComfyUI's own."""

# folder_paths.py of ComfyUI 0.3.64: folder → its directories below models/, in the order in which they are searched.
_FOLDERS: dict[str, tuple[str, ...]] = {
    name: (name,)
    for name in (
        "checkpoints", "configs", "loras", "vae", "clip_vision", "style_models", "embeddings", "diffusers",
        "vae_approx", "gligen", "upscale_models", "hypernetworks", "photomaker", "classifiers", "model_patches",
        "audio_encoders", "latent_upscale_models",
    )
} | {
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "controlnet": ("controlnet", "t2i_adapter"),
}  # fmt: skip
_LEGACY = {"unet": "diffusion_models", "clip": "text_encoders"}
_MARKS = ("main.py", "nodes.py", "folder_paths.py")
_INSIDE = ("ComfyUI", "comfyui", "ComfyUI_windows_portable/ComfyUI")
_VERSION = re.compile(r"""^__version__\s*=\s*["']([0-9A-Za-z.+-]{1,40})["']""", re.MULTILINE)
_YAML_LIMIT = 1 << 20
_DEPTH_LIMIT = 64
"""Folders below folders: more is a loop that no inode betrays."""


@dataclass(frozen=True)
class ModelFolder:
    """One directory of ComfyUI's model folder *name*; *prefix* is how a pack calls it, below ComfyUI's own folder."""

    name: str
    path: Path
    prefix: str


@dataclass(frozen=True)
class Comfyui:
    """A ComfyUI install at *root*. *version* is what it says of itself, or empty.

    *folders* are in the order in which ComfyUI searches them, *node_folders* hold custom nodes, *inputs* input files.
    """

    root: Path
    version: str
    folders: tuple[ModelFolder, ...]
    node_folders: tuple[Path, ...]
    inputs: Path
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> Path:
        """ComfyUI's own ``models``."""
        return self.root / "models"

    def searched(self, folder: str) -> tuple[ModelFolder, ...]:
        """The directories of a model folder; legacy names (``clip``, ``unet``) mean their successors."""
        name = _LEGACY.get(folder, folder)
        return tuple(place for place in self.folders if place.name == name)


def find_comfyui(
    path: Path, *, extra_model_paths: tuple[Path, ...] = (), running: RunningFolders | None = None
) -> Comfyui:
    """The ComfyUI at *path*, or in it (a portable folder, comfy-cli's workspace).

    *extra_model_paths* are further files as ComfyUI's ``--extra-model-paths-config`` takes them; where it runs and has
    told its folders (*running*), these are all. Raises :class:`BadInput` where no ComfyUI is, or for an
    ``extra_model_paths.yaml`` that ComfyUI could not read either.
    """
    # Links stay unresolved, so that what beside the folder belongs to it is found where the user sees it.
    start = lexical(path)
    if not start.is_dir():
        raise BadInput(f"{path} is no folder.", hint="Name the folder of a ComfyUI install.")
    for root in (start, *(start / name for name in _INSIDE)):
        if all((root / mark).is_file() for mark in _MARKS):
            break
    else:
        raise BadInput(
            f"{path} holds no ComfyUI: there is no {', '.join(_MARKS[:-1])} and {_MARKS[-1]} in it.",
            hint="Name the folder that has ComfyUI's main.py.",
        )
    if running is not None:
        told = {_LEGACY.get(name, name): list(places) for name, places in running.models.items()}
        folders, notes = _named(root, told)
        return Comfyui(root, _version(root), folders, running.custom_nodes, running.inputs, notes)
    directories: dict[str, list[Path]] = {
        name: [root / "models" / below for below in places] for name, places in _FOLDERS.items()
    }
    directories["custom_nodes"] = [root / "custom_nodes"]
    configs = [file for file in (root / "extra_model_paths.yaml",) if file.is_file()]
    for config in (*configs, *extra_model_paths):
        _add_extra(config, directories)
    node_folders = directories.pop("custom_nodes")
    folders, notes = _named(root, directories)
    return Comfyui(root, _version(root), folders, tuple(dict.fromkeys(node_folders)), root / "input", notes)


def _version(root: Path) -> str:
    for name in ("comfyui_version.py", "pyproject.toml"):
        try:
            text = (root / name).read_text("utf-8", "replace")
        except OSError:
            continue
        if match := _VERSION.search(text.replace("version = ", "__version__ = ") if name.endswith("toml") else text):
            return match[1]
    return ""


def _named(root: Path, directories: dict[str, list[Path]]) -> tuple[tuple[ModelFolder, ...], tuple[str, ...]]:
    """Each directory with the name that a pack gives it: its own below ComfyUI, ``models/FOLDER`` from elsewhere."""
    folders, notes = [], []
    for name, places in directories.items():
        for place in dict.fromkeys(places):
            prefix = f"models/{name}"
            if place.is_relative_to(root):
                below = place.relative_to(root).as_posix()
                if below.startswith("models/"):
                    prefix = below
            if unsafe_name(prefix):
                notes.append(f"The model folder {name!r:.80} of extra_model_paths.yaml has no usable name; left out.")
                continue
            folders.append(ModelFolder(name, place, prefix))
    return tuple(folders), tuple(notes)


def _add_extra(config: Path, directories: dict[str, list[Path]]) -> None:
    """What ``utils/extra_config.py`` does with one file."""
    for section, content in _yaml(config).items():
        if content is None:
            continue
        if not isinstance(content, dict):
            raise _bad(config, section, "must be a mapping of folders")
        values = dict(content)
        base, is_default = values.pop("base_path", None), values.pop("is_default", False)
        if base is not None and not isinstance(base, str):
            raise _bad(config, f"{section}.base_path", "must be a path")
        start = lexical(config).parent
        if base:
            start = start / os.path.expandvars(os.path.expanduser(base))
        for name, text in values.items():
            if text is None:
                continue
            if not isinstance(name, str) or not isinstance(text, str) or "\0" in text:
                raise _bad(config, f"{section}.{name}", "must be a path, or one a line")
            places = directories.setdefault(_LEGACY.get(name, name), [])
            for line in filter(None, text.split("\n")):
                place = Path(os.path.normpath(start / line))
                if is_default:
                    places[:] = [place, *(other for other in places if other != place)]
                elif place not in places:
                    places.append(place)


def _yaml(config: Path) -> dict[Any, Any]:
    import yaml

    try:
        if config.stat().st_size > _YAML_LIMIT:
            raise BadInput(f"{config} is longer than a list of folders can be.", hint="Correct it.")
        document = yaml.safe_load(config.read_text("utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise BadInput(
            f"{config} is not YAML: {(str(error).splitlines() or [type(error).__name__])[0]}.",
            hint="Correct it; ComfyUI cannot read it either.",
        ) from error
    except OSError as error:
        raise BadInput(
            f"{config} cannot be read: {(error.strerror or str(error)).lower()}.", hint="Name another file."
        ) from error
    if document is not None and not isinstance(document, dict):
        raise BadInput(f"{config} must be a mapping of sections.", hint="See ComfyUI's extra_model_paths.yaml.example.")
    return document or {}


def _bad(config: Path, field: object, problem: str) -> BadInput:
    return BadInput(f"{config}: {field}: {problem}.", hint="Correct it; ComfyUI cannot read it either.")


def walk(
    top: Path,
    *,
    skip: Callable[[str], bool],
    unreadable: Callable[[Path, str], object],
    but: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Regular files below *top*, links followed as ComfyUI does: relative name with ``/``, path, stat; sorted.

    A folder that is one of its own parents (a loop of links) ends there. *skip* is asked about each name; folders whose
    path is in *but* are passed over;
    *unreadable* is told of what cannot be listed, and why, and the walk goes on.
    """

    def below(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Path, Any]]:
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            unreadable(folder, (error.strerror or str(error)).lower())
            return
        for entry in listed:
            if skip(entry.name) or entry.path in but:
                continue
            try:
                info = entry.stat()
            except OSError as error:
                unreadable(Path(entry.path), "a link that leads nowhere" if entry.is_symlink() else str(error.strerror))
                continue
            if stat.S_ISREG(info.st_mode):
                yield prefix + entry.name, Path(entry.path), info
            elif stat.S_ISDIR(info.st_mode):
                key = (info.st_dev, info.st_ino)
                if key in above:
                    unreadable(Path(entry.path), "a link to a folder that holds it")
                elif len(above) >= _DEPTH_LIMIT:
                    unreadable(Path(entry.path), f"deeper than {_DEPTH_LIMIT} folders")
                else:
                    yield from below(Path(entry.path), f"{prefix}{entry.name}/", (*above, key))
            else:
                unreadable(Path(entry.path), "no regular file")

    try:
        info = top.stat()
    except OSError:
        return
    if stat.S_ISDIR(info.st_mode):
        yield from below(top, "", ((info.st_dev, info.st_ino),))


def lexical(path: Path) -> Path:
    """*path* made absolute without following a link."""
    return Path(os.path.abspath(expanded(path)))
