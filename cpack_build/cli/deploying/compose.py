"""``cpack-build deploy compose IMAGE``: a Compose file for one host, with a proxy before it if it has a name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.deploying.subject import engine_subject, pairs, registry_subject, subject_options
from cpack_build.cli.options import access_options, terminal_options
from cpack_build.cli.push import access_for
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.deploy.compose import Options, Proxy
    from cpack_build.deploy.subject import Subject
    from cpack_build.oci.transport import Access

__all__ = ["compose"]

_CADDY = "docker.io/library/caddy:2"
_PORTS = click.IntRange(1, 65535)
_SECONDS = click.IntRange(1, 24 * 3600)


@click.command(
    epilog="Example: cpack-build deploy compose docker:upscale -o upscale && docker compose -f upscale/compose.yaml "
    "up -d    (exit codes: docs/exit-codes.md)"
)
@click.argument("image")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="By default NAME.compose/ here.")
@click.option("--dry-run", is_flag=True, help="Print the files, and write nothing.")
@click.option("--name", metavar="NAME", help="Of the service; by default the image's.")
@click.option("--port", type=_PORTS, default=3000, show_default=True, help="Of this machine, without --host.")
@click.option("--address", metavar="IP", default="127.0.0.1", show_default=True, help="Of this machine, likewise.")
@click.option("--gpus", type=click.IntRange(0, 64), help="By default 1 if the image computes on one.")
@click.option("--memory", metavar="SIZE", help="That it may take: 12g. By default a guess by the models of the lock.")
@click.option("--cpus", type=click.FloatRange(0.1), metavar="COUNT", help="That it may take.")
@click.option("--token/--no-token", default=None, help="Ask callers for CPACK_TOKEN of .env; by default with --host.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable of docs/serving.md.")
@click.option("--env-secret", "secrets", multiple=True, metavar="NAME", help="One whose value stands in .env.")
@click.option("--host", metavar="NAME", help="Put a proxy (Caddy) before it, with a certificate for this name.")
@click.option("--tls", type=click.Choice(["acme", "internal"]), default="acme", show_default=True,
              help="The certificate: Let's Encrypt's, or one of Caddy's own CA.")  # fmt: skip
@click.option("--proxy-image", metavar="REF", help=f"By default {_CADDY}, by the digest that it has now.")
@click.option("--http-port", type=_PORTS, default=80, show_default=True, help="Of the proxy.")
@click.option("--https-port", type=_PORTS, default=443, show_default=True, help="Of the proxy.")
@click.option("--egress", is_flag=True, help="With --host: let the service reach other hosts, too.")
@click.option("--warm-up/--no-warm-up", default=None, help="Run it once before it is healthy: by default if it can be.")
@click.option("--ready-seconds", type=_SECONDS, default=1800, show_default=True, help="A start may take, models too.")
@click.option("--drain-seconds", type=_SECONDS, default=120, show_default=True, help="What runs may take to its end.")
@subject_options
@access_options
@terminal_options
def compose(
    image: str,
    output: Path | None,
    dry_run: bool,
    lock_file: Path | None,
    platform: str | None,
    insecure: tuple[str, ...],
    ca: Path | None,
    terminal: Terminal,
    **asked: Any,
) -> None:
    """Run IMAGE on one host with Docker Compose: docker:NAME, or a registry's reference. A file that pins it is
    written into a folder, and with --host a proxy's that speaks TLS.

    Without --host only this machine can reach it. A token stands in .env beside the file, which is yours to write.
    """
    from cpack_build.deploy.compose import FILES, compose_files
    from cpack_build.deploy.folder import write_folder
    from cpack_build.errors import UsageError
    from cpack_build.oci.reference import EngineName, Reference, parse_image_name

    name = parse_image_name(image)
    if isinstance(name, EngineName):
        if name.engine != "docker":
            raise UsageError(f"{image} is podman's.", hint=f"Give it to Docker, or push it: cpack-build push {image}.")
        access = access_for([], insecure=insecure, ca=ca)
        subject = engine_subject(name, lock_file=lock_file, platform=platform, terminal=terminal)
    elif isinstance(name, Reference):
        access = access_for([name], insecure=insecure, ca=ca)
        subject = registry_subject(name, lock_file=lock_file, platform=platform, access=access, terminal=terminal)
    else:
        raise UsageError(
            f"{image} is no image that Docker can start.",
            hint="Push it, or load it: cpack-build image PACK --output docker:NAME, or docker load -i FILE.",
        )
    options = _options(subject, asked, access=access, terminal=terminal)
    files = compose_files(subject, options)
    folder = output or Path(f"{options.name}.compose")
    token = ["CPACK_TOKEN"] if options.token else []
    terminal.result(
        {
            "image": subject.reference,
            "name": options.name,
            "folder": None if dry_run else str(folder),
            "files": files,
            "secrets": sorted({*options.secrets, *token}),
            **({"dry_run": True} if dry_run else {}),
        }
    )
    if dry_run:
        for text in files.values():
            terminal.say(text.rstrip())
        return
    write_folder(folder, files, possible=FILES)
    terminal.say(f"{folder}: {', '.join(sorted(files))}")
    for secret in sorted({*options.secrets, *token}):
        terminal.say(f"Write {secret}=… into {folder / '.env'} first.")
    terminal.say(f"Next:\n  docker compose -f {shlex.quote(str(folder / 'compose.yaml'))} up -d")


def _options(subject: Subject, asked: dict[str, Any], *, access: Access, terminal: Terminal) -> Options:
    from cpack_build.deploy.compose import Options

    host = asked["host"]
    given = {"--proxy-image": asked["proxy_image"], "--egress": asked["egress"]}
    if host is None and (unused := [name for name, value in given.items() if value]):
        from cpack_build.errors import UsageError

        raise UsageError(f"{unused[0]} is for the proxy.", hint="Add --host NAME.")
    memory = asked["memory"]
    if memory is None and subject.models:
        memory = f"{subject.memory_mib * 3 // 2}m"
    gpus = asked["gpus"] if asked["gpus"] is not None else int(subject.vendor is not None)
    if gpus and subject.vendor == "amd":
        terminal.progress.note("The group of /dev/dri has another number on each host: add it with group_add.")
    return Options(
        name=asked["name"] if asked["name"] is not None else subject.name.replace(".", "-"),
        port=asked["port"],
        address=_address(asked["address"]),
        gpus=gpus,
        memory=memory,
        cpus=asked["cpus"],
        token=asked["token"] if asked["token"] is not None else host is not None,
        environment=pairs(asked["env"], "--env"),
        secrets=asked["secrets"],
        egress=asked["egress"],
        warm_up=asked["warm_up"] if asked["warm_up"] is not None else subject.required == (),
        ready_seconds=asked["ready_seconds"],
        drain_seconds=asked["drain_seconds"],
        proxy=_proxy(host, asked, access=access) if host is not None else None,
    )


def _address(text: str) -> str:
    import ipaddress

    from cpack_build.errors import UsageError

    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(
            f"--address is {text!r}, which is no IP address.", hint="Write 127.0.0.1 or 0.0.0.0."
        ) from error
    return f"[{address}]" if address.version == 6 else str(address)


def _proxy(host: str, asked: dict[str, Any], *, access: Access) -> Proxy:
    """Raises :class:`UsageError` when the proxy's image has no digest and its registry cannot be asked for it."""
    from cpack_build.deploy.compose import Proxy
    from cpack_build.errors import NetworkError, UsageError
    from cpack_build.oci.reference import parse_reference
    from cpack_build.oci.sources import open_source

    reference = parse_reference(asked["proxy_image"] or _CADDY)
    try:
        digest = reference.digest or open_source(reference, access=access).digest
    except NetworkError as error:
        raise UsageError(
            f"What {reference} stands for cannot be asked. {error.message}",
            hint="Name it by its digest: --proxy-image NAME@sha256:….",
        ) from error
    return Proxy(
        host,
        f"{reference.name}@{digest}",
        tls=asked["tls"],
        http_port=asked["http_port"],
        https_port=asked["https_port"],
    )
