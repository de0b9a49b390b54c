"""A wheel that a build backend made, in the one form that does not depend on where and when it was made."""

from __future__ import annotations

import io
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cpack_build.errors import BadInput

__all__ = ["needed_glibc", "normalised"]

_WHEEL_LIMIT = 4 << 30
_GLIBC = re.compile(rb"\bGLIBC_2\.([0-9]{1,3})\b")


def normalised(wheel: Path) -> bytes:
    """The bytes of *wheel* in one form: sorted, uncompressed (zlib's output differs by release), one timestamp.

    ``RECORD`` is written anew and comes last; signatures of the old one go. Raises :class:`BadInput`.
    """
    out = io.BytesIO()
    record: list[str] = []
    try:
        with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as anew:
            infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            if len(infos) != sum(not info.is_dir() for info in archive.infolist()):
                raise BadInput(f"{wheel.name} has a file twice.")
            if sum(info.file_size for info in infos.values()) > _WHEEL_LIMIT:
                raise BadInput(f"{wheel.name} unpacks to more than {_WHEEL_LIMIT >> 30} GiB.")
            (last,) = [name for name in infos if re.fullmatch(r"[^/]+\.dist-info/RECORD", name)]
            # the dist-info folder comes after the rest (binary distribution format, "Recommended archiver features")
            for name in sorted(infos, key=lambda name: (".dist-info/" in name, name)):
                if name == last or name in (f"{last}.jws", f"{last}.p7s"):
                    continue
                data = archive.read(name)
                digest = urlsafe_b64encode(sha256(data).digest()).rstrip(b"=").decode()
                record.append(f"{_field(name)},sha256={digest},{len(data)}\n")
                is_executable = bool(infos[name].external_attr >> 16 & 0o100)
                anew.writestr(_member(name, 0o755 if is_executable else 0o644), data)
            anew.writestr(_member(last, 0o644), "".join([*sorted(record), f"{_field(last)},,\n"]))
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise BadInput(f"{wheel.name}, as its build backend made it, is no whole wheel: {error}.") from error
    return out.getvalue()


def _member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = (0o100000 | mode) << 16
    return info


def _field(name: str) -> str:
    """A field of a CSV file (RFC 4180)."""
    return '"' + name.replace('"', '""') + '"' if re.search(r'[",\r\n]', name) else name


def needed_glibc(wheel: Path) -> Iterator[int]:
    """The versions of glibc 2 that the libraries in *wheel* name in their version needs (ELF, ``.gnu.version_r``)."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if re.search(r"\.so(\.|$)", name):
                yield from map(int, _GLIBC.findall(archive.read(name)))
