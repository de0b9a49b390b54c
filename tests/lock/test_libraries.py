"""Shared libraries that nothing brings are told with the Debian package that has them, from the wheels' ELF files."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store
from cpack_build.lock.libraries import PACKAGES, lacking
from cpack_build.lock.schema import Deb, Lock, PythonEnvironment
from tests.lock.test_preflight import HASH, lock


def shared_object(*needed: str, soname: str = "") -> bytes:
    """An ELF file (System V ABI) that says what it needs, and does nothing."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*needed, soname))
    place, entries = 1, []
    for name in (*needed, soname):
        entries.append((14 if name is soname and soname else 1, place))  # DT_SONAME, DT_NEEDED
        place += len(name) + 1
    if not soname:
        entries.pop()
    dynamic = 64 + 2 * 56
    size = 16 * (len(entries) + 3)
    entries += [(5, dynamic + size), (10, len(names)), (0, 0)]  # DT_STRTAB, DT_STRSZ, DT_NULL
    table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    whole = dynamic + len(table) + len(names)
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, whole, whole, 4096)
    where = struct.pack("<IIQQQQQQ", 2, 4, dynamic, dynamic, dynamic, len(table), len(table), 8)
    return header + load + where + table + names


class Wheels:
    """Wheels in a folder, and the environment that pins them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stanzas = ""
        folder.mkdir()

    def add(self, name: str, files: dict[str, bytes], *, here: bool = True) -> None:
        path = self.folder / f"{name}-1-cp311-cp311-manylinux_2_17_x86_64.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in files.items():
                archive.writestr(member, data)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._stanzas += (
            f'\n[[packages]]\nname = "{name}"\nversion = "1"\nwheels = [{{name = "{path.name}", '
            f'url = "https://index.example/{path.name}", hashes = {{sha256 = "{sha256}"}}}}]\n'
        )
        if not here:
            path.unlink()

    def lock(self, tmp_path: Path, **changes: object) -> Lock:
        pylock = f'lock-version = "1.0"\ncreated-by = "tests"\n{self._stanzas}'
        environment = PythonEnvironment(pylock=pylock, pylock_sha256=hashlib.sha256(pylock.encode()).hexdigest())
        return lock(tmp_path, "https://index.example", python=environment, **changes)


@pytest.fixture
def wheels(tmp_path: Path) -> Wheels:
    return Wheels(tmp_path / "wheels")


def deb(name: str) -> Deb:
    return Deb(name=name, version="1", architecture="amd64", source=name, url="https://x.example", sha256=HASH, size=1)


def told(wheels: Wheels, made: Lock, store: Store) -> set[str]:
    return {one.package for one in lacking([made], store=store, find_links=[str(wheels.folder)])[0]}


def test_a_missing_library_is_told_with_its_package_wheel_and_file(
    wheels: Wheels, tmp_path: Path, store: Store
) -> None:
    wheels.add("opencv", {"cv2/cv2.abi3.so": shared_object("libGL.so.1", "libc.so.6", "libcuda.so.1")})
    (found,), unseen = lacking([wheels.lock(tmp_path)], store=store, find_links=[str(wheels.folder)])
    assert (found.package, found.library, found.wheel, found.file) == (
        "libgl1", "libGL.so.1", "opencv 1", "cv2/cv2.abi3.so",
    )  # fmt: skip
    assert "add libgl1 to system.packages" in str(found)
    assert unseen == ()


def test_what_a_deb_or_another_wheel_brings_is_not_missing(wheels: Wheels, tmp_path: Path, store: Store) -> None:
    wheels.add("opencv", {"cv2/cv2.so": shared_object("libGL.so.1", "libgomp.so.1", "libsndfile.so.1")})
    wheels.add("torch", {"torch/lib/libgomp-1234.so.1": shared_object(soname="libgomp.so.1")})
    assert told(wheels, wheels.lock(tmp_path), store) == {"libgl1", "libsndfile1"}
    with_debs = wheels.lock(tmp_path, system=(deb("libgl1"), deb("libsndfile1")))
    assert told(wheels, with_debs, store) == set()


def test_the_name_after_the_change_of_time_t_counts_as_well(wheels: Wheels, tmp_path: Path, store: Store) -> None:
    wheels.add("opencv", {"cv2/cv2.so": shared_object("libglib-2.0.so.0")})
    assert told(wheels, wheels.lock(tmp_path, system=(deb("libglib2.0-0t64"),)), store) == set()


def test_a_wheel_that_is_not_here_is_said_not_to_be_looked_at(wheels: Wheels, tmp_path: Path, store: Store) -> None:
    wheels.add("opencv", {"cv2/cv2.so": shared_object("libGL.so.1")}, here=False)
    found, unseen = lacking([wheels.lock(tmp_path)], store=store)
    assert (found, unseen) == ((), ("opencv-1-cp311-cp311-manylinux_2_17_x86_64.whl",))


def test_what_was_seen_once_is_remembered_by_the_wheel_s_hash(wheels: Wheels, tmp_path: Path, store: Store) -> None:
    wheels.add("opencv", {"cv2/cv2.so": shared_object("libGL.so.1")})
    (path,) = wheels.folder.iterdir()
    store.adopt(path)
    made = wheels.lock(tmp_path)
    assert told(wheels, made, store) == {"libgl1"}
    path.unlink()
    assert {one.package for one in lacking([made], store=store)[0]} == {"libgl1"}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 200, shared_object("libGL.so.1")[:150], b"text",
        shared_object("libGL.so.1").replace(b"libGL.so.1", b"\xff\xfe\0\xfd\xfc\xfb\xfa\xf9\xf8\xf7"),
    ],
    ids=["empty", "magic", "garbage", "cut", "text", "names"],
)  # fmt: skip
def test_what_is_no_elf_file_is_passed_over(data: bytes, wheels: Wheels, tmp_path: Path, store: Store) -> None:
    wheels.add("broken", {"a/b.so": data})
    assert told(wheels, wheels.lock(tmp_path), store) == set()


def test_the_table_names_libraries_and_packages_as_debian_does() -> None:
    assert all(".so" in library for library in PACKAGES)
    names = [name for packages in PACKAGES.values() for name in packages]
    assert all(Deb.model_validate({**deb("x1").model_dump(), "name": name}) for name in names)
