"""System packages, unpacked without running anything of them.

A .deb is an ``ar`` archive with ``data.tar.*`` inside (deb(5)). Its files go to their places under the merged
``/usr`` (``bin``, ``sbin`` and ``lib*`` are links there), owner root, set-id bits dropped. What maintainer scripts
would have done that matters is done as data: ``/bin/sh``, ``/etc/passwd`` and ``/etc/group``, the CA bundle,
``nsswitch.conf``, alternatives (:mod:`.alternatives`), and a record of each package in ``/var/lib/dpkg/status.d``
where scanners look (the convention of distroless images)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tarfile import TarError, TarInfo
from tarfile import open as open_tar

from debian.arfile import ArError, ArFile

from cpack_build.errors import BadInput, UnsafeInput
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.image.alternatives import Alternative, alternatives_in, links_of
from cpack_build.image.bytecode import Compiler, identity, sources_of
from cpack_build.image.layer import MTIME, Recipe, arrange, directory, key_of, symlink, text
from cpack_build.image.unpacked import Slice, file_chunks, members, unpacked
from cpack_build.oci import tar
from cpack_build.oci.compression import decompressed_chunks

__all__ = ["StoredDeb", "account_lines", "deb_layer", "dependencies_of", "root_links"]

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32")
"""Top folders that are links into ``usr`` on every Debian since 12 and Ubuntu since 20.04."""
_CONTROL_LIMIT = 64 << 20
"""Bytes of a package's control files; the largest in Debian have a few million."""
UID = 1000
_PASSWD = "cpack:x:1000:1000:cpack-build service:/data:/usr/sbin/nologin\n"  # noqa: S105 - an account, not a password
_GROUP = "cpack:x:1000:\n"


@dataclass(frozen=True)
class StoredDeb:
    """A .deb at hand, whose hash was checked."""

    name: str
    version: str
    sha256: str
    path: Path
    stamp: tuple[int, ...] | None = None
    """What the file's stat was when its hash was checked."""

    @property
    def file(self) -> StoredFile:
        return StoredFile(self.path, self.sha256, -1, self.stamp)


def deb_layer(
    kind: str,
    name: str,
    debs: Iterable[StoredDeb],
    *,
    store: Store,
    is_root: bool,
    compiler: Compiler | None = None,
) -> Recipe:
    """One layer of unpacked packages, with bytecode by *compiler* for what they have below ``usr/lib/python3*``.

    *is_root* says that there is no base image below, so the layer lays the ground.
    """
    debs = sorted(debs, key=lambda deb: (deb.name, deb.sha256))

    def entries() -> Iterator[tar.Entry]:
        every: list[tar.Entry] = []
        choices: list[Alternative] = []
        for deb in debs:
            deb.file.require_sound()
            control, script = _control(deb)
            every += _files(deb, store)
            every.append(text(f"var/lib/dpkg/status.d/{deb.name}", control))
            choices += alternatives_in(script.decode("utf-8", "replace"))
        if is_root:
            every += root_links()
            every += _configuration(every)
        every += _alternatives(choices, every)
        if compiler is not None:
            library = [entry for entry in every if entry.path.startswith("usr/lib/python3")]
            every += compiler.entries(hashes, sources_of(library))
        yield from arrange(every)

    files = tuple(deb.file for deb in debs)
    hashes = [(deb.name, deb.sha256) for deb in debs]
    return Recipe(kind, name, key_of("debs", hashes, is_root, identity(compiler)), entries, inputs=files)


def dependencies_of(deb: StoredDeb) -> set[str]:
    """The names of the packages that *deb* needs, every alternative of each (deb-control(5), "Depends")."""
    from debian.deb822 import Deb822, PkgRelation

    control = Deb822(_control(deb)[0])
    relations = ", ".join(filter(None, (control.get("Pre-Depends"), control.get("Depends"))))
    if not relations:
        return set()
    return {one["name"] for group in PkgRelation.parse_relations(relations) for one in group if one["name"]}


def root_links() -> list[tar.Entry]:
    """The merged ``/usr`` and the folders that programs expect."""
    links = [symlink(name, f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")]
    folders = [directory(f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")]
    return [*links, *folders, directory("tmp", 0o1777), directory("var/tmp", 0o1777), directory("root", 0o700)]


def account_lines(passwd: bytes, group: bytes) -> tuple[bytes, bytes]:
    """``/etc/passwd`` and ``/etc/group`` with the service's account, unless its number is taken already."""
    if f":x:{UID}:".encode() not in passwd:
        passwd += _PASSWD.encode()
    if f":x:{UID}:".encode() not in group:
        group += _GROUP.encode()
    return passwd, group


def _files(deb: StoredDeb, store: Store) -> Iterator[tar.Entry]:
    data = _data_tar(deb, store)
    for member in members(data, what=_what(deb)):
        entry = _entry(member, data, deb)
        if entry is not None:
            yield entry


def _entry(member: TarInfo, data: Path, deb: StoredDeb) -> tar.Entry | None:
    path = _merged(member.name.removeprefix("./").rstrip("/"))
    if path in ("", "."):
        return None
    mode = member.mode & 0o1777 if member.isdir() else member.mode & 0o777
    if member.isdir():
        return None if path in _MERGED else directory(path, mode)
    if member.isreg():
        return tar.Entry(path, "file", mode, MTIME, Slice(data, member.offset_data, member.size))
    if member.issym():
        return symlink(path, member.linkname)
    if member.islnk():
        return tar.Entry(path, "hardlink", mode, MTIME, target=_merged(member.linkname.removeprefix("./")))
    raise UnsafeInput(f"{_what(deb)} holds {member.name}, which is a device or pipe.")


def _merged(path: str) -> str:
    top, slash, rest = path.partition("/")
    return f"usr/{top}{slash}{rest}" if top in _MERGED and rest else path


def _data_tar(deb: StoredDeb, store: Store) -> Path:
    """The package's plain ``data.tar``."""
    size = deb.path.stat().st_size
    return unpacked(deb.sha256, lambda: _member("data.tar", deb), size=size, store=store, what=_what(deb))


def _member(stem: str, deb: StoredDeb) -> Iterator[bytes]:
    """The member ``<stem>.*`` of the ``ar`` archive, compressed as it is."""
    with deb.path.open("rb") as file:
        try:
            for member in ArFile(fileobj=file).getmembers():
                if member.name.startswith(stem):
                    yield from file_chunks(member)  # type: ignore[arg-type]
                    return
        except (ArError, OSError, EOFError) as error:
            raise BadInput(f"{_what(deb)} cannot be read: {error}.") from error
    raise BadInput(f"{_what(deb)} has no {stem}.")


def _what(deb: StoredDeb) -> str:
    return f"The package {deb.name} {deb.version}"


def _control(deb: StoredDeb) -> tuple[bytes, bytes]:
    """The package's control stanza, as scanners of distroless images read it, and its ``postinst``."""
    found: dict[str, bytes] = {}
    control_tar = b"".join(decompressed_chunks(_member("control.tar", deb), what=_what(deb), limit=_CONTROL_LIMIT))
    try:
        with open_tar(fileobj=io.BytesIO(control_tar), mode="r:") as archive:
            for name in ("./control", "control", "./postinst", "postinst"):
                with suppress(KeyError):
                    file = archive.extractfile(name)
                    if file is not None:
                        found.setdefault(name.removeprefix("./"), file.read())
    except (TarError, EOFError, ValueError, OverflowError) as error:
        raise BadInput(f"{_what(deb)} has no readable control file: {error}.") from error
    if "control" not in found:
        raise BadInput(f"{_what(deb)} has no control file.")
    return found["control"], found.get("postinst", b"")


def _alternatives(choices: list[Alternative], files: list[tar.Entry]) -> Iterator[tar.Entry]:
    """The links of the best choices, their names under the merged ``/usr``."""
    merged = [
        replace(
            one,
            link=f"/{_merged(one.link[1:])}",
            path=f"/{_merged(one.path[1:])}",
            slaves=tuple((f"/{_merged(link[1:])}", name, f"/{_merged(path[1:])}") for link, name, path in one.slaves),
        )
        for one in choices
    ]
    for link, target in links_of(merged, {f"/{entry.path}" for entry in files}):
        yield symlink(link[1:], target)


def _configuration(files: list[tar.Entry]) -> Iterator[tar.Entry]:
    """What the maintainer scripts of base-files, base-passwd, dash and ca-certificates make."""
    by_path = {entry.path: entry for entry in files}

    def read(path: str) -> bytes:
        entry = by_path.get(path)
        return b"".join(entry.content.chunks()) if entry is not None and entry.content is not None else b""

    passwd, group = account_lines(
        read("usr/share/base-passwd/passwd.master"), read("usr/share/base-passwd/group.master")
    )
    yield text("etc/passwd", passwd)
    yield text("etc/group", group)
    if nsswitch := read("usr/share/base-files/nsswitch.conf"):
        yield text("etc/nsswitch.conf", nsswitch)
    if "usr/bin/dash" in by_path and "usr/bin/sh" not in by_path:
        yield symlink("usr/bin/sh", "dash")
    certificates = sorted(
        path for path in by_path if path.startswith("usr/share/ca-certificates/") and path.endswith(".crt")
    )
    if certificates:
        bundle = b"".join(read(path).rstrip(b"\n") + b"\n" for path in certificates)
        yield text("etc/ssl/certs/ca-certificates.crt", bundle)
