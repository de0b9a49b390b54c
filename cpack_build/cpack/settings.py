"""``cpack.yaml``: what a person writes to shape the image. Every key has a default; flags override it.

It lies in the pack, or beside it as ``NAME.cpack.yaml``, or is named with ``--config``. An unknown key is an error that
names the nearest known one. Where bytes are taken from on this machine (mirrors, folders) does not shape the image and
is not part of :meth:`Settings.digest`; everything else is.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cpack_build.errors import BadSettings

__all__ = ["InterpreterArchive", "PythonSettings", "Settings", "SystemSettings", "parse_settings"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


class SystemSettings(_Section):
    """System packages by their Debian or Ubuntu names."""

    packages: tuple[str, ...] = ("libgl1", "libglib2.0-0")


class InterpreterArchive(_Section):
    """A standalone Python to use instead of the system's: a tar whose top folder is ``python/``."""

    url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class NodeSettings(_Section):
    """Changes to the pack's list of custom nodes."""

    exclude: tuple[str, ...] = ()
    """Folder names or URLs of custom nodes not to take."""


class Settings(_Section):
    """All of ``cpack.yaml``."""

    platform: Literal["linux/amd64", "linux/arm64"] | None = None
    """By default this machine's."""
    base: str = "scratch"
    """``scratch``, ``oci:DIR``, ``oci-archive:FILE`` or a registry reference, best with ``@sha256:…``."""
    interpreter: Literal["auto", "base", "deb"] | InterpreterArchive = "auto"
    system: SystemSettings = SystemSettings()
    python: PythonSettings = PythonSettings()
    nodes: NodeSettings = NodeSettings()
    environment: dict[str, str] = Field(default_factory=dict)
    comfyui_args: tuple[str, ...] = ()
    mirrors: dict[str, str] = Field(default_factory=dict)
    """URL prefix → URL prefix or path."""
    models: tuple[str, ...] = ()
    """Folders searched for model files (a ComfyUI ``models`` folder, or any folder)."""

    def digest(self) -> str:
        """sha256 hex of what shapes the image."""
        shaping = self.model_dump(mode="json", exclude={"mirrors": True, "models": True, "python": {"find_links"}})
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def parse_settings(text: str, *, name: object, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read ``cpack.yaml`` text; *overrides* (already nested) come from flags. Raises :class:`BadSettings`."""
    try:
        document = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadSettings(f"{name} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(document, dict):
        raise BadSettings(f"{name} must be a mapping of settings, not {type(document).__name__}.")
    for key, value in (overrides or {}).items():
        section = document.get(key)
        document[key] = {**section, **value} if isinstance(section, dict) and isinstance(value, dict) else value
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise _readable(error, name) from error


def load_settings(path: Path, *, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings in the file at *path*."""
    try:
        return parse_settings(path.read_text("utf-8"), name=path, overrides=overrides)
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} cannot be read: {error}.") from error


def _readable(error: ValidationError, name: object) -> BadSettings:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
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
