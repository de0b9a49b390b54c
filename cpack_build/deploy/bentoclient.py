"""BentoML's client of BentoCloud: the login that it has, and what it says in our words.

The client draws on the terminal and writes its reasons there; here its spinner is replaced by our progress, and its
errors become ours, without the token and without the signatures of addresses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cpack_build.deploy.bento import require_bentoml
from cpack_build.errors import CpackError, NetworkError, Unresolvable, UnsafeInput, UsageError
from cpack_build.oci.transport import is_loopback
from cpack_build.progress import Progress, Task

__all__ = ["Cloud", "PassingFailure", "Spinner", "clean", "connect", "in_our_words"]


@dataclass(frozen=True)
class Cloud:
    """A login: BentoML's *client*, and the *endpoint* that it talks to. *requests* are those that were sent."""

    client: Any
    endpoint: str
    token: str = field(repr=False)
    requests: list[str] = field(default_factory=list)


@contextmanager
def connect(*, context: str | None = None, endpoint: str | None = None) -> Iterator[Cloud]:
    """The login that BentoML has, at *endpoint* where that is given; its connections end with the context.

    Raises :class:`UsageError` where there is none, or two, :class:`UnsafeInput` where a token would go over plain HTTP
    or to another endpoint than its own, and :class:`NetworkError` where it is refused.
    """
    require_bentoml()
    from bentoml._internal.cloud import BentoCloudClient
    from bentoml._internal.cloud.config import CloudClientConfig
    from bentoml.exceptions import CloudRESTApiClientError

    if os.environ.get("BENTO_CLOUD_API_KEY") == "":
        raise UsageError("BENTO_CLOUD_API_KEY is empty.", hint="Set it to an API token, or unset it.")
    if context is not None and "BENTO_CLOUD_API_KEY" in os.environ:  # BentoML would take the latter without a word
        raise UsageError("--context and BENTO_CLOUD_API_KEY name two logins.", hint="Leave one of them out.")
    try:
        login = CloudClientConfig.get_config().get_context(context)
    except CloudRESTApiClientError:
        named = f"the context {context!r}" if context else "BentoCloud"
        raise UsageError(
            f"Nobody is logged in to {named}.", hint="Run `bentoml cloud login`, or set BENTO_CLOUD_API_KEY."
        ) from None
    place = (endpoint or login.endpoint).rstrip("/")
    try:
        parts = urlsplit(place)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        shown = re.sub("//[^/]*@", "//…@", place)
        raise UsageError(f"{shown!r} is no endpoint of BentoCloud.", hint="Write https://HOST.")
    if parts.scheme == "http" and not is_loopback(parts.netloc):
        raise UnsafeInput(f"The token would go to {place} in the clear.", hint="Use https.")
    # A key alone says of no endpoint that it is its own; BentoML only has a default.
    names_own = "BENTO_CLOUD_API_KEY" not in os.environ or "BENTO_CLOUD_API_ENDPOINT" in os.environ
    own = login.endpoint.rstrip("/")
    if names_own and own != place:
        raise UnsafeInput(
            f"The token of this login belongs to {own}, not to {place}.",
            hint="Log in there (`bentoml cloud login --endpoint`), or set BENTO_CLOUD_API_KEY to one of its own, and "
            "BENTO_CLOUD_API_ENDPOINT.",
        )
    client = BentoCloudClient(api_key=login.api_token, endpoint=place)  # type: ignore[call-arg]
    cloud = Cloud(client, place, login.api_token)

    def record(request: Any) -> None:
        cloud.requests.append(f"{request.method} {request.url.path}")

    with client.client.session as session:
        session.event_hooks = {"request": [record]}
        with in_our_words(cloud, "The login"):
            if client.client.v1.get_current_user() is None:
                raise NetworkError(f"{place} does not know whose the token is.", hint="Log in with another.")
        yield cloud


class PassingFailure(CpackError):
    """A failure that another attempt may be spared."""


@contextmanager
def in_our_words(cloud: Cloud, what: str, spinner: Spinner | None = None) -> Iterator[None]:
    from bentoml.exceptions import BentoMLException, NotFound
    from cattrs.errors import BaseValidationError
    from httpx import HTTPError, TransportError

    try:
        yield
    except CpackError:
        raise
    except NotFound as error:
        raise Unresolvable(f"{what}: {clean(str(error), cloud.token)}.") from None
    except BentoMLException as error:
        raise _error(cloud, what, error, spinner) from None
    except (HTTPError, OSError) as error:
        said = clean(str(error) or type(error).__name__, cloud.token)
        message = f"{what} failed: {cloud.endpoint} could not be reached ({said})."
        if spinner is not None and isinstance(error, TransportError | OSError):
            raise PassingFailure(message) from None
        raise NetworkError(message, hint="Check the endpoint and the network.") from None
    except (ValueError, KeyError, TypeError, BaseValidationError) as error:
        raise NetworkError(
            f"{what} failed: what {cloud.endpoint} says is no answer of BentoCloud's ({type(error).__name__}).",
            hint="Check the endpoint.",
        ) from error


def _error(cloud: Cloud, what: str, error: Any, spinner: Spinner | None) -> CpackError:
    code = int(getattr(error, "error_code", 0) or 0)
    text = str(error)
    body = text.partition(": ")[2] if text.startswith("request failed with status code") else text
    if spinner is not None and body.startswith("Failed to upload"):
        # The client tells why in its log alone. A refusal in there is as lasting as one of BentoCloud's own.
        return PassingFailure(f"{what} failed: {clean(spinner.reason or body, cloud.token)}.")
    said = clean(body, cloud.token)
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
        return PassingFailure(message) if spinner is not None else NetworkError(message, hint="Try again later.")
    return NetworkError(f"{what} failed{f' ({code})' if code else ''}: {said}.", hint="Run it with -v for more.")


def clean(text: str, token: str, *, lines: bool = False) -> str:
    """*text* of a stranger: on one line, without the token and without the signatures of addresses."""
    text = re.sub(r"(https?://[^\s?\"']+)\?[^\s\"']*", r"\1?…", text.replace(token, "***") if token else text)
    text = text if lines else " ".join(text.split())
    return text.strip(" .")[:500] if not lines else text[:500]


class Spinner:
    """What BentoML's client tells of its work (``cloud/base.py``, ``Spinner``), given to our progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said: list[str] = []
        self._stack = ExitStack()
        self.transmission_progress = _Transmissions(progress, self._stack)

    def __enter__(self) -> Spinner:
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
