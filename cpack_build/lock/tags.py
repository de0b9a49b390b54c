"""What wheels must run on: the tags that fit an image, the best first, and its marker values."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.tags import Tag, compatible_tags, cpython_tags

from cpack_build.lock.schema import Platform

__all__ = ["Target"]

_UV_GLIBC = (40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 28, 17)
"""Minor versions of glibc 2 for which uv knows a ``manylinux_2_N`` platform."""
_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""PEP 600, "Legacy manylinux tags"."""


@dataclass(frozen=True)
class Target:
    """What wheels must run on: Python *python_version* (``3.11``) and glibc 2.*glibc* on *platform*."""

    python_version: str
    platform: Platform = "linux/amd64"
    glibc: int = 36

    @property
    def machine(self) -> str:
        """The processor as wheels and uv call it."""
        return "x86_64" if self.platform == "linux/amd64" else "aarch64"

    @property
    def uv_platform(self) -> str:
        """uv's name of the newest platform that is no newer than the target."""
        return f"{self.machine}-manylinux_2_{next(minor for minor in (*_UV_GLIBC, 17) if minor <= max(self.glibc, 17))}"

    def tags(self) -> list[Tag]:
        """The wheel tags that fit, the best first."""
        platforms = []
        for minor in range(self.glibc, 4 if self.machine == "x86_64" else 16, -1):
            platforms.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _MANYLINUX:
                platforms.append(f"{_MANYLINUX[minor]}_{self.machine}")
        platforms.append(f"linux_{self.machine}")
        version = tuple(int(part) for part in self.python_version.split("."))
        interpreter = "cp" + "".join(map(str, version))
        return [
            *cpython_tags(python_version=version, platforms=platforms),
            *compatible_tags(python_version=version, interpreter=interpreter, platforms=platforms),
        ]

    def markers(self) -> dict[str, str]:
        """PEP 508 marker values of the target."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python_version}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python_version}.0",
            "python_version": self.python_version,
            "sys_platform": "linux",
        }
