"""The base image: its manifest's digest, and the few of its files that decide what goes on top.

Layers are read once, bottom to top, as overlays (image-spec v1.1, layer.md): a whiteout removes what lies below it.
Nothing is unpacked; kept are apt's sources and keys, dpkg's status, and where a Python lies.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Literal, cast

from cpack_build.errors import BadImage
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.schema import BaseImage
from cpack_build.oci.reference import Reference, parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Blob
from cpack_build.progress import SILENT, Progress

__all__ = ["Base", "open_base"]

_MEMO = "base-files-1"
_WANTED = re.compile(r"etc/apt/(?!apt\.conf).+|usr/share/keyrings/.+|var/lib/dpkg/status")
_PYTHON = re.compile(r"(.+/)?bin/python3\.[0-9]{1,2}")
_LIMIT = 64 << 20
"""Bytes of one file that is kept; dpkg's status of a large image has a few million."""


@dataclass(frozen=True)
class Base:
    """A base image: its *record* in the lock, the *paths* (no first ``/``) at which a Python lies, and the content of
    the *files* that apt needs."""

    record: BaseImage
    paths: frozenset[str]
    files: Mapping[str, bytes]


def open_base(
    reference: str,
    *,
    platform: Literal["linux/amd64", "linux/arm64"],
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> Base:
    """Resolve *reference* (``oci:DIR``, ``oci-archive:FILE`` or a registry's) to its manifest for *platform*.

    Raises :class:`Unresolvable`, :class:`NetworkError`, :class:`BadImage`, :class:`HashMismatch`, :class:`UsageError`.
    """
    name = parse_image_name(reference)
    source = open_source(name, mirrors=sources.mirrors, store=store)
    descriptor, _ = source.manifest(platform)
    source.config(platform)  # the platform is what it says
    shown = "layout"
    if isinstance(name, Reference):
        shown = name.name if name.tag is None and name.digest is not None else name.tagged
    record = BaseImage(reference=shown, digest=descriptor.digest)
    if (known := store.recall(_MEMO, descriptor.digest)) is not None:
        document = json.loads(zlib.decompress(base64.b64decode(known)))
        files = {path: base64.b64decode(content) for path, content in document["files"].items()}
        return Base(record, frozenset(document["paths"]), files)
    overlay = _Overlay()
    layers = source.layers(platform)
    with progress.task(f"Reading {reference}", total=sum(layer.descriptor.size for layer in layers)) as task:
        for layer in layers:
            overlay.add(layer, task.advance, reference)
    base = Base(record, overlay.pythons(), overlay.wanted())
    document = {
        "paths": sorted(base.paths),
        "files": {path: base64.b64encode(content).decode() for path, content in sorted(base.files.items())},
    }
    store.remember(_MEMO, descriptor.digest, base64.b64encode(zlib.compress(json.dumps(document).encode())).decode())
    return base


@dataclass
class _Overlay:
    """What the layers so far amount to: content by path, and ``str`` for a symlink's target."""

    entries: dict[str, bytes | str] = field(default_factory=dict)

    def add(self, layer: Blob, advance: Any, reference: str) -> None:
        import zstandard

        below = dict(self.entries)
        added: dict[str, bytes | str] = {}
        try:
            with tarfile.open(fileobj=_plain(layer, advance), mode="r|") as archive:
                for member in archive:
                    path = posixpath.normpath("/" + member.name)[1:]
                    folder, _, last = path.rpartition("/")
                    if last == ".wh..wh..opq":
                        _remove(below, folder, itself=False)
                    elif last.startswith(".wh."):
                        _remove(below, posixpath.join(folder, last[4:]), itself=True)
                    elif not member.isdir():
                        _remove(below, path, itself=True)
                        if (kept := _kept(archive, member, path, {**below, **added})) is not None:
                            added[path] = kept
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, ValueError) as error:
            digest = layer.descriptor.digest
            raise BadImage(f"{reference}: layer {digest}", f"is no tar that can be read: {error}") from error
        self.entries = below | added

    def wanted(self) -> dict[str, bytes]:
        """The files to keep, links among them followed."""
        found = {}
        for path in self.entries:
            target: bytes | str | None = path
            for _ in range(8):
                if not isinstance(target, str):
                    break
                place, target = target, self.entries.get(target)
                if isinstance(target, str):
                    target = posixpath.normpath(posixpath.join("/", posixpath.dirname(place), target))[1:]
            if isinstance(target, bytes) and _WANTED.fullmatch(path):
                found[path] = target
        return found

    def pythons(self) -> frozenset[str]:
        return frozenset(path for path in self.entries if _PYTHON.fullmatch(path))


def _kept(
    archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, known: Mapping[str, bytes | str]
) -> bytes | str | None:
    if not (_WANTED.fullmatch(path) or _PYTHON.fullmatch(path)):
        return None
    if member.issym():
        return member.linkname
    if member.islnk():
        return known.get(posixpath.normpath("/" + member.linkname)[1:], b"")
    if not member.isfile():
        return None
    if not _WANTED.fullmatch(path):
        return b""
    file = archive.extractfile(member)
    if file is None or member.size > _LIMIT:
        raise ValueError(f"{path} has {member.size} bytes")
    return file.read()


def _remove(entries: dict[str, bytes | str], path: str, *, itself: bool) -> None:
    inside = path + "/" if path else ""
    for known in [known for known in entries if known.startswith(inside) or (itself and known == path)]:
        del entries[known]


def _plain(layer: Blob, advance: Any) -> IO[bytes]:
    """The layer's tar, decompressed by what its first bytes say (gzip, zstd, or none)."""

    def counted() -> Iterator[bytes]:
        for chunk in layer.chunks():
            advance(len(chunk))
            yield chunk

    raw = io.BufferedReader(_ChunkReader(counted()), 1 << 20)
    magic = raw.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return cast("IO[bytes]", io.BufferedReader(cast("io.RawIOBase", reader), 1 << 20))
    return cast("IO[bytes]", raw)


class _ChunkReader(io.RawIOBase):
    """Chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = chunk
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
