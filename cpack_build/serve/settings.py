"""What the service is told by its environment, checked once at the start.

The image's configuration sets these variables; run by hand, the defaults suit a person's own machine: only loopback is
listened on, and nothing is written outside ``CPACK_DATA``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpack_build.errors import UsageError

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The service's environment. Times are seconds.

    *app* holds ``workflow_api.json`` and ``input/``. Either *comfyui_dir* (with *comfyui_python*) names the ComfyUI to
    start, or *server* (``host:port``, several with commas between) the running ones to use. *data* is the one folder
    that is written to. *max_requests* is how many may be under way before 429 is answered; *keep_seconds* and
    *keep_mib* bound the results of links and tasks, *output_mib* what other nodes leave in ComfyUI's output folder.
    *url_hosts* are the hosts that files may be fetched from (``*`` for any, none by default), *url_private* lets them
    be private addresses. *output_url* (``s3://bucket/prefix``) is where outputs go instead of into answers. *token* is
    asked for as ``Authorization: Bearer`` when it is set. *warm_up* runs the workflow
    once with its own values each time that ComfyUI has started, before the service says that it is ready.
    """

    app: Path
    data: Path
    comfyui_dir: Path | None
    comfyui_python: Path
    server: str | None
    host: str
    port: int
    comfyui_args: tuple[str, ...]
    timeout: float
    shutdown: float
    max_upload_mib: int
    max_requests: int = 256
    body_seconds: float = 60
    keep_seconds: float = 3600
    keep_mib: int = 1024
    output_mib: int = 4096
    url_hosts: tuple[str, ...] = ()
    url_private: bool = False
    output_url: str = ""
    token: str = ""
    webhook_secret: str = ""
    retry_out_of_memory: bool = False
    warm_up: bool = False
    json_log: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, pid: int) -> Settings:
        """The settings in *environ*. Raises :class:`UsageError` that names the variable that is missing or wrong.

        Process 1 (*pid*) is alone in a container, whose own loopback nobody can reach: it listens on all interfaces.
        """
        server = environ.get("COMFYUI_SERVER") or None
        comfyui_dir = environ.get("COMFYUI_DIR") or None
        if server is None and comfyui_dir is None:
            raise UsageError(
                "Neither COMFYUI_DIR nor COMFYUI_SERVER is set.",
                hint="Set COMFYUI_DIR to a ComfyUI folder to start, or COMFYUI_SERVER=host:port to use a running one.",
            )
        if "CPACK_APP" not in environ:
            raise UsageError("CPACK_APP is not set.", hint="Set it to the folder that holds workflow_api.json.")
        return cls(
            app=Path(environ["CPACK_APP"]).absolute(),
            data=Path(environ.get("CPACK_DATA") or "cpack-data").absolute(),
            comfyui_dir=Path(comfyui_dir).absolute() if comfyui_dir and server is None else None,
            comfyui_python=Path(environ.get("COMFYUI_PYTHON") or "python3"),
            server=server,
            host=environ.get("CPACK_HOST") or ("0.0.0.0" if pid == 1 else "127.0.0.1"),  # noqa: S104
            port=int(_number(environ, "PORT", default=3000, low=0, high=65535)),
            comfyui_args=_arguments(environ),
            timeout=_number(environ, "CPACK_TIMEOUT", default=3600, low=1),
            shutdown=_number(environ, "CPACK_SHUTDOWN_SECONDS", default=6, low=0),
            max_upload_mib=int(_number(environ, "CPACK_MAX_UPLOAD_MIB", default=1024, low=1)),
            max_requests=int(_number(environ, "CPACK_MAX_REQUESTS", default=256, low=1)),
            body_seconds=_number(environ, "CPACK_BODY_SECONDS", default=60, low=1),
            keep_seconds=_number(environ, "CPACK_KEEP_SECONDS", default=3600, low=1),
            keep_mib=int(_number(environ, "CPACK_KEEP_MIB", default=1024, low=1)),
            output_mib=int(_number(environ, "CPACK_OUTPUT_MIB", default=4096, low=1)),
            url_hosts=tuple(environ.get("CPACK_URL_HOSTS", "").lower().replace(",", " ").split()),
            url_private=_flag(environ, "CPACK_URL_PRIVATE"),
            output_url=environ.get("CPACK_OUTPUT_URL", ""),
            token=environ.get("CPACK_TOKEN", ""),
            webhook_secret=environ.get("CPACK_WEBHOOK_SECRET", ""),
            retry_out_of_memory=_flag(environ, "CPACK_RETRY_OUT_OF_MEMORY"),
            warm_up=_flag(environ, "CPACK_WARM_UP"),
            json_log=_choice(environ, "CPACK_LOG", "text", "json") == "json",
        )

    @property
    def workflow_file(self) -> Path:
        """The workflow that is served."""
        return self.app / "workflow_api.json"


def _number(environ: Mapping[str, str], name: str, *, default: float, low: float, high: float = float("inf")) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise UsageError(f"{name} is {text!r}.", hint=f"Set it to a number {limits}.")
    return value


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return _choice(environ, name, "0", "1") == "1"


def _choice(environ: Mapping[str, str], name: str, default: str, *others: str) -> str:
    text = environ.get(name) or default
    if text not in (default, *others):
        raise UsageError(f"{name} is {text!r}.", hint=f"Set it to {' or '.join((default, *others))}.")
    return text


def _arguments(environ: Mapping[str, str]) -> tuple[str, ...]:
    """ComfyUI's further arguments: a JSON list in ours, words in the variable that comfy-pack knows."""
    arguments: list[str] = []
    if text := environ.get("CPACK_COMFYUI_ARGS"):
        try:
            listed = json.loads(text)
        except ValueError:
            listed = None
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise UsageError(
                f"CPACK_COMFYUI_ARGS is {text!r}.", hint='Set it to a JSON list of strings, such as ["--lowvram"].'
            )
        arguments += listed
    try:
        arguments += shlex.split(environ.get("COMFYUI_OPTIONS", ""))
    except ValueError as error:
        raise UsageError(f"COMFYUI_OPTIONS cannot be split into words: {error}.", hint="Close its quotes.") from None
    return tuple(arguments)
