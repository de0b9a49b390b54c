"""All objects of one deployment, in the order in which a cluster is given them, and the folder that Kustomize takes."""

from __future__ import annotations

from collections.abc import Sequence

from cpack_build.deploy.kubernetes.autoscaling import autoscaler, scaled_object, service_monitor
from cpack_build.deploy.kubernetes.options import Options
from cpack_build.deploy.kubernetes.traffic import ingress, network_policy, route, service
from cpack_build.deploy.kubernetes.workload import Document, deployment, disruption_budget
from cpack_build.deploy.subject import ModelVolume, Subject
from cpack_build.errors import BadImage, UsageError

__all__ = ["FILES", "as_files", "manifests"]

_KINDS = (
    "Deployment", "HorizontalPodAutoscaler", "HTTPRoute", "Ingress", "NetworkPolicy", "PodDisruptionBudget",
    "ScaledObject", "Service", "ServiceAccount", "ServiceMonitor",
)  # fmt: skip
FILES = ("kustomization.yaml", *(f"{kind.lower()}.yaml" for kind in _KINDS))
"""All that :func:`as_files` can make."""


def manifests(subject: Subject, options: Options, volumes: Sequence[ModelVolume] = ()) -> list[Document]:
    """The objects that *options* ask for. With *volumes* the models are those instead of the image's own.

    Raises :class:`UsageError`, :class:`BadImage` where image and options do not fit.
    """
    _check(subject, options, volumes)
    account, pods = deployment(subject, options, volumes)
    found = [account, network_policy(options), service(options), pods, disruption_budget(options)]
    if options.host is not None:
        found.append(route(options) if options.gateway is not None else ingress(options))
    if options.service_monitor is not None:
        found.append(service_monitor(options))
    if options.is_scaled:
        found.append(autoscaler(options) if options.autoscaler == "hpa" else scaled_object(options))
    return found


def as_files(documents: Sequence[Document]) -> dict[str, Document]:
    """*documents* by the name of their file, and the ``kustomization.yaml`` that lists them.

    https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/
    """
    files = {f"{document['kind'].lower()}.yaml": document for document in documents}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(files),
    }
    return {"kustomization.yaml": kustomization, **files}


def _check(subject: Subject, options: Options, volumes: Sequence[ModelVolume]) -> None:
    if options.gpus and subject.vendor is None:
        raise UsageError(
            f"{subject.reference} is for {subject.target}: its torch could not use a GPU.",
            hint="Leave --gpus out, or lock and build it with --target cuda… .",
        )
    if options.warm_up and subject.required:
        raise UsageError(
            f"The workflow cannot be run before somebody asks: it has no value of its own for "
            f"{', '.join(subject.required)}.",
            hint="Leave --warm-up out.",
        )
    if subject.models and not subject.has_models and not volumes:
        raise UsageError(
            f"{subject.reference} was pushed without its models.",
            hint="Mount them: --models-from REF, where `cpack-build push --models REF` has put them.",
        )
    missing = {model.sha256: model.path for model in subject.models}.keys() - {volume.sha256 for volume in volumes}
    if volumes and missing:
        paths = ", ".join(sorted(model.path for model in subject.models if model.sha256 in missing))
        raise BadImage(subject.reference, f"has models without an image of their own: {paths}")
