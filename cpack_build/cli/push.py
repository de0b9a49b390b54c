"""``cpack-build push IMAGE REF``: an image that lies in a folder, a file or a registry goes to a registry.

Also what ``image --push`` shares with it: the options that say how registries are reached, and how the result is told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from cpack_build.cli.options import compression_option, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.oci.push import Pushed
    from cpack_build.oci.reference import Reference
    from cpack_build.oci.transport import Access
    from cpack_build.oci.types import Image, ImageIndex

__all__ = ["access_for", "push", "push_document", "push_line", "registry_options", "tell_of_zstd"]

F = TypeVar("F", bound=Callable[..., Any])


def registry_options(function: F) -> F:
    """The options *jobs*, *blob_limit* (MiB), *insecure* and *ca*."""
    options = (
        click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Blobs to send at once."),
        click.option(
            "--blob-limit",
            type=click.IntRange(0),
            metavar="MIB",
            help="The largest blob that the registry takes; by default what is known of it, 0 for none.",
        ),
        click.option(
            "--insecure-registry",
            "insecure",
            multiple=True,
            metavar="HOST[:PORT]",
            help="A registry that may lack TLS or a proper certificate.",
        ),
        click.option(
            "--ca",
            type=click.Path(path_type=Path),
            envvar="CPACK_REGISTRY_CA",
            metavar="FILE",
            help="Certificates (PEM) to trust besides the usual; or CPACK_REGISTRY_CA.",
        ),
    )
    return cast("F", functools.reduce(lambda inner, option: option(inner), reversed(options), cast("Any", function)))


@click.command(
    epilog="Example: cpack-build push oci:upscale.oci registry.example/team/upscale:1    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("image")
@click.argument("reference", metavar="REF")
@click.option("--also", multiple=True, metavar="REF", help="One more name for it; may be given several times.")
@click.option(
    "--platform", type=click.Choice(["linux/amd64", "linux/arm64"]), help="Which of IMAGE's; by default this machine's."
)
@compression_option
@click.option("--dry-run", is_flag=True, help="Ask what the registry has, and send nothing.")
@registry_options
@terminal_options
def push(
    image: str,
    reference: str,
    also: tuple[str, ...],
    platform: str | None,
    compression: str | None,
    dry_run: bool,
    jobs: int,
    blob_limit: int | None,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
) -> None:
    """Push IMAGE (oci:DIR, oci-archive:FILE, docker-archive:FILE or a registry's) to the registry as REF.

    Its layers go as they are, and its digest stays, unless --compression says otherwise; models are never compressed.

    Logins are those of docker and podman, or CPACK_REGISTRY_USER and CPACK_REGISTRY_PASSWORD.
    """
    from cpack_build.fetch.store import Store
    from cpack_build.oci.compressed import compressed_image, parse_compression
    from cpack_build.oci.push import push as push_image
    from cpack_build.oci.reference import Reference, parse_image_name, parse_reference
    from cpack_build.oci.sources import open_source

    targets = [parse_reference(text) for text in (reference, *also)]
    access = access_for(targets, insecure=insecure, ca=ca)
    name = parse_image_name(image)
    how = parse_compression(compression) if compression is not None else None
    found = open_source(name, access=access).as_image(platform or _own_platform())
    if how is not None:
        found = compressed_image(found, how, store=Store(), progress=terminal.progress)
    tell_of_zstd(found, terminal)
    pushed = push_image(
        found,
        targets,
        jobs=jobs,
        blob_limit=None if blob_limit is None else blob_limit << 20,
        access=access,
        mount_from=[name] if isinstance(name, Reference) else [],
        memo=Store(),
        dry_run=dry_run,
        progress=terminal.progress,
    )
    terminal.result(
        {
            "image_id": found.id,
            "digest": found.digest,
            "platform": found.platform,
            "size": found.size,
            "pushed": [push_document(one) for one in pushed],
            **({"dry_run": True} if dry_run else {}),
        }
    )
    for one in pushed:
        terminal.say(push_line(one, dry_run=dry_run))


def access_for(targets: Sequence[Reference], *, insecure: Sequence[str], ca: Path | None) -> Access:
    """How *targets* are reached. Raises :class:`UsageError` when it is not clear whose the password in the environment
    is."""
    import os

    from cpack_build.errors import UsageError
    from cpack_build.oci.transport import Access

    registries = sorted({target.registry for target in targets})
    for host in insecure:
        if "/" in host or not host:
            raise UsageError(f"--insecure-registry {host!r} is no host.", hint="Write HOST or HOST:PORT.")
    if os.environ.get("CPACK_REGISTRY_USER") and not os.environ.get("CPACK_REGISTRY") and len(registries) > 1:
        raise UsageError(
            f"CPACK_REGISTRY_USER is set, and {' and '.join(registries)} are pushed to.",
            hint="Name the one that it is for in CPACK_REGISTRY.",
        )
    return Access(frozenset(insecure), ca, registries[0] if len(registries) == 1 else None)


def tell_of_zstd(image: Image | ImageIndex, terminal: Terminal) -> None:
    """Say who cannot pull *image*."""
    from cpack_build.oci.compressed import takes_zstd
    from cpack_build.oci.types import ImageIndex

    if any(map(takes_zstd, image.images if isinstance(image, ImageIndex) else [image])):
        terminal.progress.note("Docker before 23.0 cannot pull zstd layers; for it, push with --compression gzip.")


def push_document(pushed: Pushed) -> dict[str, Any]:
    """What a push did, for ``--json``; sizes in bytes."""
    reference = pushed.reference
    return {
        "reference": f"{reference.name}@{reference.digest}",
        "tag": reference.tag,
        "changed": pushed.changed,
        "sent": pushed.sent,
        "mounted": pushed.mounted,
        "present": pushed.present,
        "requests": pushed.requests,
    }


def push_line(pushed: Pushed, *, dry_run: bool = False) -> str:
    """The same for people."""
    if not pushed.changed:
        return f"{pushed.reference}  unchanged"
    parts = [
        f"{amount(count, None, 'B')} {word}"
        for count, word in (
            (pushed.sent, "would be sent" if dry_run else "sent"),
            (pushed.mounted, "mounted"),
            (pushed.present, "already there"),
        )
        if count
    ]
    return f"{pushed.reference}  {', '.join(parts)}"


def _own_platform() -> str:
    import platform

    machine = platform.machine().lower()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
