"""Giving the objects to a cluster, all or none, and waiting until the pods serve: if they never do, why is told.

First every object is checked by the cluster itself (a dry run), so that a kind that it does not have, or a field that
it refuses, leaves nothing half-made; then they are applied; then the Deployment's status is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpack_build.deploy.kubernetes.cluster import Cluster
from cpack_build.deploy.kubernetes.workload import Document
from cpack_build.errors import CpackError, EngineFailed, NetworkError, Unresolvable
from cpack_build.progress import SILENT, Progress

__all__ = ["Applied", "apply"]

_POLL = 1.0
"""Seconds between two looks at the Deployment."""
_HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""Reasons to wait that waiting never ends (kubelet, images/types.go)."""
_CRASHES = 3
"""Restarts of one container after which it is not expected to start any more."""
_USUAL = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True)
class Applied:
    """What the cluster has now, in *namespace*; *ready* replicas serve, ``None`` where nobody waited."""

    namespace: str
    objects: tuple[str, ...]
    """``Kind/name``."""
    url: str
    ready: int | None
    dry_run: bool

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "namespace": self.namespace,
            "objects": list(self.objects),
            "url": self.url,
            "ready": self.ready,
            **({"dry_run": True} if self.dry_run else {}),
        }

    def lines(self) -> list[str]:
        """For people."""
        done = "would be applied" if self.dry_run else "applied"
        lines = [f"{one}  {done}" for one in self.objects]
        if self.ready is not None:
            lines.append(f"{self.ready} ready at {self.url} within the cluster")
        return lines


def apply(
    cluster: Cluster,
    documents: Sequence[Document],
    *,
    namespace: str | None = None,
    architectures: Sequence[str] = (),
    gpu: str | None = None,
    wait: float = 0,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Applied:
    """Apply *documents* to *cluster*, and wait up to *wait* seconds until all replicas serve.

    With *architectures* and *gpu* a node that can run the pods must be there before anything is applied. Raises
    :class:`Unresolvable` for a missing kind, namespace or node, :class:`EngineFailed` when it never gets ready, and
    what the cluster refuses as :class:`BadInput` or :class:`NetworkError`.
    """
    place = namespace or cluster.namespace
    for document in documents:
        cluster.require(document)
    if architectures:
        _require_node(cluster, architectures, gpu, progress)
    for document in documents:
        cluster.apply(document, namespace=place, dry_run=True, force=force)
    names = tuple(f"{document['kind']}/{document['metadata']['name']}" for document in documents)
    name = documents[0]["metadata"]["name"]
    url = f"http://{name}.{place}.svc"
    if dry_run:
        return Applied(place, names, url, None, True)
    for document in documents:
        cluster.apply(document, namespace=place, dry_run=False, force=force)
    ready = None
    if wait:
        with progress.task(f"Waiting until {name} serves"):
            ready = _until_ready(cluster, documents, place, seconds=wait, progress=progress)
    return Applied(place, names, url, ready, False)


def _require_node(cluster: Cluster, architectures: Sequence[str], gpu: str | None, progress: Progress) -> None:
    """See that some node has the architecture, and the GPU resource."""
    try:
        nodes = cluster.items("v1", "Node")
    except NetworkError as error:
        if "HTTP 403" not in error.message:
            raise
        progress.note("Which nodes there are may not be asked: whether one of them can run it is seen when it starts.")
        return
    found = {str((node.get("status") or {}).get("nodeInfo", {}).get("architecture", "?")) for node in nodes}
    fitting = [
        node for node in nodes if (node.get("status") or {}).get("nodeInfo", {}).get("architecture") in architectures
    ]
    hint = "Name another image or cluster; --any-node skips this, where nodes are added when they are needed."
    if not fitting:
        raise Unresolvable(
            f"The image is for {' and '.join(architectures)}, and the cluster's {len(nodes)} nodes are "
            f"{' and '.join(sorted(found)) or 'none'}.",
            hint=hint,
        )
    if gpu is not None and not any(
        str((node.get("status") or {}).get("allocatable", {}).get(gpu, "0")) != "0" for node in fitting
    ):
        raise Unresolvable(
            f"None of the cluster's {len(fitting)} {' and '.join(architectures)} nodes offers {gpu}.",
            hint=f"Install the GPU's device plugin, or name its resource with --gpu-resource. {hint}",
        )


# -- readiness ---------------------------------------------------------------------------------------------------------


def _until_ready(
    cluster: Cluster, documents: Sequence[Document], namespace: str, *, seconds: float, progress: Progress
) -> int:
    deployment = next(document for document in documents if document["kind"] == "Deployment")
    name = deployment["metadata"]["name"]
    labels = ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())
    deadline = time.monotonic() + seconds
    told: set[str] = set()
    while True:
        found = cluster.get("apps/v1", "Deployment", name=name, namespace=namespace)
        status = found.get("status") or {}
        wanted = int((found.get("spec") or {}).get("replicas", 1))
        if _is_done(found, status, wanted):
            return wanted
        troubles, is_hopeless = _troubles(cluster, status, namespace=namespace, labels=labels)
        for trouble in troubles:
            if trouble not in told:
                progress.note(trouble)
                told.add(trouble)
        conditions = {one.get("type"): one for one in status.get("conditions") or ()}
        if (conditions.get("Progressing") or {}).get("reason") == "ProgressDeadlineExceeded":
            raise _never_ready(name, namespace, "the cluster gave it up", troubles)
        if is_hopeless:
            raise _never_ready(name, namespace, "it never will be", troubles)
        if time.monotonic() > deadline:
            raise _never_ready(name, namespace, f"not within {seconds:.0f} seconds", troubles)
        time.sleep(_POLL)


def _is_done(found: Document, status: Document, wanted: int) -> bool:
    """Whether the newest generation runs in full, and nothing of an older one is left to go first."""
    is_seen = status.get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
    counts = [int(status.get(key) or 0) for key in ("updatedReplicas", "availableReplicas", "replicas")]
    return is_seen and counts[0] >= wanted and counts[1] >= wanted and counts[2] == counts[0]


def _never_ready(name: str, namespace: str, why: str, troubles: Sequence[str]) -> CpackError:
    told = "".join(f"\n- {trouble}" for trouble in troubles)
    return EngineFailed(
        f"{name} is not ready: {why}." + (told or " Its pods tell no reason."),
        hint=f"It was applied and stays; see `kubectl -n {namespace} describe deployment,pod -l "
        f"app.kubernetes.io/instance={name}`.",
    )


def _troubles(cluster: Cluster, status: Document, *, namespace: str, labels: str) -> tuple[list[str], bool]:
    """What keeps the pods from serving, one each, and whether waiting is of no use."""
    found = [
        f"No pod can be made: {one.get('message')}"
        for one in status.get("conditions") or ()
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True"
    ]
    is_hopeless = False
    for pod in cluster.items("v1", "Pod", namespace=namespace, labels=labels):
        name, state = pod["metadata"]["name"], pod.get("status") or {}
        for one in state.get("conditions") or ():
            if one.get("type") == "PodScheduled" and one.get("status") == "False":
                found.append(f"{name} has no node: {one.get('message') or one.get('reason')}")
        for container in (*(state.get("initContainerStatuses") or ()), *(state.get("containerStatuses") or ())):
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason = str(waiting.get("reason") or "")
            if reason and reason not in _USUAL:
                found.append(f"{name}: {reason}: {_of_container(cluster, name, namespace, container, waiting)}")
                is_hopeless |= reason in _HOPELESS
            is_hopeless |= int(container.get("restartCount") or 0) >= _CRASHES
    return found, is_hopeless


def _of_container(cluster: Cluster, pod: str, namespace: str, container: Document, waiting: Document) -> str:
    """Why *container* of *pod* waits; of one that ended also how, and its last words."""
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if not ended:
        return str(waiting.get("message") or "no message")
    how = f"{ended.get('reason') or 'Error'}, exit code {ended.get('exitCode')}"
    words = cluster.last_words(pod, namespace=namespace)
    return f"it ended ({how})" + (f" and said last: {words.splitlines()[-1][:300]}" if words else "")
