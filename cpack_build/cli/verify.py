"""``cpack-build verify IMAGE``: the image is made again from the lock that it carries, and compared."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.options import Chosen, places_of, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.fetch.store import Store
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.types import Image

__all__ = ["verify"]


@click.command(
    epilog="Example: cpack-build verify oci:upscale.oci --models ~/ComfyUI/models    (exit codes: docs/exit-codes.md)"
)
@click.argument("image")
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with this lock; by default with the one in the image.",
)
@click.option("--trust", is_flag=True, help="Run the lock's Python here to compile bytecode, wherever it was made.")
@settings_options
@terminal_options
def verify(image: str, lock_file: Path | None, trust: bool, chosen: Chosen, terminal: Terminal) -> None:
    """Make IMAGE again from its lock, and name the first layer, entry and field that differ (exit code 1).

    IMAGE is oci:DIR, oci-archive:FILE, docker-archive:FILE or a registry's reference. The pack's own documents, as the
    workflow, are IMAGE's; export proves those by the lock.
    """
    from cpack_build.errors import BadImage, Unresolvable, UsageError
    from cpack_build.fetch.store import Store
    from cpack_build.image.build import build
    from cpack_build.image.carried import Carried
    from cpack_build.image.config import APP
    from cpack_build.image.gather import gather
    from cpack_build.image.verify import first_difference
    from cpack_build.lock.machine import this_platform
    from cpack_build.lock.schema import load_lock, load_locks, read_lock, read_locks
    from cpack_build.oci.reference import parse_image_name
    from cpack_build.oci.sources import open_source

    settings = chosen.alone()
    store, sources = Store(), chosen.sources(settings)
    source = open_source(parse_image_name(image), mirrors=sources.mirrors, store=store, access=sources.registries)
    here = this_platform()
    platform = settings.platform[0] if settings.platform else here
    if len(settings.platform) > 1:
        raise UsageError("verify makes one image again at a time.", hint="Name one platform.")
    found = source.as_image(platform)
    documents = _documents(found)
    carried = documents.pop("cpack.lock", None)
    siblings: tuple[Lock, ...] = ()
    if lock_file is not None:
        siblings = load_locks(lock_file)
        lock = load_lock(lock_file, platform=platform)
    elif carried is not None:
        _require_carried(carried, found)
        lock = read_lock(carried, name=f"{image}: /{APP}/cpack.lock", platform=platform)
        if platform != here:
            # the image for this machine, if the index has one, holds a Python that runs here
            with suppress(Unresolvable):
                own = _documents(source.as_image(here)).get("cpack.lock", b"")
                siblings = read_locks(own, name=f"{image}: /{APP}/cpack.lock")
    else:
        raise BadImage(image, f"carries no lock at /{APP}/cpack.lock", hint="Name the lock with --lock.")
    _take_installed(lock, found, store=store, terminal=terminal)
    materials = gather(
        lock,
        documents=documents,
        pack=Carried(lock, found, documents),
        places=places_of(settings),
        store=store,
        sources=sources,
        siblings=siblings,
        trust=trust,
        progress=terminal.progress,
    )
    with build(lock, materials, store=store, progress=terminal.progress) as rebuilt:
        difference = first_difference(found, rebuilt, progress=terminal.progress)
        terminal.result(
            {
                "image_id": found.id,
                "lock_sha256": lock.sha256,
                "same": difference is None,
                "difference": None if difference is None else vars(difference),
            }
        )
        if difference is None:
            terminal.say(f"{image} is what its lock makes: {found.id}, {len(found.layers)} layers, every byte read.")
            return
        terminal.say(f"{image} is not what its lock makes. First difference: {difference}.")
    raise click.exceptions.Exit(1)


def _require_carried(lock: bytes, image: Image) -> None:
    """See that *lock* is the one that was put into *image*. Raises :class:`HashMismatch` when its layer was damaged."""
    if hashlib.sha256(lock).hexdigest().encode() not in image.config.data:  # the label io.cpack.lock.sha256
        for _ in image.layers[-1].chunks():
            pass


def _take_installed(lock: Lock, image: Image, *, store: Store, terminal: Terminal) -> None:
    """Let *store* have what ``install.py`` of nodes left, which nobody but the lock's maker and *image* has."""

    from cpack_build.fetch.store import CHUNK
    from cpack_build.restore.parts import installed_archives

    if all(pin.installed is None or store.find(pin.installed.sha256) for pin in lock.custom_nodes):
        return
    trees = 1 + len(lock.custom_nodes)  # the uppermost but one
    with store.folder("verify-") as folder:
        layers = image.layers[-1 - trees : -1]
        archives = installed_archives(lock, layers, into=folder, progress=terminal.progress)
        for name, path in archives.items():
            with path.open("rb") as file:
                store.put(iter(lambda: file.read(CHUNK), b""), what=name)


def _documents(image: Image) -> dict[str, bytes]:
    """What *image* carries below ``/app/cpack``.

    Its top layer has all of that, and may be damaged as the others: where, is what is to be found out.
    """
    from cpack_build.image.config import APP
    from cpack_build.image.verify import Unproved
    from cpack_build.oci.filesystem import file_tree

    tree = file_tree(replace(image, layers=tuple(map(Unproved, image.layers[-1:]))))
    return {name.removeprefix(f"{APP}/"): data for name, data in tree.read(tree.below(APP)).items()}
