"""A custom node as its ``install.py`` left it: its whole tree as one tar, pinned by hash, as any other archive is.

Whoever builds takes the tree from there, and runs nothing. The tar is the lock maker's own: it lies in that store, in a
bundle, (as files) in the image, and in a pack that came of one or holds its lock. Its bytes are a function of the tree
alone, so it can be made again of the files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import BadInput, HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.store import CHUNK, Store, StoredFile
from cpack_build.fetch.tree import Tree, import_tree, imported_tree
from cpack_build.lock.captured import Captured
from cpack_build.lock.schema import Installed, NodeTree
from cpack_build.oci import tar
from cpack_build.oci.files import BoundedMember

__all__ = ["ARCHIVES", "LeftFile", "archive_of", "archived", "keep_tree", "open_installed"]

ARCHIVES = "installed/"
"""Where a pack has the tars."""
_MEMBERS = 100_000


@dataclass(frozen=True)
class LeftFile:
    """A file that a script left, at *path* below the node (or ComfyUI): its bytes in the file *content*, or a link's
    *target*."""

    path: str
    content: Path | None
    target: str = ""
    is_executable: bool = False


@dataclass(frozen=True)
class _FileContent:
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def archive_of(name: str) -> str:
    """What a pack calls the tar of the node *name*."""
    return f"{ARCHIVES}{name}.tar"


def archived(files: Sequence[LeftFile]) -> Iterator[bytes]:
    """*files* as a tar, whose bytes are a function of their paths, modes and contents."""

    def entry(left: LeftFile) -> tar.Entry:
        if left.content is None:
            return tar.Entry(left.path, "symlink", 0o777, target=left.target)
        return tar.Entry(left.path, "file", 0o755 if left.is_executable else 0o644, content=_FileContent(left.content))

    return tar.stream([entry(left) for left in sorted(files, key=lambda left: left.path)])


def keep_tree(name: str, files: Sequence[LeftFile], *, store: Store) -> tuple[StoredFile, Tree]:
    """*files* as the whole tree of the node *name*: the tar, put into the store, and the tree in it.

    Raises :class:`UnsafeInput` for names and links that leave the tree.
    """
    try:
        file = store.put(archived(files), what=f"What install.py of {name} left")
    except UnicodeEncodeError as error:
        raise UnsafeInput(f"install.py of {name} left a file whose name is not UTF-8.") from error
    tree = _unpacked(name, file, store)
    tree.tree_digest()  # refuses links that leave it
    return file, tree


def open_installed(pin: NodeTree, installed: Installed, pack: Captured | None, *, store: Store) -> Tree:
    """The tree of *pin*, proved by its hash: from the store, or a *pack* that holds it.

    Raises :class:`Unresolvable` where neither has it, :class:`HashMismatch` where *pack* has another.
    """
    tree = imported_tree(installed.sha256, name=pin.name, store=store)
    if tree is None:
        member = archive_of(pin.name)
        file = store.find(installed.sha256)
        if file is None and pack is not None and member in pack.sizes:
            what = f"{member} in the pack"
            with pack.reading() as stream:
                file = store.put(stream(member), what=what, sha256=installed.sha256, size=installed.size)
        if file is None:
            raise Unresolvable(
                f"The custom node {pin.name} is as its install.py left it, and that is not here: the store of whoever "
                "made the lock has it.",
                hint="Take it over with a bundle (`cpack-build fetch PACK -o DIR` there) or in the pack "
                "(`cpack-build lock PACK --into-pack` there), export the pack out of its image, or lock anew with "
                "`cpack-build lock PACK --update all --backend buildkit --trust`.",
            )
        tree = _unpacked(pin.name, file, store)
    if (actual := tree.tree_digest()) != pin.tree_sha256:
        raise HashMismatch(f"The tree of {pin.name}, installed,", expected=pin.tree_sha256, actual=actual)
    return tree


def _unpacked(name: str, file: StoredFile, store: Store) -> Tree:
    what = f"The installed tree of {name}"
    sizes: dict[str, int] = {}
    modes: dict[str, str] = {}
    try:
        with tarfile.open(file.path, "r:", tarinfo=BoundedMember, encoding="utf-8") as archive:
            members: dict[str, tarfile.TarInfo] = {}
            for count, member in enumerate(archive):
                if count > _MEMBERS or not (member.isreg() or member.issym()) or member.name in members:
                    raise UnsafeInput(f"{what} holds {member.name!r}, which it may not.", hint="Do not use this lock.")
                members[member.name] = member
                sizes[member.name] = member.size if member.isreg() else len(_target(member))
                if member.issym() or member.mode & 0o100:
                    modes[member.name] = "120000" if member.issym() else "100755"

            def stream(path: str) -> Iterator[bytes]:
                content = archive.extractfile(members[path]) if members[path].isreg() else None
                if content is None:
                    yield _target(members[path])
                    return
                while chunk := content.read(CHUNK):
                    yield chunk

            return import_tree(sizes, stream, name=name, sha256=file.sha256, store=store, modes=modes)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadInput(f"{what} cannot be read: {error}.", hint="Make the lock anew.") from error


def _target(member: tarfile.TarInfo) -> bytes:
    return member.linkname.encode("utf-8", "surrogateescape")
