"""Which models, files and node classes a workflow uses, as its loaders themselves declare them.

With an ``object_info`` at hand a loader is known by its options: a list of file names is a choice of models, an upload
flag marks a file of ``input/``, and a list equal to that of one of ComfyUI's own loaders names the model folder. With
the API file alone :mod:`cpack_build.workflow.loaders` says it for ComfyUI's own nodes, and the value's shape for all
others. A value is always taken whole: ``example.png`` is no reference to ``e.png``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, cast

from cpack_build.workflow.interface import is_link, value_key
from cpack_build.workflow.loaders import (
    APPROXIMATE_VAES,
    FILE_EXTENSIONS,
    FILE_INPUTS,
    MODEL_EXTENSIONS,
    MODEL_INPUTS,
    Place,
)
from cpack_build.workflow.parametertypes import choices_of

__all__ = ["InputReference", "ModelReference", "References", "references"]

_UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload", "animated_image_upload", "mesh_upload")
_ANNOTATED = re.compile(r"(.+?) ?\[(input|output|temp)\]")
"""ComfyUI's ``folder_paths.annotated_filepath``: ``picture.png [output]``."""
_EMBEDDING = re.compile(r"(?:^|[\s(\[{,])embedding:([^\s,()\[\]{}:]+)")
"""``embedding:NAME`` begins a word (``SDTokenizer.tokenize_with_weights``); a weight follows a colon."""
_EMBEDDING_EXTENSIONS = (".safetensors", ".pt", ".bin")
"""What ComfyUI tries when the name has none (``sd1_clip.load_embed``)."""
_LEGACY_FOLDERS = {"clip": "text_encoders", "unet": "diffusion_models"}
_NAME_LIMIT = 1024
_DEPTH = 8


@dataclass(frozen=True)
class ModelReference:
    """A model that node *node_id* names.

    *value* is as the workflow writes it, relative to the model *folder* (a key of ComfyUI's ``folder_paths``; None when
    nothing tells, then any folder may hold it). It may be a folder of files (``diffusers``) and, in a workflow from
    Windows, have ``\\`` as separator; :attr:`path` has ``/``. *input_name* is ``outer.inner`` for a value within an
    object. A *guessed* one was seen only by its shape, so a file that is missing is no error.
    """

    node_id: str
    class_type: str
    input_name: str
    value: str
    folder: str | None
    guessed: bool = False

    @property
    def path(self) -> str:
        """*value* with ``/``."""
        return self.value.replace("\\", "/")


@dataclass(frozen=True)
class InputReference:
    """A file (or folder of files) that node *node_id* reads.

    *value* is its name relative to *place*, without ComfyUI's annotation (``picture.png [output]``): one of ComfyUI's
    folders, or ``base``, ComfyUI's own. *guessed* as in :class:`ModelReference`.
    """

    node_id: str
    input_name: str
    value: str
    place: Place = "input"
    guessed: bool = False

    @property
    def path(self) -> str:
        """*value* with ``/``."""
        return self.value.replace("\\", "/")


@dataclass(frozen=True)
class References:
    """What a workflow uses, in its own order, each once."""

    models: tuple[ModelReference, ...]
    inputs: tuple[InputReference, ...]
    node_classes: frozenset[str]


@dataclass(frozen=True)
class _Meaning:
    """What an input's value names."""

    kind: Literal["model", "file"]
    folder: str | None = None
    place: Place = "input"


def references(workflow: Mapping[str, Any], object_info: Mapping[str, Any] | None = None) -> References:
    """What *workflow*, in the API format, refers to.

    *object_info* is ComfyUI's answer to ``GET /object_info``; with it the loaders of custom nodes are known, too. What
    is no node (no ``class_type``, no object of ``inputs``) is passed over: reading a workflow is where that is told.
    """
    info = object_info or {}
    folders = _folders_by_options(info)
    models: dict[ModelReference, None] = {}
    files: dict[InputReference, None] = {}
    told: set[tuple[str, str]] = set()
    shaped: list[tuple[str, str, str, str]] = []
    classes = set()
    for node_id, node in workflow.items():
        class_type, inputs = _parts(node)
        if class_type is None:
            continue
        classes.add(class_type)
        for name, given in inputs.items():
            if class_type.startswith("CPackInput") and name == "description" and len(inputs) > 1:
                continue  # what callers read about the parameter
            meaning = _meaning(class_type, name, info, folders)
            if class_type == "CPackInputChoice" and name == "choices":
                given = list(choices_of(given))
            if meaning is None:
                shaped += [(node_id, class_type, path, text) for path, text in _texts(name, given)]
                continue
            for value in _values(given, workflow, told):
                if meaning.kind == "file":
                    files |= {_file(node_id, name, value, meaning.place): None} if value else {}
                else:
                    models |= dict.fromkeys(_models(node_id, class_type, name, value, meaning.folder))
    for node_id, class_type, name, text in shaped:
        for embedding in _EMBEDDING.findall(text):
            models |= dict.fromkeys(_embeddings(node_id, class_type, name, embedding))
        if (node_id, name.partition(".")[0]) in told or _is_prose(class_type, name.partition(".")[0], info):
            continue
        if _names_a(text, MODEL_EXTENSIONS):
            models[ModelReference(node_id, class_type, name, text, None, guessed=True)] = None
        elif _names_a(_ANNOTATED.sub(r"\1", text), FILE_EXTENSIONS):
            files[_file(node_id, name, text, "input", guessed=True)] = None
    return References(tuple(models), tuple(files), frozenset(classes))


def _parts(node: object) -> tuple[str | None, Mapping[str, Any]]:
    if not isinstance(node, Mapping) or not isinstance(node.get("class_type"), str):
        return None, {}
    inputs = node.get("inputs")
    return node["class_type"], inputs if isinstance(inputs, Mapping) else {}


# -- what an input means -----------------------------------------------------------------------------------------------


def _meaning(
    class_type: str, name: str, info: Mapping[str, Any], folders: Mapping[frozenset[str], str | None]
) -> _Meaning | None:
    if folder := MODEL_INPUTS.get(class_type, {}).get(name):
        return _Meaning("model", folder=folder)
    if place := FILE_INPUTS.get(class_type, {}).get(name):
        return _Meaning("file", place=place)
    declared = _declared(class_type, name, info)
    if declared is None:
        return None
    options, flags = declared
    if any(flags.get(flag) is True for flag in _UPLOADS):
        folder = flags.get("image_folder")
        return _Meaning("file", place=cast("Place", folder) if folder in ("output", "temp") else "input")
    named = _file_names(options, MODEL_EXTENSIONS)
    if named:
        return _Meaning("model", folder=folders.get(named))
    return _Meaning("file") if _file_names(options, FILE_EXTENSIONS) else None


def _declared(class_type: str, name: str, info: Mapping[str, Any]) -> tuple[list[Any], Mapping[str, Any]] | None:
    """The options and flags of an input: ``[[…], {…}]``, or ``["COMBO", {"options": […]}]`` of newer nodes."""
    node = info.get(class_type)
    groups = node.get("input") if isinstance(node, Mapping) else None
    for group in groups.values() if isinstance(groups, Mapping) else ():
        spec = group.get(name) if isinstance(group, Mapping) else None
        if not isinstance(spec, list | tuple) or not spec:
            continue
        flags = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
        options = spec[0] if isinstance(spec[0], list | tuple) else flags.get("options")
        return (list(options) if isinstance(options, list | tuple) else []), flags
    return None


def _folders_by_options(info: Mapping[str, Any]) -> dict[frozenset[str], str | None]:
    """The file names that ComfyUI's own loaders offer → their model folder; None where two folders hold the same."""
    found: dict[frozenset[str], str | None] = {}
    for class_type, inputs in MODEL_INPUTS.items():
        for name, folder in inputs.items():
            declared = _declared(class_type, name, info)
            names = _file_names(declared[0], MODEL_EXTENSIONS) if declared else frozenset()
            if names:
                found[names] = folder if found.get(names, folder) == folder else None
    return found


def _file_names(options: list[Any], extensions: frozenset[str]) -> frozenset[str]:
    return frozenset(option for option in options if isinstance(option, str) and _names_a(option, extensions))


def _is_prose(class_type: str, name: str, info: Mapping[str, Any]) -> bool:
    """Whether the input is text for people to write, which may end in anything."""
    declared = _declared(class_type, name, info)
    return declared is not None and declared[1].get("multiline") is True


# -- what a value names ------------------------------------------------------------------------------------------------


def _values(given: object, workflow: Mapping[str, Any], told: set[tuple[str, str]]) -> Iterator[str]:
    """The texts that an input has: its own, those of a list, or that of the parameter or primitive it is linked to."""
    for _ in range(_DEPTH):
        if not is_link(given):
            break
        node_id = cast("list[Any]", given)[0]
        class_type, inputs = _parts(workflow.get(node_id))
        if class_type is None or not class_type.startswith(("CPackInput", "Primitive")):
            return
        if class_type.startswith("CPackInput"):
            key = value_key(class_type, inputs)
        else:
            key = next((key for key, value in inputs.items() if isinstance(value, str | list)), None)
        if key is None:
            return
        told.add((node_id, key))
        if class_type == "CPackInputChoice":
            told.add((node_id, "choices"))
            yield from choices_of(inputs.get("choices"))
        given = inputs[key]
    if isinstance(given, str):
        yield given
    elif isinstance(given, list) and not is_link(given):
        yield from (item for item in given if isinstance(item, str))


def _texts(name: str, given: object, depth: int = 0) -> Iterator[tuple[str, str]]:
    """The texts within a value, named by their path: custom nodes keep lists of models in objects."""
    if isinstance(given, str):
        yield name, given
    elif depth < _DEPTH and isinstance(given, Mapping):
        for key, value in given.items():
            yield from _texts(f"{name}.{key}", value, depth + 1)
    elif depth < _DEPTH and isinstance(given, list) and not is_link(given):
        for number, value in enumerate(given):
            yield from _texts(f"{name}.{number}", value, depth + 1)


def _models(node_id: str, class_type: str, name: str, value: str, folder: str | None) -> Iterator[ModelReference]:
    folder = _LEGACY_FOLDERS.get(folder or "", folder)
    if folder == "vae" and value in APPROXIMATE_VAES:
        for part in ("encoder", "decoder"):
            for extension in (".safetensors", ".pth"):
                file = f"{value}_{part}{extension}"
                yield ModelReference(node_id, class_type, name, file, "vae_approx", guessed=True)
    elif _names_a(value, MODEL_EXTENSIONS) or (value and folder in ("diffusers", "configs")):
        yield ModelReference(node_id, class_type, name, value, folder)


def _embeddings(node_id: str, class_type: str, name: str, value: str) -> Iterator[ModelReference]:
    """Guessed, because ComfyUI itself passes over an embedding that is not there."""
    extensions = ("",) if _names_a(value, MODEL_EXTENSIONS) else _EMBEDDING_EXTENSIONS
    for extension in extensions:
        yield ModelReference(node_id, class_type, name, value + extension, "embeddings", guessed=True)


def _file(node_id: str, name: str, value: str, place: Place, *, guessed: bool = False) -> InputReference:
    if match := _ANNOTATED.fullmatch(value):
        return InputReference(node_id, name, match[1], cast("Place", match[2]), guessed)
    return InputReference(node_id, name, value, place, guessed)


def _names_a(text: str, extensions: frozenset[str]) -> bool:
    """Whether the whole *text* reads as a file's relative name with one of *extensions*."""
    if not text or len(text) > _NAME_LIMIT or not text.isprintable() or "://" in text:
        return False
    return PurePosixPath(text.replace("\\", "/")).suffix.lower() in extensions
