"""What kind of file a file is, by its name, and how a browser is told to take it."""

from __future__ import annotations

import mimetypes
import re
from pathlib import Path
from urllib.parse import quote

__all__ = ["disposition", "media_type"]

_INLINE = re.compile(r"(image/(?!svg)|audio/|video/)")
# An image has no /etc/mime.types, and what Python itself knows depends on its version.
_TYPES = {
    ".avif": "image/avif",
    ".flac": "audio/flac",
    ".glb": "model/gltf-binary",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".m4a": "audio/mp4",
    ".md": "text/markdown",
    ".mkv": "video/x-matroska",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".png": "image/png",
    ".txt": "text/plain",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".zip": "application/zip",
}


def media_type(path: Path) -> str:
    """The media type of the file at *path*, by its suffix."""
    suffix = path.suffix.lower()
    return _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")


def disposition(kind: str, name: str) -> str:
    """The ``Content-Disposition`` (RFC 6266) of a file *name* of the media type *kind*: shown if that is safe."""
    how = "inline" if _INLINE.match(kind) else "attachment"
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    value = f'{how}; filename="{plain}"'
    return value if plain == name else f"{value}; filename*=utf-8''{quote(name)}"
