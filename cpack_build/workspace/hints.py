"""Addresses of models that somebody told: the workflow's author in the drawing, and ComfyUI-Manager in its list.

A hint is a word, not a proof: it says where to ask first, and stands for itself only where nobody could confirm it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from cpack_build.workspace.models import ModelFile
from cpack_build.workspace.place import EXTENSIONS, Comfyui

__all__ = ["Hint", "fitting", "listed_hints", "workflow_hints"]

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_ADDRESS = re.compile(r"https?://[^\s<>()\[\]\"'`]+")
_SIZE = re.compile(r"([0-9]+(?:\.([0-9]+))?)\s*([KMGT])i?B", re.IGNORECASE)
_POWER = {"K": 1, "M": 2, "G": 3, "T": 4}
_LIMIT = 10_000
_LIST_LIMIT = 32 << 20
_FOLDERS = {
    "checkpoint": "checkpoints", "unclip": "checkpoints", "checkpoints": "checkpoints", "clip": "text_encoders",
    "clip_vision": "clip_vision", "controlnet": "controlnet", "t2i-adapter": "controlnet", "t2i-style": "controlnet",
    "diffusion_model": "diffusion_models", "unet": "diffusion_models", "embedding": "embeddings",
    "embeddings": "embeddings", "gligen": "gligen", "lora": "loras", "taesd": "vae_approx", "upscale": "upscale_models",
    "vae": "vae",
}  # fmt: skip
"""Where Manager's ``save_path: default`` leads, by the type of the model (its ``get_model_dir``)."""


@dataclass(frozen=True)
class Hint:
    """A model's file *name* (and its *directory* below ``models``, if that was said), and an address of it.

    *sizes* are the least and most bytes that it can have: a list says so in words (``4.71MB``). What was *listed* was
    said of a file in general, not by this workflow's author.
    """

    name: str
    directory: str
    url: str
    sha256: str = ""
    sizes: tuple[int, int] | None = None
    is_listed: bool = False

    def may_be(self, file: ModelFile) -> bool:
        """Whether it can mean *file* at all, as far as its size tells."""
        return self.sizes is None or self.sizes[0] <= file.size <= self.sizes[1]

    def is_likely(self, file: ModelFile) -> bool:
        """Whether it may be taken for *file* unconfirmed: a list's entry must agree in folder and size as well."""
        if not self.is_listed:
            return True
        lies = PurePosixPath(file.name).parent.as_posix().removeprefix("models/")
        agrees = self.directory in (lies, file.folder) or lies.startswith(self.directory + "/")
        return agrees and self.sizes is not None and self.may_be(file)


def fitting(file: ModelFile, hints: Sequence[Hint]) -> list[Hint]:
    """Hints about a file of that name: the workflow's first, then those for its folder."""
    last = file.name.rsplit("/", 1)[-1]
    named = [hint for hint in hints if hint.name.replace("\\", "/").rsplit("/", 1)[-1] == last]
    folders = (file.folder, *file.name.split("/")[1:2])
    return sorted(named, key=lambda hint: (hint.is_listed, hint.directory.strip("/") not in folders))


# -- the workflow ------------------------------------------------------------------------------------------------------


def workflow_hints(workflow: Mapping[str, Any] | None) -> tuple[Hint, ...]:
    """The hints in a workflow of the editor's format, its subgraphs included: ``properties.models``, then notes."""
    found: dict[Hint, None] = {}
    for item in _hinted(workflow or {}):
        name, url, directory = item.get("name"), item.get("url"), item.get("directory")
        given, kind = item.get("hash"), item.get("hash_type")
        sha256 = (
            given.lower() if isinstance(given, str) and _SHA256.fullmatch(given) and kind in ("SHA256", None) else ""
        )
        if isinstance(name, str) and isinstance(url, str) and _is_address(url):
            found[Hint(name, directory if isinstance(directory, str) else "", url, sha256)] = None
        if len(found) >= _LIMIT:
            break
    return tuple(found)


def _hinted(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    definitions = workflow.get("definitions")
    graphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    noted: list[str] = []
    for graph in (workflow, *(graphs if isinstance(graphs, list) else ())):
        if not isinstance(graph, Mapping):
            continue
        lists = [graph.get("models")]
        nodes = graph.get("nodes")
        for node in nodes if isinstance(nodes, list) else ():
            properties = node.get("properties") if isinstance(node, Mapping) else None
            lists.append(properties.get("models") if isinstance(properties, Mapping) else None)
            if isinstance(node, Mapping) and node.get("type") in ("Note", "MarkdownNote"):
                values = node.get("widgets_values")
                noted += [value for value in (values if isinstance(values, list) else []) if isinstance(value, str)]
        for models in lists:
            yield from (item for item in (models if isinstance(models, list) else ()) if isinstance(item, Mapping))
    for text in noted:
        for url in _ADDRESS.findall(text):
            name = unquote(urlsplit(url).path.rpartition("/")[2]) if _is_address(url) else ""
            if PurePosixPath(name).suffix.lower() in EXTENSIONS:
                yield {"name": name, "url": url}


# -- ComfyUI-Manager's list --------------------------------------------------------------------------------------------


def listed_hints(comfyui: Comfyui, libraries: Iterable[Path] = ()) -> tuple[Hint, ...]:
    """What ComfyUI-Manager's ``model-list.json`` says: that of its checkout or package (in one of *libraries*), and the
    newer ones in its cache. A file that is none says nothing."""
    places = [path / "model-list.json" for folder in comfyui.node_folders for path in _managers(folder)]
    places += [library / "comfyui_manager/model-list.json" for library in libraries]
    for cache in ("user/default/ComfyUI-Manager/cache", "user/__manager/cache"):
        places += sorted((comfyui.root / cache).glob("*_model-list.json"))
    found: dict[Hint, None] = {}
    for place in places:
        for item in _listed(place):
            name, url = item.get("filename"), item.get("url")
            if isinstance(name, str) and isinstance(url, str) and _is_address(url) and len(found) < _LIMIT:
                found[Hint(name, _directory(item), url, sizes=_sizes(item.get("size")), is_listed=True)] = None
    return tuple(found)


def _managers(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.lower().startswith("comfyui-manager"))
    except OSError:
        return []


def _listed(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if not path.is_file() or path.stat().st_size > _LIST_LIMIT:
            return
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    models = document.get("models") if isinstance(document, Mapping) else None
    yield from (item for item in (models if isinstance(models, list) else ()) if isinstance(item, Mapping))


def _directory(item: Mapping[str, Any]) -> str:
    """Where Manager would put the model, below ``models``."""
    path, kind = item.get("save_path"), item.get("type")
    if isinstance(path, str) and path != "default":
        return path.replace("\\", "/").strip("/")
    return _FOLDERS.get(kind.lower(), "") if isinstance(kind, str) else ""


def _sizes(text: object) -> tuple[int, int] | None:
    """The least and the most bytes that ``4.71MB`` can mean, be its units of 1000 or of 1024."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return None
    value, step, power = float(match[1]), 10.0 ** -len(match[2] or ""), _POWER[match[3].upper()]
    return int((value - step) * 1000**power), int((value + step) * 1024**power)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
