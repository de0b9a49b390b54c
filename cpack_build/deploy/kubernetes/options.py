"""What is asked of a deployment to Kubernetes, checked as a whole: the options of the command line as one document."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from cpack_build.deploy.environment import check_variable
from cpack_build.deploy.kubernetes.grammar import (
    check_host,
    check_label,
    check_object_name,
    check_secret_key,
    check_service_name,
    quantity,
)
from cpack_build.errors import UsageError

__all__ = ["Key", "Options", "Resources", "Toleration"]


@dataclass(frozen=True)
class Key:
    """One value in a Secret of the cluster."""

    secret: str
    key: str

    @classmethod
    def parse(cls, text: str, *, what: str, default: str = "") -> Key:
        """``SECRET:KEY``, or ``SECRET`` with the *default* key. Raises :class:`UsageError` naming *what*."""
        secret, _, key = text.partition(":")
        return cls(check_object_name(secret, what=what), check_secret_key(key or default, what=what))


@dataclass(frozen=True)
class Toleration:
    """A taint that the pods do not mind: ``KEY[=VALUE][:EFFECT]``."""

    key: str
    value: str = ""
    effect: str = ""

    @classmethod
    def parse(cls, text: str) -> Toleration:
        """Raises :class:`UsageError`."""
        pair, _, effect = text.partition(":")
        key, _, value = pair.partition("=")
        check_label(key, value, what="--toleration")
        if effect not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
            raise UsageError(f"--toleration {text} has the effect {effect!r}.", hint="NoSchedule is the usual one.")
        return cls(key, value, effect)


@dataclass(frozen=True)
class Resources:
    """What a pod is promised and what it may take, as quantities."""

    cpu: str
    cpu_limit: str
    memory: str
    memory_limit: str
    storage: str
    """Of outputs, results that are kept and uploads; ComfyUI's and the service's own limits are set to it."""

    def __post_init__(self) -> None:
        for what, low, high in (
            ("--cpu", self.cpu, self.cpu_limit),
            ("--memory", self.memory, self.memory_limit),
        ):
            if quantity(low, what=what) > quantity(high, what=what):
                raise UsageError(f"{what} asks for {low} and is limited to {high}.", hint="Write REQUEST:LIMIT.")
        if quantity(self.storage, what="--storage") < 1 << 30:
            raise UsageError(f"--storage is {self.storage}.", hint="Outputs and results need 1Gi at least.")


@dataclass(frozen=True)
class Options:
    """How an image is to run in a cluster. Times are seconds.

    *gpus* of *gpu_resource* go to each pod. *min_replicas* and *max_replicas* are the same where nothing scales.
    *prometheus* is where KEDA asks. *allow_from* are namespaces that may reach the pods, *allow_to* networks that the
    pods may reach (``0.0.0.0/0`` for any). *gateway* is ``[NAMESPACE/]NAME``.
    """

    name: str
    resources: Resources
    namespace: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    autoscaler: Literal["hpa", "keda"] = "hpa"
    prometheus: str | None = None
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    gpu_product: str | None = None
    gpu_memory_mib: int | None = None
    runtime_class: str | None = None
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    secret_environment: tuple[tuple[str, Key], ...] = ()
    token: Key | None = None
    pull_secrets: tuple[str, ...] = ()
    host: str | None = None
    ingress_class: str | None = None
    ingress_annotations: tuple[tuple[str, str], ...] = ()
    tls_secret: str | None = None
    gateway: str | None = None
    allow_from: tuple[str, ...] = ()
    allow_to: tuple[str, ...] = ()
    service_monitor: tuple[tuple[str, str], ...] | None = None
    """Labels by which a Prometheus finds it; ``None`` for no ServiceMonitor."""
    warm_up: bool = False
    surge: bool = True
    ready_seconds: int = 1800
    drain_seconds: int = 120

    def __post_init__(self) -> None:
        """Raises :class:`UsageError` for what Kubernetes would refuse, or what cannot work."""
        check_service_name(self.name, what="--name")
        if self.namespace is not None:
            check_service_name(self.namespace, what="--namespace")
        for name in self.pull_secrets:
            check_object_name(name, what="--pull-secret")
        for what, given in (
            ("--runtime-class", self.runtime_class),
            ("--ingress-class", self.ingress_class),
            ("--tls-secret", self.tls_secret),
        ):
            if given is not None:
                check_object_name(given, what=what)
        for part in self.gateway.split("/", 1) if self.gateway is not None else ():
            check_object_name(part, what="--gateway")
        for key, value in self.node_selector:
            check_label(key, value, what="--node-selector")
        for key, value in self.service_monitor or ():
            check_label(key, value, what="--service-monitor-label")
        for variable, value in self.environment:
            kept = f"Keep it in a Secret of the cluster, and say --env-secret {variable}=SECRET:KEY."
            check_variable(variable, value, instead=kept)
        for variable, _ in self.secret_environment:
            check_variable(variable, None, instead="")
        for name in self.allow_from:
            check_service_name(name, what="--allow-from")
        self._check_gpu()
        self._check_networks()
        self._check_traffic()
        self._check_scaling()

    @property
    def is_scaled(self) -> bool:
        """Whether something other than a person sets the number of replicas."""
        return self.max_replicas > self.min_replicas

    def _check_gpu(self) -> None:
        check_label(self.gpu_resource, "", what="--gpu-resource")
        if self.gpu_product is not None:
            check_label("nvidia.com/gpu.product", self.gpu_product, what="--gpu-product")
        if not self.gpus and (self.gpu_product or self.gpu_memory_mib):
            raise UsageError(
                "--gpu-product and --gpu-memory are for pods with a GPU, and these have none.", hint="Add --gpus 1."
            )

    def _check_networks(self) -> None:
        for network in self.allow_to:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise UsageError(
                    f"--allow-to is {network!r}, which is no network.",
                    hint="Write it as 10.0.0.0/8, or 0.0.0.0/0 for any.",
                ) from error

    def _check_traffic(self) -> None:
        if self.host is not None:
            check_host(self.host)
        if self.gateway is not None and (self.ingress_class or self.tls_secret):
            raise UsageError(
                "--gateway is instead of an Ingress; a Gateway has its certificates itself.",
                hint="Leave --ingress-class and --tls-secret out.",
            )
        if self.host is None and (self.gateway or self.ingress_class or self.tls_secret or self.ingress_annotations):
            raise UsageError("Which requests an Ingress or Gateway is to pass on is not said.", hint="Add --host NAME.")

    def _check_scaling(self) -> None:
        if self.min_replicas < 1:
            raise UsageError(
                "With no pod there is nobody to count the requests that wait, so the first one would never be served.",
                hint="Keep one replica.",
            )
        if self.max_replicas < self.min_replicas:
            raise UsageError(
                f"--max-replicas {self.max_replicas} is less than --replicas {self.min_replicas}.",
                hint="Leave it out for a fixed number.",
            )
        if self.autoscaler == "keda" and not self.is_scaled:
            raise UsageError("KEDA has nothing to scale.", hint="Add --max-replicas COUNT.")
        if self.is_scaled and self.autoscaler == "keda" and (self.prometheus is None or self.namespace is None):
            raise UsageError(
                "KEDA asks Prometheus how many requests wait, and in which namespace.",
                hint="Add --prometheus http://HOST:9090 and --namespace NAME.",
            )
        if self.prometheus is not None and not self.prometheus.startswith(("http://", "https://")):
            raise UsageError(f"--prometheus is {self.prometheus!r}, which is no URL.", hint="Write http://HOST:9090.")
        if "@" in (self.prometheus or ""):
            raise UsageError("The URL of --prometheus has a password in it.", hint="Use KEDA's TriggerAuthentication.")
