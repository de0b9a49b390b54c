"""A cluster, as its kubeconfig leads to it: the API calls that a deployment needs, with errors that people can use.

All goes through the official client's dynamic half, which finds custom kinds as it finds the built-in ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cpack_build.deploy.kubernetes.workload import Document
from cpack_build.errors import BadInput, CpackError, NetworkError, ToolMissing, Unresolvable
from cpack_build.filesystem import expanded

__all__ = ["Cluster"]

MANAGER = "cpack-build"
"""Who owns the fields that are applied."""
_TIMEOUT = 30
"""Seconds for one request."""
_OPERATORS = {
    "ServiceMonitor": "install Prometheus' operator, or leave --service-monitor out",
    "ScaledObject": "install KEDA, or choose --autoscaler hpa",
    "HTTPRoute": "install the Gateway API, or leave --gateway out for an Ingress",
}


class Cluster:
    """One cluster, spoken to as one context of a kubeconfig says; *namespace* is the context's own."""

    def __init__(self, client: Any, api: Any, namespace: str) -> None:
        self._client = client
        self._api = api
        self.namespace = namespace

    @classmethod
    @contextmanager
    def of(cls, kubeconfig: Path | None, context: str | None) -> Iterator[Cluster]:
        """The cluster of *kubeconfig* (by default ``KUBECONFIG``, ``~/.kube/config``, or the pod's own account).

        Raises :class:`ToolMissing` without a client or a kubeconfig, :class:`BadInput`, :class:`NetworkError`.
        """
        try:
            from kubernetes import client, dynamic
        except ImportError as error:
            raise ToolMissing(
                "--apply needs the Kubernetes client, which is not installed.",
                hint="Install it with `pip install 'cpack-build[kubernetes]'`, or write manifests with -o.",
            ) from error
        configuration, namespace = _configured(kubeconfig, context)
        configuration.retries = False  # what did not answer is told at once, and applying again is safe
        with client.ApiClient(configuration) as api, TemporaryDirectory(prefix="cpack-") as folder:
            # The client would keep what it discovers in a file of a known name that anybody may have put there.
            with _told("asking what it offers"):
                found = dynamic.DynamicClient(api, cache_file=f"{folder}/discovered.json")
            yield cls(found, api, namespace)

    def require(self, document: Document) -> Any:
        """The kind of *document*. Raises :class:`Unresolvable` when the cluster has no such kind."""
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        kind = document["kind"]
        try:
            with _told(f"asking for {kind}"):
                return self._client.resources.get(api_version=document["apiVersion"], kind=kind)
        except ResourceNotFoundError as error:
            hint = _OPERATORS.get(kind, "the cluster may be too old for it")
            raise Unresolvable(
                f"The cluster has no {kind} ({document['apiVersion']}).", hint=f"{hint[0].upper()}{hint[1:]}."
            ) from error

    def apply(self, document: Document, *, namespace: str, dry_run: bool, force: bool) -> Document:
        """Server-side apply of *document*; what the cluster then has. Raises as the cluster refuses it."""
        kind = self.require(document)
        body = {**document, "metadata": {**document["metadata"], "namespace": namespace}}
        with _told(f"{document['kind']} {document['metadata']['name']}", namespace=namespace):
            answer: Document = self._client.server_side_apply(
                kind,
                body=body,
                namespace=namespace,
                field_manager=MANAGER,
                force_conflicts=force,
                _request_timeout=_TIMEOUT,
                **({"dry_run": "All"} if dry_run else {}),
            ).to_dict()
        return answer

    def get(self, api_version: str, kind: str, *, name: str, namespace: str) -> Document:
        """One object."""
        with _told(f"{kind} {name}", namespace=namespace):
            found: Document = (
                self._client.resources.get(api_version=api_version, kind=kind)
                .get(name=name, namespace=namespace, _request_timeout=_TIMEOUT)
                .to_dict()
            )
        return found

    def items(self, api_version: str, kind: str, *, namespace: str | None = None, labels: str = "") -> list[Document]:
        """The objects of one kind, of one namespace or of the cluster. Raises :class:`NetworkError` if forbidden."""
        with _told(f"listing {kind}", namespace=namespace):
            found = (
                self._client.resources.get(api_version=api_version, kind=kind)
                .get(namespace=namespace, label_selector=labels or None, _request_timeout=_TIMEOUT)
                .to_dict()
            )
        listed: list[Document] = found.get("items") or []
        return listed

    def last_words(self, pod: str, *, namespace: str) -> str:
        """The last lines that the container which ended said; nothing if the cluster does not tell."""
        from kubernetes import client

        try:
            with _told(f"the log of {pod}"):
                text = client.CoreV1Api(self._api).read_namespaced_pod_log(
                    pod, namespace, container="service", previous=True, tail_lines=5, _request_timeout=_TIMEOUT
                )
        except CpackError:
            return ""
        return str(text).strip()


def _configured(kubeconfig: Path | None, context: str | None) -> tuple[Any, str]:
    """The client's configuration, and the namespace that goes with it."""
    import yaml
    from kubernetes import client, config

    configuration = client.Configuration()
    named = os.environ.get("KUBECONFIG") or str(expanded("~/.kube/config"))
    paths = [kubeconfig] if kubeconfig is not None else [expanded(one) for one in named.split(os.pathsep)]
    there = [path for path in paths if path.is_file()]
    if not there:
        if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
            own = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
            return configuration, own.read_text().strip() if own.is_file() else "default"
        raise ToolMissing(
            f"There is no kubeconfig: {os.pathsep.join(map(str, paths))} is not there.",
            hint="Name one with --kubeconfig or KUBECONFIG, or write manifests with -o.",
        )
    file = os.pathsep.join(map(str, there))
    try:
        contexts, current = config.list_kube_config_contexts(file)
        chosen = next((one for one in contexts if one["name"] == context), None) if context else current
        if chosen is None:
            names = ", ".join(str(one["name"]) for one in contexts)
            raise BadInput(f"{file} has no context {context!r}.", hint=f"It has {names or 'none'}.")
        config.load_kube_config(file, context=context, client_configuration=configuration, persist_config=False)
    except (config.ConfigException, yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        # The client's message may hold what it could not read, tokens and all.
        raise BadInput(
            f"{file} is no usable kubeconfig.", hint="`kubectl config view` shows what is in it; get it again."
        ) from error
    return configuration, str(chosen["context"].get("namespace") or "default")


@contextmanager
def _told(what: str, *, namespace: str | None = None) -> Iterator[None]:
    """The client's errors as ours; *what* was asked for."""
    import urllib3
    from kubernetes.client import ApiException
    from kubernetes.dynamic.exceptions import DynamicApiError

    try:
        yield
    except (ApiException, DynamicApiError) as error:
        raise _refused(what, namespace, error.status or 0, _message(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The client takes apart what comes without looking: it met no Kubernetes.
        raise NetworkError(
            f"What answers is no Kubernetes API ({what}).", hint="Check the server in the kubeconfig."
        ) from error
    except urllib3.exceptions.HTTPError as error:
        raise NetworkError(
            f"The cluster does not answer ({what}): {type(error).__name__}.",
            hint="See whether `kubectl get nodes` works with the same kubeconfig, and try again.",
        ) from error


def _refused(what: str, namespace: str | None, status: int, message: str) -> CpackError:
    text = f"The cluster refused {what}: {message} (HTTP {status})."
    if status == 401:
        return NetworkError(text, hint="The login of the kubeconfig has ended or is wrong: log in again.")
    if status == 403:
        return NetworkError(text, hint="Ask for that right, or have somebody apply the manifests that -o writes.")
    if status == 404 and namespace is not None:
        return Unresolvable(text, hint=f"Make the namespace first: kubectl create namespace {namespace}")
    if status == 409:
        return BadInput(text, hint="Another program set these fields: --force-conflicts takes them over.")
    if status in (400, 422):
        return BadInput(text, hint="Change the option that it names.")
    return NetworkError(text, hint="Try again.")


def _message(error: Any) -> str:
    """What the API server said (its Status' message), else the reason."""
    body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    told = document.get("message") if isinstance(document, dict) else None
    return str(told or error.reason or "no reason given").rstrip(".")[:500]
