"""Packs that a page sends to be unpacked: kept in the private folder under a name of our own, the last few of them."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import Refused
from .private import PrivateFolder

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["LIMIT", "Upload", "Uploads"]

LIMIT = 8 << 30
"""Bytes of one pack: as much as cpack-build itself reads."""
_KEPT = 4
_SPARE = 512 << 20
"""Bytes that an upload leaves free on the disk."""


@dataclass(frozen=True)
class Upload:
    """A pack that came: *name* is what its sender calls it, without its ending and anything odd."""

    id: str
    name: str
    path: Path
    size: int


class Uploads:
    """The packs that are kept, in *private*."""

    def __init__(self, private: PrivateFolder) -> None:
        self._private = private
        self._lock = threading.Lock()
        self._kept: dict[str, Upload] = {}

    async def take(self, request: web.Request) -> Upload:
        """Keep the one file of the multipart *request*. Raises :class:`Refused`."""
        from aiohttp import BodyPartReader

        if request.content_type != "multipart/form-data":
            raise Refused("no_file", "The request holds no file.", next="Send one file as a form does.")
        try:
            part = await (await request.multipart()).next()
        except ValueError as error:
            raise Refused("no_file", f"The request cannot be read: {error}.", next="Send it again.") from None
        if not isinstance(part, BodyPartReader) or not part.filename:
            raise Refused("no_file", "The request holds no file.", next="Choose a .cpack.zip.")
        key = uuid.uuid4().hex
        name = _tidy(part.filename)
        path = await asyncio.to_thread(self._private.below, "uploads", key) / f"{name}.cpack.zip"
        try:
            size = await self._write(part, path)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)
            raise
        upload = Upload(key, name, path, size)
        with self._lock:
            self._kept[key] = upload
            over = [self._kept.pop(old) for old in list(self._kept)[:-_KEPT]]
        for old in over:
            await asyncio.to_thread(shutil.rmtree, old.path.parent, ignore_errors=True)
        return upload

    async def _write(self, part: Any, path: Path) -> int:
        size = 0
        file: BinaryIO = await asyncio.to_thread(path.open, "wb")
        try:
            while chunk := await part.read_chunk(1 << 18):
                size += len(chunk)
                if size > LIMIT:
                    raise Refused("too_large", f"The pack has more than {LIMIT >> 30} GiB.", status=413)
                if await asyncio.to_thread(_write, file, chunk) < _SPARE:
                    raise Refused("storage", "The disk has no room for the pack.", next="Free some space.", status=507)
        finally:
            await asyncio.to_thread(file.close)
        if not size:
            raise Refused("no_file", "The file is empty.", next="Choose a .cpack.zip.")
        return size

    def get(self, params: Mapping[str, Any]) -> Upload:
        """The one that ``upload`` names. Raises :class:`Refused` (404)."""
        with self._lock:
            upload = self._kept.get(str(params.get("upload")))
        if upload is None:
            raise Refused("no_upload", "That pack is not here (any more).", next="Choose it again.", status=404)
        return upload


def _write(file: BinaryIO, chunk: bytes) -> int:
    """Write *chunk*; the bytes that are still free."""
    try:
        file.write(chunk)
        return shutil.disk_usage(file.name).free
    except OSError as error:
        raise Refused("storage", f"The pack cannot be kept: {error.strerror}.", status=507) from None


def _tidy(filename: str) -> str:
    """What the file is called here and shown as: its last part, without its ending, in plain letters."""
    last = re.split(r"[/\\]", filename)[-1]
    stem = re.sub(r"(\.cpack)?(\.zip)?$", "", last, flags=re.IGNORECASE)
    plain = re.sub(r"[^\w .()+=,@-]+|\.{2,}", "_", stem)
    return re.sub(r"^[\W_]+", "", plain)[:80].rstrip(" .") or "pack"
