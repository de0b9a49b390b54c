"""``cpack-build deploy bentocloud SOURCE``, and what ``push IMAGE bentocloud:NAME`` shares with it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.options import Chosen, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.deploy.bento import Bento

__all__ = ["bentocloud", "push_to"]


@click.command(
    epilog="Example: cpack-build deploy bentocloud upscale.cpack.zip --name upscale --instance-type gpu.t4.1 --wait    "
    "(exit codes: docs/exit-codes.md)"
)
@click.argument("source")
@click.option("--name", metavar="NAME", help="Of the deployment; one of that name is changed. By default BentoCloud's.")
@click.option("--cluster", metavar="NAME", help="By default BentoCloud's first.")
@click.option("--instance-type", metavar="NAME", help="`bentoml deployment list-instance-types` lists them.")
@click.option("--scaling-min", type=click.IntRange(0), metavar="COUNT", help="The fewest replicas; 0 scales to zero.")
@click.option("--scaling-max", type=click.IntRange(1), metavar="COUNT", help="The most replicas.")
@click.option(
    "--strategy",
    type=click.Choice(["RollingUpdate", "Recreate", "RampedSlowRollout", "BestEffortControlledRollout"]),
    help="How a change is rolled out.",
)
@click.option("--env", "envs", multiple=True, metavar="NAME[=VALUE]", help="A variable; NAME alone takes it from here.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="A secret that BentoCloud has.")
@click.option("--protected/--public", "is_protected", default=None, help="Whether its URL wants a token of BentoCloud.")
@click.option("--wait/--no-wait", default=False, help="Wait until it runs, and fail with the reason if it does not.")
@click.option("--timeout", type=click.IntRange(1), default=3600, show_default=True, help="Seconds to wait.")
@click.option("--bento-name", metavar="NAME", help="Of the Bento that is made of SOURCE; by default that of SOURCE.")
@click.option(
    "--thin/--self-contained",
    "thin",
    default=None,
    help="Whether that names the image in its registry, or carries its layers; by default as SOURCE is.",
)
@click.option("--context", metavar="NAME", help="A login of `bentoml cloud login`; by default the current one.")
@click.option("--endpoint", metavar="URL", help="Of BentoCloud; by default that of the login.")
@click.option("--trust", is_flag=True, help="Run here what others wrote, where the build of the image needs that.")
@click.option("--dry-run", is_flag=True, help="Ask what is there, show the requests, and send none of them.")
@settings_options
@download_options
@terminal_options
def bentocloud(
    source: str,
    name: str | None,
    cluster: str | None,
    instance_type: str | None,
    scaling_min: int | None,
    scaling_max: int | None,
    strategy: str | None,
    envs: tuple[str, ...],
    secrets: tuple[str, ...],
    is_protected: bool | None,
    wait: bool,
    timeout: int,
    bento_name: str | None,
    thin: bool | None,
    context: str | None,
    endpoint: str | None,
    trust: bool,
    dry_run: bool,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
) -> None:
    """Have BentoCloud run SOURCE: a NAME.cpack.zip, an image, or a Bento of BentoML's store (NAME:VERSION).

    The login is that of `bentoml cloud login`, or BENTO_CLOUD_API_KEY (and BENTO_CLOUD_API_ENDPOINT). What BentoCloud
    has already is not sent again.
    """
    from cpack_build.deploy.bentoclient import connect
    from cpack_build.deploy.bentocloud import Wanted, deploy, envs_of, planned, push_bento

    wanted = Wanted(  # what is wrong with it is told before anything is built
        "", name=name, cluster=cluster, instance_type=instance_type, scaling_min=scaling_min, scaling_max=scaling_max,
        strategy=strategy, envs=envs_of(envs, os.environ), secrets=secrets, is_protected=is_protected,
    )  # fmt: skip
    with connect(context=context, endpoint=endpoint) as cloud:
        tag = _tag_of(source, chosen, downloads, name=bento_name, thin=thin, trust=trust, terminal=terminal)
        wanted = replace(wanted, bento=tag)
        if dry_run:
            _tell_plan(planned(cloud, wanted, tag), tag, terminal)
            return
        sent = push_bento(cloud, tag, progress=terminal.progress)
        done = deploy(cloud, wanted, wait=timeout if wait else None, progress=terminal.progress)
    terminal.result(
        {
            "bento": tag, "pushed": sent, "deployment": done.name, "cluster": done.cluster, "created": done.created,
            "status": done.status, "urls": list(done.urls), "console": done.console, "requests": cloud.requests,
        }
    )  # fmt: skip
    terminal.say(f"{tag} {'is pushed' if sent else 'was there already'}.")
    terminal.say(f"{done.name} is {'created' if done.created else 'changed'}: {done.status}")
    for url in done.urls:
        terminal.say(f"  {url}")
    terminal.say(f"  {done.console}")


def push_to(image: str, name: str, *, dry_run: bool, chosen: Chosen, terminal: Terminal) -> None:
    """Push the image or pack *image* to BentoCloud as the Bento *name*."""
    from cpack_build.deploy.bentoclient import connect
    from cpack_build.deploy.bentocloud import planned, push_bento
    from cpack_build.errors import UsageError

    if not name:
        raise UsageError("bentocloud: names no Bento.", hint="Write bentocloud:NAME.")
    with connect() as cloud:
        tag = _tag_of(image, chosen, Downloads(), name=name, thin=None, trust=False, terminal=terminal)
        if dry_run:
            _tell_plan(planned(cloud, None, tag), tag, terminal)
            return
        sent = push_bento(cloud, tag, progress=terminal.progress)
    terminal.result({"bento": tag, "pushed": sent, "endpoint": cloud.endpoint, "requests": cloud.requests})
    terminal.say(f"{tag} {'is pushed' if sent else 'was already'} at {cloud.endpoint}.")


def _tag_of(
    source: str,
    chosen: Chosen,
    downloads: Downloads,
    *,
    name: str | None,
    thin: bool | None,
    trust: bool,
    terminal: Terminal,
) -> str:
    """The Bento of *source*, which is made unless *source* is one."""
    from cpack_build.cli.bento import contents_of, made_of
    from cpack_build.deploy.bento import require_bentoml
    from cpack_build.errors import Unresolvable, UsageError
    from cpack_build.oci.transport import is_loopback

    bentoml = require_bentoml()
    explicit = source.startswith("bento:")
    plain = source.removeprefix("bento:")
    if explicit or not ("/" in plain or Path(plain).exists()):
        try:
            return str(bentoml.bentos.get(plain).tag)
        except (bentoml.exceptions.BentoMLException, ValueError) as error:
            if explicit:
                raise Unresolvable(
                    f"There is no Bento {plain} in BentoML's store: {error}", hint="`bentoml list` shows what there is."
                ) from None
    with contents_of(source, chosen, downloads, thin=thin, trust=trust, terminal=terminal) as (contents, own_name):
        if contents.reference is not None and is_loopback(contents.reference.registry):
            raise UsageError(
                f"{source} lies in a registry of this machine, where BentoCloud cannot pull it.",
                hint="Add --self-contained, or push it to a registry that BentoCloud reaches.",
            )
        made: Bento = made_of(contents, name or own_name, None, terminal)
    return made.tag


def _tell_plan(steps: list[dict[str, Any]], tag: str, terminal: Terminal) -> None:
    import json

    terminal.result({"dry_run": True, "bento": tag, "requests": steps})
    for step in steps:
        terminal.say(f"{step['method']} {step['path']}" + (f"  {step['bytes']} bytes" if "bytes" in step else ""))
        if "body" in step:
            terminal.say(f"  {json.dumps(step['body'], ensure_ascii=False)}")
    terminal.say("Nothing was sent." if steps else "BentoCloud has all of it already.")
