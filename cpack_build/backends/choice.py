"""The backends by name. Each is imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cpack_build.backends.protocol import INSTALL_SECONDS, Backend, Farm, Network
from cpack_build.errors import UsageError

if TYPE_CHECKING:
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.store import Store
    from cpack_build.image.gather import Places
    from cpack_build.lock.installing import Installer

__all__ = ["open_backend", "open_workshop"]


def open_backend(name: str, farm: Farm) -> Backend:
    """The backend called *name*, working with *farm*. Raises :class:`UsageError` for one that has no use for it."""
    return _OPEN[name](farm)


def open_workshop(
    name: str,
    farm: Farm,
    *,
    settings: Settings,
    places: Places,
    store: Store,
    sources: Sources,
    network: Network = "none",
    seconds: int = INSTALL_SECONDS,
) -> Installer | None:
    """Where the backend called *name* builds wheels and runs ``install.py`` while a pack is locked; ``None`` for this
    machine. Scripts get *network* and have *seconds*."""
    if name != "buildkit":
        return None
    from cpack_build.backends.workshop import BuildKitWorkshop

    return BuildKitWorkshop(farm, settings, places, store, sources, network, seconds)


def _embedded(farm: Farm) -> Backend:
    from cpack_build.backends.embedded import Embedded

    if not farm.is_default:
        raise UsageError(
            "The embedded backend has no builders and no cache but its store.", hint="Add --backend buildkit."
        )
    return Embedded()


def _buildkit(farm: Farm) -> Backend:
    from cpack_build.backends.buildkit import BuildKit

    return BuildKit(farm)


def _nix(farm: Farm) -> Backend:
    from cpack_build.backends.nix.backend import NixBackend

    return NixBackend(farm)


_OPEN: Mapping[str, Callable[[Farm], Backend]] = {"embedded": _embedded, "buildkit": _buildkit, "nix": _nix}
