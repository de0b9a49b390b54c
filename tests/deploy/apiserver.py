"""The part of Kubernetes' API that applying needs, as its documents describe it: discovery, server-side apply with its
field managers, conflicts and dry runs, and the objects that controllers would make, which a test writes itself.

What is applied is checked by Kubernetes' own schemas. https://kubernetes.io/docs/reference/using-api/server-side-apply/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from tests.fetch.servers import Answer, Request, serving

TOKEN = "cluster-login-of-the-test"
BUILT_IN: Mapping[str, Mapping[str, tuple[str, bool]]] = {
    "v1": {
        "Service": ("services", True),
        "ServiceAccount": ("serviceaccounts", True),
        "Pod": ("pods", True),
        "Node": ("nodes", False),
    },
    "apps/v1": {"Deployment": ("deployments", True)},
    "policy/v1": {"PodDisruptionBudget": ("poddisruptionbudgets", True)},
    "networking.k8s.io/v1": {"Ingress": ("ingresses", True), "NetworkPolicy": ("networkpolicies", True)},
    "autoscaling/v2": {"HorizontalPodAutoscaler": ("horizontalpodautoscalers", True)},
}
SERVICE_MONITOR = {"monitoring.coreos.com/v1": {"ServiceMonitor": ("servicemonitors", True)}}


@dataclass
class ApiServer:
    """A cluster. *look* is called each time that the Deployment is looked at, and may change :attr:`objects`."""

    namespaces: set[str] = field(default_factory=lambda: {"default", "pictures"})
    kinds: dict[str, Mapping[str, tuple[str, bool]]] = field(default_factory=lambda: dict(BUILT_IN))
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path, such as ``/apis/apps/v1/namespaces/default/deployments/upscale``."""
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    """Path of an object, field → the other manager that set it."""
    forbidden: str = ""
    """A pattern of paths that this login may not use."""
    logs: dict[str, str] = field(default_factory=dict)
    look: Callable[[ApiServer, int], None] = lambda server, times: None
    applied: list[tuple[str, bool]] = field(default_factory=list)
    """Kind, and whether it was a dry run."""
    url: str = ""
    _looks: int = 0

    def answer(self, request: Request) -> Answer:
        """What the API says."""
        split = urlsplit(request.path)
        path, query = split.path, {key: values[-1] for key, values in parse_qs(split.query).items()}
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if self.forbidden and re.search(self.forbidden, path):
            return _status(403, f'User "tester" cannot do that: {path}')
        if (found := self._discovery(path)) is not None:
            return _json(found)
        if path.endswith("/log"):
            return Answer(body=self.logs.get(path.split("/")[-2], "").encode(), headers={"Content-Type": "text/plain"})
        if request.method == "PATCH":
            return self._patch(path, query, request)
        if path in self.objects:
            if "/deployments/" in path:
                self._looks += 1
                self.look(self, self._looks)
            return _json(self.objects[path])
        if path.rpartition("/")[2] in {name for kinds in self.kinds.values() for name, _ in kinds.values()}:
            labels = dict(one.split("=") for one in query.get("labelSelector", "").split(",") if one)
            items = [
                one
                for place, one in self.objects.items()
                if place.rpartition("/")[0] == path and labels.items() <= (one["metadata"].get("labels") or {}).items()
            ]
            return _json({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
        return _status(404, f"{path} not found")

    def put(self, path: str, document: Mapping[str, Any]) -> None:
        """Have an object there, as a controller would make it."""
        self.objects[path] = {"metadata": {"name": path.rpartition("/")[2]}, **document}

    def pod(self, name: str, *, namespace: str = "default", **status: Any) -> None:
        """Have a pod of the deployment there."""
        labels = {"app.kubernetes.io/instance": "up-scale", "app.kubernetes.io/name": "cpack-service"}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self.put(path, {"metadata": {"name": name, "labels": labels}, "status": status})

    def node(self, name: str, architecture: str, **allocatable: str) -> None:
        """Have a node there."""
        status = {"nodeInfo": {"architecture": architecture}, "allocatable": {"cpu": "4", **allocatable}}
        self.put(f"/api/v1/nodes/{name}", {"status": status})

    def deployment(self, *, namespace: str = "default", **status: Any) -> None:
        """Set the Deployment's status."""
        found = self.objects[f"/apis/apps/v1/namespaces/{namespace}/deployments/up-scale"]
        found["status"] = {"observedGeneration": found["metadata"]["generation"], **status}

    def _patch(self, path: str, query: Mapping[str, str], request: Request) -> Answer:
        assert request.headers["content-type"] == "application/apply-patch+yaml"
        assert query["fieldManager"] == "cpack-build"
        document = yaml.safe_load(request.body)
        match = re.fullmatch(r"/(?:api|apis)/(.+)/namespaces/([^/]+)/([^/]+)/([^/]+)", path)
        assert match is not None, path
        version, namespace, plural, name = match.groups()
        kinds = self.kinds.get(version, {})
        if kinds.get(document["kind"], ("",))[0] != plural:
            return _status(404, "the server could not find the requested resource")
        if namespace not in self.namespaces:
            return _status(404, f'namespaces "{namespace}" not found')
        assert (document["metadata"]["name"], document["metadata"]["namespace"]) == (name, namespace)
        if version in BUILT_IN:
            try:
                kubernetes_validate.validate(document, "1.33", strict=True)
            except kubernetes_validate.ValidationError as error:
                return _status(422, f"{document['kind']} is invalid: {error}")
        for (place, what), manager in self.owners.items():
            if place == path and query.get("force") not in ("true", "True"):
                return _status(409, f'Apply failed with 1 conflict: conflict with "{manager}": {what}')
        is_dry = query.get("dryRun") == "All"
        self.applied.append((document["kind"], is_dry))
        if not is_dry:
            before = self.objects.get(path, {})
            generation = before.get("metadata", {}).get("generation", 0)
            changed = before.get("spec") != document.get("spec")
            document["metadata"]["generation"] = generation + changed
            self.objects[path] = {**document, **({"status": before["status"]} if "status" in before else {})}
        return _json(document)

    def _discovery(self, path: str) -> dict[str, Any] | None:
        groups = [version for version in self.kinds if "/" in version]
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.1"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [
                    {
                        "name": one.partition("/")[0],
                        "versions": [{"groupVersion": one, "version": one.partition("/")[2]}],
                        "preferredVersion": {"groupVersion": one, "version": one.partition("/")[2]},
                    }
                    for one in groups
                ],
            }
        for version, kinds in self.kinds.items():
            if path == f"/{'apis' if '/' in version else 'api'}/{version}":
                return {
                    "kind": "APIResourceList",
                    "groupVersion": version,
                    "resources": [
                        {
                            "name": plural,
                            "singularName": kind.lower(),
                            "namespaced": namespaced,
                            "kind": kind,
                            "verbs": ["create", "get", "list", "patch", "watch"],
                        }
                        for kind, (plural, namespaced) in kinds.items()
                    ],
                }
        return None


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[tuple[ApiServer, Path]]:
    """A cluster, and the kubeconfig that leads to it."""
    cluster = ApiServer(**settings)
    with serving(cluster.answer) as server:
        cluster.url = server.url
        yield cluster, kubeconfig(folder / "kubeconfig", server.url)


def kubeconfig(path: Path, url: str, *, token: str = TOKEN, namespace: str = "") -> Path:
    """A kubeconfig at *path*."""
    context = {"cluster": "c", "user": "u", **({"namespace": namespace} if namespace else {})}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": context}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _json(document: Any) -> Answer:
    return Answer(body=json.dumps(document).encode(), headers={"Content-Type": "application/json"})


def _status(code: int, message: str) -> Answer:
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return Answer(code, json.dumps(document).encode(), {"Content-Type": "application/json"})
