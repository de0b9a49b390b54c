"""Everything that a lock names, in one folder or archive that can be carried to where there is no network.

::

    cpack-bundle.json              what follows, with sizes
    NAME.cpack.lock, .zip, .yaml   the lock; the pack and its settings, if it was made from them
    blobs/sha256/<hex>             models, wheels, system packages, archives: as in a store, so a folder is one
    git/<hex>.pack                 each repository, as git packs it
    base-amd64/                    the base image for a platform, as an OCI layout

An archive is an uncompressed tar of the same, the description first. Nothing in it is believed: blobs and trees are
proved by the lock when they are used, packs by git, the base by its digest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from cpack_build import filesystem
from cpack_build.errors import BadInput, UsageError, writing
from cpack_build.fetch import gitpack
from cpack_build.fetch.gitpack import PackedRepository, export_repository, import_repository
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import CHUNK, Store
from cpack_build.image.build import Materials
from cpack_build.lock.schema import BaseImage, Lock, RegistryNode
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import Reference, parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.oci.storage import whole_file
from cpack_build.progress import SILENT, Progress

__all__ = ["DESCRIPTION", "Bundle", "Written", "blobs_of", "open_bundle", "write_bundle"]

DESCRIPTION = "cpack-bundle.json"
_REVISION = 1
_LIMIT = 16 << 20
_DOCUMENT = re.compile(r"[^/\\\x00-\x1f]{1,200}\.cpack\.(lock|zip|yaml)")
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_PACK = re.compile(r"git/([0-9a-f]{64})\.pack")
_BASE = re.compile(r"base-(amd64|arm64)/(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})")


@dataclass(frozen=True)
class Written:
    """A bundle that was written: where, and of what: *files* of *size* bytes, *written* of which were not there yet."""

    path: Path
    files: int
    size: int
    written: int


Made = tuple[Lock, Materials, str]
"""A lock, what was gathered for it, and its base's name as the settings have it."""


def write_bundle(
    made: Sequence[Made],
    target: Path,
    *,
    documents: Mapping[str, bytes],
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> Written:
    """Put everything that was gathered for locks into *target*: an archive if its name ends in ``.tar``, else a folder.

    *documents* are the locks and the pack, by name. In a folder that has some of it already only the rest is written.
    Raises :class:`UsageError` where *target* is something else, :class:`StorageError`.
    """
    blobs = {sha256: path for lock, materials, _ in made for sha256, path in blobs_of(lock, materials, store).items()}
    if target.suffix != ".tar":
        written = 0
        _require_bundle(target)
        sizes = {sha256: path.stat().st_size for sha256, path in blobs.items()}
        with progress.task(f"Writing {target.name}", total=sum(sizes.values())) as task:
            for sha256, path in sorted(blobs.items()):
                written += _copied(path, target / "blobs" / "sha256" / sha256, sizes[sha256])
                task.advance(sizes[sha256])
        small = _write_small(made, target, blobs, documents, store, sources, progress)
        return Written(target, len(blobs) + small, sum(sizes.values()), written)
    aside = target.with_name(f".{target.name}.parts")
    try:
        _require_bundle(aside)
        _write_small(made, aside, blobs, documents, store, sources, progress)
        members = {path.relative_to(aside).as_posix(): path for path in aside.rglob("*") if path.is_file()}
        members |= {f"blobs/sha256/{sha256}": path for sha256, path in blobs.items()}
        size = sum(path.stat().st_size for path in members.values())
        with (
            progress.task(f"Writing {target.name}", total=size) as task,
            whole_file(target) as file,
            writing(target),
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(members, key=lambda name: (name != DESCRIPTION, name)):
                info = tarfile.TarInfo(name)
                info.size, info.mode = members[name].stat().st_size, 0o644
                with members[name].open("rb") as content:
                    archive.addfile(info, content)
                task.advance(info.size)
        return Written(target, len(members), size, size)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _require_bundle(target: Path) -> None:
    """Make the folder of a bundle, unless it is there. Raises :class:`UsageError` where something else is."""
    if target.exists() and not (target.is_dir() and ((target / DESCRIPTION).exists() or not any(target.iterdir()))):
        raise UsageError(f"{target} is there already, and no bundle.", hint="Name a new folder, or FILE.tar.")
    with writing(target):
        for below in ("blobs/sha256", "git"):
            (target / below).mkdir(parents=True, exist_ok=True)


def _write_small(
    made: Sequence[Made],
    target: Path,
    blobs: Mapping[str, Path],
    documents: Mapping[str, bytes],
    store: Store,
    sources: Sources,
    progress: Progress,
) -> int:
    """All but the blobs; how many files that is."""
    trees = {tree.repository for _, materials, _ in made for tree in (materials.comfyui, *materials.nodes)}
    repositories = []
    with progress.task("Packing repositories"):
        for repository in sorted(trees):
            if re.fullmatch(r"[0-9a-f]{64}", repository.name):  # else made of an archive or of the pack, as it will be
                with whole_file(target / "git" / f"{repository.name}.pack") as file:
                    repositories.append(export_repository(repository, file))
    bases = []
    for lock, _, base_name in made:
        if isinstance(lock.base, BaseImage):
            name = parse_image_name(base_name if base_name != "scratch" else lock.base.reference)
            if isinstance(name, Reference):
                name = replace(name, tag=None, digest=lock.base.digest)
            source = open_source(name, mirrors=sources.mirrors, store=store)
            folder = _base_folder(lock.platform)
            write_layout(source.as_image(lock.platform), target / folder, progress=progress)
            bases.append(folder)
    description = {
        "bundle": _REVISION,
        "blobs": {sha256: path.stat().st_size for sha256, path in sorted(blobs.items())},
        "repositories": [vars(one) for one in repositories],
        "bases": sorted(bases),
        "documents": sorted(documents),
    }
    contents = {**documents, DESCRIPTION: (json.dumps(description, indent=1, sort_keys=True) + "\n").encode()}
    for name_, data in contents.items():
        with whole_file(target / name_) as file:
            file.write(data)
    return len(repositories) + len(contents)


def _base_folder(platform: str) -> str:
    return f"base-{platform.rpartition('/')[2]}"


def blobs_of(lock: Lock, materials: Materials, store: Store) -> dict[str, Path]:
    """The files that the lock names, by hash."""
    found = {wheel.sha256: wheel.path for wheel in (*materials.service_wheels, *materials.wheels)}
    found |= {deb.sha256: deb.path for deb in (*materials.system, *materials.interpreter_debs)}
    found |= {sha256: file.path for sha256, file in materials.models.items()}
    if materials.interpreter_archive is not None:
        found[materials.interpreter_archive.sha256] = materials.interpreter_archive.path
    for tree in (materials.comfyui, *materials.nodes):
        found |= {file.sha256: file.path for file in tree.lfs.values()}
    for node in lock.custom_nodes:
        archive = node.installed or (node if isinstance(node, RegistryNode) else None)
        if archive is not None:
            file = store.find(archive.sha256)
            assert file is not None, "gathered before"
            found[archive.sha256] = file.path
    return found


def _copied(source: Path, target: Path, size: int) -> int:
    """Bytes written to make *target* a copy of *source*: none if it is there, or can share the blocks."""
    try:
        if target.lstat().st_size == size and target.is_file() and not target.is_symlink():
            return 0
    except FileNotFoundError:
        pass
    with whole_file(target) as file, source.open("rb") as content, writing(target):
        if filesystem.share_blocks(content.fileno(), file.fileno()):
            return 0
        shutil.copyfileobj(content, file, CHUNK)
    return size


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """A bundle at hand. *folder* is it, or where the small parts of an archive were put; *documents* are by name."""

    path: Path
    folder: Path
    blobs: Mapping[str, int]
    repositories: tuple[PackedRepository, ...]
    bases: tuple[str, ...]
    documents: tuple[str, ...]

    def base(self, platform: str) -> str | None:
        """The base image's name, for a *platform*."""
        folder = _base_folder(platform)
        return f"oci:{self.folder / folder}" if folder in self.bases else None

    def lock(self) -> bytes | None:
        """The lock that it was made for."""
        for name in self.documents:
            if name.endswith(".lock"):
                return (self.folder / name).read_bytes()
        return None


def open_bundle(path: Path, *, store: Store, dry_run: bool = False, progress: Progress = SILENT) -> Bundle:
    """Let *store* find what is in the bundle at *path*: in place in a folder, taken over from an archive. In a
    *dry_run* nothing is taken over but the documents.

    Raises :class:`BadInput` where it is none or damaged, :class:`HashMismatch`, :class:`StorageError`.
    """
    if path.is_dir():
        with _described(path / DESCRIPTION, path) as data:
            bundle = _parse(data, path, path.absolute())
        store.further = (*store.further, bundle.folder)
        for packed in () if dry_run else bundle.repositories:
            with _opened(bundle.folder / "git" / f"{packed.name}.pack", path) as file:
                import_repository(store.root / "git", packed, file, what=path)
        return bundle
    return _from_archive(path, store, progress, dry_run=dry_run)


def _from_archive(path: Path, store: Store, progress: Progress, *, dry_run: bool) -> Bundle:
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            if first is None or first.name != DESCRIPTION or not first.isreg() or first.size > _LIMIT:
                raise _none(path)
            data = _content(archive, first).read()
            folder = store.derived.take("bundles", hashlib.sha256(data).hexdigest())
            bundle = _parse(data, path, folder)
            packed = {one.name: one for one in bundle.repositories}
            with progress.task(f"Taking over {path.name}", total=path.stat().st_size) as task:
                while (member := archive.next()) is not None:
                    if not member.isreg() or member.issparse():
                        raise BadInput(f"{path}: {member.name!a:.120} is no file.", hint="Make the bundle again.")
                    content = _content(archive, member)
                    if dry_run and member.name not in bundle.documents:
                        pass
                    elif blob := _BLOB.fullmatch(member.name):
                        if store.find(blob[1]) is None:
                            store.put(_chunks(content), what=f"{path}: {member.name}", sha256=blob[1], size=member.size)
                    elif (pack := _PACK.fullmatch(member.name)) and pack[1] in packed:
                        with store.temporary() as aside:
                            shutil.copyfileobj(content, aside, CHUNK)
                            aside.seek(0)
                            import_repository(store.root / "git", packed[pack[1]], aside, what=path)
                    elif _BASE.fullmatch(member.name) or member.name in bundle.documents:
                        target = folder / member.name
                        with writing(target):
                            target.parent.mkdir(parents=True, exist_ok=True)
                        with whole_file(target) as file, writing(target):
                            shutil.copyfileobj(content, file, CHUNK)
                    else:
                        raise BadInput(
                            f"{path} holds {member.name!a:.120}, which no bundle has.", hint="Make it again."
                        )
                    task.advance(member.size)
            return bundle
    except (tarfile.TarError, EOFError) as error:
        raise _none(path) from error
    except FileNotFoundError as error:
        raise _none(path) from error


def _parse(data: bytes, path: Path, folder: Path) -> Bundle:
    try:
        document: Any = json.loads(data)
        if not isinstance(document, dict) or document.get("bundle") != _REVISION:
            raise ValueError("its revision is another")
        blobs = {str(key): int(value) for key, value in document["blobs"].items()}
        documents = tuple(str(name) for name in document["documents"])
        if not all(re.fullmatch(r"[0-9a-f]{64}", key) for key in blobs):
            raise ValueError("it names hashes that are none")
        if not all(_DOCUMENT.fullmatch(name) for name in documents):
            raise ValueError("it names documents that are none")
        repositories = tuple(gitpack.parse(one, what=path) for one in document["repositories"])
        bases = tuple(str(name) for name in document["bases"])
        return Bundle(path, folder, blobs, repositories, bases, documents)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadInput(f"{path / DESCRIPTION} is damaged: {error}.", hint="Make the bundle again.") from error


@contextmanager
def _described(file: Path, path: Path) -> Iterator[bytes]:
    try:
        with _opened(file, path) as content:
            yield content.read(_LIMIT)
    except FileNotFoundError as error:
        raise _none(path) from error


def _opened(file: Path, path: Path) -> IO[bytes]:
    try:
        return os.fdopen(filesystem.open_file(file, os.O_RDONLY), "rb")
    except OSError as error:
        if error.errno == errno.ENOENT and file.name == DESCRIPTION:
            raise _none(path) from error
        raise BadInput(f"{file} cannot be read: {(error.strerror or '').lower()}.", hint="Copy it again.") from error


def _none(path: Path) -> BadInput:
    return BadInput(
        f"{path} is no bundle of cpack-build.",
        hint="Make one with `cpack-build fetch PACK -o DIR` where there is a network.",
    )


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None, "only regular files are asked for"
    return content


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK):
        yield chunk
