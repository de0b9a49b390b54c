"""``cpack-build export IMAGE``: the pack and the lock that made an image."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.lockfile import lock_beside
from cpack_build.cli.options import access_options, terminal_options
from cpack_build.cli.push import access_for
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.oci.transport import Access

__all__ = ["access_to", "export", "image_options", "name_of"]


def image_options(function: click.decorators.FC) -> click.decorators.FC:
    """How an image is reached: *platform*, *mirror*, *insecure* and *ca*."""
    for option in (
        access_options,
        click.option(
            "--mirror", metavar="PREFIX=PREFIX", help="Take what begins with the first from the second.", multiple=True
        ),
        click.option(
            "--platform", type=click.Choice(["linux/amd64", "linux/arm64"]), help="By default this machine's."
        ),
    ):
        function = option(function)
    return function


def access_to(source: str, *, insecure: tuple[str, ...], ca: Path | None) -> Access:
    """How the registry of the image *source* is reached, if it lies in one."""
    from cpack_build.oci.reference import Reference, parse_image_name

    name = parse_image_name(source)
    return access_for([name] if isinstance(name, Reference) else [], insecure=insecure, ca=ca)


def name_of(source: str) -> str:
    """What a pack or workspace that comes of the image *source* is called: its last part, without tag."""
    from cpack_build.oci.reference import EngineName, Reference, parse_image_name

    name = parse_image_name(source)
    reference = name.reference if isinstance(name, EngineName) else name
    if isinstance(reference, Reference):
        return reference.repository.rpartition("/")[2]
    path: Path = reference.path  # type: ignore[union-attr]
    stem = path.absolute().name.removesuffix(".tar").removesuffix(".oci").removesuffix(".docker")
    return stem or "image"


@click.command(
    epilog="Example: cpack-build export registry.example/team/upscale:1 -o upscale.cpack.zip    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("image")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PACK",
    help="By default NAME.cpack.zip here; the lock goes to NAME.cpack.lock beside it.",
)
@click.option("--force", is_flag=True, help="Replace a pack or lock that is there and differs.")
@click.option(
    "--inexact",
    is_flag=True,
    help="Also when the pack held more than IMAGE carries; the lock is then for what there is.",
)
@image_options
@terminal_options
def export(
    image: str,
    output: Path | None,
    force: bool,
    inexact: bool,
    platform: str | None,
    mirror: tuple[str, ...],
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
) -> None:
    """Get the pack and the lock that made IMAGE out of it, so that building them again gives the same image.

    IMAGE is oci:DIR, oci-archive:FILE, docker-archive:FILE, docker:NAME, podman:NAME or a registry's reference. Of a
    registry's image only the small layers are read.
    """
    from cpack_build.errors import UnsafeInput
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.lock.machine import this_platform
    from cpack_build.restore.artifact import read_artifact
    from cpack_build.restore.export import copy_pack
    from cpack_build.restore.export import export as exported
    from cpack_build.restore.naming import opened

    pack = output or Path(f"{name_of(image)}.cpack.zip")
    lock_path = lock_beside(pack)
    for path in (pack, lock_path):
        if path.exists() and not force:
            raise UnsafeInput(f"{path} is there already.", hint="Name another file with -o, or add --force.")
    with opened(
        image,
        platform=platform or this_platform(),
        store=Store(),
        mirrors=Mirrors.parse(mirror),
        access=access_to(image, insecure=insecure, ca=ca),
        progress=terminal.progress,
    ) as found:
        if isinstance(found, Path):
            _tell_pushed(copy_pack(found, lock_beside(found), pack, lock_path), pack, lock_path, terminal)
            return
        made = exported(read_artifact(found, name=image), pack, lock_path, inexact=inexact, progress=terminal.progress)
        image_id = found.id
    command = f"cpack-build image {shlex.quote(str(pack))} --frozen"
    terminal.result(
        {
            "image_id": image_id,
            "pack": str(made.pack),
            "sha256": made.sha256,
            "lock": str(made.lock_path),
            "lock_sha256": made.lock.sha256,
            "exact": made.exact,
            "next": command,
        }
    )
    terminal.say(f"{made.pack}  {amount(made.pack.stat().st_size, None, 'B')}, and {made.lock_path}")
    terminal.say(f"{'The same' if made.exact else 'An'} image again:\n  {command}")


def _tell_pushed(locked: bool, pack: Path, lock_path: Path, terminal: Terminal) -> None:
    """What came of a pack that was pushed as it is, *locked* if its lock was attached to it."""
    shown = shlex.quote(str(pack))
    command = f"cpack-build image {shown} --frozen" if locked else f"cpack-build lock {shown}"
    terminal.result({"pack": str(pack), "lock": str(lock_path) if locked else None, "exact": True, "next": command})
    terminal.say(f"{pack}  {amount(pack.stat().st_size, None, 'B')}{f', and {lock_path}' if locked else ''}")
    terminal.say(f"Next:\n  {command}")
