"""A tree as Nix sees one: its NAR, whose hash names a fixed-output derivation, and its files in a folder.

A NAR has names, contents, links and one bit for executables, which is what git keeps of a tree as well. Format: the
Nix manual, "Nix Archive (NAR) format"."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from cpack_build.fetch.store import Store
from cpack_build.fetch.tree import Tree, TreeFile, import_tree

__all__ = ["lay_out", "nar_chunks", "nar_sha256", "tree_in"]

_MODES = {True: "100755", False: "100644"}
_Nested = dict[bytes, "TreeFile | _Nested"]


def nar_sha256(tree: Tree, tree_sha256: str, *, store: Store) -> str:
    """Of the NAR of *tree*, in hex; remembered by *tree_sha256*, which the tree was proved to have."""
    known = store.recall("nar", tree_sha256)
    if known is None:
        digest = hashlib.sha256()
        for chunk in nar_chunks(tree):
            digest.update(chunk)
        known = digest.hexdigest()
        store.remember("nar", tree_sha256, known)
    return known


def nar_chunks(tree: Tree) -> Iterator[bytes]:
    """The NAR of *tree*."""
    nested: _Nested = {}
    for file in tree.files():
        *folders, name = os.fsencode(file.path).split(b"/")
        inner = nested
        for folder in folders:
            found = inner.setdefault(folder, {})
            assert isinstance(found, dict), "git has no file and folder of one name"
            inner = found
        inner[name] = file
    with tree.reader() as read:
        yield _words(b"nix-archive-1")
        yield from _folder(tree, nested, read)


def _folder(tree: Tree, nested: _Nested, read: Callable[[str], bytes]) -> Iterator[bytes]:
    yield _words(b"(", b"type", b"directory")
    for name, node in sorted(nested.items()):
        yield _words(b"entry", b"(", b"name", name, b"node")
        yield from _folder(tree, node, read) if isinstance(node, dict) else _file(tree, node, read)
        yield _words(b")")
    yield _words(b")")


def _file(tree: Tree, file: TreeFile, read: Callable[[str], bytes]) -> Iterator[bytes]:
    if file.mode == "120000":
        yield _words(b"(", b"type", b"symlink", b"target", read(file.oid), b")")
        return
    yield _words(b"(", b"type", b"regular")
    if file.mode == "100755":
        yield _words(b"executable", b"")
    yield _words(b"contents") + struct.pack("<Q", file.size)
    yield from tree.content(file, read)
    yield b"\0" * (-file.size % 8)
    yield _words(b")")


def _words(*words: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(word)) + word + b"\0" * (-len(word) % 8) for word in words)


def lay_out(tree: Tree, folder: Path) -> None:
    """The files of *tree* in *folder*, which is made; its names and links were checked when it was opened."""
    folder.mkdir()
    with tree.reader() as read:
        for file in tree.files():
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.mode == "120000":
                os.symlink(read(file.oid), os.fsencode(path))
                continue
            with path.open("xb") as out:
                out.writelines(tree.content(file, read))
            path.chmod(0o755 if file.mode == "100755" else 0o644)


def tree_in(folder: Path, *, name: str, tree_sha256: str, store: Store) -> Tree:
    """What :func:`lay_out` put into *folder*, as a tree again. Its digest is not looked at."""
    sizes: dict[str, int] = {}
    modes: dict[str, str] = {}
    for top, folders, names in os.walk(folder):
        for entry in (*folders, *names):
            path = Path(top, entry)
            if path.is_symlink():
                sizes[_below(path, folder)] = len(os.readlink(os.fsencode(path)))
                modes[_below(path, folder)] = "120000"
            elif path.is_file():
                status = path.stat()
                sizes[_below(path, folder)] = status.st_size
                modes[_below(path, folder)] = _MODES[bool(status.st_mode & 0o100)]

    def stream(path: str) -> Iterator[bytes]:
        if modes[path] == "120000":
            yield os.readlink(os.fsencode(folder / path))
            return
        with (folder / path).open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk

    return import_tree(sizes, stream, name=name, sha256=tree_sha256, store=store, modes=modes)


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
