"""The source of a package, pinned, and laid out in a folder to be built: an sdist or a git tree.

Both come from strangers. An archive's files are written one by one below the folder: no name leaves it, nothing goes
through a link, and what unpacks to far more than it should is refused.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cpack_build.cpack.archive import open_archive
from cpack_build.errors import BadInput, Unresolvable, UnsafeInput
from cpack_build.fetch.git import fetch_tree, open_locked
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.lfs import with_lfs
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.store import CHUNK, Store, StoredFile
from cpack_build.fetch.urls import redact, without_credentials
from cpack_build.lock.requirements import GitSource
from cpack_build.lock.schema import SourceArchive, SourceTree
from cpack_build.lock.wheels import filename_of, read_toml, with_credentials
from cpack_build.oci.compression import ChunkReader, decompressed_chunks
from cpack_build.oci.files import BoundedMember
from cpack_build.progress import SILENT, Progress

__all__ = ["build_requires", "build_system", "lay_out", "pin_archive", "pin_tree", "shown"]

_UNPACKED = 2 << 30
"""Bytes that an sdist may unpack to; torch's own has 0.3 GB."""
_MEMBERS = 100_000
_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar", ".zip")


_SHOWN = 300
"""Characters of what a source says of its build."""


def shown(source: SourceArchive | SourceTree) -> str:
    """What *source* is, for people."""
    if isinstance(source, SourceArchive):
        return f"{redact(source.url or source.filename)} (sha256 {source.sha256[:12]}…)"
    return f"{redact(source.url)} at {source.commit[:12]}"


def pin_archive(
    url: str, *, store: Store, sources: Sources, sha256: str | None = None, progress: Progress = SILENT
) -> SourceArchive:
    """The sdist at *url* (or a local path, where the user's ``--find-links`` led to it), fetched and hashed."""
    path = local_path(url)
    filename = path.name if path is not None else filename_of(url)
    if not filename.lower().endswith(_SUFFIXES):
        raise Unresolvable(f"{redact(url)} is neither a wheel nor a source archive ({', '.join(_SUFFIXES)}).")
    if path is not None:
        file = store.adopt(path)
        return SourceArchive(filename=filename, url=None, sha256=file.sha256, size=file.size)
    file = download(url, store=store, sources=sources, sha256=sha256, what=filename, progress=progress)
    return SourceArchive(filename=filename, url=without_credentials(url), sha256=file.sha256, size=file.size)


def pin_tree(source: GitSource, *, store: Store, sources: Sources, progress: Progress = SILENT) -> SourceTree:
    """The tree of a git requirement, fetched and hashed."""
    tree = fetch_tree(source.url, source.commit, store=store, mirrors=sources.mirrors, progress=progress)
    tree = with_lfs(tree, name=tree.url, store=store, sources=sources, progress=progress)
    return SourceTree(
        url=tree.url, commit=tree.commit, tree_sha256=tree.tree_digest(), subdirectory=source.subdirectory
    )


def lay_out(
    source: SourceArchive | SourceTree,
    folder: Path,
    *,
    store: Store,
    sources: Sources,
    index_urls: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> Path:
    """Put the files of *source* into the empty *folder*; the folder that holds its ``pyproject.toml`` or ``setup.py``.

    Raises :class:`UnsafeInput` for names that leave it and for what is too large, :class:`HashMismatch`.
    """
    if isinstance(source, SourceTree):
        root = folder / "source"
        root.mkdir()
        _from_git(source, root, store=store, sources=sources, progress=progress)
        place = root / source.subdirectory
        if not place.resolve().is_relative_to(root.resolve()) or not place.is_dir():
            raise UnsafeInput(f"{shown(source)} has no folder {source.subdirectory!r}.")
    else:
        file = _archive(source, store=store, sources=sources, index_urls=index_urls, progress=progress)
        _from_archive(source, file, folder)
        tops = sorted(folder.iterdir())
        if len(tops) != 1 or not tops[0].is_dir() or tops[0].is_symlink():
            raise BadInput(
                f"{shown(source)} is no source distribution: it has {len(tops)} things at its top, not one folder.",
                hint="Name another version, or leave the package out with python.exclude in cpack.yaml.",
            )
        place = tops[0]
    if not any((place / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise BadInput(
            f"{shown(source)} has neither pyproject.toml nor setup.py, so it is no Python package.",
            hint="Leave it out with python.exclude in cpack.yaml; #subdirectory=… names a folder of a repository.",
        )
    return place


def build_requires(place: Path) -> list[str]:
    """What the build backend of the source in *place* says that it needs (PEP 518). Raises ``BadInput``."""
    table = _table(place)
    requires = table.get("requires", [] if "build-backend" in table else ["setuptools >= 40.8.0"])
    return [str(one) for one in requires] if isinstance(requires, list) else []


def build_system(place: Path) -> str:
    """The build backend of the source in *place* and what it needs, for people (PEP 517, 518). Raises ``BadInput``."""
    table = _table(place)
    # PEP 517, "build-backend": without one it is setuptools, which runs setup.py
    backend = str(table.get("build-backend", "setup.py (setuptools)"))
    own = " in its own files" if table.get("backend-path") else ""
    requires = table.get("requires", ["setuptools"])
    needs = ", ".join(map(str, requires)) if isinstance(requires, list) else ""
    told = f"{backend}{own}" + (f", which needs {needs}" if needs else "")
    # one line each, whatever a stranger wrote there
    return "".join(character if character.isprintable() else "?" for character in told)[:_SHOWN]


def _table(place: Path) -> dict[str, object]:
    """``[build-system]`` of the source in *place*."""
    path = place / "pyproject.toml"
    try:
        document = read_toml(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"pyproject.toml cannot be read: {error}.") from error
    table = document.get("build-system")
    return table if isinstance(table, dict) else {}


def _archive(
    source: SourceArchive, *, store: Store, sources: Sources, index_urls: tuple[str, ...], progress: Progress
) -> StoredFile:
    if (known := store.find(source.sha256)) is not None:
        return known
    if source.url is None:
        raise Unresolvable(f"The source archive {source.filename} lay in a local folder of whoever made the lock.")
    url = with_credentials(source.url, index_urls)
    return download(
        url, store=store, sources=sources, sha256=source.sha256, size=source.size, what=source.filename,
        progress=progress,
    )  # fmt: skip


def _from_git(source: SourceTree, root: Path, *, store: Store, sources: Sources, progress: Progress) -> None:
    tree = open_locked(
        source.url, source.commit, tree_sha256=source.tree_sha256, store=store, sources=sources, progress=progress,
    )  # fmt: skip
    links = []
    with tree.reader() as read:
        for file in tree.files():
            place = root / file.path
            if file.mode == "120000":
                links.append((place, read(file.oid)))
                continue
            _write(place, tree.content(file, read), file.mode == "100755")
    for place, target in links:  # last, so that nothing is written through one; each stays inside (Tree.tree_digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, place)


def _from_archive(source: SourceArchive, file: StoredFile, folder: Path) -> None:
    what = f"The source archive {source.filename}"
    if source.filename.lower().endswith(".zip"):
        archive = open_archive(file.path)
        if sum(archive.sizes.values()) > _UNPACKED:
            raise _too_much(what)
        for name in archive.sizes:
            _write(folder / name, archive.stream(name), False)
        return

    def packed() -> Iterator[bytes]:
        with file.path.open("rb") as data:
            yield from _pieces(data)

    links: dict[str, str] = {}
    total = 0
    try:
        # the tar's own headers count as well, so that empty members without end are noticed
        reader = ChunkReader(decompressed_chunks(packed(), what=what, limit=_UNPACKED + (_MEMBERS << 10)))
        with tarfile.open(fileobj=reader, mode="r|", tarinfo=BoundedMember, encoding="utf-8") as opened:
            for count, member in enumerate(opened, 1):
                total += member.size
                if count > _MEMBERS or total > _UNPACKED:
                    raise _too_much(what)
                name = _inside(member.name, what)
                if any(parent in links for parent in _parents(name)):
                    raise UnsafeInput(f"{what}: {member.name!r} lies below a link.", hint="Do not use it.")
                if member.isdir():
                    (folder / name).mkdir(parents=True, exist_ok=True)
                elif member.issym() or member.islnk():
                    start = posixpath.dirname(name) if member.issym() else ""
                    links[name] = _inside(posixpath.join(start, member.linkname), what)
                elif member.isreg():
                    content = opened.extractfile(member)
                    assert content is not None
                    _write(folder / name, _pieces(content), bool(member.mode & 0o100))
                else:
                    raise UnsafeInput(f"{what} holds {member.name!r}, a device or pipe.", hint="Do not use it.")
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise BadInput(f"{what} cannot be unpacked: {error}.", hint="Name another version.") from error
    for name, target in links.items():
        if (folder / name).exists() or (folder / name).is_symlink():
            raise UnsafeInput(f"{what}: {name!r} is there twice.", hint="Do not use it.")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(folder / target, (folder / name).parent), folder / name)


def _inside(name: str, what: str) -> str:
    """*name* in its plain form, if it stays below the top. Raises :class:`UnsafeInput`."""
    plain = posixpath.normpath(name)
    parts = plain.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise UnsafeInput(f"{what}: {name!r} leads out of its folder.", hint="Do not use it.")
    return plain


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


def _write(place: Path, chunks: Iterator[bytes], is_executable: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as file:
        file.writelines(chunks)
    place.chmod(0o755 if is_executable else 0o644)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _too_much(what: str) -> UnsafeInput:
    return UnsafeInput(
        f"{what} unpacks to more than {_UNPACKED >> 30} GiB or {_MEMBERS} files.", hint="Give a wheel of it instead."
    )
