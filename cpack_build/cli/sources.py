"""What is restored, run or exported, and where its parts may be had from: the flags, and the goal that they come to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.export import access_to, name_of
from cpack_build.cli.lock import make_locks
from cpack_build.cli.lockfile import lock_file
from cpack_build.cli.options import Chosen, absolute
from cpack_build.cli.terminal import Terminal
from cpack_build.filesystem import expanded

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import AnyPlatform, Platform, Settings
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.store import Store
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.types import Image
    from cpack_build.restore.goal import Goal

__all__ = ["goal_of", "opened_at", "restore_options", "sources_of", "trust_option"]


def restore_options(function: click.decorators.FC) -> click.decorators.FC:
    """Where things may be found: *models_dir*, *find_links*, *index_url*, *extra_index_url*, *config*."""
    for option in (
        click.option("--extra-index-url", metavar="URL", help="One more index of Python packages.", multiple=True),
        click.option("--index-url", metavar="URL", help="The index of Python packages."),
        click.option("--find-links", metavar="DIR|URL", help="Python packages lie here, too.", multiple=True),
        click.option(
            "--models-dir", type=click.Path(path_type=Path), metavar="DIR", help="Model files lie here.", multiple=True
        ),
        click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings, as cpack.yaml."),
    ):
        function = option(function)
    return function


def trust_option(function: click.decorators.FC) -> click.decorators.FC:
    """*trust*: that others' code may run here."""
    text = (
        "Run what others wrote without asking: install.py of custom nodes, and the build of packages without a wheel."
    )
    return click.option("--trust", is_flag=True, help=text)(function)


def sources_of(
    *,
    platform: str | None,
    mirror: tuple[str, ...],
    config: Path | None,
    models_dir: tuple[Path, ...],
    find_links: tuple[str, ...],
    index_url: str | None,
    extra_index_url: tuple[str, ...],
    insecure: tuple[str, ...] = (),
    ca: Path | None = None,
) -> Chosen:
    """What the flags say about where things may be found."""
    from cpack_build.fetch.mirrors import Mirrors

    python = {
        "index_url": index_url,
        "extra_index_urls": list(extra_index_url),
        "find_links": [absolute(place) for place in find_links],
    }
    overrides: dict[str, Any] = {
        "platform": [platform] if platform else [],
        "python": {key: value for key, value in python.items() if value},
        "mirrors": dict(Mirrors.parse(mirror).prefixes),
        "models": [str(expanded(folder).absolute()) for folder in models_dir],
    }
    return Chosen(config, {key: value for key, value in overrides.items() if value}, insecure, ca)


@contextmanager
def opened_at(
    source: str, chosen: Chosen, *, store: Store, offline: bool = False, terminal: Terminal
) -> Iterator[Path | Image]:
    """The file of the pack that *source* names, or the image, for as long as the context lasts."""
    from cpack_build.restore.naming import opened, pack_path

    if (path := pack_path(source)) is not None:
        yield path
        return
    settings = chosen.alone()
    with opened(
        source,
        platform=_image_platform(settings),
        store=store,
        mirrors=chosen.sources(settings, offline=offline).mirrors,
        access=access_to(source, insecure=chosen.insecure, ca=chosen.ca),
        progress=terminal.progress,
    ) as found:
        yield found


@contextmanager
def goal_of(
    source: str,
    chosen: Chosen,
    *,
    store: Store,
    offline: bool,
    write: bool = True,
    trust: bool = False,
    terminal: Terminal,
) -> Iterator[tuple[Goal, Settings, Sources]]:
    """What *source* is to become, and where it may be had from, for as long as the context lasts.

    A pack without a lock for this machine gets a workspace's lock, which *write* lets the store remember.
    """
    from cpack_build.restore.artifact import read_artifact
    from cpack_build.restore.goal import Goal

    with opened_at(source, chosen, store=store, offline=offline, terminal=terminal) as found:
        if isinstance(found, Path):
            yield _goal_of_pack(
                found, chosen, store=store, offline=offline, write=write, trust=trust, terminal=terminal
            )
            return
        artifact = read_artifact(found, name=source)
        settings = chosen.alone()
        goal = Goal(name_of(source), artifact.lock, artifact.documents, artifact=artifact)
        yield goal, settings, chosen.sources(settings, offline=offline)


def _goal_of_pack(
    path: Path, chosen: Chosen, *, store: Store, offline: bool, write: bool, trust: bool, terminal: Terminal
) -> tuple[Goal, Settings, Sources]:
    from cpack_build.cpack.reader import read_pack
    from cpack_build.errors import Unresolvable
    from cpack_build.lock.freshness import check_fresh
    from cpack_build.restore.goal import Goal

    pack = read_pack(path)
    settings = chosen.settings(pack)
    sources = chosen.sources(settings, offline=offline)
    file = lock_file(pack)
    platform = _workspace_platform(settings)
    there = {lock.platform: lock for lock in (file.locks() if file.data is not None else ())}
    if settings.platform and platform not in there:
        raise Unresolvable(f"{file} is not for {platform}.", hint="Lock the pack for it with `cpack-build lock`.")
    if (known := there.get(platform)) is not None:
        lock = known
        check_fresh(lock, pack, settings, frozen=True, name=file)
    else:
        lock = _workspace_lock(
            pack, settings, platform, sources=sources, store=store, write=write, trust=trust, terminal=terminal
        )
    return Goal(pack.name, lock, pack.documents(), pack=pack), settings, sources


def _workspace_lock(
    pack: Pack,
    settings: Settings,
    platform: AnyPlatform,
    *,
    sources: Sources,
    store: Store,
    write: bool,
    trust: bool,
    terminal: Terminal,
) -> Lock:
    """What a workspace of *pack* on this machine has, as it was resolved first: it stays while pack and settings do."""
    import cpack_build
    from cpack_build.lock.schema import read_lock

    key = f"{pack.content_sha256} {settings.digest()} {platform} {cpack_build.__version__}"
    if (known := store.recall("workspace-lock", key)) is not None:
        return read_lock(known.encode(), name="the store's workspace lock")
    (lock,) = make_locks(
        pack, settings, sources=sources, store=store, served=False, trust=trust, workspace=True, terminal=terminal
    )
    if write:
        store.remember("workspace-lock", key, lock.to_bytes().decode())
    return lock


def _image_platform(settings: Settings) -> Platform:
    """Which of an image's platforms is meant: what the user names, else the one that runs on this machine."""
    from cpack_build.lock.machine import this_platform

    return _named(settings) or this_platform()


def _workspace_platform(settings: Settings) -> AnyPlatform:
    """What the user names, else this machine's."""
    from cpack_build.lock.resolve import host_platform

    return _named(settings) or host_platform()


def _named(settings: Settings) -> Platform | None:
    from cpack_build.errors import UsageError

    if len(settings.platform) > 1:
        raise UsageError("A workspace is for one platform.", hint="Name one with --platform.")
    return settings.platform[0] if settings.platform else None
