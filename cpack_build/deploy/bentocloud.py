"""BentoCloud, through BentoML's own client: a Bento is pushed, a deployment made or changed, and waited for.

The login is BentoML's: a context of ``bentoml cloud login``, or ``BENTO_CLOUD_API_KEY``. The token goes nowhere but to
the endpoint that it belongs to, by TLS unless that is this machine, and into no message. What was uploaded whole is not
sent again, so a push that was cut goes on with the model that it was at; the client has no smaller steps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from cpack_build.deploy.bentoclient import Cloud, PassingFailure, Spinner, clean, connect, in_our_words
from cpack_build.errors import (
    EngineFailed,
    NetworkError,
    Unresolvable,
    UsageError,
)
from cpack_build.progress import SILENT, Progress

__all__ = ["Deployed", "Wanted", "deploy", "envs_of", "planned", "pull_bento", "push_bento"]

_ATTEMPTS = 4
_PAUSES = (1.0, 3.0, 9.0)
"""Seconds before another attempt."""
_GOOD = frozenset({"running", "scaled-to-zero"})
_BAD = frozenset({"failed", "image-build-failed", "terminated", "terminating", "unhealthy"})
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A deployment's name is a host's (RFC 1035, "label")."""


@dataclass(frozen=True)
class Wanted:
    """A deployment as it is wanted; ``None`` leaves what is there, or the default. No value of *envs* is shown."""

    bento: str
    name: str | None = None
    cluster: str | None = None
    instance_type: str | None = None
    scaling_min: int | None = None
    scaling_max: int | None = None
    strategy: str | None = None
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = ()
    is_protected: bool | None = None

    def __post_init__(self) -> None:
        """What cannot be is better known before anything is sent."""
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot be the name of a deployment.",
                hint="It is lowercase letters, digits and '-', begins with a letter, and has at most 63.",
            )
        low, high = self.scaling_min, self.scaling_max
        if low is not None and high is not None and low > high:
            raise UsageError(f"--scaling-min {low} is more than --scaling-max {high}.", hint="Exchange them.")

    def config(self, service: str) -> dict[str, Any]:
        """What BentoML's client is given for the Bento's *service*."""
        scaling = {"min_replicas": self.scaling_min, "max_replicas": self.scaling_max}
        own = {
            "instance_type": self.instance_type,
            "deployment_strategy": self.strategy,
            "scaling": {key: value for key, value in scaling.items() if value is not None} or None,
        }
        document = {
            "name": self.name,
            "cluster": self.cluster,
            "bento": self.bento,
            "access_authorization": self.is_protected,
            "envs": [{"name": name, "value": value} for name, value in self.envs.items()] or None,
            "secrets": list(self.secrets) or None,
            "services": {service: {key: value for key, value in own.items() if value is not None}},
        }
        return {key: value for key, value in document.items() if value is not None}


@dataclass(frozen=True)
class Deployed:
    """A deployment in BentoCloud, *created* or changed."""

    name: str
    cluster: str
    status: str
    created: bool
    urls: tuple[str, ...]
    console: str


# -- pushing -----------------------------------------------------------------------------------------------------------


def push_bento(
    cloud: Cloud, tag: str, *, progress: Progress = SILENT, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Push the Bento *tag* of BentoML's store and its models; ``False`` if all of it was there.

    A failure that may pass is tried again, and what was uploaded whole meanwhile is not. Raises :class:`NetworkError`,
    :class:`Unresolvable`.
    """
    import bentoml
    from bentoml._internal.cloud.bento import BentoAPI

    try:
        bento = bentoml.bentos.get(tag)
    except bentoml.exceptions.NotFound as error:
        raise Unresolvable(str(error), hint="`bentoml list` shows what there is.") from None
    for number in range(_ATTEMPTS):
        with Spinner(progress) as spinner:
            try:
                with in_our_words(cloud, f"The push of {tag}", spinner):
                    BentoAPI(cloud.client.client, spinner=spinner).push(bento)  # type: ignore[arg-type]
                return not spinner.was_there(tag)
            except PassingFailure as error:
                if number == _ATTEMPTS - 1:
                    raise NetworkError(error.message, hint="Run it again: what was sent whole stays.") from error
                progress.note(f"{error.message} It is tried again.")
        sleep(_PAUSES[number])
    raise AssertionError("the last attempt returns or raises")


def pull_bento(tag: str, *, context: str | None = None, progress: Progress = SILENT) -> Any:
    """The Bento *tag* with its models from BentoCloud, in BentoML's store."""
    from bentoml._internal.cloud.bento import BentoAPI
    from bentoml._internal.configuration.containers import BentoMLContainer

    with connect(context=context) as cloud, Spinner(progress) as spinner, in_our_words(cloud, f"The pull of {tag}"):
        BentoMLContainer.bentocloud_client.set(cloud.client)  # the models ask for the login by themselves
        try:
            return BentoAPI(cloud.client.client, spinner=spinner).pull(tag, with_models=True)  # type: ignore[arg-type]
        finally:
            BentoMLContainer.bentocloud_client.reset()


# -- deploying ---------------------------------------------------------------------------------------------------------


def deploy(
    cloud: Cloud,
    wanted: Wanted,
    *,
    wait: float | None = None,
    progress: Progress = SILENT,
    sleep: Callable[[float], None] = time.sleep,
) -> Deployed:
    """Make the deployment, or change the one of that name; with *wait* until it runs, at most so many seconds.

    Raises :class:`NetworkError` for what BentoCloud refuses, :class:`Unresolvable` for a secret that is not there,
    :class:`EngineFailed` for a deployment that does not get ready, with what its pods say.
    """
    import bentoml
    from bentoml._internal.cloud.deployment import DeploymentConfigParameters

    service = bentoml.bentos.get(wanted.bento).entry_service
    _require_secrets(cloud, wanted)
    with in_our_words(cloud, "The deployment"):
        found = _found(cloud, wanted)
        config = (wanted if found is None else _over(found, wanted)).config(service)
        parameters = DeploymentConfigParameters(service_name=service, cfg_dict=config)
        api = cloud.client.deployment
        made = api.create(parameters) if found is None else api.update(parameters)
        if wait is not None:
            _wait(cloud, made, seconds=wait, progress=progress, sleep=sleep)
        status = made.get_status(refetch=wait is not None).status
        return Deployed(made.name, made.cluster, status, found is None, tuple(made._urls or ()), made.admin_console)


def planned(cloud: Cloud, wanted: Wanted | None, tag: str) -> list[dict[str, Any]]:
    """The requests that a push of *tag*, and then the deployment, would make after those that only ask.

    How an upload goes (through BentoCloud, to one address or in parts) is BentoCloud's answer to the request before it.
    """
    import bentoml
    from bentoml._internal.cloud.schemas.modelschemas import UploadStatus

    bento = bentoml.bentos.get(tag)
    v1 = cloud.client.client.v1
    steps: list[dict[str, Any]] = []

    def add(kind: str, what: Any, size: int) -> None:
        name, version = what.name, what.version
        place = f"/api/v1/{kind}_repositories"
        create = {"method": "POST", "path": place, "body": {"name": name}}
        if create not in steps and getattr(v1, f"get_{kind}_repository")(name) is None:
            steps.append(create)
        known = getattr(v1, f"get_{kind}")(name, version)
        if known is not None and known.upload_status == UploadStatus.SUCCESS.value:
            return
        one = f"{place}/{name}/{kind}s/{version}"
        if known is None:
            steps.append({"method": "POST", "path": f"{place}/{name}/{kind}s", "body": {"version": version}})
        elif kind == "bento":
            steps.append({"method": "PATCH", "path": one})
        steps.append({"method": "PATCH", "path": f"{one}/start_upload"})
        steps.append({"method": "PUT", "path": "(as BentoCloud answers)", "bytes": size})

    with in_our_words(cloud, "The look at what is there"):
        for info in (info for info in bento.info.all_models if info.registry == "bentoml"):
            add("model", info.tag, bentoml.models.get(info.tag).file_size)
        add("bento", bento.tag, bento.file_size)
        if wanted is None:
            return steps
        found = _found(cloud, wanted)
        body = (wanted if found is None else _over(found, wanted)).config(bento.entry_service)
        body.pop("cluster", None)
        if "envs" in body:
            body["envs"] = [{"name": one["name"], "value": "…"} for one in body["envs"]]
        path = "/api/v2/deployments" + ("" if found is None else f"/{wanted.name}")
        steps.append({"method": "POST" if found is None else "PUT", "path": path, "body": body})
    return steps


def _found(cloud: Cloud, wanted: Wanted) -> Any | None:
    """The deployment of that name, if there is one."""
    from bentoml.exceptions import NotFound

    if wanted.name is None:
        return None
    try:
        return cloud.client.deployment.get(wanted.name, wanted.cluster)
    except NotFound:
        return None


def _over(found: Any, wanted: Wanted) -> Wanted:
    """*wanted* with the variables and secrets that *found* has besides: BentoML's client would replace the lists."""
    config = found.get_config(refetch=False)
    if config is None:
        return wanted
    envs = {item.name: item.value for item in config.envs or ()} | dict(wanted.envs)
    return replace(wanted, envs=envs, secrets=tuple(dict.fromkeys([*(config.secrets or ()), *wanted.secrets])))


def _require_secrets(cloud: Cloud, wanted: Wanted) -> None:
    from bentoml.exceptions import BentoMLException

    for name in wanted.secrets:
        with in_our_words(cloud, f"The secret {name}"):
            try:
                cloud.client.secret.get(name, wanted.cluster)
            except BentoMLException as error:
                if error.error_code != 404:
                    raise
                raise Unresolvable(
                    f"BentoCloud has no secret {name!r}.", hint="`bentoml secret list` shows those that there are."
                ) from None


def _wait(cloud: Cloud, made: Any, *, seconds: float, progress: Progress, sleep: Callable[[float], None]) -> None:
    until = time.monotonic() + seconds
    status, pause = "", 0.25
    with ExitStack() as stack:
        while True:
            now = made.get_status().status
            if now != status:
                status = now
                stack.close()
                stack.enter_context(progress.task(f"{made.name}: {status}", unit="polls"))
            if status in _GOOD:
                return
            if status in _BAD or time.monotonic() > until:
                why = "" if status in _BAD else f" after {seconds:g} s"
                raise EngineFailed(
                    f"The deployment {made.name} is not ready{why}: it is {status}.{_pods_say(cloud, made)}",
                    hint=f"Its logs: {made.admin_console}",
                )
            pause = min(2 * pause, 5.0)
            sleep(min(pause, max(0.1, until - time.monotonic())))


def _pods_say(cloud: Cloud, made: Any) -> str:
    """What its pods give as the reason, where they can be asked."""
    from bentoml.exceptions import BentoMLException
    from httpx import HTTPError
    from httpx_ws import HTTPXWSException

    try:
        pods = cloud.client.client.v2.list_deployment_pods(made.name, made.cluster)
    except (BentoMLException, HTTPError, HTTPXWSException, OSError) as error:
        return f" Its pods could not be asked ({clean(str(error), cloud.token)})."
    said = [
        f"\n- {pod.name}: {pod.pod_status.status}" + (f", {pod.pod_status.reason}" if pod.pod_status.reason else "")
        for pod in pods
        if not pod.status.ready
    ]
    return "".join(clean(line, cloud.token, lines=True) for line in said)


def envs_of(pairs: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` for the value that it has in *environ*. Raises :class:`UsageError`."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError("--env has something that is no variable's name.", hint="Write NAME=VALUE, or NAME.")
        if not equals and name not in environ:
            raise UsageError(f"--env {name}: there is no such variable here.", hint="Write NAME=VALUE.")
        found[name] = value if equals else environ[name]
    return found
