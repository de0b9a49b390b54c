"""A package index on loopback (the simple repository API), with wheels made for the test."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
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

    def add_sdist(self, name: str, version: str) -> None:
        """Add a source distribution, which nobody may open."""
        self.files.setdefault(name, {})[f"{name}-{version}.tar.gz"] = b"never opened"

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
