"""The backends by name. Each is imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cpack_build.backends.protocol import Backend, Farm
from cpack_build.errors import UsageError

__all__ = ["open_backend"]


def open_backend(name: str, farm: Farm) -> Backend:
    """The backend called *name*, working with *farm*. Raises :class:`UsageError` for one that has no use for it."""
    return _OPEN[name](farm)


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
