"""Wheels, unpacked into a virtual environment's folders without running any of their code.

The binary distribution format (packaging.python.org, "Binary distribution format", "Recording installed projects")
says what an installer does: files of the root and of ``.data/{purelib,platlib}`` go to site-packages, ``scripts`` to
``bin``, ``data`` to the prefix, ``headers`` below ``include``; ``#!python`` becomes the environment's interpreter;
entry points become scripts; ``RECORD`` is written anew. Every file's hash is checked against the wheel's ``RECORD``
while it is read."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cpack_build.errors import BadInput, HashMismatch, UnsafeInput
from cpack_build.fetch.store import StoredFile
from cpack_build.image.bytecode import Compiler, identity, sources_of
from cpack_build.image.inflate import member_chunks
from cpack_build.image.layer import MTIME, Recipe, arrange, key_of, safe_path, symlink, text
from cpack_build.oci import tar

if TYPE_CHECKING:
    from installer.records import RecordEntry

__all__ = ["Environment", "StoredWheel", "environment_entries", "installed_files", "wheel_layer"]

_CHUNK = 1 << 20
_DOCUMENT_LIMIT = 64 << 20
"""Bytes of what is read into memory: ``RECORD``, ``entry_points.txt``, a script; torch's ``RECORD`` has 1.3 million."""
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, NotImplementedError)
"""What reading a damaged member raises, whatever it is compressed with."""
_RECORD_NAMES = ("RECORD", "RECORD.jws", "RECORD.p7s")
_SCRIPT = """\
#!{executable}
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({call}())
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment in the image: its *prefix* (``opt/comfyui``), Python's minor version, the interpreter."""

    prefix: str
    python: str
    interpreter: str
    """Absolute path in the image."""

    @property
    def site_packages(self) -> str:
        return f"{self.prefix}/lib/python{self.python}/site-packages"

    @property
    def executable(self) -> str:
        return f"/{self.prefix}/bin/python"

    @property
    def document(self) -> tuple[str, str, str]:
        """What a layer's bytes depend on."""
        return self.prefix, self.python, self.interpreter


@dataclass(frozen=True)
class StoredWheel:
    """A wheel at hand, whose hash was checked."""

    name: str
    version: str
    filename: str
    sha256: str
    path: Path
    size: int
    """Bytes of the file, which decide whether it is heavy."""
    stamp: tuple[int, ...] | None = None
    """What the file's stat was when its hash was checked."""

    @property
    def file(self) -> StoredFile:
        return StoredFile(self.path, self.sha256, self.size, self.stamp)


def environment_entries(environment: Environment) -> list[tar.Entry]:
    """What makes a folder a virtual environment (PEP 405): ``pyvenv.cfg`` and the links to the interpreter."""
    home = environment.interpreter.rpartition("/")[0]
    config = f"home = {home}\ninclude-system-site-packages = false\nversion = {environment.python}\n"
    names = ("python", "python3", f"python{environment.python}")
    links = [symlink(f"{environment.prefix}/bin/{name}", environment.interpreter) for name in names]
    return [text(f"{environment.prefix}/pyvenv.cfg", config), *links]


def wheel_layer(
    kind: str,
    name: str,
    environment: Environment,
    wheels: Iterable[StoredWheel],
    *,
    extra: Iterable[tar.Entry] = (),
    compiler: Compiler | None = None,
) -> Recipe:
    """One layer that holds *wheels* (and *extra* small files) unpacked in *environment*, with bytecode by *compiler*.

    Where two wheels have a file at one path, the one whose name sorts last has it, as with installing in that order.
    """
    wheels = sorted(wheels, key=lambda wheel: (wheel.name, wheel.sha256))
    extra = list(extra)

    def entries() -> Iterator[tar.Entry]:
        with ExitStack() as open_wheels:
            every = list(extra)
            unpacked = {
                wheel.filename: _unpack(open_wheels.enter_context(_open(wheel)), wheel, environment, compiler)
                for wheel in wheels
            }
            every += chain.from_iterable(unpacked.values())
            if compiler is not None:
                every += compiler.entries_of([entry for entry in extra if entry.kind == "file"])
            try:
                arranged = arrange(every)
            except UnsafeInput:
                _refuse_below_files(unpacked)
                raise
            yield from arranged

    small = [[entry.path, entry.kind, entry.mode, entry.target, _content_hash(entry)] for entry in extra]
    hashes = [(wheel.filename, wheel.sha256) for wheel in wheels]
    key = key_of("wheels", environment.document, hashes, small, identity(compiler))
    return Recipe(kind, name, key, entries, inputs=tuple(wheel.file for wheel in wheels))


def _refuse_below_files(unpacked: Mapping[str, list[tar.Entry]]) -> None:
    """Name the two wheels of which one has a folder where the other has a file; *unpacked* is by wheel."""
    owners = {entry.path: wheel for wheel, entries in unpacked.items() for entry in entries}
    for path, wheel in owners.items():
        for parent in map(str, PurePosixPath(path).parents):
            if parent in owners:
                raise BadInput(
                    f"{wheel} has {path} where {owners[parent]} has a file, {parent}: both cannot be installed.",
                    hint="Leave one of the two packages out (--exclude-python-package NAME).",
                )


def installed_files(wheel: StoredWheel, environment: Environment) -> dict[str, str]:
    """Path in the image → hash of each file of *wheel*, by its RECORD, and what its entry points call."""
    with _open(wheel) as archive:
        dist_info = _dist_info(archive, wheel)
        data = dist_info.removesuffix(".dist-info") + ".data/"
        found = {
            _target(name, data, wheel, environment)[0]: str(record.hash_)
            for name, record in _records(archive, wheel, dist_info).items()
            if record.hash_ is not None
        }
        for entry in _entry_points(archive, dist_info, wheel, environment):
            found[entry.path] = _content_hash(entry)
    return found


def _content_hash(entry: tar.Entry) -> str:
    chunks = entry.content.chunks() if entry.content is not None else ()
    return hashlib.sha256(b"".join(chunks)).hexdigest()


def _open(wheel: StoredWheel) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel.path)
    except (zipfile.BadZipFile, OSError) as error:
        raise BadInput(f"The wheel {wheel.filename} cannot be read: {error}.") from error


def _unpack(
    archive: zipfile.ZipFile, wheel: StoredWheel, environment: Environment, compiler: Compiler | None
) -> list[tar.Entry]:
    """All entries of one wheel, bytecode and ``RECORD`` included."""
    dist_info = _dist_info(archive, wheel)
    data = dist_info.removesuffix(".dist-info") + ".data/"
    records = _records(archive, wheel, dist_info)
    entries: list[tar.Entry] = []
    installed: list[tuple[str, str, str]] = []

    for info in sorted(archive.infolist(), key=lambda info: info.filename):
        if info.is_dir() or info.filename in {f"{dist_info}/{name}" for name in _RECORD_NAMES}:
            continue
        _refuse_odd(info, wheel)
        target, is_script = _target(info.filename, data, wheel, environment)
        record = records.get(info.filename)
        if record is None or record.hash_ is None:
            raise BadInput(f"{wheel.filename}: RECORD does not list {info.filename} with a hash.")
        entry = _file(archive, info, target, is_script=is_script, wheel=wheel, record=record, environment=environment)
        entries.append(entry)
        if is_script:
            installed.append(_recorded(entry, environment))
        else:
            installed.append((_relative(target, environment), str(record.hash_), str(info.file_size)))

    for entry in _entry_points(archive, dist_info, wheel, environment):
        entries.append(entry)
        installed.append(_recorded(entry, environment))
    if compiler is not None:
        bytecode = compiler.entries([wheel.sha256, environment.document], _unchanged(sources_of(entries), wheel))
        entries += bytecode
        installed += [(_relative(entry.path, environment), "", "") for entry in bytecode]
    installer = text(f"{environment.site_packages}/{dist_info}/INSTALLER", "cpack-build\n")
    entries.append(installer)
    installed.append(_recorded(installer, environment))
    record_path = f"{environment.site_packages}/{dist_info}/RECORD"
    installed.append((_relative(record_path, environment), "", ""))
    entries.append(text(record_path, _csv(installed)))
    return entries


def _unchanged(
    sources: Callable[[], Iterator[tuple[str, bytes]]], wheel: StoredWheel
) -> Callable[[], Iterator[tuple[str, bytes]]]:
    """*sources*, and at their end an error if the wheel is not the one that was hashed: what is compiled is kept."""

    def checked() -> Iterator[tuple[str, bytes]]:
        yield from sources()
        wheel.file.require_unchanged()

    return checked


def _dist_info(archive: zipfile.ZipFile, wheel: StoredWheel) -> str:
    from installer.utils import parse_metadata_file

    names = {name.partition("/")[0] for name in archive.namelist()}
    found = sorted(name for name in names if name.endswith(".dist-info"))
    if len(found) != 1:
        raise BadInput(f"{wheel.filename} has {len(found)} .dist-info folders where a wheel has one.")
    try:
        version = parse_metadata_file(_document(archive, wheel, f"{found[0]}/WHEEL").decode())["Wheel-Version"]
    except (KeyError, UnicodeDecodeError) as error:
        raise BadInput(f"{wheel.filename} has no readable WHEEL file.") from error
    if str(version).partition(".")[0] != "1":
        raise BadInput(
            f"{wheel.filename} has wheel format {version}; cpack-build knows 1.x.", hint="Update cpack-build."
        )
    return found[0]


def _records(archive: zipfile.ZipFile, wheel: StoredWheel, dist_info: str) -> dict[str, RecordEntry]:
    from installer.records import RecordEntry, parse_record_file

    try:
        lines = _document(archive, wheel, f"{dist_info}/RECORD").decode().splitlines()
        return {row[0]: RecordEntry.from_elements(*row) for row in parse_record_file(lines)}
    except BadInput:
        raise
    except Exception as error:  # installer raises several kinds; each means the same to a user
        raise BadInput(f"{wheel.filename}: its RECORD cannot be read: {error}.") from error


def _document(archive: zipfile.ZipFile, wheel: StoredWheel, name: str) -> bytes:
    """A small file of the wheel. Raises ``KeyError`` when there is none."""
    info = archive.getinfo(name)
    _limited(info, wheel.filename)
    try:
        return archive.read(info)
    except _BROKEN as error:
        raise BadInput(f"{wheel.filename}: {name} cannot be read: {error}.") from error


def _limited(info: zipfile.ZipInfo, wheel: str) -> None:
    if info.file_size > _DOCUMENT_LIMIT:  # what is unpacked is no more than the size that the zip tells
        raise BadInput(f"{wheel}: {info.filename} is larger than {_DOCUMENT_LIMIT >> 20} MiB.")


def _refuse_odd(info: zipfile.ZipInfo, wheel: StoredWheel) -> None:
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise UnsafeInput(f"{wheel.filename}: {info.filename!r} is a link or device; a wheel holds files only.")
    try:
        safe_path(info.filename)
    except UnsafeInput as error:
        raise UnsafeInput(f"{wheel.filename}: {error.message}", hint=error.hint) from error


def _target(filename: str, data: str, wheel: StoredWheel, environment: Environment) -> tuple[str, bool]:
    """Where a file goes in the image, and whether it is a script."""
    if not filename.startswith(data):
        return f"{environment.site_packages}/{filename}", False
    scheme, _, rest = filename.removeprefix(data).partition("/")
    places = {
        "purelib": environment.site_packages,
        "platlib": environment.site_packages,
        "scripts": f"{environment.prefix}/bin",
        "data": environment.prefix,
        "headers": f"{environment.prefix}/include/site/python{environment.python}/{wheel.name}",
    }
    if scheme not in places or not rest:
        raise BadInput(f"{wheel.filename}: {filename} belongs to no known scheme.")
    return f"{places[scheme]}/{rest}", scheme == "scripts"


def _file(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    target: str,
    *,
    is_script: bool,
    wheel: StoredWheel,
    record: RecordEntry,
    environment: Environment,
) -> tar.Entry:
    content: tar.Content = _Member(archive, info, record, wheel.filename)
    executable = bool((info.external_attr >> 16) & 0o111)
    if is_script:
        executable = True
        if _start(archive, info, wheel).startswith(b"#!python"):
            _limited(info, wheel.filename)
            body = b"".join(content.chunks()).partition(b"\n")[2]
            content = tar.BytesContent(b"#!" + environment.executable.encode() + b"\n" + body)
    return tar.Entry(target, "file", 0o755 if executable else 0o644, MTIME, content)


def _start(archive: zipfile.ZipFile, info: zipfile.ZipInfo, wheel: StoredWheel) -> bytes:
    try:
        with archive.open(info) as file:
            return file.read(8)
    except _BROKEN as error:
        raise BadInput(f"{wheel.filename}: {info.filename} cannot be read: {error}.") from error


@dataclass(frozen=True)
class _Member:
    """A wheel's file, checked against ``RECORD`` each time it is read."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    record: RecordEntry
    wheel: str

    @property
    def size(self) -> int:
        return self.info.file_size

    def chunks(self) -> Iterator[bytes]:
        expected = self.record.hash_
        assert expected is not None
        try:
            hasher = hashlib.new(expected.name)
            if not hasher.digest_size:  # SHAKE gives as many bytes as one asks for
                raise ValueError(expected.name)
        except ValueError as error:
            raise BadInput(f"{self.wheel}: RECORD uses the unknown hash {expected.name!r}.") from error
        try:
            count = 0
            for chunk in member_chunks(self.archive, self.info):
                hasher.update(chunk)
                count += len(chunk)
                yield chunk
            if count != self.size:
                raise EOFError(f"it has {count} bytes, and {self.size} were announced")
        except _BROKEN as error:
            raise BadInput(f"{self.wheel}: {self.info.filename} cannot be read: {error}.") from error
        actual = base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()
        if actual != expected.value.rstrip("="):
            raise HashMismatch(f"{self.info.filename} in {self.wheel}", expected=expected.value, actual=actual)


def _entry_points(
    archive: zipfile.ZipFile, dist_info: str, wheel: StoredWheel, environment: Environment
) -> Iterator[tar.Entry]:
    try:
        declared = _document(archive, wheel, f"{dist_info}/entry_points.txt")
    except KeyError:
        return
    from installer.utils import parse_entrypoints

    try:
        points = list(parse_entrypoints(declared.decode()))
    except Exception as error:  # configparser's several kinds, and installer's assertion
        raise BadInput(f"{wheel.filename}: entry_points.txt cannot be read: {error}.") from error
    for name, module, attribute, _section in sorted(points):
        if "/" in name:
            raise UnsafeInput(f"{wheel.filename}: the entry point {name!r} is no file name.")
        script = _SCRIPT.format(
            executable=environment.executable, module=module, name=attribute.partition(".")[0], call=attribute
        )
        yield text(f"{environment.prefix}/bin/{name}", script, 0o755)


def _relative(path: str, environment: Environment) -> str:
    """*path* as ``RECORD`` names it: relative to site-packages."""
    if path.startswith(environment.site_packages + "/"):
        return path.removeprefix(environment.site_packages + "/")
    return "../../../" + path.removeprefix(environment.prefix + "/")


def _recorded(entry: tar.Entry, environment: Environment) -> tuple[str, str, str]:
    assert entry.content is not None
    hasher = hashlib.sha256()
    for chunk in entry.content.chunks():
        hasher.update(chunk)
    encoded = base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()
    return _relative(entry.path, environment), f"sha256={encoded}", str(entry.size)


def _csv(rows: Iterable[tuple[str, str, str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(sorted(rows))
    return out.getvalue()
