"""What of cpack-build itself runs in the image: the service's modules, and the packages that they need, both pinned."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cpack_build
from cpack_build.errors import BadInput
from cpack_build.lock.schema import ServiceCode

__all__ = ["service_code", "service_date", "service_files", "service_requirements"]

_MODULES = ("__init__.py", "errors.py", "progress.py", "py.typed")
_ROOMS = ("serve", "workflow")


def service_files() -> list[tuple[str, bytes]]:
    """``(path below site-packages, content)`` of every file of ours that enters the image, by path."""
    root = _root()
    paths = [root / name for name in _MODULES]
    for room in _ROOMS:
        paths += [path for path in (root / room).rglob("*") if path.is_file()]
    wanted = {
        path.relative_to(root.parent).as_posix(): path
        for path in paths
        if path.suffix not in (".pyc", ".pyo") and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    return [(name, wanted[name].read_bytes()) for name in sorted(wanted)]


def service_code() -> ServiceCode:
    """Version and hash of :func:`service_files`: sha256 over ``SHA256 SP PATH NUL`` of each."""
    digest = hashlib.sha256()
    for name, content in service_files():
        digest.update(f"{hashlib.sha256(content).hexdigest()} {name}\0".encode())
    return ServiceCode(version=cpack_build.__version__, tree_sha256=digest.hexdigest())


def service_date() -> str:
    """The date of the service's requirements, RFC 3339: nothing newer is among them (`make service-lock`)."""
    found = re.match(r"# As of (\S+Z):", service_requirements())
    if found is None:
        raise BadInput("The service has no date: this cpack-build is damaged.", hint="Install cpack-build again.")
    return found[1]


def service_requirements() -> str:
    """The committed, hash-pinned requirements of the service."""
    path = _root() / "serve" / "requirements.txt"
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path} is missing: this cpack-build is damaged.", hint="Install cpack-build again.") from None


def _root() -> Path:
    return Path(cpack_build.__file__).resolve().parent
