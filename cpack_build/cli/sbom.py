"""``cpack-build sbom IMAGE|PACK|LOCK``: everything that an image is made of, in the forms that scanners and auditors
read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.export import access_to, image_options, name_of
from cpack_build.cli.lockfile import is_lock, lock_file
from cpack_build.cli.options import terminal_options
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.cpack.settings import Platform
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.types import Image

__all__ = ["papers_of", "sbom"]

FILES = {"sbom": "sbom.cdx.json", "provenance": "provenance.intoto.json"}
"""What an attached document is called."""


@click.command(
    epilog="Example: cpack-build sbom oci:upscale.oci --format spdx -o upscale.spdx.json    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("source", metavar="IMAGE|PACK|LOCK")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["cyclonedx", "spdx", "provenance"]),
    default="cyclonedx",
    show_default=True,
    help="CycloneDX 1.6, SPDX 2.3, or for an IMAGE its SLSA provenance (in-toto); JSON each.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="By default it is printed.")
@click.option(
    "--licences", is_flag=True, help="Also the licences that the wheels tell; all of them have to be in the store."
)
@image_options
@terminal_options
def sbom(
    source: str,
    kind: str,
    output: Path | None,
    licences: bool,
    platform: Platform | None,
    mirror: tuple[str, ...],
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
) -> None:
    """List everything in an image: wheels, packages, git trees, models, base, each with hash and address.

    It comes from the lock that IMAGE carries, that lies beside or in PACK, or that is LOCK itself, and is the same for
    all three. Nothing is fetched but the small layers of an image. The same lock always gives the same bytes.
    """
    from cpack_build.errors import UsageError, writing
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.lock import sbom as writers
    from cpack_build.lock.bill import parts_of, with_licences
    from cpack_build.lock.machine import this_platform
    from cpack_build.lock.provenance import provenance
    from cpack_build.oci.storage import whole_file
    from cpack_build.restore.artifact import read_artifact
    from cpack_build.restore.naming import opened

    store = Store(leased=False)
    digest = None
    if Path(source).is_file():
        lock = _lock_at(Path(source), platform)
    else:
        with opened(
            source, platform=platform or this_platform(), store=store, mirrors=Mirrors.parse(mirror),
            access=access_to(source, insecure=insecure, ca=ca), progress=terminal.progress,
        ) as found:  # fmt: skip
            if isinstance(found, Path):
                lock = _lock_at(found, platform)
            else:
                lock, digest = read_artifact(found, name=source).lock, found.digest
    parts = parts_of(lock)
    if licences:
        parts = with_licences(parts, store)
    if kind == "provenance":
        if digest is None:
            raise UsageError(
                f"{source} is no image, and provenance is about one.",
                hint="Name the image as it lies in its folder, file or registry; or push with --provenance.",
            )
        data = provenance(lock, parts, name=name_of(source), digest=digest, built_here=False)
    else:
        data = writers.spdx(lock, parts) if kind == "spdx" else writers.cyclonedx(lock, parts)
    if output is None:
        click.echo(data.decode(), nl=False)
        return
    with writing(output), whole_file(output) as file:
        file.write(data)
    terminal.result({"file": str(output), "format": kind, "parts": len(parts), "lock_sha256": lock.carried.sha256})
    terminal.say(f"{output}  {len(parts)} parts")


def papers_of(image: Image, kinds: tuple[str, ...], folder: Path, *, name: str, built_here: bool) -> list[Path]:
    """The documents *kinds* (``sbom``, ``provenance``) about *image*, which carries its lock, as files in *folder*.

    Raises :class:`BadImage` where it carries none.
    """
    from cpack_build.lock.bill import parts_of
    from cpack_build.lock.provenance import provenance
    from cpack_build.lock.sbom import cyclonedx
    from cpack_build.restore.artifact import read_artifact

    lock = read_artifact(image, name=name).lock
    parts = parts_of(lock)
    written = []
    for kind in kinds:
        path = folder / FILES[kind]
        if kind == "sbom":
            path.write_bytes(cyclonedx(lock, parts))
        else:
            path.write_bytes(provenance(lock, parts, name=name, digest=image.digest, built_here=built_here))
        written.append(path)
    return written


def _lock_at(path: Path, platform: Platform | None) -> Lock:
    from cpack_build.cpack.reader import read_pack
    from cpack_build.lock.schema import load_lock

    return load_lock(path, platform=platform) if is_lock(path) else lock_file(read_pack(path)).lock(platform)
