"""A signed apt archive on loopback, made for a test; apt itself reads it and checks the signature."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cpack_build.lock.debs import AptSources
from tests import need
from tests.fetch.servers import Server, serving_files

KEYRING = "usr/share/keyrings/test.gpg"


@dataclass
class AptArchive:
    """Packages of a suite ``stable``, component ``main``, for amd64. *home* is where gpg keeps its key."""

    home: Path
    packages: list[str] = field(default_factory=list)
    debs: dict[str, bytes] = field(default_factory=dict)
    signed: bool = True

    def add(
        self, name: str, version: str = "1.0", *, depends: str = "", source: str = "", architecture: str = "amd64"
    ) -> str:
        """Add a package; its sha256. The file is no real .deb: nothing here may open it."""
        data = f"{name} {version}".encode()
        path = f"pool/{name}_{version.split(':')[-1]}_{architecture}.deb"
        sha256 = hashlib.sha256(data).hexdigest()
        lines = [
            f"Package: {name}",
            f"Version: {version}",
            f"Architecture: {architecture}",
            "Maintainer: T <t@x.example>",
        ]
        lines += [f"Source: {source}"] if source else []
        lines += [f"Depends: {depends}"] if depends else []
        lines += [f"Filename: {path}", f"Size: {len(data)}", f"MD5sum: {hashlib.md5(data).hexdigest()}"]
        lines += [f"SHA256: {sha256}", "Description: made for a test"]
        self.packages.append("\n".join(lines) + "\n")
        self.debs[path] = data
        return sha256

    def files(self) -> dict[str, bytes]:
        """Everything the archive's web server gives."""
        packages = "\n".join(self.packages).encode()
        listed = "main/binary-amd64/Packages"
        release = (
            "Origin: test\nSuite: stable\nCodename: stable\nDate: Sat, 01 Jan 2022 00:00:00 UTC\nArchitectures: amd64\n"
            f"Components: main\nSHA256:\n {hashlib.sha256(packages).hexdigest()} {len(packages)} {listed}\n"
        ).encode()
        files = {f"/debian/dists/stable/{listed}": packages, "/debian/dists/stable/Release": release}
        if self.signed:
            files["/debian/dists/stable/InRelease"] = self._gpg("--clearsign", stdin=release)
        return files | {f"/debian/{path}": data for path, data in self.debs.items()}

    def key(self) -> bytes:
        """The public key."""
        return self._gpg("--export", "test@x.example")

    @contextmanager
    def serve(self) -> Iterator[Server]:
        with serving_files(self.files()) as server:
            yield server

    def sources(self, url: str, *, status: str = "", options: str = "", key: bytes | None = None) -> AptSources:
        """As a base image would have them."""
        line = f"deb [signed-by=/{KEYRING}{options}] {url}/debian stable main\n"
        files = {"etc/apt/sources.list": line.encode(), KEYRING: self.key() if key is None else key}
        return AptSources(files, status.encode(), False)

    def _gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        gpg = need.tool("gpg")
        need.tool("apt-get")
        environment = {"PATH": os.environ["PATH"], "GNUPGHOME": str(self.home), "LC_ALL": "C"}
        if not self.home.exists():
            self.home.mkdir(mode=0o700)
            self._run([gpg, "--batch", "--passphrase", "", "--quick-gen-key", "test@x.example", "rsa2048"], environment)
        return self._run([gpg, "--batch", "--yes", "--default-key", "test@x.example", *arguments], environment, stdin)

    @staticmethod
    def _run(command: Sequence[str], environment: dict[str, str], stdin: bytes = b"") -> bytes:
        return subprocess.run(command, env=environment, input=stdin, check=True, capture_output=True).stdout

    def close(self) -> None:
        """End gpg's agent."""
        if self.home.exists():
            environment = {"PATH": os.environ["PATH"], "GNUPGHOME": str(self.home)}
            subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False, capture_output=True)
