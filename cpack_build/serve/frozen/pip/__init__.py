"""Stands before the real pip in ComfyUI's process: an image's packages are those of its lock.

Some custom nodes run ``pip install`` each time they are loaded. In a container that would need a network, a writable
environment and trust; here it says what it did not do, and succeeds. Everything else of pip is the real one's, if there
is one (``CPACK_ALLOW_INSTALL=1`` makes this step aside altogether).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
try:
    __version__ = version("pip")
except PackageNotFoundError:
    __version__ = "0"
