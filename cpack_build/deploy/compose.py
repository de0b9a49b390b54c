"""A Compose file for one host: the service with its GPU, limits and health, and before it, where it has a name in the
network, a proxy that speaks TLS.

Written for the Compose Specification as docker-compose 1.29 and Docker's own plugin read it
(https://github.com/compose-spec/compose-spec/blob/main/spec.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cpack_build.deploy.environment import check_variable
from cpack_build.deploy.folder import MARK, as_yaml
from cpack_build.deploy.subject import Subject
from cpack_build.errors import UsageError

__all__ = ["FILES", "Options", "Proxy", "compose_files"]

_PORT = 3000
_PYTHON = "/opt/cpack/bin/python"
_IS_READY = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{_PORT}/readyz', timeout=5)"
"""Fails for every other status than 200."""
_MARGIN = 30
_SERVICE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_SIZE = re.compile(r"[1-9][0-9]*[mg]")


@dataclass(frozen=True)
class Proxy:
    """Caddy before the service. *image* is by digest; *tls* is Let's Encrypt's, or that of a CA of its own."""

    host: str
    image: str
    tls: Literal["acme", "internal"] = "acme"
    http_port: int = 80
    https_port: int = 443

    def __post_init__(self) -> None:
        if _HOST.fullmatch(self.host) is None:
            raise UsageError(
                f"--host is {self.host!r}, which is no host name.", hint="Write it as upscale.example.com."
            )
        if "@sha256:" not in self.image:
            raise UsageError(f"--proxy-image is {self.image!r}, without a digest.", hint="Write NAME@sha256:….")


@dataclass(frozen=True)
class Options:
    """How an image is to run on one host. Times are seconds, *memory* is as Docker writes it (``12g``)."""

    name: str
    port: int = 3000
    address: str = "127.0.0.1"
    gpus: int = 0
    memory: str | None = None
    cpus: float | None = None
    token: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    """Variables whose value comes from ``.env`` or the environment of whoever starts it."""
    egress: bool = False
    warm_up: bool = False
    ready_seconds: int = 1800
    drain_seconds: int = 120
    proxy: Proxy | None = None

    def __post_init__(self) -> None:
        """Raises :class:`UsageError`, :class:`UnsafeInput`."""
        if _SERVICE.fullmatch(self.name) is None:
            raise UsageError(
                f"--name is {self.name!r}, which Compose refuses.",
                hint="A name is up to 63 lowercase letters, digits, '-' and '_', and begins with a letter or digit.",
            )
        if self.name == "proxy":
            raise UsageError("--name is 'proxy', which the proxy is called.", hint="Choose another.")
        if self.memory is not None and _SIZE.fullmatch(self.memory) is None:
            raise UsageError(f"--memory is {self.memory!r}.", hint="Write it as Docker does: 12g, 900m.")
        for name, value in self.environment:
            check_variable(name, value, instead=f"Keep it in .env beside the file, and say --env-secret {name}.")
        for name in self.secrets:
            check_variable(name, None, instead="")


FILES = ("compose.yaml", "Caddyfile")
"""All that :func:`compose_files` can make."""


def compose_files(subject: Subject, options: Options) -> dict[str, str]:
    """The files by name: ``compose.yaml``, and the proxy's ``Caddyfile``.

    Raises :class:`UsageError` where image and options do not fit.
    """
    if options.gpus and subject.vendor is None:
        raise UsageError(
            f"The image is for {subject.target}: its torch could not use a GPU.",
            hint="Leave --gpus out, or lock and build it with --target cuda… .",
        )
    if subject.models and not subject.has_models:
        raise UsageError(
            f"{subject.reference} was pushed without its models, which Compose cannot mount.",
            hint="Push it with them.",
        )
    services = {options.name: _service(subject, options)}
    document: dict[str, Any] = {"services": services, "volumes": {"data": {}}}
    if options.proxy is not None:
        services["proxy"] = _proxy(options.proxy, options)
        document["volumes"] |= {"proxy-data": {}, "proxy-config": {}}
        document["networks"] = {"inner": {"internal": True}, "outer": {}}
    files = {"compose.yaml": as_yaml(document, hint="Change it in compose.override.yaml.")}
    if options.proxy is not None:
        files["Caddyfile"] = _caddyfile(options.proxy, options)
    return files


def _service(subject: Subject, options: Options) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": subject.reference,
        "restart": "unless-stopped",
        "platform": subject.platforms[0] if len(subject.platforms) == 1 else None,
        **_hardened(),
        "mem_limit": options.memory,
        "cpus": options.cpus,
        "environment": _environment(options),
        "ports": [f"{options.address}:{options.port}:{_PORT}"] if options.proxy is None else None,
        "volumes": ["data:/data"],
        "tmpfs": ["/tmp:size=512m,mode=1777"],  # noqa: S108 - in the container, and its own
        "stop_grace_period": f"{options.drain_seconds + _MARGIN}s",
        "healthcheck": {
            "test": ["CMD", _PYTHON, "-c", _IS_READY],
            "interval": "10s",
            "timeout": "10s",
            "retries": 3,
            "start_period": f"{options.ready_seconds}s",
        },
        "deploy": _gpus(subject, options),
        "devices": ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"] if options.gpus and subject.vendor == "amd" else None,
    }
    if options.proxy is not None:
        service["networks"] = ["inner", "outer"] if options.egress else ["inner"]
    return {key: value for key, value in service.items() if value is not None}


def _hardened() -> dict[str, Any]:
    return {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 4096,
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
    }


def _environment(options: Options) -> dict[str, str]:
    plain = {"CPACK_LOG": "json", "CPACK_SHUTDOWN_SECONDS": str(options.drain_seconds)}
    if not options.gpus:
        plain["NVIDIA_VISIBLE_DEVICES"] = "void"  # the image asks for all, which NVIDIA's runtime would give
    if options.warm_up:
        plain["CPACK_WARM_UP"] = "1"
    # Compose would fill in what follows a dollar
    found = {name: value.replace("$", "$$") for name, value in {**plain, **dict(options.environment)}.items()}
    for name in (*options.secrets, *(["CPACK_TOKEN"] if options.token else [])):
        found[name] = f"${{{name}:?write {name}=… into .env beside this file}}"
    return dict(sorted(found.items()))


def _gpus(subject: Subject, options: Options) -> dict[str, Any] | None:
    if not options.gpus or subject.vendor != "nvidia":
        return None
    device = {"driver": "nvidia", "count": options.gpus, "capabilities": ["gpu"]}
    return {"resources": {"reservations": {"devices": [device]}}}


# -- the proxy ---------------------------------------------------------------------------------------------------------


def _proxy(proxy: Proxy, options: Options) -> dict[str, Any]:
    return {
        "image": proxy.image,
        "restart": "unless-stopped",
        "depends_on": [options.name],
        **_hardened(),
        "cap_add": ["NET_BIND_SERVICE"],
        "ports": [
            f"{proxy.http_port}:80",
            f"{proxy.https_port}:443",
            f"{proxy.https_port}:443/udp",
        ],
        "volumes": ["./Caddyfile:/etc/caddy/Caddyfile:ro", "proxy-data:/data", "proxy-config:/config"],
        "networks": ["inner", "outer"],
    }


def _caddyfile(proxy: Proxy, options: Options) -> str:
    """Requests of any size pass, as the service has a limit of its own, and progress is passed on as it comes. Without
    a token the service's metrics are kept within."""
    blocks: Mapping[str, list[str]] = {
        "{": ["admin off", *(["skip_install_trust"] if proxy.tls == "internal" else [])],
        f"{proxy.host} {{": [
            *(["tls internal"] if proxy.tls == "internal" else []),
            "header Strict-Transport-Security max-age=31536000",
            *([] if options.token else ["respond /metrics 404"]),
            f"reverse_proxy {options.name}:{_PORT} {{",
            "\tflush_interval -1",
            "}",
        ],
    }
    lines = [f"{MARK} Make it again to change it."]
    for head, body in blocks.items():
        lines += [head, *(f"\t{line}" for line in body), "}", ""]
    return "\n".join(lines)
