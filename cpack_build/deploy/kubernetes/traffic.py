"""How the pods are reached, and what they may reach: Service, Ingress or HTTPRoute, and NetworkPolicy.

Gateway API v1: https://gateway-api.sigs.k8s.io/reference/spec/.
"""

from __future__ import annotations

from cpack_build.deploy.kubernetes.options import Options
from cpack_build.deploy.kubernetes.workload import HTTP, PORT, Document, metadata, selector

__all__ = ["ingress", "network_policy", "route", "service"]

_SERVICE_PORT = 80
_LONGEST = "3600s"
"""Of a request: what the service itself allows (``CPACK_TIMEOUT``)."""
_NGINX = {
    "nginx.ingress.kubernetes.io/proxy-body-size": "0",  # the service has a limit of its own
    "nginx.ingress.kubernetes.io/proxy-buffering": "off",  # progress comes as it happens
    "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
}


def service(options: Options) -> Document:
    """The Service, on port 80 within the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(options),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(options),
            "ports": [
                {
                    "name": HTTP,
                    "port": _SERVICE_PORT,
                    "targetPort": HTTP,
                    "protocol": "TCP",
                    "appProtocol": "http",
                }
            ],
        },
    }


def ingress(options: Options) -> Document:
    """An Ingress for the host."""
    assert options.host is not None
    annotations = {**(_NGINX if options.ingress_class == "nginx" else {}), **dict(options.ingress_annotations)}
    backend = {"service": {"name": options.name, "port": {"name": HTTP}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata(options, **({"annotations": dict(sorted(annotations.items()))} if annotations else {})),
        "spec": {
            **({"ingressClassName": options.ingress_class} if options.ingress_class else {}),
            **({"tls": [{"hosts": [options.host], "secretName": options.tls_secret}]} if options.tls_secret else {}),
            "rules": [
                {
                    "host": options.host,
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }
            ],
        },
    }


def route(options: Options) -> Document:
    """An HTTPRoute for the host, attached to a Gateway that is there."""
    assert options.host is not None
    assert options.gateway is not None
    namespace, _, name = options.gateway.rpartition("/")
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata(options),
        "spec": {
            "parentRefs": [{"name": name, **({"namespace": namespace} if namespace else {})}],
            "hostnames": [options.host],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"name": options.name, "port": _SERVICE_PORT}],
                    "timeouts": {"request": _LONGEST, "backendRequest": _LONGEST},
                }
            ],
        },
    }


def network_policy(options: Options) -> Document:
    """Who may reach the pods: those of the same namespace and of the named ones, at the one port. What they may reach:
    DNS, and the named networks. Nothing that a custom node does gets further."""
    sources: list[Document] = [{"podSelector": {}}]
    sources += [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in sorted(set(options.allow_from))
    ]
    egress: list[Document] = [
        {
            "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
            "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
        }
    ]
    if options.allow_to:
        egress.append({"to": [{"ipBlock": {"cidr": network}} for network in sorted(set(options.allow_to))]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(options),
        "spec": {
            "podSelector": {"matchLabels": selector(options)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": sources, "ports": [{"protocol": "TCP", "port": PORT}]}],
            "egress": egress,
        },
    }
