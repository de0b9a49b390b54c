"""The root file system of an image, entry by entry, as an engine would unpack it: for comparing what backends make."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from cpack_build.oci.compression import decompressed_chunks
from cpack_build.oci.types import Image

__all__ = ["Entry", "differences", "root_of"]

_LIMIT = 8 << 30


@dataclass(frozen=True)
class Entry:
    """One path: what it is, its mode and owner, and a file's sha256 or a link's target."""

    kind: str
    mode: int
    owner: tuple[int, int]
    content: str


def root_of(image: Image) -> dict[str, Entry]:
    """Path → entry, after all layers (image-spec, layer.md, "Whiteouts")."""
    root: dict[str, Entry] = {}
    for layer in image.layers:
        stream = io.BufferedReader(_Chunks(decompressed_chunks(layer.chunks(), what="layer", limit=_LIMIT)), 1 << 20)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                path = member.name.removeprefix("./").strip("/")
                folder, _, name = path.rpartition("/")
                if name.startswith(".wh."):
                    _remove(root, f"{folder}/{name.removeprefix('.wh.')}".strip("/"))
                    continue
                if path:
                    root[path] = _entry(member, archive, root)
    return root


def differences(one: dict[str, Entry], other: dict[str, Entry]) -> dict[str, tuple[Entry | None, Entry | None]]:
    """Paths that are not the same in both, with what each has."""
    return {
        path: (one.get(path), other.get(path))
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    }


def _entry(member: tarfile.TarInfo, archive: tarfile.TarFile, root: dict[str, Entry]) -> Entry:
    owner = (member.uid, member.gid)
    if member.islnk():  # the same file by another name
        return root[member.linkname.removeprefix("./").strip("/")]
    if member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        return Entry("file", member.mode & 0o7777, owner, hashlib.sha256(content.read()).hexdigest())
    if member.issym():
        return Entry("symlink", 0o777, owner, member.linkname)
    return Entry("directory" if member.isdir() else "other", member.mode & 0o7777, owner, "")


def _remove(root: dict[str, Entry], path: str) -> None:
    for known in [known for known in root if known == path or known.startswith(f"{path}/")]:
        del root[known]


class _Chunks(io.RawIOBase):
    """Chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = next(self._chunks, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
