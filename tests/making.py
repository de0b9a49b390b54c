"""Small things made by hand for tests: wheels, debs, and a tar as Python's own reader sees it."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cpack_build.image.wheels import StoredWheel
from cpack_build.oci import tar


def record_hash(data: bytes) -> str:
    """A hash as ``RECORD`` writes it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_wheel(
    folder: Path,
    name: str,
    files: Mapping[str, bytes],
    *,
    version: str = "1.0",
    executable: Iterable[str] = (),
    record: Mapping[str, str] | None = None,
    metadata: str = "",
) -> StoredWheel:
    """A pure wheel; *record* replaces the hashes of some files in ``RECORD``, *metadata* are more lines of that."""
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {path: record_hash(data) for path, data in content.items()} | dict(record or {})
    lines = [f"{path},{hashes[path]},{len(data)}" for path, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for filename, data in content.items():
            member = zipfile.ZipInfo(filename, (2020, 1, 1, 0, 0, 0))
            member.external_attr = (0o100755 if filename in executable else 0o100644) << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return StoredWheel(name, version, path.name, sha256, path, path.stat().st_size)


def make_deb(path: Path, control: str, members: Iterable[tuple[tarfile.TarInfo, bytes]], *, postinst: str = "") -> Path:
    """A .deb from tar members (deb(5)): an ``ar`` of three files."""

    def tarred(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:xz", format=tarfile.GNU_FORMAT) as archive:  # as dpkg-deb does
            for info, data in entries:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    scripts = {"control": control, "postinst": postinst}
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tarred(
            [(tarfile.TarInfo(f"./{name}"), data.encode()) for name, data in scripts.items() if data]
        ),
        "data.tar.xz": tarred(members),
    }
    out = b"!<arch>\n"
    for name, data in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    path.write_bytes(out)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, *, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    """A tar member by name and type."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info


@dataclass(frozen=True)
class Member:
    """A tar member as ``tarfile`` reads it back."""

    kind: str
    mode: int
    target: str
    data: bytes
    owner: tuple[int, int, str, str]
    mtime: float


def read_back(entries: Iterable[tar.Entry]) -> dict[str, Member]:
    """The tar that *entries* make, as ``tarfile`` reads it: path → member."""
    kinds = {
        tarfile.REGTYPE: "file",
        tarfile.DIRTYPE: "directory",
        tarfile.SYMTYPE: "symlink",
        tarfile.LNKTYPE: "hardlink",
    }
    out = io.BytesIO(b"".join(tar.stream(entries)))
    found = {}
    with tarfile.open(fileobj=out, mode="r:") as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isreg() else None
            data = file.read() if file is not None else b""
            owner = (info.uid, info.gid, info.uname, info.gname)
            found[info.name] = Member(kinds[info.type], info.mode, info.linkname, data, owner, info.mtime)
    return found
