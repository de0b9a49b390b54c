"""What counts requests and sets the number of replicas: ServiceMonitor, HorizontalPodAutoscaler or KEDA's ScaledObject.

A replica works on one request at a time, so two numbers of the service say how many replicas there should be: how busy
each is (``cpack_running``), and how many wait (``cpack_queue_depth``). ``docs/scaling.md`` has the model behind the
targets. Documents: https://prometheus-operator.dev/docs/api-reference/api/, https://keda.sh/docs/latest/reference/.
"""

from __future__ import annotations

from cpack_build.deploy.kubernetes.options import Options
from cpack_build.deploy.kubernetes.workload import HTTP, Document, metadata, selector

__all__ = ["BUSY", "autoscaler", "scaled_object", "service_monitor"]

BUSY = "0.7"
"""Of its time that a replica works, on average over all: what is left takes up chance (``docs/scaling.md``)."""
_WAITING = "1"
"""Requests that wait, for each replica."""
_PATIENCE = 300
"""Seconds that it must have been quiet before a replica goes: to start one again costs more than to keep it."""
_INTERVAL = 15


def service_monitor(options: Options) -> Document:
    """Tells Prometheus' operator to ask each pod, with the service's own token where it has one."""
    assert options.service_monitor is not None
    endpoint: Document = {"port": HTTP, "path": "/metrics", "interval": f"{_INTERVAL}s", "scrapeTimeout": "10s"}
    if options.token is not None:
        endpoint["authorization"] = {
            "type": "Bearer",
            "credentials": {"name": options.token.secret, "key": options.token.key},
        }
    own = metadata(options)
    own["labels"] = {**own["labels"], **dict(options.service_monitor)}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": own,
        "spec": {"selector": {"matchLabels": selector(options)}, "endpoints": [endpoint]},
    }


def autoscaler(options: Options) -> Document:
    """By the pods' own metrics, which an adapter such as prometheus-adapter must offer as custom metrics."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(options),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": options.name},
            "minReplicas": options.min_replicas,
            "maxReplicas": options.max_replicas,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": name},
                        "target": {"type": "AverageValue", "averageValue": value},
                    },
                }
                for name, value in (("cpack_running", f"{round(float(BUSY) * 1000)}m"), ("cpack_queue_depth", _WAITING))
            ],
            "behavior": _behavior(),
        },
    }


def scaled_object(options: Options) -> Document:
    """The same by KEDA, which asks Prometheus itself."""
    assert options.prometheus is not None
    where = f'namespace="{options.namespace}",service="{options.name}"'
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(options),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": options.name},
            "minReplicaCount": options.min_replicas,
            "maxReplicaCount": options.max_replicas,
            "pollingInterval": _INTERVAL,
            "cooldownPeriod": _PATIENCE,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": options.prometheus,
                        "query": f"sum({metric}{{{where}}})",
                        "threshold": value,
                        # a Prometheus that knows nothing must not look like a day without requests
                        "ignoreNullValues": "false",
                    },
                }
                for metric, value in (("cpack_running", BUSY), ("cpack_queue_depth", _WAITING))
            ],
        },
    }


def _behavior() -> Document:
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 60},
                {"type": "Pods", "value": 2, "periodSeconds": 60},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": _PATIENCE,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }
