"""The layers of packages, each made of what goes into it and nothing else of the lock: system packages, interpreter,
service, wheels. Whoever builds one of them alone (:mod:`cpack_build.backends`) gets the bytes of the whole build's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from cpack_build.fetch.store import Store
from cpack_build.image.bytecode import Compiler
from cpack_build.image.config import COMFYUI_ENV, SERVICE_ENV
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.image.layer import Recipe, text
from cpack_build.image.wheels import Environment, StoredWheel, environment_entries, wheel_layer

__all__ = ["Python", "heavy_layer", "packaged_interpreter", "packages_layer", "service_layer", "system_layer"]


class Python(Protocol):
    """What of the locked interpreter an environment depends on: its minor version, and its *path* in the image."""

    @property
    def version(self) -> str: ...

    @property
    def path(self) -> str: ...


def system_layer(debs: Iterable[StoredDeb], *, is_root: bool, store: Store) -> Recipe:
    """The system packages; *is_root* says that there is no base image below."""
    return deb_layer("system", "system packages", debs, store=store, is_root=is_root)


def packaged_interpreter(
    python: Python, debs: Iterable[StoredDeb], *, store: Store, compiler: Compiler | None
) -> Recipe:
    """Python from system packages."""
    return deb_layer("interpreter", f"python {python.version}", debs, store=store, is_root=False, compiler=compiler)


def service_layer(
    python: Python, wheels: Iterable[StoredWheel], *, code: Mapping[str, bytes], compiler: Compiler | None
) -> Recipe:
    """The service's environment; *code* is by its path below site-packages."""
    environment = Environment(SERVICE_ENV, python.version, python.path)
    extra = [text(f"{environment.site_packages}/{path}", data) for path, data in code.items()]
    extra = [*environment_entries(environment), *extra]
    return wheel_layer("service", "BentoML service", environment, wheels, extra=extra, compiler=compiler)


def heavy_layer(python: Python, wheel: StoredWheel, *, compiler: Compiler | None) -> Recipe:
    """One wheel that has a layer of its own."""
    return wheel_layer("wheel", f"{wheel.name} {wheel.version}", _comfyui(python), [wheel], compiler=compiler)


def packages_layer(python: Python, wheels: Iterable[StoredWheel], *, compiler: Compiler | None) -> Recipe:
    """All other wheels of ComfyUI's environment, and what makes it one."""
    environment = _comfyui(python)
    extra = environment_entries(environment)
    return wheel_layer("wheels", "Python packages", environment, wheels, extra=extra, compiler=compiler)


def _comfyui(python: Python) -> Environment:
    return Environment(COMFYUI_ENV, python.version, python.path)
