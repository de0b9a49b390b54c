"""Who builds: the options ``--backend``, ``--builder``, ``--cache-from``, ``--cache-to`` and ``--print``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from cpack_build.backends.protocol import Backend, Network
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.store import Store
    from cpack_build.lock.installing import Installer

__all__ = ["BackendChoice", "backend_options", "workshop_options"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class BackendChoice:
    """The backend of one run, and what it is told."""

    name: str
    builder: str | None
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    print_to: Path | None = None
    """The folder to write the build into, instead of building."""
    network: Network = "none"
    """What ``install.py`` of a node is given."""
    install_seconds: int = 1800

    def opened(self, *, dry_run: bool) -> Backend:
        """The backend, which answers unless it is a *dry_run* or the build is only printed.

        Raises :class:`ToolMissing`, :class:`UsageError`, :class:`Occupied`.
        """
        from cpack_build.backends.choice import open_backend
        from cpack_build.backends.protocol import Farm

        backend = open_backend(self.name, Farm(self.builder, self.cache_from, self.cache_to))
        if self.print_to is not None:
            backend.require_writing(self.print_to)
        elif not dry_run:
            backend.require()
        return backend

    def workshop(self, settings: Settings, *, store: Store, sources: Sources) -> Installer | None:
        """Where packages without a wheel are built while a pack is locked; ``None`` for this machine."""
        from cpack_build.backends.choice import open_workshop
        from cpack_build.backends.protocol import Farm
        from cpack_build.cli.options import places_of

        farm = Farm(self.builder)
        return open_workshop(
            self.name, farm, settings=settings, places=places_of(settings), store=store, sources=sources,
            network=self.network, seconds=self.install_seconds,
        )  # fmt: skip


def workshop_options(function: F) -> F:
    """The options of a verb that only locks, passed as *backend*."""

    @functools.wraps(function)
    def wrapped(
        *args: Any, backend: str, builder: str | None, build_network: Network, install_timeout: int, **kwargs: Any
    ) -> Any:
        choice = BackendChoice(backend, builder, network=build_network, install_seconds=install_timeout)
        return function(*args, backend=choice, **kwargs)

    options = (
        click.option(
            "--backend",
            type=click.Choice(["embedded", "buildkit"]),
            default="embedded",
            show_default=True,
            help="Where packages without a wheel are built: on this machine, or by a builder of the image's platform.",
        ),
        click.option("--builder", metavar="NAME", help="The backend's builder; by default the one in use."),
        click.option(
            "--build-network",
            type=click.Choice(["none", "default", "host"]),
            default="none",
            show_default=True,
            help="What install.py of the nodes in nodes.install (cpack.yaml) is given on the builder. Lists of apt, "
            "where this machine has none, are fetched with its default, or host.",
        ),
        click.option(
            "--install-timeout",
            type=click.IntRange(1),
            default=1800,
            show_default=True,
            metavar="SECONDS",
            help="How long one of them may take.",
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return cast("F", wrapped)


def backend_options(function: F) -> F:
    """The options above, passed as *backend*."""

    @functools.wraps(function)
    def wrapped(
        *args: Any,
        backend: str,
        builder: str | None,
        cache_from: tuple[str, ...],
        cache_to: tuple[str, ...],
        print_to: Path | None,
        **kwargs: Any,
    ) -> Any:
        choice = BackendChoice(backend, builder, cache_from, cache_to, print_to)
        return function(*args, backend=choice, **kwargs)

    options = (
        click.option(
            "--backend",
            type=click.Choice(["embedded", "buildkit", "nix"]),
            default="embedded",
            show_default=True,
            help="Who executes the lock (docs/backends.md).",
        ),
        click.option(
            "--builder",
            metavar="NAME",
            help="The backend's builder; by default the one in use. With --print, who will build, as buildkit-0.12 or "
            "buildah-1.39.",
        ),
        click.option(
            "--cache-from",
            multiple=True,
            metavar="REF",
            help="An image in a registry that holds a build cache; may be given several times.",
        ),
        click.option(
            "--cache-to", multiple=True, metavar="REF", help="Where the build cache goes, for other builders."
        ),
        click.option(
            "--print",
            "print_to",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Write what the backend executes into DIR, and build nothing.",
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return cast("F", wrapped)
