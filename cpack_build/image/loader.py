"""``/etc/ld.so.cache``, as ``ldconfig`` would write it, from the files of a layer stack, with nothing run.

The dynamic loader finds the libraries of its own folders without it, but not those in folders that only
``ld.so.conf`` names; and Python's ``ctypes.util.find_library`` asks ``ldconfig -p``, which prints this file. The bytes
are those of ``ldconfig`` of glibc 2.33 and later but for the generator's name (glibc, ``dl-cache.h``: "new format" with
extensions; ld.so(8), ldconfig(8)). ``glibc-hwcaps`` folders, of which Debian has almost none, are left out: their
libraries are found in their plain variant."""

from __future__ import annotations

import fnmatch
import posixpath
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from cpack_build.fetch.store import Store
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.image.layer import key_of
from cpack_build.image.unpacked import Slice
from cpack_build.oci import tar

__all__ = ["GENERATOR", "Library", "loader_cache", "stored_cache", "write_cache"]

GENERATOR = b"cpack-build"
_CONFIGURATION = "etc/ld.so.conf"
_SYSTEM = ("/lib", "/usr/lib")
"""What ldconfig adds after those of its configuration."""
_LINKS = 40
_FLAGS = {62: 0x0303, 183: 0x0A03, 243: 0x1003}
"""ELF machine → flags of a library for glibc: x86-64, AArch64, RISC-V with double floats (``dl-cache.h``)."""
_CONTENT_LIMIT = 1 << 20
"""Bytes of one table of a library, or of a configuration file."""


@dataclass(frozen=True)
class Library:
    """A line of the cache: the *name* that programs ask for, the absolute *path*, and what the ELF file says of itself:
    *flags* by machine and C library."""

    name: str
    path: str
    flags: int


def loader_cache(files: Iterable[tar.Entry], *, generator: bytes = GENERATOR) -> bytes | None:
    """The cache for a root that holds *files*; ``None`` where there is no library in a folder of the loader."""
    tree = _Tree({entry.path: entry for entry in files})
    libraries = [library for folder in _folders(tree) for library in _libraries(tree, folder)]
    return write_cache(libraries, generator=generator) if libraries else None


def stored_cache(
    system: Sequence[StoredDeb], interpreter: Sequence[StoredDeb], *, store: Store, is_made: bool = True
) -> bytes | None:
    """The cache for a root of these packages, made once and kept in *store*; without *is_made* only looked up."""
    debs = (*system, *interpreter)
    memo = key_of("loader-cache", sorted((deb.name, deb.sha256) for deb in debs))
    known = store.recall("loader-cache", memo)
    if known is not None and (found := store.find_sound(known)) is not None:
        return found.path.read_bytes() or None
    if not is_made:
        return None
    layers = (
        deb_layer("system", "", system, store=store, is_root=True),
        deb_layer("interpreter", "", interpreter, store=store, is_root=False),
    )
    cache = loader_cache(entry for layer in layers for entry in layer.entries())
    for deb in debs:
        deb.file.require_unchanged()
    kept = store.put([cache or b""], what="The loader's cache")
    store.remember("loader-cache", memo, kept.sha256)
    return cache


# -- what is there -----------------------------------------------------------------------------------------------------


class _Tree:
    """Files by path, with links followed inside the root."""

    def __init__(self, entries: Mapping[str, tar.Entry]) -> None:
        self._entries = entries
        self._names: dict[str, list[str]] = {}
        for path in entries:
            folder, _, name = path.rpartition("/")
            self._names.setdefault(folder, []).append(name)

    def resolve(self, path: str) -> str | None:
        """Where the absolute *path* leads, relative to the root; ``None`` where links go round."""
        rest, done = path.strip("/").split("/"), ""
        for _ in range(_LINKS):
            while rest:
                part = rest.pop(0)
                if part in ("", "."):
                    continue
                if part == "..":
                    done = posixpath.dirname(done)
                    continue
                step = f"{done}/{part}" if done else part
                entry = self._entries.get(step)
                if entry is not None and entry.kind == "symlink":
                    rest = [*entry.target.strip("/").split("/"), *rest]
                    done = "" if entry.target.startswith("/") else done
                    break
                done = step
            else:
                return done
        return None

    def file(self, path: str) -> Slice | tar.BytesContent | None:
        """The content of the regular file that *path* leads to."""
        real = self.resolve(path)
        entry = self._entries.get(real) if real is not None else None
        if entry is not None and entry.kind == "hardlink":
            entry = self._entries.get(entry.target)
        content = entry.content if entry is not None and entry.kind == "file" else None
        return content if isinstance(content, (Slice, tar.BytesContent)) else None

    def names(self, folder: str) -> list[str]:
        return sorted(self._names.get(folder, ()))

    def is_link(self, folder: str, name: str) -> bool:
        entry = self._entries.get(f"{folder}/{name}")
        return entry is not None and entry.kind == "symlink"


def _folders(tree: _Tree) -> list[tuple[str, str]]:
    """The folders that ldconfig would look into, each once: as its configuration spells them, and where they are."""
    found: dict[str, str] = {}
    for path in (*_configured(tree, _CONFIGURATION, set()), *_SYSTEM):
        real = tree.resolve(path)
        if path.startswith("/") and real is not None and tree.names(real):
            found.setdefault(real, "/" + path.strip("/"))
    return [(spelled, real) for real, spelled in found.items()]


def _configured(tree: _Tree, path: str, seen: set[str]) -> Iterator[str]:
    content = tree.file(path)
    if content is None or path in seen:
        return
    seen.add(path)
    text = _read(content, 0, min(content.size, _CONTENT_LIMIT)).decode("utf-8", "replace")
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0].lower() == "hwcap":
            continue
        if words[0] != "include":
            yield words[0]
            continue
        for pattern in words[1:]:
            folder, name = posixpath.split(posixpath.join("/" + posixpath.dirname(path), pattern))
            real = tree.resolve(folder)
            for found in tree.names(real) if real is not None else ():
                if fnmatch.fnmatchcase(found, name) and not found.startswith("."):
                    yield from _configured(tree, f"{real}/{found}", seen)


def _libraries(tree: _Tree, folder: tuple[str, str]) -> Iterator[Library]:
    """One library for each soname in a folder, a file before a link, the later version before the earlier."""
    spelled, real = folder
    best: dict[str, tuple[bool, str, _Elf]] = {}
    for name in tree.names(real):
        if not name.startswith(("lib", "ld-")) or ".so" not in name or name.endswith((".dpkg-new", ".dpkg-tmp")):
            continue
        content = tree.file(f"{real}/{name}")
        elf = _elf(content) if content is not None else None
        if elf is None:
            continue
        soname = elf.soname or name
        is_link = tree.is_link(real, name)
        if is_link and name != soname and not (name.endswith(".so") and soname.startswith(name)):
            is_link = False  # a name of its own, neither the soname nor the one for the linker
        if is_link:
            soname = name
        known = best.get(soname)
        if known is None or (known[0] and not is_link) or (known[0] == is_link and _compare(known[1], name) < 0):
            best[soname] = (is_link, name, elf)
    for soname, (_, _, elf) in best.items():
        yield Library(soname, f"{spelled}/{soname}", elf.flags)


# -- ELF ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Elf:
    soname: str
    flags: int


def _read(content: Slice | tar.BytesContent, offset: int, size: int) -> bytes:
    if isinstance(content, tar.BytesContent):
        return content.data[offset : offset + size]
    left = max(0, min(size, content.size - offset))
    with content.path.open("rb") as file:
        file.seek(content.offset + offset)
        return file.read(left)


def _elf(content: Slice | tar.BytesContent) -> _Elf | None:
    """What a 64-bit little-endian shared library says of itself; ``None`` for anything else (System V gABI, "ELF
    Header", "Program Header", "Dynamic Section")."""
    head = _read(content, 0, 64)
    if len(head) < 64 or head[:6] != b"\x7fELF\2\1":
        return None
    kind, machine = struct.unpack_from("<HH", head, 16)
    (table,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if kind != 3 or machine not in _FLAGS or size != 56:
        return None
    segments = list(struct.iter_unpack("<IIQQQQQQ", _whole(_read(content, table, size * count), size)))
    soname, is_dynamic = "", False
    for segment, _, offset, _, _, length, *_ in segments:
        if segment == 2 and length:
            is_dynamic = True
            dynamic = _read(content, offset, min(length, _CONTENT_LIMIT))
            soname = _soname(dict(_until_null(dynamic)), segments, lambda at, much: _read(content, at, much))
    return _Elf(soname, _FLAGS[machine]) if is_dynamic else None


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


def _until_null(dynamic: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in struct.iter_unpack("<QQ", _whole(dynamic, 16)):
        if tag == 0:
            return
        yield tag, value


def _soname(dynamic: Mapping[int, int], segments: list[tuple[int, ...]], read: Callable[[int, int], bytes]) -> str:
    if 14 not in dynamic or 5 not in dynamic:
        return ""
    address = dynamic[5] + dynamic[14]  # DT_STRTAB, DT_SONAME
    for kind, _, offset, start, _, length, *_ in segments:
        if kind == 1 and start <= address < start + length:
            return read(offset + address - start, 4096).partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return ""


# -- the file ----------------------------------------------------------------------------------------------------------


def write_cache(libraries: Iterable[Library], *, generator: bytes = GENERATOR) -> bytes:
    """The cache with *libraries*, of which earlier ones win over later ones of the same name."""
    ordered = sorted(libraries, key=lambda library: -library.flags)
    ordered.sort(key=cmp_to_key(lambda one, other: _compare(other.name, one.name)))
    texts = (text for library in ordered for text in (library.name, library.path))
    places, strings = _strings(text.encode("utf-8", "surrogateescape") for text in texts)
    start = 48 + 24 * len(ordered)

    def at(text: str) -> int:
        return start + places[text.encode("utf-8", "surrogateescape")]

    body = b"".join(
        struct.pack("<iIIIQ", library.flags, at(library.name), at(library.path), 0, 0) for library in ordered
    )
    extension = -(-(start + len(strings)) // 4) * 4
    head = struct.pack("<20sIIB3xI12x", b"glibc-ld.so.cache1.1", len(ordered), len(strings), 2, extension)
    padding = bytes(extension - start - len(strings))
    # One section: tag 0 (generator), flags 0, offset, size.
    section = struct.pack("<IIIIII", 0xEAA42174, 1, 0, 0, extension + 24, len(generator))
    return head + body + strings + padding + section + generator


def _strings(texts: Iterable[bytes]) -> tuple[dict[bytes, int], bytes]:
    """Strings that end in one another share their bytes; each ends with a zero."""
    out = bytearray()
    places: dict[bytes, int] = {}
    previous = b""
    for text in sorted(set(texts), key=lambda text: text[::-1], reverse=True):
        if not previous.endswith(text):
            out += text + b"\0"
            previous = text
        places[text] = len(out) - 1 - len(text)
    return places, bytes(out)


def _compare(one: str, other: str) -> int:
    """The order of library names, in which runs of digits count as numbers."""
    left, right = 0, 0
    while left < len(one):
        if one[left].isdigit():
            if right >= len(other) or not other[right].isdigit():
                return 1
            first, left = _number(one, left)
            second, right = _number(other, right)
            if first != second:
                return first - second
        elif right < len(other) and other[right].isdigit():
            return -1
        elif right >= len(other) or one[left] != other[right]:
            return ord(one[left]) - (ord(other[right]) if right < len(other) else 0)
        else:
            left, right = left + 1, right + 1
    return -(right < len(other))


def _number(text: str, place: int) -> tuple[int, int]:
    end = place
    while end < len(text) and text[end] in "0123456789":
        end += 1
    return int(text[place:end] or "0"), max(end, place + 1)
