"""The options of verbs that fetch: whom to ask and how fast, a bundle to take things from, or to ask nobody at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cpack_build.cli.options import Chosen, access_of, places_of

if TYPE_CHECKING:
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.store import Store
    from cpack_build.image.bundle import Bundle
    from cpack_build.image.gather import Places
    from cpack_build.lock.schema import Lock
    from cpack_build.progress import Progress

__all__ = ["Downloads", "download_options"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Downloads:
    """How one run fetches, as its options say."""

    offline: bool = False
    bundle: Path | None = None
    registries: tuple[str, ...] = ()
    connections: int = 4
    retries: int = 5
    limit_rate: str | None = None

    def sources(self, settings: Settings, chosen: Chosen) -> Sources:
        """Where bytes may come from: the mirrors of *settings*, registries as *chosen* lets them be reached."""
        from cpack_build.cli.store import parse_size
        from cpack_build.fetch.tuning import RateLimit, Tuning
        from cpack_build.lock.pushed import PushedModels

        limit = RateLimit(max(1, parse_size(self.limit_rate))) if self.limit_rate else None
        access = access_of(chosen.insecure, chosen.ca)
        return replace(
            chosen.sources(settings, offline=self.offline),
            tuning=Tuning(connections=self.connections, retries=self.retries, limit=limit),
            further=() if self.offline else tuple(PushedModels(one, access=access) for one in self.registries),
        )

    def opened(self, store: Store, *, dry_run: bool = False, progress: Progress) -> Bundle | None:
        """The bundle of ``--from``, which *store* then finds things in, but of an archive not in a *dry_run*."""
        from cpack_build.image.bundle import open_bundle

        return (
            None if self.bundle is None else open_bundle(self.bundle, store=store, dry_run=dry_run, progress=progress)
        )

    def places(self, settings: Settings, bundle: Bundle | None, lock: Lock) -> Places:
        """Where on this machine the things that *lock* names may lie."""
        places = places_of(settings)
        base = bundle.base(lock.platform) if bundle is not None else None
        return replace(places, base=base) if base is not None else places


def download_options(function: F) -> F:
    """``--offline``, ``--from`` and how to download, passed as *downloads*."""

    @functools.wraps(function)
    def wrapped(
        *args: Any,
        offline: bool,
        bundle: Path | None,
        model_registry: tuple[str, ...],
        connections: int,
        retries: int,
        limit_rate: str | None,
        **kwargs: Any,
    ) -> Any:
        downloads = Downloads(offline, bundle, model_registry, connections, retries, limit_rate)
        return function(*args, downloads=downloads, **kwargs)

    options = (
        click.option("--offline", is_flag=True, help="Ask nobody: use what is in the store and on this machine."),
        click.option(
            "--from",
            "bundle",
            type=click.Path(path_type=Path),
            metavar="BUNDLE",
            help="Take what is in this folder or archive, made by `fetch -o`.",
        ),
        click.option(
            "--model-registry",
            metavar="REPOSITORY",
            multiple=True,
            help="Models were pushed here in images: REGISTRY/NAME. May be given several times.",
        ),
        click.option(
            "--connections", type=click.IntRange(1, 16), default=4, show_default=True, help="For one large file."
        ),
        click.option(
            "--retries",
            type=click.IntRange(1, 100),
            default=5,
            show_default=True,
            help="Failures in a row before a source is given up.",
        ),
        click.option("--limit-rate", metavar="SIZE", help="Bytes a second for all downloads together: 20MB."),
    )
    decorated: Any = wrapped
    for option in reversed(options):
        decorated = option(decorated)
    result: F = decorated
    return result
