"""What wheels must run on: the tags that fit an image, the best first, and its marker values."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms

from cpack_build.cpack.settings import AnyPlatform

__all__ = ["MACOS", "Target", "host_glibc"]

_UV_GLIBC = (40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 28, 17)
"""Minor versions of glibc 2 for which uv knows a ``manylinux_2_N`` platform."""
_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""PEP 600, "Legacy manylinux tags"."""
MACOS = (14, 0)
"""What wheels for a Mac may ask for: what PyTorch's do."""
_SYSTEMS = {
    "linux": ("posix", "Linux", "linux"),
    "darwin": ("posix", "Darwin", "darwin"),
    "windows": ("nt", "Windows", "win32"),
}
"""``os_name``, ``platform_system`` and ``sys_platform`` (PEP 508)."""
_MACHINES = {
    "linux/amd64": "x86_64", "linux/arm64": "aarch64", "darwin/amd64": "x86_64", "darwin/arm64": "arm64",
    "windows/amd64": "AMD64",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What wheels must run on: Python *python_version* (``3.11``) on *platform*, on Linux with glibc 2.*glibc*."""

    python_version: str
    platform: AnyPlatform = "linux/amd64"
    glibc: int = 36

    @property
    def machine(self) -> str:
        """The processor as the system calls it."""
        return _MACHINES[self.platform]

    @property
    def uv_platform(self) -> str:
        """uv's name of the newest platform that is no newer than the target."""
        if self.platform == "windows/amd64":
            return "x86_64-pc-windows-msvc"
        if self.platform.startswith("darwin/"):
            return f"{'aarch64' if self.machine == 'arm64' else self.machine}-apple-darwin"
        return f"{self.machine}-manylinux_2_{next(minor for minor in (*_UV_GLIBC, 17) if minor <= max(self.glibc, 17))}"

    def tags(self) -> list[Tag]:
        """The wheel tags that fit, the best first."""
        platforms = list(self._platforms())
        version = tuple(int(part) for part in self.python_version.split("."))
        interpreter = "cp" + "".join(map(str, version))
        return [
            *cpython_tags(python_version=version, platforms=platforms),
            *compatible_tags(python_version=version, interpreter=interpreter, platforms=platforms),
        ]

    def _platforms(self) -> Iterator[str]:
        if self.platform == "windows/amd64":
            yield "win_amd64"
            return
        if self.platform.startswith("darwin/"):
            yield from mac_platforms(MACOS, self.machine)
            return
        for minor in range(self.glibc, 4 if self.machine == "x86_64" else 16, -1):
            yield f"manylinux_2_{minor}_{self.machine}"
            if minor in _MANYLINUX:
                yield f"{_MANYLINUX[minor]}_{self.machine}"
        yield f"linux_{self.machine}"

    def markers(self) -> dict[str, str]:
        """PEP 508 marker values of the target."""
        os_name, system, sys_platform = _SYSTEMS[self.platform.partition("/")[0]]
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python_version}.0",
            "os_name": os_name,
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": system,
            "platform_version": "",
            "python_full_version": f"{self.python_version}.0",
            "python_version": self.python_version,
            "sys_platform": sys_platform,
        }


def host_glibc() -> int:
    """N of this machine's glibc 2.N; where it has none, what old wheels ask for."""
    if sys.platform != "linux":
        return 17
    found = re.fullmatch(r"glibc 2\.([0-9]+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
    return int(found[1]) if found else 17
