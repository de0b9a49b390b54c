"""``cpack.yaml``: what a person writes to shape the image. Every key has a default; flags override it.

It is named with ``--config``, or lies beside the pack as ``NAME.cpack.yaml``, or in it; the first that is there counts.
An unknown key is an error that
names the nearest known one. Where bytes are taken from on this machine (mirrors, folders) does not shape the image and
is not part of :meth:`Settings.digest`, nor is the compression of what is pushed; everything else is.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from cpack_build.errors import BadSettings, UnsafeInput

__all__ = [
    "AcceleratorName",
    "CompressionName",
    "InterpreterArchive",
    "NodeSettings",
    "Platform",
    "PythonSettings",
    "Settings",
    "SystemSettings",
    "Text",
    "VariableName",
    "load_settings",
    "parse_settings",
    "settings_beside",
    "settings_for",
    "settings_to_carry",
]


VariableName = Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$")]
AcceleratorName = Annotated[
    str, StringConstraints(pattern=r"^(cpu|cuda[1-9][0-9]\.[0-9]|rocm[0-9]{1,2}\.[0-9]{1,2}(\.[0-9]{1,2})?)$")
]
"""What an image computes on, as PyTorch releases for it."""
CompressionName = Annotated[str, StringConstraints(pattern=r"^(zstd(:([1-9]|1[0-9]))?|gzip(:[1-9])?|none)$")]
Platform = Literal["linux/amd64", "linux/arm64"]
"""``os/architecture``, as images are told apart (image-spec config.md)."""
AnyPlatform = Literal["linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64", "windows/amd64"]
"""Where a workspace can be, in the same words."""
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""What can be an argument or a variable's value: anything without NUL (POSIX, execve)."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class PythonSettings(_Section):
    """Where ComfyUI's packages come from, and changes to the pack's list of them."""

    packages: tuple[str, ...] = ()
    """Requirements added to the pack's (``name``, ``name==1.2``); they win over the pack's pins."""
    exclude: tuple[str, ...] = ()
    """Names not to take from the pack."""
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    """Folders or pages with wheels (local: not part of the digest)."""


_DEFAULT_PACKAGES = ("libgl1", "libglib2.0-0", "ffmpeg", "git")


class SystemSettings(_Section):
    """System packages by their Debian or Ubuntu names."""

    packages: tuple[str, ...] = ()
    """What the pack needs besides the *defaults*."""
    defaults: Literal["comfyui", "none"] = "comfyui"
    """``comfyui``: what its custom nodes count on, which is libGL and GLib (OpenCV), ffmpeg (video and sound) and git.
    ``none`` leaves them out."""

    sources: tuple[str, ...] = ()
    """Lines of apt's one-line format to resolve them from, instead of the machine's or the base's own: a snapshot
    (``deb [check-valid-until=no] https://snapshot.example/debian/20261101T000000Z bookworm main``)."""

    def wanted(self) -> tuple[str, ...]:
        """The names of all of them."""
        return (*(_DEFAULT_PACKAGES if self.defaults == "comfyui" else ()), *self.packages)


class InterpreterArchive(_Section):
    """A standalone Python to use instead of the system's: a tar whose top folder is ``python/``."""

    url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class NodeSettings(_Section):
    """Changes to the pack's list of custom nodes."""

    exclude: tuple[str, ...] = ()
    """Folder names or URLs of custom nodes not to take."""
    install: tuple[str, ...] = ()
    """Folder names of custom nodes whose ``install.py`` runs once, on a builder, when the pack is locked
    (``lock --backend buildkit --trust``); what it changes is pinned in the lock."""


def _platforms(value: object) -> object:
    """What ``linux/amd64,linux/arm64``, one name or a list of them means: each once, in order."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(sorted(set(names)))
    return () if names is None else names


class Settings(_Section):
    """All of ``cpack.yaml``."""

    platform: Annotated[tuple[Platform, ...], BeforeValidator(_platforms)] = ()
    """``linux/amd64``, ``linux/arm64`` or a list of both: one image for each. By default those of the lock that is
    there, else this machine's. No part of the digest: a lock says itself what it is for."""
    target: AcceleratorName | None = None
    """``cpu``, ``cuda12.8``, ``rocm6.4``: which build of torch to lock. By default what the pack's own torch is for."""
    base: str = "scratch"
    """``scratch``, ``oci:DIR``, ``oci-archive:FILE`` or a registry reference, best with ``@sha256:…``; or ``cuda``,
    ``cuda-base`` or ``cuda-devel``: the one of NVIDIA's images that fits the target."""
    interpreter: Literal["auto", "base", "deb"] | InterpreterArchive | dict[Platform, InterpreterArchive] = "auto"
    """``auto``, ``base``, ``deb``, or ``{url: …, sha256: …}``; for several platforms one of these by platform."""
    bytecode: Literal["auto", "none"] = "auto"
    """``auto`` compiles where this machine can run the image's interpreter, and otherwise leaves it out. In a pack's
    own ``cpack.yaml`` it counts only for the system's Python, see :func:`settings_for`."""
    system: SystemSettings = SystemSettings()
    python: PythonSettings = PythonSettings()
    nodes: NodeSettings = NodeSettings()
    environment: dict[VariableName, Text] = Field(default_factory=dict)
    comfyui_args: tuple[Text, ...] = ()
    compression: CompressionName | None = None
    """``zstd``, ``zstd:LEVEL``, ``gzip``, ``gzip:LEVEL`` or ``none``: the layers of an image that is pushed. By default
    ``zstd:3``; Docker before 23.0 cannot pull that. The image ID does not depend on it."""
    mirrors: dict[str, str] = Field(default_factory=dict)
    """URL prefix → URL prefix or path."""
    models: tuple[str, ...] = ()
    """Folders searched for model files (a ComfyUI ``models`` folder, or any folder)."""
    pickles: Literal["allow", "refuse"] = "allow"
    """``refuse`` takes no model in a format whose loading can run code (.ckpt, .pt, .pth, .bin, …)."""

    def digest(self) -> str:
        """sha256 hex of what shapes the image."""
        left_out: dict[str, Any] = {
            "compression": True, "platform": True, "mirrors": True, "models": True, "pickles": True,
            "python": {"find_links"},
        }  # fmt: skip
        if not self.nodes.install:  # so that locks made before there was this setting stay fresh
            left_out["nodes"] = {"install"}
        shaping = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def parse_settings(text: str, *, name: object, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read ``cpack.yaml`` text; *overrides* (already nested) come from flags. Raises :class:`BadSettings`."""
    try:
        document = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadSettings(f"{name} is not YAML: {str(error).splitlines()[0]}.") from error
    except (LookupError, AttributeError, OverflowError) as error:  # so PyYAML takes `!!bool x`, `!!int ""`, …
        raise BadSettings(
            f"{name} has a value that is not of the type that is written before it (!!bool, !!int, !!timestamp, …).",
            hint="Leave the !! out: each setting knows its own type.",
        ) from error
    if not isinstance(document, dict):
        raise BadSettings(f"{name} must be a mapping of settings, not {type(document).__name__}.")
    return _validated(_overridden(document, overrides or {}), name)


def settings_for(
    pack: Path, *, inside: str | None, config: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The settings for *pack*: those of *config*, else of the file beside it, else *inside* it; then *overrides*.

    Paths in a file that begin with ``.`` are meant from its folder. What a pack brings along may say what the image is,
    not where on this machine bytes are taken from, and no program that it names is run here: with a base, an
    interpreter or sources of system packages of its choice there is no bytecode. Raises :class:`BadSettings`,
    :class:`UnsafeInput`.
    """
    beside = settings_beside(pack)
    if config is not None or beside.exists():
        return load_settings(config or beside, overrides=overrides)
    if inside is None:
        return parse_settings("", name="the flags", overrides=overrides)
    own = parse_settings(inside, name=f"{pack}: cpack.yaml")
    _refuse_local(own, pack)
    foreign = {"base": own.base != "scratch", "interpreter": not isinstance(own.interpreter, str)}
    found = parse_settings(inside, name=f"{pack}: cpack.yaml", overrides=overrides)
    is_foreign = any(chosen and key not in (overrides or {}) for key, chosen in foreign.items())
    if is_foreign or own.system.sources:  # flags add to those sources, and never take their place
        return found.model_copy(update={"bytecode": "none"})
    return found


def settings_beside(pack: Path) -> Path:
    """``NAME.cpack.yaml`` beside ``NAME.cpack.zip``."""
    return pack.with_name(pack.name.removesuffix(".zip").removesuffix(".cpack") + ".cpack.yaml")


def load_settings(path: Path, *, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings in the file at *path*."""
    settings = parse_settings(_text(path), name=path)
    folder = path.absolute().parent
    python = settings.python.model_copy(
        update={"find_links": tuple(_from(folder, place) for place in settings.python.find_links)}
    )
    found = settings.model_copy(
        update={
            "python": python,
            "models": tuple(_from(folder, place) for place in settings.models),
            "mirrors": {prefix: _from(folder, target) for prefix, target in settings.mirrors.items()},
        }
    )
    return _validated(_overridden(found.model_dump(exclude_unset=True), overrides or {}), path)


def settings_to_carry(path: Path) -> str:
    """The text of the settings at *path*, which a pack is to bring along. Raises as reading that pack would."""
    text = _text(path)
    _refuse_local(parse_settings(text, name=path), path)
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadSettings(f"{path} is not UTF-8 text (byte {error.start}).", hint="Save it as UTF-8.") from error
    except OSError as error:
        raise BadSettings(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}.", hint="Name a cpack.yaml."
        ) from error


def _from(folder: Path, place: str) -> str:
    """*place* as seen from *folder* when it begins with ``.``; a final ``/`` stays, for mirrors are prefixes."""
    if not place.startswith("."):
        return place
    return os.path.normpath(folder / place) + ("/" if place.endswith("/") else "")


def _refuse_local(settings: Settings, pack: Path) -> None:
    local = {
        "mirrors": bool(settings.mirrors),
        "models": bool(settings.models),
        "python.find_links": bool(settings.python.find_links),
        "base": settings.base.startswith(("oci:", "oci-archive:", "docker-archive:")),
        # a key by path may be a file that the pack itself had downloaded, into the store say
        "system.sources": any(re.search(r"\[[^\]]*/", line) for line in settings.system.sources),
    }
    for key, named in local.items():
        if named:
            raise UnsafeInput(
                f"{pack}: cpack.yaml: {key} names a place on this machine, which a pack must not.",
                hint="If you mean it, copy the file out and name it with --config, or use the flag.",
            )


def _overridden(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """*document* with *overrides* on top: sections are merged, lists are put before, all else is replaced.

    What is no section in the document although it should be stays, so that its validation names it.
    """
    merged = dict(document)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and below is not None:
            merged[key] = _overridden(below, value) if isinstance(below, Mapping) else below
        elif isinstance(value, list | tuple) and isinstance(below, list | tuple):
            merged[key] = [*value, *below]
        else:
            merged[key] = value
    return merged


def _validated(document: Mapping[str, Any], name: object) -> Settings:
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise _readable(error, name) from error


def _readable(error: ValidationError, name: object) -> BadSettings:
    errors = error.errors()
    # Of a union pydantic tells what each member lacks, under the member's name; the deepest is what was meant.
    same = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
    first = max(same, key=lambda one: ("[key]" not in one["loc"], len(one["loc"])))
    tags = (InterpreterArchive.__name__, "literal[", "dict[")
    location = [str(part) for part in first["loc"] if not str(part).startswith(tags)]
    if location[0] == "platform":
        location = ["platform"]  # one name is written without a list
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = Settings
        for part in location[:-1]:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
                break
            model = annotation
        near = difflib.get_close_matches(location[-1], model.model_fields, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(model.model_fields))}."
        return BadSettings(f"{name}: unknown key {'.'.join(location)!r}.", hint=hint)
    return BadSettings(f"{name}: {'.'.join(location)}: {first['msg']}.")
