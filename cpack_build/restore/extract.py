"""Files of an image's layers, kept by their hashes until they are known to be the right ones.

No name of an archive becomes a path here: each content is written under its sha256 into a folder of ours, and the
names are only text in the answer. What a name may become is the question of whoever lays the files out
(:mod:`.folder`), after the lock has proved them. Only regular files and symlinks are taken; a device, a pipe, a hard
link or a whiteout among our own files is an error, for cpack-build writes none there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Literal

from cpack_build.cpack.archive import unsafe_name
from cpack_build.errors import BadImage, UnsafeInput, writing
from cpack_build.oci.filesystem import stream_members
from cpack_build.oci.pull import bring_all
from cpack_build.oci.types import CHUNK, Blob
from cpack_build.progress import SILENT, Progress

__all__ = ["Content", "Mode", "extract"]

Mode = Literal["100644", "100755", "120000"]
"""As git writes them: a file, an executable file, a symlink (whose content is its target)."""

ENTRY_LIMIT = 1_000_000
RATIO_LIMIT = 200
"""Unpacked bytes for each stored one, beyond what is free."""
RATIO_FREE = 1 << 30
SIZE_LIMIT = 256 << 30
"""Unpacked bytes of all files, whatever is stored: a CUDA environment has about 12 GiB, and models are elsewhere."""
LINK_LIMIT = 4096
"""Bytes of a symlink's target (PATH_MAX)."""


@dataclass(frozen=True)
class Content:
    """One file: its *mode*, *sha256* (hex) and *size*, and where its bytes lie for now."""

    mode: Mode
    sha256: str
    size: int
    path: Path

    def chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def extract(
    layers: Iterable[Blob], prefixes: Iterable[str], *, into: Path, progress: Progress = SILENT
) -> dict[str, Content]:
    """The files of *layers*, from bottom to top, whose paths lie below one of *prefixes* (``app/comfyui/``), by path.

    Their bytes are written below the folder *into*. Raises :class:`UnsafeInput` for names and kinds that are refused
    and for more than the limits, :class:`BadImage` and :class:`HashMismatch` for layers that are not what they should
    be.
    """
    wanted = tuple(prefixes)
    found: dict[str, Content] = {}
    count = total = 0
    blobs = tuple(layers)
    bring_all(blobs, progress=progress)
    for layer in blobs:
        limit = RATIO_FREE + RATIO_LIMIT * layer.descriptor.size
        what = f"Layer {layer.descriptor.digest}"
        written = 0
        with progress.task(layer.descriptor.shown, total=layer.descriptor.size) as task:
            for member, content in stream_members(layer):
                count += 1
                if count > ENTRY_LIMIT:
                    raise UnsafeInput(f"{what} has more than {ENTRY_LIMIT} files.", hint="Do not use this image.")
                name = member.name.removeprefix("./")
                task.advance(member.size)
                if not name.startswith(wanted) or member.isdir():
                    continue
                if problem := unsafe_name(name):
                    raise UnsafeInput(f"{what}: the file {name!r} {problem}.", hint="Do not use this image.")
                if name.rpartition("/")[2].startswith(".wh."):
                    raise BadImage(what, f"removes {name!r}, which no layer of ours does")
                mode: Mode
                if member.issym():
                    target = os.fsencode(member.linkname)
                    if len(target) > LINK_LIMIT:
                        raise UnsafeInput(f"{what}: the link {name!r} is too long.", hint="Do not use this image.")
                    mode, chunks = "120000", iter([target])
                elif member.isreg():
                    mode, chunks = ("100755" if member.mode & 0o100 else "100644"), content()
                else:
                    raise UnsafeInput(
                        f"{what}: {name!r} is neither a file nor a symlink.", hint="Do not use this image."
                    )
                written += member.size  # before a byte of it is written
                total += member.size
                if written > limit:
                    raise UnsafeInput(
                        f"{what} unpacks to more than {RATIO_LIMIT} times its size.",
                        hint="That is how bombs are made. Do not use this image.",
                    )
                if total > SIZE_LIMIT:
                    raise UnsafeInput(
                        f"{what} and those below it unpack to more than {SIZE_LIMIT >> 30} GiB.",
                        hint="No workspace is that large without its models. Do not use this image.",
                    )
                found[name] = _kept(mode, chunks, into)
    return found


def _kept(mode: Mode, chunks: Iterator[bytes], into: Path) -> Content:
    hasher = hashlib.sha256()
    size = 0
    aside = into / token_hex(8)
    with writing(into):
        into.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            for chunk in chunks:
                hasher.update(chunk)
                size += len(chunk)
                file.write(chunk)
        path = into / hasher.hexdigest()
        aside.replace(path)
    return Content(mode, hasher.hexdigest(), size, path)
