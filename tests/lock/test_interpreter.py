"""A standalone Python is taken by URL and hash, and only if it is the Python that the pack needs."""

from __future__ import annotations

import gzip
import hashlib

import pytest
import zstandard

from cpack_build.cpack.settings import InterpreterArchive
from cpack_build.errors import BadInput, HashMismatch, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.interpreter import archive_interpreter, compiles_alike
from cpack_build.lock.schema import ArchiveInterpreter, BaseInterpreter, Deb, DebInterpreter
from cpack_build.oci import tar
from tests.fetch.servers import serving_files

TAR = b"".join(
    tar.stream([tar.Entry("python/bin/python3.11", "file", 0o755, content=tar.BytesContent(b"elf"))])
)  # fmt: skip
KINDS = {"gz": gzip.compress(TAR), "zst": zstandard.compress(TAR), "tar": TAR}


def locked(data: bytes, store: Store, *, python: str = "3.11", sha256: str = "") -> tuple[ArchiveInterpreter, str]:
    with serving_files({"/python.tar": data}) as server:
        url = f"{server.url}/python.tar"
        archive = InterpreterArchive(url=url, sha256=sha256 or hashlib.sha256(data).hexdigest())
        return archive_interpreter(archive, python=python, store=store, sources=Sources()), url


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_pinned(kind: str, store: Store) -> None:
    data = KINDS[kind]
    interpreter, url = locked(data, store)
    assert interpreter.path == "/opt/python/bin/python3.11"
    assert (interpreter.url, interpreter.sha256, interpreter.size) == (url, hashlib.sha256(data).hexdigest(), len(data))


def test_another_python_is_refused(store: Store) -> None:
    with pytest.raises(Unresolvable, match=r"is not Python 3\.12, which the pack needs"):
        locked(KINDS["gz"], store, python="3.12")


def test_what_is_no_tar_is_refused(store: Store) -> None:
    for data in (b"\x1f\x8b" + b"x" * 600, b"PK" * 600, gzip.compress(TAR)[:-20], b"\x28\xb5\x2f\xfd" + b"x" * 600):
        with pytest.raises(BadInput, match=r"python\.tar(: | ).*(broken|in the middle|no tar)"):
            locked(data, store)


def test_other_bytes_are_refused(store: Store) -> None:
    with pytest.raises(HashMismatch):
        locked(KINDS["gz"], store, sha256="0" * 64)


def test_an_archive_for_another_machine_is_refused(store: Store) -> None:
    head = b"\x7fELF\x02\x01" + bytes(12) + (183).to_bytes(2, "little") + bytes(44)
    data = b"".join(tar.stream([tar.Entry("python/bin/python3.11", "file", 0o755, content=tar.BytesContent(head))]))
    with pytest.raises(Unresolvable, match=r"is a Python for linux/arm64, and the image is for linux/amd64"):
        locked(data, store)
    with serving_files({"/python.tar": data}) as server:
        archive = InterpreterArchive(url=f"{server.url}/python.tar", sha256=hashlib.sha256(data).hexdigest())
        made = archive_interpreter(archive, python="3.11", platform="linux/arm64", store=store, sources=Sources())
    assert made.path == "/opt/python/bin/python3.11"


def test_interpreters_compile_alike_if_they_are_built_from_one_source() -> None:
    def packages(architecture: str, version: str) -> DebInterpreter:
        deb = Deb(
            name="python3.11-minimal", version=version, architecture=architecture, source="python3.11",
            url="https://deb.example/x", sha256="a" * 64, size=1,
        )  # fmt: skip
        return DebInterpreter(version="3.11", path="/usr/bin/python3.11", packages=(deb,))

    assert compiles_alike(packages("amd64", "3.11.2-6+deb12u6"), packages("arm64", "3.11.2-6+deb12u6+b2"))
    assert not compiles_alike(packages("amd64", "3.11.2-6+deb12u6"), packages("arm64", "3.11.2-6+deb12u5"))
    base = BaseInterpreter(version="3.11", path="/usr/bin/python3.11")
    assert not compiles_alike(packages("amd64", "3.11.2-6"), base)
    assert not compiles_alike(base, base)  # two images' own, of which nobody knows the patch release
