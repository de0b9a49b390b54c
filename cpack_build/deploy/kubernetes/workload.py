"""The pods: a Deployment of the image, hardened, with probes that know when ComfyUI and its models are there; its
ServiceAccount, which may do nothing, and its PodDisruptionBudget.

The rules are those of the Pod Security Standard "restricted"
(https://kubernetes.io/docs/concepts/security/pod-security-standards/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cpack_build.deploy.kubernetes.grammar import quantity
from cpack_build.deploy.kubernetes.options import Options
from cpack_build.deploy.subject import MIB, ModelVolume, Subject
from cpack_build.oci.modellayer import model_path

__all__ = ["HTTP", "PORT", "Document", "deployment", "disruption_budget", "labels", "metadata", "selector"]

Document = dict[str, Any]
PORT = 3000
HTTP = "http"
"""The name of the port in every object."""
_PYTHON = "/opt/cpack/bin/python"
_USER = 1000
_PERIOD = 5
"""Seconds between two looks of a probe."""
_SPREAD_SECONDS = 5
"""That a pod which is to end still serves, until everybody has heard that it is no longer among the endpoints."""
_MARGIN = 30
_DATA = "/data"
_VOLUMES = "/volumes"
_LINKS = "/links"
_LINK = (
    f"import os, sys; [os.symlink('{_VOLUMES}/' + one[:12] + '/models/sha256/' + one, '{_LINKS}/' + one) "
    f"for one in sys.argv[1:] if not os.path.islink('{_LINKS}/' + one)]"
)
"""Image volumes are mounted whole: single files of them are not (containerd takes folders alone for their subPath). So
the place where the image has its models becomes a folder of links into them."""


def selector(options: Options) -> dict[str, str]:
    """The labels by which everything finds the pods."""
    return {"app.kubernetes.io/instance": options.name, "app.kubernetes.io/name": "cpack-service"}


def labels(options: Options) -> dict[str, str]:
    """Those of every object."""
    return {
        **selector(options),
        "app.kubernetes.io/component": "comfyui",
        "app.kubernetes.io/managed-by": "cpack-build",
    }


def metadata(options: Options, **more: Any) -> Document:
    """Name, namespace and labels of an object."""
    namespace = {"namespace": options.namespace} if options.namespace else {}
    return {"name": options.name, **namespace, "labels": labels(options), **more}


def deployment(subject: Subject, options: Options, volumes: Sequence[ModelVolume] = ()) -> list[Document]:
    """The ServiceAccount and the Deployment. With *volumes* the models are those, instead of the image's own."""
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(options),
        "automountServiceAccountToken": False,
    }
    if options.pull_secrets:
        account["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    spec: Document = {
        "progressDeadlineSeconds": options.ready_seconds + options.drain_seconds + _MARGIN,
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": selector(options)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": int(options.surge), "maxUnavailable": int(not options.surge)},
        },
        "template": {
            "metadata": {"labels": labels(options)},
            "spec": _pod(subject, options, volumes),
        },
    }
    if not options.is_scaled:  # else it is the autoscaler's, and applying again must not take it back
        spec = {"replicas": options.min_replicas, **spec}
    return [
        account,
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(options), "spec": spec},
    ]


def disruption_budget(options: Options) -> Document:
    """One pod at a time may be taken away; with a single one ``minAvailable`` would block every drain of its node."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(options),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(options)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _pod(subject: Subject, options: Options, volumes: Sequence[ModelVolume]) -> Document:
    pod: Document = {
        "serviceAccountName": options.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": options.drain_seconds + _SPREAD_SECONDS + _MARGIN,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": _nodes(subject, options)}},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(options)},
            }
        ],
        "containers": [_container(subject, options, volumes)],
        "volumes": _volumes(options, volumes),
    }
    if options.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    if options.runtime_class is not None:
        pod["runtimeClassName"] = options.runtime_class
    if options.node_selector:
        pod["nodeSelector"] = dict(sorted(options.node_selector))
    if tolerations := _tolerations(options):
        pod["tolerations"] = tolerations
    if volumes:
        pod["initContainers"] = [_linker(subject, volumes)]
    return pod


def _nodes(subject: Subject, options: Options) -> Document:
    """Which nodes can run it: their architecture, and by the labels of NVIDIA's GPU feature discovery their GPU."""
    wanted: list[Document] = [
        {"key": "kubernetes.io/arch", "operator": "In", "values": list(subject.architectures)},
        {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
    ]
    if options.gpu_product is not None:
        wanted.append({"key": "nvidia.com/gpu.product", "operator": "In", "values": [options.gpu_product]})
    if options.gpu_memory_mib is not None:
        wanted.append({"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [str(options.gpu_memory_mib - 1)]})
    return {"nodeSelectorTerms": [{"matchExpressions": wanted}]}


def _tolerations(options: Options) -> list[Document]:
    found: list[Document] = []
    if options.gpus:  # nodes with GPUs are often kept for those who ask for one, by a taint named as the resource
        found.append({"key": options.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    for toleration in options.tolerations:
        one: Document = {"key": toleration.key, "operator": "Equal" if toleration.value else "Exists"}
        one |= {"value": toleration.value} if toleration.value else {}
        one |= {"effect": toleration.effect} if toleration.effect else {}
        found.append(one)
    return found


def _container(subject: Subject, options: Options, volumes: Sequence[ModelVolume]) -> Document:
    ready = {"path": "/readyz", "port": HTTP}
    return {
        "name": "service",
        "image": subject.reference,
        "imagePullPolicy": "IfNotPresent",  # what the digest names never changes
        "ports": [{"name": HTTP, "containerPort": PORT, "protocol": "TCP"}],
        "env": _environment(options),
        "resources": _resources(options),
        "securityContext": _hardened(),
        # /readyz answers 200 when ComfyUI does, and with CPACK_WARM_UP once it has run the workflow: the models are
        # loaded then. The service starts a ComfyUI that died again itself, so /livez tells of the service alone.
        "startupProbe": _probe(ready, failures=-(-options.ready_seconds // _PERIOD)),
        "readinessProbe": _probe(ready, failures=3),
        "livenessProbe": _probe({"path": "/livez", "port": HTTP}, failures=6, period=2 * _PERIOD),
        "lifecycle": {
            "preStop": {"exec": {"command": [_PYTHON, "-c", f"import time; time.sleep({_SPREAD_SECONDS})"]}},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": _DATA},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the pod, and its own
            *([{"name": "models", "mountPath": "/models/sha256", "readOnly": True}] if volumes else []),
            *(_mount(volume) for volume in volumes),
        ],
    }


def _probe(request: Document, *, failures: int, period: int = _PERIOD) -> Document:
    return {"httpGet": request, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _hardened() -> Document:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _environment(options: Options) -> list[Document]:
    storage = int(quantity(options.resources.storage, what="--storage")) // MIB
    threads = max(1, int(quantity(options.resources.cpu_limit, what="--cpu")))
    plain = {
        "CPACK_KEEP_MIB": str(storage // 8),
        "CPACK_LOG": "json",
        "CPACK_OUTPUT_MIB": str(storage // 2),
        "CPACK_SHUTDOWN_SECONDS": str(options.drain_seconds),
        # torch counts the node's processors, not the pod's share of them, and more threads than that only wait
        "OMP_NUM_THREADS": str(threads),
    }
    if not options.gpus:
        # The image asks for all GPUs, as NVIDIA documents; where its runtime is the default one, it would get them.
        plain["NVIDIA_VISIBLE_DEVICES"] = "void"
    if options.warm_up:
        plain["CPACK_WARM_UP"] = "1"
    plain |= dict(options.environment)
    keys = dict(options.secret_environment)
    if options.token is not None:
        keys["CPACK_TOKEN"] = options.token
    values: dict[str, Document] = {name: {"name": name, "value": value} for name, value in plain.items()}
    for name, key in keys.items():
        values[name] = {"name": name, "valueFrom": {"secretKeyRef": {"name": key.secret, "key": key.key}}}
    return [values[name] for name in sorted(values)]


def _resources(options: Options) -> Document:
    asked = options.resources
    # kubelet counts what lies in the volumes and the logs together
    disk = f"{int(quantity(asked.storage, what='--storage')) // MIB + 1024}Mi"
    gpu = {options.gpu_resource: str(options.gpus)} if options.gpus else {}
    return {
        "requests": {"cpu": asked.cpu, "memory": asked.memory, "ephemeral-storage": disk, **gpu},
        "limits": {"cpu": asked.cpu_limit, "memory": asked.memory_limit, "ephemeral-storage": disk, **gpu},
    }


# -- volumes -----------------------------------------------------------------------------------------------------------


def _volumes(options: Options, volumes: Sequence[ModelVolume]) -> list[Document]:
    return [
        {"name": "data", "emptyDir": {"sizeLimit": options.resources.storage}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "512Mi"}},
        *([{"name": "models", "emptyDir": {"sizeLimit": "1Mi"}}] if volumes else []),
        *(
            {"name": _name(volume), "image": {"reference": volume.reference, "pullPolicy": "IfNotPresent"}}
            for volume in volumes
        ),
    ]


def _name(volume: ModelVolume) -> str:
    return f"model-{volume.sha256[:12]}"


def _mount(volume: ModelVolume) -> Document:
    return {"name": _name(volume), "mountPath": f"{_VOLUMES}/{volume.sha256[:12]}", "readOnly": True}


def _linker(subject: Subject, volumes: Sequence[ModelVolume]) -> Document:
    """Makes the links to the models, before ComfyUI starts."""
    assert model_path("x") == "models/sha256/x"  # what _LINK says
    return {
        "name": "models",
        "image": subject.reference,
        "imagePullPolicy": "IfNotPresent",
        "command": [_PYTHON, "-c", _LINK, *(volume.sha256 for volume in volumes)],
        "resources": {
            "requests": {"cpu": "10m", "memory": "64Mi", "ephemeral-storage": "16Mi"},
            "limits": {"cpu": "500m", "memory": "128Mi", "ephemeral-storage": "16Mi"},
        },
        "securityContext": _hardened(),
        "volumeMounts": [{"name": "models", "mountPath": _LINKS}],
    }
