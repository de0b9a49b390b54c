"""A package index on loopback (the simple repository API), with wheels made for the test."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.fetch.servers import Server, serving_files


def wheel(name: str, version: str, *, requires: Sequence[str] = (), tag: str = "py3-none-any") -> tuple[str, bytes]:
    """A wheel's file name and bytes."""
    distribution = name.replace("-", "_")
    info = f"{distribution}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    files = {
        f"{distribution}.py": f"VERSION = {version!r}  # {tag}\n".encode(),
        f"{info}/METADATA": ("\n".join(metadata) + "\n").encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = ""
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), data)
    return f"{distribution}-{version}-{tag}.whl", out.getvalue()


BACKEND = """
import base64, hashlib, os, zipfile
NAME, VERSION, TAG, REQUIRES = {settings!r}

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(directory, config_settings=None, metadata_directory=None):
    {body}
    info = f"{{NAME}}-{{VERSION}}.dist-info"
    files = {{
        f"{{NAME}}.py": "SEEN = " + repr(sorted(os.environ)) + "\\n",
        f"{{info}}/METADATA": f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n"
        + "".join(f"Requires-Dist: {{one}}\\n" for one in REQUIRES),
        f"{{info}}/WHEEL": f"Wheel-Version: 1.0\\nGenerator: tests\\nRoot-Is-Purelib: true\\nTag: {{TAG}}\\n",
        f"{{info}}/RECORD": "",
    }}
    filename = f"{{NAME}}-{{VERSION}}-{{TAG}}.whl"
    with zipfile.ZipFile(os.path.join(directory, filename), "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files, key=lambda path: os.urandom(8)):  # in no order, and with the time of now
            archive.writestr(path, files[path])
    return filename
"""
"""A build backend (PEP 517) that needs nothing; *body* is run by each build."""


def source_files(
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    build_requires: Sequence[str] = (),
    tag: str = "py3-none-any",
    body: str = "pass",
) -> dict[str, str]:
    """The files of a package with a build backend of its own."""
    backend = BACKEND.format(settings=(name, version, tag, list(requires)), body=body)
    project = f'[build-system]\nrequires = {list(build_requires)!r}\nbuild-backend = "own"\nbackend-path = ["."]\n'
    return {"pyproject.toml": project, "own.py": backend}


def sdist(files: Mapping[str, str], top: str) -> bytes:
    """A source archive of *files* below *top*."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(f"{top}/{path}")
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return out.getvalue()


@dataclass
class Index:
    """Packages by name, each with its files; *hashed* says whether the pages tell hashes."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    hashed: bool = True

    def add(self, name: str, version: str, *, requires: Sequence[str] = (), tag: str = "py3-none-any") -> str:
        """Add a wheel; its sha256."""
        filename, data = wheel(name, version, requires=requires, tag=tag)
        self.files.setdefault(name, {})[filename] = data
        return hashlib.sha256(data).hexdigest()

    def add_sdist(self, name: str, version: str, data: bytes = b"never opened") -> None:
        """Add a source distribution; by default one that nobody may open."""
        self.files.setdefault(name, {})[f"{name}-{version}.tar.gz"] = data

    @contextmanager
    def serve(self) -> Iterator[Server]:
        """Run it; its pages are below ``/simple/``."""
        pages = {}
        for name, files in self.files.items():
            links = []
            for filename, data in files.items():
                pages[f"/files/{filename}"] = data
                fragment = f"#sha256={hashlib.sha256(data).hexdigest()}" if self.hashed else ""
                links.append(f'<a href="/files/{filename}{fragment}">{filename}</a>')
            pages[f"/simple/{name}/"] = "".join(["<!DOCTYPE html><html><body>", *links, "</body></html>"]).encode()
        with serving_files(pages) as server:
            yield server
