"""The file system that an image's layers add up to, and the contents of a few of its files, without unpacking anything.

Layers are laid over one another as an engine would: whiteouts remove what lies below, a name is followed through
links of the layers below (``/lib`` → ``usr/lib``) but never out of the root, a file replaces a folder and a folder a
file. Nothing is written and nothing is run; sizes and counts are bounded, because a base image is no more trusted
than a download.

Specification: OCI image-spec v1.1, layer.md ("Whiteouts", "Applying Changesets").
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cpack_build.errors import BadImage
from cpack_build.oci.files import BoundedMember
from cpack_build.oci.types import CHUNK, Blob, Image
from cpack_build.oci.uncompressed import decompressed

__all__ = ["FileTree", "Node", "file_tree", "read_files", "stream_members"]

ENTRY_LIMIT = 3_000_000
"""Entries over all layers."""
FILE_LIMIT = 64 << 20
"""Bytes of one file that is read."""
TOTAL_LIMIT = 256 << 20
"""Bytes of all files that are read at once."""
_KEPT_LIMIT = 1 << 20
"""Bytes of a file that is kept while its layer is read for its names."""
_LINKS = 40
"""Links that one path may lead through (Linux: path_resolution(7))."""

Kind = Literal["file", "directory", "symlink", "other"]


@dataclass(frozen=True)
class Node:
    """What lies at a path."""

    kind: Kind
    mode: int
    size: int = 0
    target: str = ""
    """A symlink's text."""
    layer: int = -1
    member: int = -1
    """Which member of which layer has the content; a hard link has that of the file it was linked to."""


class FileTree:
    """The final file system: paths without a leading ``/``, none of them through a link."""

    def __init__(self, layers: tuple[Blob, ...], *, keeping: Collection[str] = ()) -> None:
        self._layers = layers
        self._keeping = frozenset(keeping)
        self._kept: dict[tuple[int, int], bytes] = {}
        self._nodes: dict[str, Node] = {}
        self._children: dict[str, set[str]] = {"": set()}

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Every path that an entry of a layer made and that is still there."""
        return self._nodes

    def resolve(self, path: str) -> str | None:
        """The path that *path* leads to when all links are followed within the root; ``None`` if there is nothing."""
        real = self._real(path, follow_last=True)
        return real if real is not None and (real == "" or real in self._nodes or real in self._children) else None

    def find(self, path: str) -> Node | None:
        """What *path* leads to when all links are followed."""
        real = self.resolve(path)
        if real is None:
            return None
        return self._nodes.get(real, Node("directory", 0o755))

    def below(self, path: str) -> Iterator[str]:
        """Every path below the folder that *path* leads to, sorted; links within are not followed."""
        real = self.resolve(path)
        stack = [real] if real is not None else []
        found: list[str] = []
        while stack:
            folder = stack.pop()
            for name in self._children.get(folder, ()):
                child = posixpath.join(folder, name)
                found.append(child)
                stack.append(child)
        yield from sorted(found)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The contents of those *paths* that lead to regular files, each under the name that it was asked by.

        Each layer that has any of them is read once. Raises :class:`BadImage` when they are larger than the limits.
        """
        wanted: dict[tuple[int, int], list[str]] = {}
        total = 0
        for path in paths:
            node = self.find(path)
            if node is None or node.kind != "file":
                continue
            total += node.size
            if node.size > FILE_LIMIT or total > TOTAL_LIMIT:
                raise BadImage(f"/{path.lstrip('/')} in the image", f"is too large to be read ({node.size} bytes)")
            wanted.setdefault((node.layer, node.member), []).append(path)
        found: dict[str, bytes] = {}
        for where in wanted.keys() & self._kept.keys():
            found |= dict.fromkeys(wanted[where], self._kept[where])
        for index, layer in enumerate(self._layers):
            members = {member for place, member in wanted if place == index and (place, member) not in self._kept}
            if not members:
                continue
            for number, data in _contents(layer, members):
                found |= dict.fromkeys(wanted[index, number], data)
        return found

    # -- laying a layer over what is there -----------------------------------------------------------------------------

    def _lay(self, index: int, layer: Blob) -> int:
        """Add one layer; the number of its entries. Whiteouts hide only what lies below, wherever they stand in it."""
        entries: list[tuple[str, Node, str]] = []
        whiteouts: list[str] = []
        count = 0
        for number, (member, content) in enumerate(stream_members(layer)):
            count += 1
            path = _clean(member.name)
            if path in self._keeping and member.isreg() and member.size <= _KEPT_LIMIT:
                self._kept[index, number] = b"".join(content())
            name = posixpath.basename(path)
            if name.startswith(".wh."):
                whiteouts.append(path)
            elif path:
                entries.append((path, _node(member, index, number), member.linkname if member.islnk() else ""))
        for path in whiteouts:
            self._hide(path)
        for path, node, linked in entries:
            self._add(path, node, linked)
        return count

    def _hide(self, whiteout: str) -> None:
        folder = self._real(posixpath.dirname(whiteout), follow_last=True)
        name = posixpath.basename(whiteout).removeprefix(".wh.")
        if folder is None:
            return
        if name == ".wh..opq":
            for child in list(self._children.get(folder, ())):
                self._remove(posixpath.join(folder, child))
        elif name and not name.startswith(".wh."):
            self._remove(posixpath.join(folder, name))

    def _add(self, path: str, node: Node, linked: str) -> None:
        folder = self._real(posixpath.dirname(path), follow_last=True)
        if folder is None or (folder in self._nodes and self._nodes[folder].kind != "directory"):
            return
        if linked:
            source = self._real(_clean(linked), follow_last=False)
            target = self._nodes.get(source) if source is not None else None
            if target is None or target.kind == "directory":
                return
            node = target
        real = posixpath.join(folder, posixpath.basename(path))
        present = self._nodes.get(real)
        if node.kind != "directory" or (present is not None and present.kind != "directory"):
            self._remove(real)
        self._make_parents(folder)
        self._children.setdefault(folder, set()).add(posixpath.basename(real))
        self._nodes[real] = node
        if node.kind == "directory":
            self._children.setdefault(real, set())

    def _make_parents(self, folder: str) -> None:
        """Folders that no entry names are there all the same."""
        if folder in self._children:
            return
        parent = ""
        for name in folder.split("/"):
            self._children[parent].add(name)
            parent = posixpath.join(parent, name)
            self._children.setdefault(parent, set())

    def _remove(self, path: str) -> None:
        stack = [path]
        while stack:
            current = stack.pop()
            stack += [posixpath.join(current, child) for child in self._children.pop(current, ())]
            self._nodes.pop(current, None)
        self._children.get(posixpath.dirname(path), set()).discard(posixpath.basename(path))

    def _real(self, path: str, *, follow_last: bool) -> str | None:
        """*path* with links resolved inside the root, whether or not it exists; ``None`` for a loop or through a
        file.
        """
        parts = [part for part in path.split("/") if part not in ("", ".")][::-1]
        real: list[str] = []
        links = 0
        while parts:
            part = parts.pop()
            if part == "..":
                # Nothing is above the root (chroot's rule).
                real = real[:-1]
                continue
            current = "/".join([*real, part])
            node = self._nodes.get(current)
            if node is not None and node.kind == "symlink" and (parts or follow_last):
                links += 1
                if links > _LINKS:
                    return None
                if node.target.startswith("/"):
                    real = []
                parts += [step for step in node.target.split("/") if step not in ("", ".")][::-1]
                continue
            if node is not None and node.kind in ("file", "other") and parts:
                return None
            real.append(part)
        return "/".join(real)


def file_tree(image: Image, *, keeping: Collection[str] = ()) -> FileTree:
    """The file system of *image*; each layer is read once. Of the contents only those of small files at the paths
    *keeping* are kept, which then need no reading again. Raises :class:`BadImage`."""
    tree = FileTree(image.layers, keeping=keeping)
    count = 0
    for index, layer in enumerate(image.layers):
        count += tree._lay(index, layer)
        if count > ENTRY_LIMIT:
            raise BadImage("The image", f"has more than {ENTRY_LIMIT} files")
    return tree


def read_files(image: Image | FileTree, wanted: Iterable[str] | Callable[[str], bool]) -> dict[str, bytes]:
    """The final contents of files in *image*: of the paths given, or of every path that *wanted* accepts.

    Paths have no leading ``/``. Links are followed, so ``etc/os-release`` gives what ``usr/lib/os-release`` has; a path
    that leads to no regular file is not in the answer. For several questions make the :func:`file_tree` once.
    """
    tree = image if isinstance(image, FileTree) else file_tree(image)
    if not callable(wanted):
        return tree.read(wanted)
    return tree.read([path for path in sorted(tree.nodes) if wanted(path)])


def stream_members(layer: Blob) -> Iterator[tuple[tarfile.TarInfo, Callable[[], Iterator[bytes]]]]:
    """Each member of *layer* in its order, and a function that gives its content while it is the current one.

    The layer is read once, to its end, where its digest is proved; until then nothing of it may be believed. Raises
    :class:`BadImage`.
    """
    with _Layer(layer) as archive:
        for number, member in enumerate(_each(archive)):
            if number > ENTRY_LIMIT:
                raise BadImage(f"Layer {layer.descriptor.digest}", f"has more than {ENTRY_LIMIT} files")
            yield member, partial(_file_chunks, archive, member, layer)


def _file_chunks(archive: tarfile.TarFile, member: tarfile.TarInfo, layer: Blob) -> Iterator[bytes]:
    # Whoever reads these is no part of the ``with`` above, which would give the error its name.
    try:
        file = archive.extractfile(member)
        while file is not None and (chunk := file.read(CHUNK)):
            yield chunk
    except _TAR_ERRORS as error:
        raise _unreadable(layer) from error


# -- members -----------------------------------------------------------------------------------------------------------


def _contents(layer: Blob, members: set[int]) -> Iterator[tuple[int, bytes]]:
    left = set(members)
    with _Layer(layer) as archive:
        # To the end in any case: only there is it known that these are the bytes that were promised.
        for number, member in enumerate(_each(archive)):
            if number in left:
                left.discard(number)
                file = archive.extractfile(member)
                if file is None or member.size > FILE_LIMIT:
                    raise BadImage(f"Layer {layer.descriptor.digest}", f"changed while {member.name} was read")
                yield number, file.read()


def _each(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every one of them.
        if member.size < 0:  # A pax record may say so after the header was looked at.
            raise tarfile.ReadError("negative size")
        yield member


class _Layer:
    """A layer opened as a tar that is read once from front to back; ``tarfile``'s many errors become one.

    For ``tarfile`` it is a file in which one can go forward only: what is skipped is never copied.
    """

    def __init__(self, layer: Blob) -> None:
        self._layer = layer
        self._chunks = decompressed(layer)
        self._left = memoryview(b"")
        self._position = 0

    def __enter__(self) -> tarfile.TarFile:
        try:
            self._archive = tarfile.open(  # type: ignore[call-overload]
                fileobj=self, mode="r:", tarinfo=BoundedMember, encoding="utf-8"
            )
        except _TAR_ERRORS as error:
            raise _unreadable(self._layer) from error
        archive: tarfile.TarFile = self._archive
        return archive

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _TAR_ERRORS) and not isinstance(error, GeneratorExit):
            raise _unreadable(self._layer) from error
        if error is None:
            for _ in self._chunks:
                pass

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("goes back")
        while self._position < position and self._has_more():
            self._taken(position - self._position)
        return self._position

    def read(self, size: int) -> bytes:
        pieces = []
        while size and self._has_more():
            pieces.append(bytes(self._taken(size)))
            size -= len(pieces[-1])
        return b"".join(pieces)

    def _has_more(self) -> bool:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._left = memoryview(chunk)
        return True

    def _taken(self, size: int) -> memoryview:
        piece, self._left = self._left[:size], self._left[size:]
        self._position += len(piece)
        return piece


def _unreadable(layer: Blob) -> BadImage:
    return BadImage(f"Layer {layer.descriptor.digest}", "is not a readable tar")


_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError, RecursionError)


def _node(member: tarfile.TarInfo, layer: int, number: int) -> Node:
    kind: Kind = "other"
    if member.isreg():
        kind = "file"
    elif member.isdir():
        kind = "directory"
    elif member.issym():
        kind = "symlink"
    return Node(kind, member.mode & 0o7777, member.size, member.linkname if kind == "symlink" else "", layer, number)


def _clean(path: str) -> str:
    """Relative, and never above the root."""
    cleaned = posixpath.normpath("/" + path).lstrip("/")
    return "" if cleaned == "." else cleaned
