"""Shared libraries that locked wheels need and that neither they nor the system packages bring, by their ELF files.

Only wheels that are on this machine are looked at: resolving downloads none. What each needs and brings is remembered
by its hash. A library is told only where the table knows the Debian package that has it; the driver's own (``libcuda``)
come with the driver, and what every image has (PEP 600's C and C++ libraries) is never missing.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.store import Store
from cpack_build.lock.base import recalled_base
from cpack_build.lock.debs import installed
from cpack_build.lock.schema import BaseImage, DebInterpreter, Lock
from cpack_build.lock.wheels import Wheel, wheels_of

__all__ = ["PACKAGES", "Lacking", "lacking"]

_MEMO = "wheel-libraries-1"
_LIBRARY = re.compile(r"\.so(\.[0-9.]+)?$")
_LARGEST = 256 << 20
"""Bytes of a member that is looked into; of a larger one (CUDA's) the name alone counts, as something brought."""

PACKAGES: dict[str, tuple[str, ...]] = {
    soname: tuple(names.split("|"))
    for line in """
    libGL.so.1 libgl1
    libEGL.so.1 libegl1
    libGLX.so.0 libglx0
    libOpenGL.so.0 libopengl0
    libGLESv2.so.2 libgles2
    libGLU.so.1 libglu1-mesa
    libOSMesa.so.8 libosmesa6
    libgbm.so.1 libgbm1
    libdrm.so.2 libdrm2
    libvulkan.so.1 libvulkan1
    libOpenCL.so.1 ocl-icd-libopencl1
    libva.so.2 libva2
    libvdpau.so.1 libvdpau1
    libglib-2.0.so.0 libglib2.0-0|libglib2.0-0t64
    libgobject-2.0.so.0 libglib2.0-0|libglib2.0-0t64
    libgthread-2.0.so.0 libglib2.0-0|libglib2.0-0t64
    libgio-2.0.so.0 libglib2.0-0|libglib2.0-0t64
    libX11.so.6 libx11-6
    libXext.so.6 libxext6
    libXrender.so.1 libxrender1
    libSM.so.6 libsm6
    libICE.so.6 libice6
    libxcb.so.1 libxcb1
    libXi.so.6 libxi6
    libXtst.so.6 libxtst6
    libXfixes.so.3 libxfixes3
    libXdamage.so.1 libxdamage1
    libXrandr.so.2 libxrandr2
    libXcomposite.so.1 libxcomposite1
    libXcursor.so.1 libxcursor1
    libXinerama.so.1 libxinerama1
    libXss.so.1 libxss1
    libxkbcommon.so.0 libxkbcommon0
    libdbus-1.so.3 libdbus-1-3
    libfontconfig.so.1 libfontconfig1
    libfreetype.so.6 libfreetype6
    libcairo.so.2 libcairo2
    libpango-1.0.so.0 libpango-1.0-0
    libpangocairo-1.0.so.0 libpangocairo-1.0-0
    libgdk_pixbuf-2.0.so.0 libgdk-pixbuf-2.0-0
    libgtk-3.so.0 libgtk-3-0|libgtk-3-0t64
    libsndfile.so.1 libsndfile1
    libportaudio.so.2 libportaudio2
    libasound.so.2 libasound2|libasound2t64
    libpulse.so.0 libpulse0
    libsox.so.3 libsox3
    libmp3lame.so.0 libmp3lame0
    libopus.so.0 libopus0
    libvorbis.so.0 libvorbis0a
    libogg.so.0 libogg0
    libavcodec.so.59 libavcodec59
    libavformat.so.59 libavformat59
    libavutil.so.57 libavutil57
    libavfilter.so.8 libavfilter8
    libavdevice.so.59 libavdevice59
    libswscale.so.6 libswscale6
    libswresample.so.4 libswresample4
    libgstreamer-1.0.so.0 libgstreamer1.0-0
    libSDL2-2.0.so.0 libsdl2-2.0-0
    libjpeg.so.62 libjpeg62-turbo
    libpng16.so.16 libpng16-16|libpng16-16t64
    libtiff.so.6 libtiff6
    libwebp.so.7 libwebp7
    libgomp.so.1 libgomp1
    libomp.so.5 libomp5-14|libomp5
    libatomic.so.1 libatomic1
    libgfortran.so.5 libgfortran5
    libnuma.so.1 libnuma1
    libtbb.so.12 libtbb12
    libopenblas.so.0 libopenblas0-pthread|libopenblas0
    libblas.so.3 libblas3
    liblapack.so.3 liblapack3
    libssl.so.3 libssl3|libssl3t64
    libcrypto.so.3 libssl3|libssl3t64
    libcurl.so.4 libcurl4|libcurl4t64
    libsodium.so.23 libsodium23
    libxml2.so.2 libxml2
    libxslt.so.1 libxslt1.1
    libffi.so.8 libffi8
    libbz2.so.1.0 libbz2-1.0
    liblzma.so.5 liblzma5
    libzstd.so.1 libzstd1
    libsqlite3.so.0 libsqlite3-0
    libncursesw.so.6 libncursesw6
    libtinfo.so.6 libtinfo6
    libreadline.so.8 libreadline8|libreadline8t64
    libuuid.so.1 libuuid1
    libcrypt.so.1 libcrypt1
    libusb-1.0.so.0 libusb-1.0-0
    libmagic.so.1 libmagic1|libmagic1t64
    libnss3.so libnss3
    libnspr4.so libnspr4
    libarchive.so.13 libarchive13|libarchive13t64
    libespeak-ng.so.1 libespeak-ng1
    libunwind.so.8 libunwind8
    """.strip().splitlines()
    for soname, names in [line.split()]
}
"""Library → the packages that have it, Debian 12's first, then the names after Debian's change of ``time_t``.

Source: the packages' ``shlibs`` and ``symbols`` files, from which dpkg-shlibdeps writes ``Depends``, Debian 12 and 13.
"""


@dataclass(frozen=True, order=True)
class Lacking:
    """The *library* that *file* of the wheel *wheel* needs and nothing brings; *package* has it."""

    package: str
    library: str
    wheel: str
    file: str

    def __str__(self) -> str:
        return (
            f"{self.wheel} needs {self.library} ({self.file}), which nothing brings: add {self.package} to "
            "system.packages in cpack.yaml"
        )


def lacking(
    locks: Iterable[Lock], *, store: Store, find_links: Sequence[str] = ()
) -> tuple[tuple[Lacking, ...], tuple[str, ...]]:
    """What the images of *locks* would lack, each library once; and the wheels that were not looked at, for they are
    not here."""
    found: dict[str, Lacking] = {}
    unseen: set[str] = set()
    for lock in locks:
        have = _packages(lock, store)
        needs: list[tuple[str, str, Wheel]] = []
        brought: set[str] = set()
        for wheel in wheels_of(lock.python):
            if (seen := _seen(wheel, store, find_links)) is None:
                unseen.add(wheel.filename)
                continue
            needs += [(library, file, wheel) for library, file in seen["needs"].items()]
            brought |= set(seen["brings"])
        for library, file, wheel in needs:
            packages = PACKAGES.get(library, ())
            if packages and library not in brought and not have.intersection(packages):
                found.setdefault(library, Lacking(packages[0], library, f"{wheel.name} {wheel.version}", file))
    return tuple(sorted(found.values())), tuple(sorted(unseen))


def _packages(lock: Lock, store: Store) -> set[str]:
    """Names of the system packages that the image has."""
    names = {deb.name for deb in lock.system}
    if isinstance(lock.interpreter, DebInterpreter):
        names |= {deb.name for deb in lock.interpreter.packages}
    if isinstance(lock.base, BaseImage) and (base := recalled_base(lock.base, store=store)) is not None:
        names |= installed(base.files).keys()
    return names


def _seen(wheel: Wheel, store: Store, find_links: Sequence[str]) -> dict[str, Any] | None:
    if (known := store.recall(_MEMO, wheel.sha256)) is not None:
        document: dict[str, Any] = json.loads(known)
        return document
    stored = store.find(wheel.sha256)
    places = [stored.path] if stored is not None else []
    places += [path / wheel.filename for link in find_links if (path := local_path(link)) is not None]
    for path in places:
        if path.is_file():
            seen = _look(path)
            if stored is not None:  # another file may have another content
                store.remember(_MEMO, wheel.sha256, json.dumps(seen, sort_keys=True))
            return seen
    return {"needs": {}, "brings": []} if wheel.filename.endswith("-none-any.whl") else None


def _look(path: Path) -> dict[str, Any]:
    """``needs``: library → the file that needs it; ``brings``: names of libraries in the wheel."""
    needs: dict[str, str] = {}
    brings: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = posixpath.basename(info.filename)
                if not _LIBRARY.search(name):
                    continue
                brings.add(name)
                if info.file_size > _LARGEST:
                    continue
                soname, needed = _dynamic(archive.read(info))
                brings.update([soname] if soname else [])
                for library in needed:
                    needs.setdefault(library, info.filename)
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError, EOFError):
        return {"needs": {}, "brings": []}  # whoever lays the wheel out says what is wrong with it
    return {"needs": needs, "brings": sorted(brings)}


def _dynamic(data: bytes) -> tuple[str, list[str]]:
    """SONAME and NEEDED of an ELF file (System V ABI, "Dynamic Section"); nothing for what is none."""
    from elftools.common.exceptions import ELFError
    from elftools.construct.core import ConstructError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile

    soname, needed = "", []
    try:
        for segment in ELFFile(io.BytesIO(data)).iter_segments(type="PT_DYNAMIC"):
            assert isinstance(segment, DynamicSegment)
            for tag in segment.iter_tags():
                # pyelftools names the attribute after the tag
                if tag.entry.d_tag == "DT_NEEDED":
                    needed.append(getattr(tag, "needed", ""))
                elif tag.entry.d_tag == "DT_SONAME":
                    soname = getattr(tag, "soname", "")
    except (ELFError, ConstructError, ValueError, IndexError, KeyError, AttributeError, OverflowError, MemoryError):
        return "", []
    return soname, [name for name in needed if isinstance(name, str) and name.isprintable()]
