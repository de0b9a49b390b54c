"""ComfyUI and custom nodes: which files each has by the lock, and where their bytes are taken from.

A tree's *manifest* is the very text that its hash in the lock is made of, so a manifest that lies in the workspace
proves itself, and what is missing or changed is found without asking anybody. Only for what is missing a source is
opened: git (the store, then the remote or its mirror), or the image's layers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

from cpack_build.errors import BadInput, HashMismatch
from cpack_build.fetch.links import check_links
from cpack_build.fetch.tree import Tree
from cpack_build.restore.extract import Content, Mode

__all__ = ["File", "Manifest", "Source", "from_content", "from_git", "opened", "read_manifest"]

_LINE = re.compile(rb"(100644|100755|120000) ([0-9a-f]{64}) ([^\0]+)\0")
_HINT = "Nothing was written. Do not use this pack or image."


@dataclass(frozen=True)
class File:
    """One file of a tree."""

    path: str
    mode: Mode
    sha256: str

    @property
    def permissions(self) -> int:
        return 0o755 if self.mode == "100755" else 0o644


@dataclass(frozen=True)
class Manifest:
    """The files of a tree, sorted by the bytes of their paths."""

    files: tuple[File, ...]

    def to_bytes(self) -> bytes:
        """``MODE SP SHA256 SP PATH NUL`` of every file: what ``tree_sha256`` is the hash of."""
        return b"".join(f"{file.mode} {file.sha256} ".encode() + file.path.encode() + b"\0" for file in self.files)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def read_manifest(data: bytes, *, name: str) -> Manifest:
    """Read what :meth:`Manifest.to_bytes` wrote; *name* is what errors call it. Raises :class:`BadInput`."""
    files, end = [], 0
    for match in _LINE.finditer(data):
        if match.start() != end:
            break
        end = match.end()
        try:
            files.append(File(match[3].decode(), cast("Mode", match[1].decode()), match[2].decode()))
        except UnicodeDecodeError:
            break
    if end != len(data):
        raise BadInput(f"{name} is damaged.", hint="Restore again.")
    return Manifest(tuple(files))


@dataclass(frozen=True)
class Source:
    """A tree whose bytes can be read: *origin* says where, *read* gives the content of one path."""

    origin: Literal["git", "image", "pack"]
    manifest: Manifest
    read: Callable[[str], Iterator[bytes]]


@contextmanager
def from_git(tree: Tree, *, origin: Literal["git", "pack"] = "git") -> Iterator[Source]:
    """*tree* as a source, for as long as the context lasts."""
    oids = {file.path: file for file in tree.files()}
    with tree.reader() as reader:

        def read(path: str) -> Iterator[bytes]:
            yield from tree.content(oids[path], reader)

        files = []
        links = {}
        for path, file in oids.items():
            hasher = hashlib.sha256()
            for chunk in read(path):
                hasher.update(chunk)
            if file.mode == "120000":
                links[path] = b"".join(read(path)).decode("utf-8", "surrogateescape")
            files.append(File(path, file.mode, hasher.hexdigest()))
        check_links(links, name=tree.url, hint=_HINT)
        yield Source(origin, Manifest(tuple(files)), read)


def from_content(contents: Mapping[str, Content], *, name: str) -> Source:
    """Files of an image's layers as a source, by their paths in the tree."""
    order = sorted(contents, key=str.encode)
    manifest = Manifest(tuple(File(path, contents[path].mode, contents[path].sha256) for path in order))
    links = {
        path: b"".join(content.chunks()).decode("utf-8", "surrogateescape")
        for path, content in contents.items()
        if content.mode == "120000"
    }
    check_links(links, name=name, hint=_HINT)
    return Source("image", manifest, lambda path: contents[path].chunks())


def opened(source: Source, tree_sha256: str, *, name: str) -> Source:
    """*source* if it is the tree that the lock pins. Raises :class:`HashMismatch`."""
    if (actual := source.manifest.sha256) != tree_sha256:
        raise HashMismatch(f"The tree of {name} from the {source.origin}", expected=tree_sha256, actual=actual)
    return source
