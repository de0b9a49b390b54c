"""What every manifest must hold to, whatever was asked for: the Pod Security Standard "restricted", and our own rules.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jsonschema
import kubernetes_validate

VERSIONS = ("1.33", "1.37")
_VOLUMES = {"emptyDir", "image", "configMap", "secret", "projected", "downwardAPI", "persistentVolumeClaim", "csi"}

# Written by hand from the documents that each names; the kinds are not part of Kubernetes.
_METADATA = {"type": "object", "required": ["name", "labels"]}
CUSTOM: Mapping[str, Any] = {
    # https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor
    "monitoring.coreos.com/v1/ServiceMonitor": {
        "type": "object",
        "required": ["selector", "endpoints"],
        "additionalProperties": False,
        "properties": {
            "selector": {
                "type": "object",
                "required": ["matchLabels"],
                "additionalProperties": False,
                "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
            },
            "endpoints": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "port": {"type": "string"},
                        "path": {"type": "string", "pattern": "^/"},
                        "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                        "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+s$"},
                        "authorization": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "type": {"type": "string"},
                                "credentials": {
                                    "type": "object",
                                    "required": ["name", "key"],
                                    "additionalProperties": False,
                                    "properties": {"name": {"type": "string"}, "key": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    # https://keda.sh/docs/latest/reference/scaledobject-spec/, …/scalers/prometheus/ (metadata are strings throughout)
    "keda.sh/v1alpha1/ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "name": {"type": "string"},
                },
            },
            "minReplicaCount": {"type": "integer", "minimum": 0},
            "maxReplicaCount": {"type": "integer", "minimum": 1},
            "pollingInterval": {"type": "integer", "minimum": 1},
            "cooldownPeriod": {"type": "integer", "minimum": 0},
            "advanced": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"horizontalPodAutoscalerConfig": {"type": "object", "required": ["behavior"]}},
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"const": "prometheus"},
                        "metricType": {"enum": ["AverageValue", "Value"]},
                        "metadata": {
                            "type": "object",
                            "required": ["serverAddress", "query", "threshold"],
                            "additionalProperties": {"type": "string"},
                        },
                    },
                },
            },
        },
    },
    # https://gateway-api.sigs.k8s.io/reference/spec/#httproute
    "gateway.networking.k8s.io/v1/HTTPRoute": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "parentRefs": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}},
                },
            },
            "hostnames": {"type": "array", "items": {"type": "string"}},
            "rules": {
                "type": "array",
                "maxItems": 16,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "matches": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {
                                    "path": {
                                        "type": "object",
                                        "properties": {"type": {"enum": ["Exact", "PathPrefix", "RegularExpression"]}},
                                    }
                                },
                            },
                        },
                        "backendRefs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name", "port"],
                                "properties": {"port": {"type": "integer"}},
                            },
                        },
                        "timeouts": {
                            "type": "object",
                            "additionalProperties": {
                                "type": "string",
                                "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
                            },
                        },
                    },
                },
            },
        },
    },
}


def check_schemas(documents: Sequence[Mapping[str, Any]]) -> None:
    """Every document is what the schemas of the oldest and newest Kubernetes that we name say, or its operator's."""
    for document in documents:
        key = f"{document['apiVersion']}/{document['kind']}"
        if key in CUSTOM:
            jsonschema.validate(document["metadata"], _METADATA)
            jsonschema.validate(document["spec"], CUSTOM[key])
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(dict(document), version, strict=True)


def check_policy(documents: Sequence[Mapping[str, Any]]) -> None:
    """Nothing breaks a rule."""
    found = [problem for document in documents for problem in violations(document)]
    assert not found, "\n".join(found)
    selected = [
        document["spec"]["selector"]["matchLabels"] for document in documents if document["kind"] == "Deployment"
    ]
    for document in documents:
        spec = document.get("spec", {})
        chosen = spec.get("podSelector", spec.get("selector", {}))
        if document["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            assert [chosen["matchLabels"]] == selected


def violations(document: Mapping[str, Any]) -> Iterator[str]:
    """What *document* breaks."""
    if document["kind"] == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
        yield "the ServiceAccount's token is mounted"
    if document["kind"] != "Deployment":
        return
    pod = document["spec"]["template"]["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name} is set"
    if pod.get("automountServiceAccountToken") is not False:
        yield "a token of the cluster is mounted"
    own = pod.get("securityContext", {})
    if own.get("runAsNonRoot") is not True or not own.get("runAsUser"):
        yield "the pod may run as root"
    if own.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod has no seccomp profile"
    for volume in pod.get("volumes", ()):
        if kinds := volume.keys() - {"name"} - _VOLUMES:
            yield f"the volume {volume['name']} is a {kinds}"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"the volume {volume['name']} has no limit"
        if "image" in volume and not _is_pinned(volume["image"]["reference"]):
            yield f"the volume {volume['name']} is {volume['image']['reference']}"
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        yield from (f"{container['name']}: {problem}" for problem in _of_container(container))


def _of_container(container: Mapping[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context["capabilities"].get("add"):
        yield "has capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root"
    if context.get("runAsNonRoot") is not True:
        yield "may be root"
    if not _is_pinned(container["image"]):
        yield f"is {container['image']}"
    for kind in ("requests", "limits"):
        if missing := {"cpu", "memory", "ephemeral-storage"} - container.get("resources", {}).get(kind, {}).keys():
            yield f"has no {kind} of {missing}"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "takes a port of its node"


def _is_pinned(reference: str) -> bool:
    return re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", reference) is not None and ":latest" not in reference
