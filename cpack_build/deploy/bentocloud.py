"""BentoCloud, through BentoML's own client: a Bento is pushed, a deployment made or changed, and waited for.

The login is BentoML's: a context of ``bentoml cloud login``, or ``BENTO_CLOUD_API_KEY``. The token goes nowhere but to
the endpoint that it belongs to, by TLS unless that is this machine, and into no message. What was uploaded whole is not
sent again, so a push that was cut goes on with the model that it was at; the client has no smaller steps.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cpack_build.deploy.bento import require_bentoml
from cpack_build.errors import (
    CpackError,
    EngineFailed,
    NetworkError,
    Unresolvable,
    UnsafeInput,
    UsageError,
)
from cpack_build.progress import SILENT, Progress, Task

__all__ = ["Cloud", "Deployed", "Wanted", "connect", "deploy", "envs_of", "planned", "pull_bento", "push_bento"]

_ATTEMPTS = 4
_PAUSES = (1.0, 3.0, 9.0)
"""Seconds before another attempt."""
_GOOD = frozenset({"running", "scaled-to-zero"})
_BAD = frozenset({"failed", "image-build-failed", "terminated", "terminating", "unhealthy"})
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A deployment's name is a host's (RFC 1035, "label")."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Cloud:
    """A login: BentoML's *client*, and the *endpoint* that it talks to. *requests* are those that were sent."""

    client: Any
    endpoint: str
    token: str = field(repr=False)
    requests: list[str] = field(default_factory=list)


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


@contextmanager
def connect(*, context: str | None = None, endpoint: str | None = None) -> Iterator[Cloud]:
    """The login that BentoML has, at *endpoint* where that is given; its connections end with the context.

    Raises :class:`UsageError` where there is none, :class:`UnsafeInput` where a token would go over plain HTTP, and
    :class:`NetworkError` where it is refused.
    """
    require_bentoml()
    from bentoml._internal.cloud import BentoCloudClient
    from bentoml._internal.cloud.config import CloudClientConfig
    from bentoml.exceptions import CloudRESTApiClientError

    if os.environ.get("BENTO_CLOUD_API_KEY") == "":
        raise UsageError("BENTO_CLOUD_API_KEY is empty.", hint="Set it to an API token, or unset it.")
    try:
        login = CloudClientConfig.get_config().get_context(context)
    except CloudRESTApiClientError:
        named = f"the context {context!r}" if context else "BentoCloud"
        raise UsageError(
            f"Nobody is logged in to {named}.", hint="Run `bentoml cloud login`, or set BENTO_CLOUD_API_KEY."
        ) from None
    place = (endpoint or login.endpoint).rstrip("/")
    parts = urlsplit(place)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise UsageError(f"{place!r} is no endpoint of BentoCloud.", hint="Write https://HOST.")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise UnsafeInput(f"The token would go to {place} in the clear.", hint="Use https.")
    if endpoint and context is None and "BENTO_CLOUD_API_KEY" not in os.environ:
        own = login.endpoint.rstrip("/")
        if own != place:
            raise UnsafeInput(
                f"The token of this login belongs to {own}, not to {place}.",
                hint="Log in there (`bentoml cloud login --endpoint`), or set BENTO_CLOUD_API_KEY to one of its own.",
            )
    client = BentoCloudClient(api_key=login.api_token, endpoint=place)  # type: ignore[call-arg]
    cloud = Cloud(client, place, login.api_token)

    def record(request: Any) -> None:
        cloud.requests.append(f"{request.method} {request.url.path}")

    with client.client.session as session:
        session.event_hooks = {"request": [record]}
        with _errors(cloud, "The login"):
            if client.client.v1.get_current_user() is None:
                raise NetworkError(f"{place} does not know whose the token is.", hint="Log in with another.")
        yield cloud


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
        with _Spinner(progress) as spinner:
            try:
                with _errors(cloud, f"The push of {tag}", spinner):
                    BentoAPI(cloud.client.client, spinner=spinner).push(bento)  # type: ignore[arg-type]
                return not spinner.was_there(tag)
            except _Passing as error:
                if number == _ATTEMPTS - 1:
                    raise NetworkError(error.message, hint="Run it again: what was sent whole stays.") from error
                progress.note(f"{error.message} It is tried again.")
        sleep(_PAUSES[number])
    raise AssertionError("the last attempt returns or raises")


def pull_bento(tag: str, *, context: str | None = None, progress: Progress = SILENT) -> Any:
    """The Bento *tag* with its models from BentoCloud, in BentoML's store."""
    from bentoml._internal.cloud.bento import BentoAPI
    from bentoml._internal.configuration.containers import BentoMLContainer

    with connect(context=context) as cloud, _Spinner(progress) as spinner, _errors(cloud, f"The pull of {tag}"):
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
    config = wanted.config(service)
    parameters = DeploymentConfigParameters(service_name=service, cfg_dict=config)
    with _errors(cloud, "The deployment"):
        exists = wanted.name is not None and _there(cloud, wanted)
        api = cloud.client.deployment
        made = api.update(parameters) if exists else api.create(parameters)
        if wait is not None:
            _wait(cloud, made, seconds=wait, progress=progress, sleep=sleep)
        status = made.get_status(refetch=wait is not None).status
        return Deployed(made.name, made.cluster, status, not exists, tuple(made._urls or ()), made.admin_console)


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
        if getattr(v1, f"get_{kind}_repository")(name) is None:
            steps.append({"method": "POST", "path": place, "body": {"name": name}})
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

    with _errors(cloud, "The look at what is there"):
        for info in bento.info.all_models:
            add("model", info.tag, bentoml.models.get(info.tag).file_size)
        add("bento", bento.tag, bento.file_size)
        if wanted is None:
            return steps
        exists = wanted.name is not None and _there(cloud, wanted)
        body = wanted.config(bento.entry_service)
        body.pop("cluster", None)
        if "envs" in body:
            body["envs"] = [{"name": one["name"], "value": "…"} for one in body["envs"]]
        path = f"/api/v2/deployments/{wanted.name}" if exists else "/api/v2/deployments"
        steps.append({"method": "PUT" if exists else "POST", "path": path, "body": body})
    return steps


def _there(cloud: Cloud, wanted: Wanted) -> bool:
    from bentoml.exceptions import NotFound

    try:
        found = cloud.client.deployment.get(wanted.name, wanted.cluster)
    except NotFound:
        return False
    return bool(found.get_status(refetch=False).status != "terminated" or found._schema.latest_revision)


def _require_secrets(cloud: Cloud, wanted: Wanted) -> None:
    from bentoml.exceptions import BentoMLException

    for name in wanted.secrets:
        with _errors(cloud, f"The secret {name}"):
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
        return f" Its pods could not be asked ({_clean(str(error), cloud.token)})."
    said = [
        f"\n- {pod.name}: {pod.pod_status.status}" + (f", {pod.pod_status.reason}" if pod.pod_status.reason else "")
        for pod in pods
        if not pod.status.ready
    ]
    return "".join(_clean(line, cloud.token, lines=True) for line in said)


# -- what BentoML's client says, in our words --------------------------------------------------------------------------


class _Passing(CpackError):
    """A failure that another attempt may be spared."""


@contextmanager
def _errors(cloud: Cloud, what: str, spinner: _Spinner | None = None) -> Iterator[None]:
    from bentoml.exceptions import BentoMLException, NotFound
    from cattrs.errors import BaseValidationError
    from httpx import HTTPError, TransportError

    try:
        yield
    except CpackError:
        raise
    except NotFound as error:
        raise Unresolvable(f"{what}: {_clean(str(error), cloud.token)}.") from None
    except BentoMLException as error:
        raise _error(cloud, what, error, spinner) from None
    except (HTTPError, OSError) as error:
        said = _clean(str(error) or type(error).__name__, cloud.token)
        message = f"{what} failed: {cloud.endpoint} could not be reached ({said})."
        if spinner is not None and isinstance(error, TransportError | OSError):
            raise _Passing(message) from None
        raise NetworkError(message, hint="Check the endpoint and the network.") from None
    except (ValueError, KeyError, TypeError, BaseValidationError) as error:
        raise NetworkError(
            f"{what} failed: what {cloud.endpoint} says is no answer of BentoCloud's ({type(error).__name__}).",
            hint="Check the endpoint.",
        ) from error


def _error(cloud: Cloud, what: str, error: Any, spinner: _Spinner | None) -> CpackError:
    code = int(getattr(error, "error_code", 0) or 0)
    text = str(error)
    body = text.partition(": ")[2] if text.startswith("request failed with status code") else text
    if spinner is not None and body.startswith("Failed to upload"):
        # The client tells why in its log alone. A refusal in there is as lasting as one of BentoCloud's own.
        return _Passing(f"{what} failed: {_clean(spinner.reason or body, cloud.token)}.")
    said = _clean(body, cloud.token)
    if code == 401:
        return NetworkError(
            f"{cloud.endpoint} does not accept the token: {said}.",
            hint="It may have expired. Run `bentoml cloud login`, or set BENTO_CLOUD_API_KEY to another.",
        )
    if code in (402, 403, 429) or "quota" in said.lower():
        return NetworkError(
            f"{what} is refused by BentoCloud ({code}): {said}.",
            hint="Ask for less (--instance-type, --scaling-max), or for a larger quota.",
        )
    if code == 409:
        return NetworkError(f"{what} is in the way of another (409): {said}.", hint="Choose another --name.")
    if "BentoCloud. Please report" in text or code >= 500:
        message = f"{what} failed at BentoCloud{f' ({code})' if code else ''}: {said}."
        return _Passing(message) if spinner is not None else NetworkError(message, hint="Try again later.")
    return NetworkError(f"{what} failed{f' ({code})' if code else ''}: {said}.", hint="Run it with -v for more.")


def _clean(text: str, token: str, *, lines: bool = False) -> str:
    """*text* of a stranger: on one line, without the token and without the signatures of addresses."""
    text = re.sub(r"(https?://[^\s?\"']+)\?[^\s\"']*", r"\1?…", text.replace(token, "***") if token else text)
    text = text if lines else " ".join(text.split())
    return text.strip(" .")[:500] if not lines else text[:500]


class _Spinner:
    """What BentoML's client tells of its work (``cloud/base.py``, ``Spinner``), given to our progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said: list[str] = []
        self._stack = ExitStack()
        self.transmission_progress = _Transmissions(progress, self._stack)

    def __enter__(self) -> _Spinner:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def spin(self, text: str) -> Iterator[int]:
        yield 0

    def update(self, text: str, new: bool = False) -> int:
        return 0

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def log(self, message: str) -> None:
        self._said.append(re.sub(r"\[/?[a-z #]*\]|:[a-z_]+:", "", message).strip())

    @property
    def reason(self) -> str:
        """Why the last upload failed."""
        failed = [line for line in self._said if line.startswith("Failed pushing")]
        return failed[-1] if failed else ""

    def was_there(self, tag: str) -> bool:
        """Whether nothing had to be sent of the Bento itself."""
        return any(line.startswith("Push skipped") and tag in line for line in self._said)


class _Transmissions:
    """The part of ``rich.progress.Progress`` that BentoML's client uses."""

    def __init__(self, progress: Progress, stack: ExitStack) -> None:
        self._progress = progress
        self._stack = stack
        self._titles: list[str] = []
        self._tasks: dict[int, Task] = {}

    def add_task(self, description: str, **_: Any) -> int:
        self._titles.append(description)
        return len(self._titles) - 1

    def start_task(self, task_id: int) -> None:
        self._task(task_id)

    def update(self, task_id: int, *, advance: int = 0, total: int | None = None, **_: Any) -> None:
        task = self._task(task_id)
        if total is not None:
            task.expect(total)
        if advance:
            task.advance(advance)

    def _task(self, task_id: int) -> Task:
        if task_id not in self._tasks:
            self._tasks[task_id] = self._stack.enter_context(self._progress.task(self._titles[task_id]))
        return self._tasks[task_id]


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
